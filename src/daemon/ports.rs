//! Ports of this host that lead into containers: open for as long as an alias leads somewhere by them.
//!
//! ```text
//! an alias is made ─► claim: listens, clients wait ─┐
//!                                                   ▼
//! each second, and when one changes: ports of good aliases ─► opened · those of others ─► closed, their connections drained
//! ```
//!
//! A port is listened on before its alias is answered for, so that whoever is told of it can come.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::domain::alias::PortRange;
use crate::lifecycle::{HostPorts, Service};
use crate::proxy::Proxy;

/// How late the port of an alias closes that went with its container, or expired.
const LOOK_MS: Duration = Duration::from_millis(1_000);
/// How long a port is held for an alias that is being made.
const CLAIM_MS_MAX: Duration = Duration::from_millis(10_000);
/// Clients who wait to be accepted at one of them.
const BACKLOG: u32 = 128;

/// The ports.
#[derive(Debug)]
pub struct Ports {
    address: IpAddr,
    range: Option<PortRange>,
    claimed: Mutex<HashMap<NonZeroU16, (TcpListener, Instant)>>,
    changed: Notify,
}

impl Ports {
    /// At this address, of this range.
    pub fn new(address: IpAddr, range: Option<PortRange>) -> Self {
        Self { address, range, claimed: Mutex::default(), changed: Notify::new() }
    }

    fn claimed(&self) -> MutexGuard<'_, HashMap<NonZeroU16, (TcpListener, Instant)>> {
        self.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bind(&self, port: NonZeroU16) -> io::Result<TcpListener> {
        let socket = if self.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of an earlier daemon may still be remembered.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(self.address, port.get()))?;
        socket.listen(BACKLOG)
    }

    /// The listener that was claimed, or a new one.
    fn open(&self, port: NonZeroU16) -> io::Result<TcpListener> {
        match self.claimed().remove(&port) {
            Some((listener, _)) => Ok(listener),
            None => self.bind(port),
        }
    }

    /// Keeps those open that lead somewhere, until `shutdown`; then drains what is open.
    pub async fn serve(self: Arc<Self>, service: Service, proxy: Arc<Proxy>, shutdown: CancellationToken) {
        if self.range.is_none() {
            return;
        }
        let mut open = Open { proxy, doors: HashMap::new(), refused: HashSet::new(), tasks: TaskTracker::new() };
        while !shutdown.is_cancelled() {
            open.keep(&self, &service, &shutdown);
            self.claimed().retain(|_, (_, since)| since.elapsed() < CLAIM_MS_MAX);
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = self.changed.notified() => {}
                () = tokio::time::sleep(LOOK_MS) => {}
            }
        }
        open.tasks.close();
        open.tasks.wait().await;
    }
}

impl HostPorts for Ports {
    fn range(&self) -> Option<PortRange> {
        self.range
    }

    fn claim(&self, port: NonZeroU16) -> io::Result<()> {
        let listener = self.bind(port)?;
        self.claimed().insert(port, (listener, Instant::now()));
        self.look();
        Ok(())
    }

    fn look(&self) {
        self.changed.notify_one();
    }
}

/// What is open.
struct Open {
    proxy: Arc<Proxy>,
    doors: HashMap<NonZeroU16, CancellationToken>,
    /// Ports that somebody else has: told once.
    refused: HashSet<NonZeroU16>,
    tasks: TaskTracker,
}

impl Open {
    fn keep(&mut self, ports: &Ports, service: &Service, shutdown: &CancellationToken) {
        let wanted = service.open_ports();
        self.doors.retain(|port, door| {
            let stays = wanted.contains(port);
            if !stays {
                door.cancel();
            }
            stays
        });
        self.refused.retain(|port| wanted.contains(port));
        for port in wanted.into_iter().filter(|port| !self.doors.contains_key(port)).collect::<Vec<_>>() {
            match ports.open(port) {
                Ok(listener) => {
                    self.refused.remove(&port);
                    let door = shutdown.child_token();
                    self.tasks.spawn(Arc::clone(&self.proxy).serve_raw(listener, port, door.clone()));
                    self.doors.insert(port, door);
                }
                Err(error) if self.refused.insert(port) => {
                    tracing::error!(%port, %error, "a port of an alias cannot be listened on; it is tried again each second");
                }
                Err(_) => {}
            }
        }
    }
}
