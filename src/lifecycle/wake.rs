//! Wakes containers that are asked for while they are stopped: once for everybody who waits, and not again at once where it
//! failed.
//!
//! ```text
//!  asleep ──first request──► waking ──port accepts──► awake        (frozen: thawed at once, without a place in the line)
//!    ▲                         │ more requests wait for the same end, up to a bound
//!    │                         ▼ init ended, or the start failed
//!    └─────pause over───── resting: refused at once; the pause doubles with each failure
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::drowse::Waking;
use super::error::Error;
use super::execute::Timings;
use super::ready::Readiness;
use super::room::Reserved;
use super::starts::{Full, Permit};
use super::supervisor::Shared;
use super::worker::{Command, Settled};
use crate::domain::{ContainerId, Phase, StopReason};

/// Requests that wait for one container to wake.
pub const WAITERS_MAX: usize = 512;
/// Requests that wait for any container to wake.
pub const WAITERS_TOTAL_MAX: usize = 8_192;
/// After a wake that failed the next is tried no sooner than this, in milliseconds; doubled with each failure.
const REST_MS_MIN: u64 = 1_000;
/// The longest such pause, in milliseconds.
const REST_MS_MAX: u64 = 60_000;
/// Doublings after which the pause surely is the longest.
const DOUBLINGS_MAX: u32 = 16;
/// What a wake is written down as.
pub const BY_REQUEST: &str = "request";
/// Steps that make a container's network, and those that make its process; what they took overlaps.
const NETWORK_STEPS: [&str; 3] = ["apply-rules", "attach-link", "link-up"];
const SPAWN_STEPS: [&str; 4] = ["prepare", "create-init", "limit-cgroup", "start-init"];
/// A container that stayed awake for so long is well again, in seconds.
const WELL_S: u64 = 60;

/// Why a container could not be woken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAwake {
    /// It took longer than the caller would wait; it goes on waking.
    #[error("it does not accept requests yet")]
    Late,
    /// The last start failed, or init ended before its port accepted.
    #[error("it does not stay awake: {reason}")]
    Failing {
        /// What happened, for people.
        reason: String,
        /// When the next request may try again.
        retry_after: Duration,
    },
    /// Somebody stopped or restarted it before it accepted: how it stands has to be looked at anew.
    #[error("it was stopped while it woke")]
    Interrupted,
    /// Too many wait already.
    #[error("too many requests wait for it")]
    Crowded,
    /// Too many wait for a place to start.
    #[error("too many containers wait to be woken")]
    QueueFull,
    /// The awake hold as much memory as they may, and none of them can be put to sleep.
    #[error("there is no room for it in memory")]
    NoRoom,
    /// It is not there any more, or must not run.
    #[error("it cannot be woken")]
    Never,
}

/// How a container was woken: the steps and how long each took.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Woken {
    /// The whole and its parts first, then every step; empty where it was awake by the time it was asked.
    pub timings: Timings,
}

type Outcome = Result<Woken, NotAwake>;

/// How far a wake has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Progress {
    /// Init runs.
    started: bool,
    /// `None` until it is known.
    end: Option<Outcome>,
}

/// Tells everybody who waits.
type Herald = Arc<watch::Sender<Progress>>;

/// What somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That init runs: whoever asks tries a port of his own.
    Started,
    /// That the container's port accepts.
    Ready,
}

#[derive(Debug, Clone)]
struct Failure {
    reason: String,
    count: u32,
    at: Instant,
}

