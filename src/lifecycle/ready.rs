//! Whether a started container answers: its port is tried until it accepts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::ledger::Change;
use super::supervisor::Shared;
use crate::domain::{ContainerId, Init};

/// The shortest pause between two tries, in microseconds: what an open port is seen later.
const PAUSE_US_MIN: u64 = 250;
/// Tokio's timer counts milliseconds and rounds up: a pause below this many microseconds is slept by a thread.
const TIMER_US_MIN: u64 = 3_000;
/// A pause is this part of what the port has taken already: as much later it is seen, at most.
const PAUSE_PART: u32 = 10;
/// The longest pause between two tries, in milliseconds.
const PAUSE_MS_MAX: u64 = 100;
/// How long one try may take, in milliseconds: a container on this host answers or refuses at once.
const TRY_MS_MAX: u64 = 500;
/// After this the port is not tried any more, in seconds: nobody waits longer.
const TRIES_S_MAX: u64 = super::requests::WAIT_TIMEOUT_S_MAX;

/// Whether a container answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Not yet.
    Pending,
    /// Its port accepts.
    Ready,
    /// Init has ended, or another one runs, or it took too long.
    Ended,
}

/// Tries the container's port in a task of its own; the receiver sees the end.
pub fn watch(shared: Arc<Shared>, id: ContainerId) -> watch::Receiver<Readiness> {
    let (sender, receiver) = watch::channel(Readiness::Pending);
    tokio::spawn(async move {
        let end = probe(&shared, id).await;
        // Nobody waiting is no error.
        let _ = sender.send(end);
    });
    receiver
}

async fn probe(shared: &Shared, id: ContainerId) -> Readiness {
    let Some((init, address)) = target(shared, id) else { return Readiness::Ended };
    let lives = || target(shared, id).map(|(init, _)| init) == Some(init);
    if !accepts(address, Duration::from_secs(TRIES_S_MAX), lives).await {
        return Readiness::Ended;
    }
    note(shared, id, init).await;
    Readiness::Ready
}

/// Tries a port until it accepts, at most so long and for as long as `lives` says.
pub async fn accepts(address: SocketAddr, patience: Duration, lives: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < patience {
        let attempt = tokio::time::timeout(Duration::from_millis(TRY_MS_MAX), TcpStream::connect(address)).await;
        if !lives() {
            return false;
        }
        if let Ok(Ok(_connected)) = attempt {
            return true;
        }
        rest(pause(began.elapsed())).await;
    }
    false
}

async fn rest(pause: Duration) {
    if pause >= Duration::from_micros(TIMER_US_MIN) {
        return tokio::time::sleep(pause).await;
    }
    // It fails only when the daemon ends.
    let _ = tokio::task::spawn_blocking(move || std::thread::sleep(pause)).await;
}

/// A port that opens soon is seen at once; one that takes long is not tried all the while.
fn pause(elapsed: Duration) -> Duration {
    (elapsed / PAUSE_PART).clamp(Duration::from_micros(PAUSE_US_MIN), Duration::from_millis(PAUSE_MS_MAX))
}

fn target(shared: &Shared, id: ContainerId) -> Option<(Init, SocketAddr)> {
    let container = shared.ledger.directory().container(id).ok()?;
    let address = shared.address(&container)?;
    Some((container.phase.init()?, SocketAddr::from((address, container.settings.port.get()))))
}

async fn note(shared: &Shared, id: ContainerId, init: Init) {
    let noted = shared
        .ledger
        .change(id, Change::lazy("ready"), |container| {
            if container.phase.init() == Some(init) {
                container.ready_at = Some(Timestamp::now());
            }
            Ok(())
        })
        .await;
    if let Err(error) = noted {
        tracing::debug!(container = %id, error = &error as &dyn std::error::Error, "readiness is not noted");
    }
}
