//! Which container a URL leads to, for the proxy; one that sleeps is woken on the way.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use super::quiet::Quiet;
use crate::config;
use crate::domain::alias::{Program, Standing};
use crate::domain::host::{Alias, Route};
use crate::domain::{Container, ContainerId, PauseReason, Phase, ProxyAlias};
use crate::lifecycle::{InUse, Named, NotAwake, Service, Timings, Use, Wanted, Woken};
use crate::proxy::{Found, Gate, Occupancy, Resolution, Routes, Upstream, Visitor, Way};

/// The label of scripts' own host.
const SCRIPTS_LABEL: &str = "exec";
/// Looks at a container that a request may need: it may be awake, be woken, and by then have been put to sleep again.
const LOOKS_MAX: usize = 4;
/// How often a thaw is tried for what came by a connection, which may not come again.
const THAWS_MAX: usize = 5;
/// The pause before it is tried again.
const THAW_PAUSE_MS: Duration = Duration::from_millis(1_000);

/// The records, as the proxy sees them.
#[derive(Debug)]
pub struct Table {
    service: Service,
    waker: Arc<Waker>,
    quiet: Quiet,
    scripts: Option<ScriptsHost>,
}

/// Wakes containers away from the proxy's threads, which only serve.
#[derive(Debug)]
struct Waker {
    service: Service,
    background: Handle,
    timeout: Duration,
}

/// Somebody who uses a container by a URL or a port.
#[derive(Debug)]
struct Guest {
    in_use: InUse,
    container: ContainerId,
    waker: Arc<Waker>,
    wakes: bool,
    /// Whether it is being thawed for this guest; only of one who has a connection.
    rousing: Option<Arc<AtomicBool>>,
}

/// The host at which scripts answer, and where they are asked.
#[derive(Debug)]
struct ScriptsHost {
    name: Alias,
    addr: SocketAddr,
}

/// Where a request goes, before anybody asked whether it can.
struct Place {
    container: Arc<Container>,
    port: NonZeroU16,
    path: Option<String>,
    /// Whether a visitor by this way wakes it.
    wakes: bool,
}

/// What a container's phase means to a request.
enum State {
    Awake(Upstream),
    /// Stopped, or not yet ready.
    Asleep,
    Shut(Resolution),
}

impl Table {
    /// Over this service, which does its work on this runtime.
    pub fn new(service: Service, background: Handle, config: &config::Proxy) -> Self {
        let timeout = Duration::from_secs(config.wake_timeout_s.into());
        let waker = Arc::new(Waker { service: service.clone(), background, timeout });
        Self { service, waker, quiet: Quiet::new(&config.quiet), scripts: None }
    }

    /// With a host of scripts' own, which are asked at this address. A container's alias of that name leads nowhere then.
    pub fn with_scripts(mut self, addr: SocketAddr) -> Self {
        self.scripts = SCRIPTS_LABEL.parse().ok().map(|name| ScriptsHost { name, addr });
        self
    }

    /// Where scripts are asked, if this is their host.
    fn scripts_at(&self, route: &Route) -> Option<Upstream> {
        let host = self.scripts.as_ref()?;
        let is_theirs = matches!(route, Route::Alias(alias) if *alias == host.name);
        is_theirs.then_some(Upstream { container: ContainerId::NIL, epoch: 0, addr: host.addr })
    }

    /// The container and the port that a host names, and another path where it leads to one.
    fn find(&self, route: &Route, asked: &str) -> Result<Place, Resolution> {
        match route {
            Route::Alias(alias) => match self.service.named(alias).ok_or(Resolution::Unknown)? {
                Named::Own(container) => {
                    Ok(Place { port: container.settings.port, container, path: None, wakes: true })
                }
                // It is reached at its port.
                Named::Further(alias, _) if alias.listen_port().is_some() => Err(Resolution::Unknown),
                Named::Further(alias, container) => lead(&alias, container, asked),
            },
            Route::Domain(domain) => {
                let (alias, container) = self.service.at_domain(domain).ok_or(Resolution::Unknown)?;
                lead(&alias, container, asked)
            }
            Route::Port(port) => {
                let (alias, container) = self.service.at_port(*port).ok_or(Resolution::Unknown)?;
                lead(&alias, container, asked)
            }
            Route::Canonical { project, container, port } => {
                let container = self.service.container(*container).map_err(|_| Resolution::Unknown)?;
                let is_its = container.project == *project;
                let place = Place { container, port: *port, path: None, wakes: true };
                is_its.then_some(place).ok_or(Resolution::Unknown)
            }
        }
    }

    fn upstream(&self, container: &Container, port: NonZeroU16) -> Option<Upstream> {
        let address = self.service.address(container)?;
        // Each start has a later time than the one before; a clock set back would only cost a retry.
        let epoch = container.started_at?.as_microsecond().unsigned_abs();
        Some(Upstream { container: container.id, epoch, addr: SocketAddr::from((address, port.get())) })
    }