impl Failure {
    /// The pause after this failure: doubled with each from the first.
    fn rest(&self) -> Duration {
        let doubled = REST_MS_MIN.saturating_mul(1 << self.count.saturating_sub(1).min(DOUBLINGS_MAX));
        Duration::from_millis(doubled.min(REST_MS_MAX))
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        (self.at + self.rest()).checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

#[derive(Debug, Default)]
struct State {
    waking: HashMap<ContainerId, Herald>,
    failed: HashMap<ContainerId, Failure>,
}

/// Which containers are being woken, and which do not stay awake.
#[derive(Debug, Default)]
pub struct Wakes {
    state: Mutex<State>,
}

/// What a request finds.
#[derive(Debug)]
enum Joined {
    /// A wake is under way.
    Waiting(watch::Receiver<Progress>),
    /// None is: the caller carries it out and tells the others.
    First(Herald),
}

impl Wakes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a container did not stay awake; how long it is left alone.
    pub fn failed(&self, id: ContainerId, reason: String, now: Instant) -> Duration {
        let mut state = self.lock();
        let count = state.failed.get(&id).map_or(0, |failure| failure.count).saturating_add(1);
        let failure = Failure { reason, count, at: now };
        let rest = failure.rest();
        state.failed.insert(id, failure);
        rest
    }

    /// How long a container that failed is left alone from now.
    pub fn rest(&self, id: ContainerId, now: Instant) -> Duration {
        self.lock().failed.get(&id).and_then(|failure| failure.left(now)).unwrap_or_default()
    }

    /// How many requests wait.
    pub fn waiters(&self) -> usize {
        self.lock().waking.values().map(|herald| herald.receiver_count()).sum()
    }

    /// Notes that a container did well, or that somebody started it by hand: its failures are forgotten.
    pub fn well(&self, id: ContainerId) {
        self.lock().failed.remove(&id);
    }

    /// Notes that init ended by itself after so long.
    pub fn exited(&self, id: ContainerId, lived: Duration, reason: String) {
        if lived >= Duration::from_secs(WELL_S) {
            self.well(id);
        } else {
            self.failed(id, reason, Instant::now());
        }
    }

    fn join(&self, id: ContainerId, now: Instant) -> Result<Joined, NotAwake> {
        let mut state = self.lock();
        if let Some(herald) = state.waking.get(&id) {
            let total: usize = state.waking.values().map(|herald| herald.receiver_count()).sum();
            if herald.receiver_count() >= WAITERS_MAX || total >= WAITERS_TOTAL_MAX {
                return Err(NotAwake::Crowded);
            }
            return Ok(Joined::Waiting(herald.subscribe()));
        }
        if let Some((failure, retry_after)) = state.failed.get(&id).and_then(|f| Some((f, f.left(now)?))) {
            return Err(NotAwake::Failing { reason: failure.reason.clone(), retry_after });
        }
        let herald = Herald::new(watch::channel(Progress::default()).0);
        state.waking.insert(id, herald.clone());
        Ok(Joined::First(herald))
    }

    fn end(&self, id: ContainerId, herald: &Herald, outcome: Outcome) {
        let mut state = self.lock();
        // It may have slept and be waking anew by now.
        if state.waking.get(&id).is_some_and(|one| Arc::ptr_eq(one, herald)) {
            state.waking.remove(&id);
        }
        drop(state);
        herald.send_replace(Progress { started: true, end: Some(outcome) });
    }

    /// Notes that a container sleeps again. A wake of it that only waits for its port to accept is over: nobody who comes now may join
    /// that, and take it for awake.
    pub fn slept(&self, id: ContainerId) {
        let mut state = self.lock();
        state.failed.remove(&id);
        let is_over = state.waking.get(&id).is_some_and(|herald| herald.borrow().started);
        let over = if is_over { state.waking.remove(&id) } else { None };
        drop(state);
        if let Some(herald) = over {
            herald.send_replace(Progress { started: true, end: Some(Err(NotAwake::Interrupted)) });
        }
    }
}

/// Wakes a container, or waits for a wake under way; at most until `deadline`, after which it goes on waking.
///
/// # Errors
/// It cannot be woken, or not in time.
pub async fn wake(shared: &Arc<Shared>, id: ContainerId, wanted: Wanted, deadline: Instant) -> Outcome {
    let mut waiting = match shared.wakes.join(id, Instant::now())? {
        Joined::Waiting(waiting) => waiting,
        Joined::First(herald) => {
            let waiting = herald.subscribe();
            let shared = shared.clone();
            // In a task of its own: it goes on when the first who asked has gone away.
            tokio::spawn(async move {
                let began = Instant::now();
                let outcome = carry_out(&shared, id, &herald).await;
                shared.deeds.woke(&outcome, began.elapsed());
                shared.wakes.end(id, &herald, outcome);
            });
            waiting
        }
    };
    let enough = |progress: &Progress| progress.end.is_some() || (wanted == Wanted::Started && progress.started);
    match tokio::time::timeout_at(deadline.into(), waiting.wait_for(enough)).await {
        Ok(Ok(progress)) => progress.end.clone().unwrap_or_else(|| Ok(Woken::default())),
        // The task ended without a word: the daemon is going down.
        Ok(Err(_closed)) => Err(NotAwake::Never),
        Err(_elapsed) => Err(NotAwake::Late),
    }
}

/// Lets a container go on that was frozen for silence. One that is stopped stays so.
///
/// # Errors
/// It does not run, or cannot be thawed.
pub async fn thaw(shared: &Arc<Shared>, id: ContainerId) -> Result<(), NotAwake> {
    let began = Instant::now();
    let outcome = match ask(shared, id, None).await {
        Ok(Waking::Asleep) => return Err(NotAwake::Never),
        Ok(Waking::Awake(settled)) => Ok(Woken { timings: settled.timings }),
        Err(error) => Err(error),
    };
    shared.deeds.woke(&outcome, began.elapsed());
    outcome.map(drop)
}

async fn carry_out(shared: &Arc<Shared>, id: ContainerId, herald: &Herald) -> Outcome {
    let mut wait = Wait { began: Instant::now(), queue: Duration::ZERO, room: Duration::ZERO };
    let (settled, _reserved) = match ask(shared, id, None).await? {
        Waking::Awake(settled) => (settled, None),
        Waking::Asleep => {
            let (settled, reserved) = start(shared, id, &mut wait).await?;
            (settled, Some(reserved))
        }
    };
    herald.send_modify(|progress| progress.started = true);
    accepted(shared, settled, wait).await
}

/// Starts a container in its project's turn, once there is room for it.
async fn start<'a>(
    shared: &'a Arc<Shared>,
    id: ContainerId,
    wait: &mut Wait,
) -> Result<(Settled, Reserved<'a>), NotAwake> {
    let container = shared.ledger.directory().container(id).map_err(|_gone| NotAwake::Never)?;
    // Its worker does not wait in the line, so that verbs reach it all the while.
    let permit = shared.starts.wake(container.project).await.map_err(|Full| NotAwake::QueueFull)?;
    let permit = permit.ok_or(NotAwake::Never)?;
    wait.queue = wait.began.elapsed();
    let reserved = shared.room.make(shared, &container).await.ok_or(NotAwake::NoRoom)?;
    wait.room = wait.began.elapsed() - wait.queue;
    match ask(shared, id, Some(permit)).await? {
        Waking::Awake(settled) => Ok((settled, reserved)),
        Waking::Asleep => Err(NotAwake::Never),
    }
}

