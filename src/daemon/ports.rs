//! Ports of this host that lead into containers: open for as long as an alias leads somewhere by them.
//!
//! ```text
//! an alias is made ─► claim: listens, clients wait ─┐
//!                                                   ▼
//! each second, and when one changes: ports of good aliases ─► opened · those of others ─► closed, their connections drained
//! ```
//!
//! A port is listened on before its alias is answered for, so that whoever is told of it can come. Where it leads is asked for each
//! connection: a door does not know its alias, and stays where one alias goes and another comes.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::domain::alias::TcpPorts;
use crate::lifecycle::{HostPorts, Service};
use crate::proxy::Proxy;

/// How late the port of an alias closes that went with its container, or expired.
const LOOK_MS: Duration = Duration::from_millis(1_000);
/// How long a port is held for an alias that is being made, where nobody says what became of it.
const CLAIM_MS_MAX: Duration = Duration::from_millis(10_000);
/// How soon a port is tried again that was closed a moment ago: its listener may not be gone yet.
const AGAIN_MS: Duration = Duration::from_millis(10);
/// How long that may be.
const CLOSING_MS_MAX: Duration = Duration::from_millis(500);
/// Clients who wait to be accepted at one of them.
const BACKLOG: u32 = 128;

/// A listener that an alias will want.
#[derive(Debug)]
struct Claim {
    listener: TcpListener,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    claimed: HashMap<NonZeroU16, Claim>,
    /// Doors that are open; each closes when it is dropped.
    open: HashMap<NonZeroU16, DropGuard>,
}

/// The ports.
#[derive(Debug)]
pub struct Ports {
    address: IpAddr,
    range: Option<TcpPorts>,
    state: Mutex<State>,
    changed: Notify,
}

impl Ports {
    /// At this address, of this range.
    pub fn new(address: IpAddr, range: Option<TcpPorts>) -> Self {
        Self { address, range, state: Mutex::default(), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bind(&self, port: NonZeroU16) -> io::Result<TcpListener> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of an earlier daemon may still be remembered.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(self.address, port.get()))?;
        socket.listen(BACKLOG)
    }

    /// Keeps those open that lead somewhere, until `shutdown`; then drains what is open.
    pub async fn serve(self: Arc<Self>, service: Service, proxy: Arc<Proxy>, shutdown: CancellationToken) {
        let mut keeper =
            Keeper { ports: &self, proxy, told: HashMap::new(), closed: HashMap::new(), tasks: TaskTracker::new() };
        while !shutdown.is_cancelled() {
            let pause = keeper.keep(&service.open_ports(), &shutdown);
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        keeper.tasks.close();
        keeper.tasks.wait().await;
    }
}

impl HostPorts for Ports {
    fn range(&self) -> Option<TcpPorts> {
        self.range
    }

    fn claim(&self, port: NonZeroU16) -> io::Result<()> {
        let mut state = self.state();
        // The door of an alias that went a moment ago serves the new one as well.
        if !state.open.contains_key(&port) {
            let listener = self.bind(port)?;
            state.claimed.insert(port, Claim { listener, since: Instant::now() });
        }
        Ok(())
    }

    fn release(&self, port: NonZeroU16) {
        self.state().claimed.remove(&port);
    }

    fn is_open(&self, port: NonZeroU16) -> bool {
        let state = self.state();
        state.open.contains_key(&port) || state.claimed.contains_key(&port)
    }

    fn look(&self) {
        self.changed.notify_one();
    }
}

/// Who opens and closes them.
struct Keeper<'a> {
    ports: &'a Ports,
    proxy: Arc<Proxy>,
    /// Ports that cannot be open, and why: told once.
    told: HashMap<NonZeroU16, String>,
    closed: HashMap<NonZeroU16, Instant>,
    tasks: TaskTracker,
}

impl Keeper<'_> {
    /// Opens and closes what there is to; how long that holds.
    fn keep(&mut self, wanted: &BTreeSet<NonZeroU16>, shutdown: &CancellationToken) -> Duration {
        let mut state = self.ports.state();
        let now = Instant::now();
        state.claimed.retain(|_, claim| now - claim.since < CLAIM_MS_MAX);
        let gone: Vec<_> = state.open.keys().filter(|port| !wanted.contains(port)).copied().collect();
        for port in gone {
            // Dropped, it closes.
            state.open.remove(&port);
            self.closed.insert(port, now);
        }
        self.closed.retain(|_, at| now - *at < CLOSING_MS_MAX);
        self.told.retain(|port, _| wanted.contains(port));
        let mut pause = LOOK_MS;
        for port in wanted.iter().filter(|port| !state.open.contains_key(port)).copied().collect::<Vec<_>>() {
            match self.open(port, state.claimed.remove(&port)) {
                Ok(listener) => {
                    self.told.remove(&port);
                    let door = shutdown.child_token();
                    self.tasks.spawn(Arc::clone(&self.proxy).serve_raw(listener, port, door.clone()));
                    state.open.insert(port, door.drop_guard());
                }
                Err(_) if self.closed.contains_key(&port) => pause = AGAIN_MS,
                Err(problem) if self.told.get(&port) != Some(&problem) => {
                    tracing::error!(%port, problem, "an alias cannot be reached at its port");
                    self.told.insert(port, problem);
                }
                Err(_) => {}
            }
        }
        pause
    }

    /// A listener, if an alias may have this port.
    fn open(&self, port: NonZeroU16, claim: Option<Claim>) -> Result<TcpListener, String> {
        match (self.ports.range, claim) {
            (Some(range), Some(claim)) if range.has(port.get()) => Ok(claim.listener),
            (Some(range), None) if range.has(port.get()) => self.ports.bind(port).map_err(|error| error.to_string()),
            (Some(range), _) => Err(format!("it is none of {range} (proxy.tcp_ports)")),
            (None, _) => Err("no ports are set aside (proxy.tcp_ports)".to_owned()),
        }
    }
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