    /// `woken`: it was just said to be awake, whether or not its own port accepts.
    fn state(&self, container: &Container, port: NonZeroU16, closing: bool, woken: bool) -> State {
        let status = || container.status().to_string();
        let wakes = container.settings.wake_on_request;
        let goes = woken || !wakes || container.ready_at.is_some() || port != container.settings.port;
        match &container.phase {
            _ if container.receipt.is_some() => State::Shut(Resolution::Unknown),
            Phase::Running { .. } if closing => State::Asleep,
            Phase::Running { .. } if goes => match self.upstream(container, port) {
                Some(upstream) => State::Awake(upstream),
                None => State::Shut(Resolution::NotRunning { status: status() }),
            },
            Phase::Running { .. }
            | Phase::Stopped { .. }
            | Phase::Starting
            | Phase::Stopping { .. }
            | Phase::Paused { reason: PauseReason::Idle, .. }
                if wakes =>
            {
                State::Asleep
            }
            Phase::Creating | Phase::Starting => State::Shut(Resolution::NotReady { status: status() }),
            _ => State::Shut(Resolution::NotRunning { status: status() }),
        }
    }

    /// The container where it is awake, as nearly always; it is in use for as long as the answer is held.
    fn awake(&self, id: ContainerId, port: NonZeroU16, is_quiet: bool) -> Result<Found, Guest> {
        let in_use = self.service.enter(id, if is_quiet { Use::Probe } else { Use::Request });
        let waker = Arc::clone(&self.waker);
        let guest = Guest { in_use, container: id, waker, wakes: !is_quiet, rousing: None };
        // The door before the record: a sleep writes the record before it opens the door again.
        let closing = guest.in_use.is_closing();
        match self.service.container(id).map(|now| self.state(&now, port, closing, false)) {
            Ok(State::Awake(upstream)) => Ok(led_to(upstream, guest, Vec::new())),
            _ => Err(guest),
        }
    }

    /// Waits until the container is awake.
    async fn wake(&self, port: NonZeroU16, guest: Guest) -> Found {
        let id = guest.container;
        let mut woken = None;
        for _look in 0..LOOKS_MAX {
            let closing = guest.in_use.is_closing();
            let Ok(container) = self.service.container(id) else { return Resolution::Unknown.into() };
            match self.state(&container, port, closing, woken.is_some()) {
                State::Awake(upstream) => {
                    if woken.is_some() && port != container.settings.port {
                        // Whether it does is then seen by the connection itself.
                        let _accepts = self.service.accepts(upstream.addr, self.waker.timeout).await;
                    }
                    return led_to(upstream, guest, woken.unwrap_or_default());
                }
                State::Shut(resolution) => return resolution.into(),
                State::Asleep if !guest.wakes => return Resolution::Asleep.into(),
                State::Asleep => {
                    let wanted = if port == container.settings.port { Wanted::Ready } else { Wanted::Started };
                    match self.waker.wake(id, wanted).await {
                        Ok(done) => woken = Some(done.timings),
                        Err(NotAwake::Interrupted) => {}
                        Err(error) => return refused(&container, error).into(),
                    }
                }
            }
        }
        Resolution::NotReady { status: "starting".to_owned() }.into()
    }
}

/// Where an alias leads, if it does now.
fn lead(alias: &ProxyAlias, container: Arc<Container>, asked: &str) -> Result<Place, Resolution> {
    match alias.standing(Timestamp::now()) {
        Standing::Good => Ok(Place {
            port: alias.port.unwrap_or(container.settings.port),
            container,
            path: alias.path_for(asked).map(ToString::to_string),
            wakes: !matches!(alias.program, Program::Tcp { wakes: false, .. }),
        }),
        Standing::Disabled => Err(Resolution::Disabled),
        Standing::Expired => Err(Resolution::Expired),
    }
}

fn led_to(upstream: Upstream, guest: Guest, woken: Timings) -> Found {
    Found { woken, in_use: Some(Box::new(guest)), ..Resolution::Upstream(upstream).into() }
}

fn refused(container: &Container, error: NotAwake) -> Resolution {
    tracing::info!(container = %container.id, %error, "a request could not wake it");
    match error {
        NotAwake::Late | NotAwake::Interrupted => Resolution::NotReady { status: "starting".to_owned() },
        NotAwake::Failing { retry_after, .. } => Resolution::Failing { retry_after },
        NotAwake::Crowded => Resolution::Crowded,
        NotAwake::QueueFull => Resolution::QueueFull,
        NotAwake::NoRoom => Resolution::NoRoom,
        NotAwake::Never => Resolution::NotRunning { status: container.status().to_string() },
    }
}