/// What a wake waited for before it began.
#[derive(Debug, Clone, Copy)]
struct Wait {
    began: Instant,
    queue: Duration,
    room: Duration,
}

/// Has its worker wake it; without a permit only where that takes no start.
async fn ask(shared: &Arc<Shared>, id: ContainerId, permit: Option<Permit>) -> Result<Waking, NotAwake> {
    let (reply, done) = oneshot::channel();
    shared.send(id, Command::Wake { permit, reply }).map_err(|error| match error {
        // Its worker has as many commands as it may.
        Error::Busy(_) => NotAwake::Crowded,
        _ => NotAwake::Never,
    })?;
    match done.await {
        Ok(Ok(waking)) => Ok(waking),
        Ok(Err(
            error @ (Error::NotRunning(_) | Error::NotFound { .. } | Error::DeletedMeanwhile(_) | Error::ShuttingDown),
        )) => {
            tracing::info!(container = %id, error = &error as &dyn std::error::Error, "is not woken");
            Err(NotAwake::Never)
        }
        Ok(Err(error)) => {
            let retry_after = shared.wakes.failed(id, error.to_string(), Instant::now());
            Err(NotAwake::Failing { reason: error.to_string(), retry_after })
        }
        Err(_closed) => Err(NotAwake::Never),
    }
}

/// Waits until the port of a started container accepts: bounded by the probe's own end. A container that lives on without
/// accepting counts as awake: whether it answers is then between it and its clients.
async fn accepted(shared: &Shared, settled: Settled, wait: Wait) -> Outcome {
    let Settled { container, ready, timings } = settled;
    let Some(mut ready) = ready else { return Ok(Woken { timings }) };
    let started = Instant::now();
    let end = ready.wait_for(|end| *end != Readiness::Pending).await.map(|end| *end);
    let now = shared.ledger.directory().container(container.id).map_err(|_gone| NotAwake::Never)?;
    if !matches!(end, Ok(Readiness::Ready)) && now.phase.init() != container.phase.init() {
        let by_itself = matches!(now.phase, Phase::Stopped { reason: StopReason::Exited { .. } });
        let reason = now.phase.reason().filter(|_| by_itself).ok_or(NotAwake::Interrupted)?;
        // Its worker has noted the exit.
        return Err(NotAwake::Failing { retry_after: shared.wakes.rest(now.id, Instant::now()), reason });
    }
    // Nobody was woken where no step was made.
    let timings = if timings.is_empty() { timings } else { told(timings, wait, started.elapsed()) };
    Ok(Woken { timings })
}

/// What a woken response says of its wake.
fn told(steps: Timings, wait: Wait, ready: Duration) -> Timings {
    let sum =
        |names: &[&str]| steps.iter().filter(|(name, _)| names.contains(&name.as_str())).map(|(_, took)| *took).sum();
    let parts = [
        ("wake", wait.began.elapsed()),
        ("queue", wait.queue),
        ("room", wait.room),
        ("network", sum(&NETWORK_STEPS)),
        ("spawn", sum(&SPAWN_STEPS)),
        ("ready", ready),
    ];
    let parts = parts.into_iter().map(|(name, took)| (name.to_owned(), took));
    parts.chain(steps).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ContainerId = ContainerId::NIL;

    fn first(wakes: &Wakes, now: Instant) -> Herald {
        match wakes.join(ID, now) {
            Ok(Joined::First(herald)) => herald,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_wakes_and_the_others_wait_for_the_same_end() {
        let (wakes, now) = (Wakes::default(), Instant::now());
        let herald = first(&wakes, now);
        let Ok(Joined::Waiting(waiting)) = wakes.join(ID, now) else { panic!("two wakes at once") };
        wakes.end(ID, &herald, Ok(Woken::default()));
        assert_eq!(waiting.borrow().end, Some(Ok(Woken::default())));
        first(&wakes, now);
    }

    #[test]
    fn no_more_wait_than_may() {
        let (wakes, now) = (Wakes::default(), Instant::now());
        let _herald = first(&wakes, now);
        let waiting: Vec<_> = (0..WAITERS_MAX).map(|_| wakes.join(ID, now).unwrap()).collect();
        assert_eq!(wakes.join(ID, now).unwrap_err(), NotAwake::Crowded);
        drop(waiting);
        assert!(wakes.join(ID, now).is_ok());
    }

    #[test]
    fn a_container_that_fails_is_left_alone_for_longer_each_time() {
        let (wakes, mut now) = (Wakes::default(), Instant::now());
        let mut rests = Vec::new();
        for _ in 0..9 {
            let rest = wakes.failed(ID, "exit code 1".to_owned(), now);
            assert!(matches!(
                wakes.join(ID, now),
                Err(NotAwake::Failing { retry_after, .. }) if retry_after == rest
            ));
            now += rest;
            let herald = first(&wakes, now);
            wakes.end(ID, &herald, Ok(Woken::default()));
            rests.push(rest.as_millis() as u64);
        }
        assert_eq!(rests, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
        wakes.exited(ID, Duration::from_secs(WELL_S), String::new());
        assert_eq!(wakes.failed(ID, String::new(), now), Duration::from_millis(REST_MS_MIN));
    }
}