impl Waker {
    async fn wake(&self, id: ContainerId, wanted: Wanted) -> Result<Woken, NotAwake> {
        let (service, timeout) = (self.service.clone(), self.timeout);
        let waking = self.background.spawn(async move { service.wake(id, wanted, timeout).await });
        // The daemon is going down where there is no answer.
        AbortOnDropHandle::new(waking).await.unwrap_or(Err(NotAwake::Never))
    }

    /// Thaws it, and tries again where that fails. One that is stopped by then stays so: the connection that this is for has ended with it.
    async fn thaw(&self, id: ContainerId) {
        for _try in 0..THAWS_MAX {
            match self.service.thaw(id).await {
                Ok(()) | Err(NotAwake::Never) => return,
                Err(error) => {
                    tracing::info!(container = %id, %error, "it cannot be thawed for what came by a connection")
                }
            }
            tokio::time::sleep(THAW_PAUSE_MS).await;
        }
    }
}

impl Guest {
    /// Whether it was frozen for silence while this guest's connection stayed open, or is about to be.
    fn is_frozen(&self) -> bool {
        let closing = self.in_use.is_closing();
        let frozen = |container: Arc<Container>| {
            let is_idle = matches!(container.phase, Phase::Paused { reason: PauseReason::Idle, .. });
            (is_idle || closing) && container.settings.wake_on_request
        };
        self.waker.service.container(self.container).is_ok_and(frozen)
    }

    /// Has it thawed for what this guest sends, which waits in a socket until then.
    fn rouse(&self) {
        let Some(rousing) = self.rousing.as_ref().filter(|_| self.wakes && self.is_frozen()) else { return };
        if rousing.swap(true, Ordering::SeqCst) {
            return;
        }
        let (waker, rousing, id) = (Arc::clone(&self.waker), Arc::clone(rousing), self.container);
        self.waker.background.spawn(async move {
            waker.thaw(id).await;
            rousing.store(false, Ordering::SeqCst);
        });
    }
}

impl Occupancy for Guest {
    fn upgraded(&mut self) {
        self.in_use.become_use(Use::Connection);
        self.rousing = Some(Arc::default());
    }

    fn moved(&self, way: Way) {
        self.in_use.stir();
        if way == Way::Up {
            self.rouse();
        }
    }
}

#[async_trait]
impl Routes for Table {
    fn gate(&self, route: &Route) -> Option<Gate> {
        if self.scripts_at(route).is_some() {
            return None;
        }
        // Where it leads nowhere now, whoever resolves it tells so.
        let Place { container, port, .. } = self.find(route, "/").ok()?;
        container.settings.access.as_ref()?;
        Some(Gate { container, port: port.get() })
    }

    fn glance(&self, route: &Route, visitor: Visitor<'_>) -> Option<Found> {
        if self.scripts_at(route).is_some() {
            return None;
        }
        let Place { container, port, path, wakes } = self.find(route, visitor.path).ok()?;
        if container.settings.access.is_some() {
            return None;
        }
        let is_quiet = !wakes || self.quiet.matches(visitor.path, visitor.agent);
        let found = self.awake(container.id, port, is_quiet).ok()?;
        Some(Found { container: Some(container.id), path, ..found })
    }

    async fn resolve(&self, route: &Route, visitor: Visitor<'_>) -> Found {
        if let Some(upstream) = self.scripts_at(route) {
            return Resolution::Upstream(upstream).into();
        }
        match self.find(route, visitor.path) {
            Ok(Place { container, port, path, wakes }) => {
                let id = container.id;
                let is_quiet = !wakes || self.quiet.matches(visitor.path, visitor.agent);
                let found = match self.awake(id, port, is_quiet) {
                    Ok(found) => found,
                    Err(guest) => {
                        // A future of its own: a wake's is large, and this one is made for every request.
                        Box::pin(self.wake(port, guest)).await
                    }
                };
                Found { container: Some(id), path, ..found }
            }
            Err(resolution) => resolution.into(),
        }
    }

    fn container(&self, route: &Route) -> Option<ContainerId> {
        self.find(route, "/").ok().map(|place| place.container.id)
    }

    fn is_known(&self, route: &Route) -> bool {
        self.scripts_at(route).is_some() || !matches!(self.find(route, "/"), Err(Resolution::Unknown))
    }

    fn is_current(&self, upstream: &Upstream) -> bool {
        if self.scripts.as_ref().is_some_and(|host| host.addr == upstream.addr) {
            return true;
        }
        let Ok(container) = self.service.container(upstream.container) else { return false };
        let running = matches!(container.phase, Phase::Running { .. }) && container.receipt.is_none();
        let port = NonZeroU16::new(upstream.addr.port());
        running && port.and_then(|port| self.upstream(&container, port)) == Some(*upstream)
    }
}

#[cfg(test)]
#[path = "routes_tests.rs"]
mod tests;
