//! The reverse proxy in front of the tenants: the Host says which container, the bytes go there and back.
//!
//! ```text
//! client ──► server (accept) ──► tls ──► conn ─► plain (nearly all requests of HTTP/1.1) ─────────────┐
//!                                         │        │ from the first other one on                      ▼
//!                                         └► hyper (HTTP/1.1 and 2) ──► forward (Host → Upstream) ──► pool ──► container
//!                                                                        │ headers: hop-by-hop off, forwarded on
//!                                                                        │ body: streamed, back-pressure kept
//!                                                                        └ 101 ──► tunnel
//! ```
//!
//! Invariants
//! - No connection of one tenant ever carries another's bytes. Addresses are reused, so a pooled connection belongs
//!   to (container, epoch, address), and a new one counts only after [`Routes::is_current`] confirmed that the
//!   address still was that container's after the connection stood.
//! - A body is never collected: a chunk is read from one side only when the other can take it.
//! - A message is never passed on as it was framed: both sides are parsed and written anew, so the two ends cannot
//!   disagree about where a message ends.
//! - Every wait, buffer and count is bounded by a field of [`ProxyConfig`] or a named constant.
//!
//! A head that is no HTTP at all, or far above the bounds, is answered by hyper itself: 400, 414 or 431 without a
//! body and without a request id. Interim responses other than 100 are not passed on.
//!
//! A container that sleeps is woken in [`Routes::resolve`], which may take its time: requests wait for it as a queue of
//! futures, bounded by who wakes.
//!
//! HTTP/2 ends here: containers are spoken to in HTTP/1.1. What only HTTP/1.1 has (upgrades, `Expect`) is of its clients alone; one of
//! HTTP/2 that expects 100 is not told it, since hyper cannot, and sends after its own short wait (RFC 9110 §10.1.1).

mod access;
mod account;
mod body;
pub(crate) mod carry;
mod challenges;
mod conn;
mod forward;
mod guard;
mod headers;
mod io;
mod plain;
mod pool;
mod raw;
mod refusal;
mod server;
mod stats;
#[cfg(test)]
mod tests;
mod threads;
pub mod tls;
mod tunnel;
mod upstream;

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::domain::ContainerId;

pub use crate::domain::host::{Alias, AliasError, HostError, HostNames, HostNamesError, Route, Scheme};
pub use access::AccessQueue;
pub use carry::Way;
pub use challenges::{Challenges, Showing};
pub use guard::{Gate, TrustedProxies};
pub use stats::Stats;

/// hyper's smallest buffer; a smaller `buffer_bytes_max` is taken for this.
const BUFFER_BYTES_MIN: usize = 8 * 1024;

/// Where a request goes: one start of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// The container.
    pub container: ContainerId,
    /// Which of its starts; goes up with each, and never down.
    pub epoch: u64,
    /// Where its server listens.
    pub addr: SocketAddr,
}

/// What is behind a route at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resolution {
    /// A container that takes requests.
    Upstream(Upstream),
    /// No such alias, container or port.
    Unknown,
    /// A container that somebody must start first; its status in a word, for the client.
    NotRunning {
        /// The container's status, such as `stopped`.
        status: String,
    },
    /// A container that will take requests by itself soon.
    NotReady {
        /// The container's status, such as `starting`.
        status: String,
    },
    /// A container that does not stay up; it is left alone for a while.
    Failing {
        /// When the next request may start it again.
        retry_after: Duration,
    },
    /// As many requests wait for the container as may.
    Crowded,
    /// As many containers wait to be woken as may.
    QueueFull,
    /// A container that cannot be woken because there is no room in memory for it.
    NoRoom,
    /// An alias that was switched off.
    Disabled,
    /// An alias whose time is over.
    Expired,
    /// A container that sleeps, asked for by somebody whom it is not woken for.
    Asleep,
}

/// What [`Routes::resolve`] found.
#[derive(Debug)]
pub struct Found {
    /// Where the request goes.
    pub resolution: Resolution,
    /// Whose URL was asked for, also where the request does not get there.
    pub container: Option<ContainerId>,
    /// The path the request goes to, where that is not the one it asked for: absolute, and a good one (RFC 3986 §3.3).
    pub path: Option<String>,
    /// The steps of waking the container, where this request had to wait for that, and how long each took.
    pub woken: Vec<(String, Duration)>,
    /// Held until the exchange, or the connection it was upgraded to, has ended: until then the container is in use.
    pub in_use: Option<Box<dyn Occupancy>>,
}

impl From<Resolution> for Found {
    fn from(resolution: Resolution) -> Self {
        Self { resolution, container: None, path: None, woken: Vec::new(), in_use: None }
    }
}

/// A container's being used by one exchange, for as long as this is held.
pub trait Occupancy: fmt::Debug + Send + Sync {
    /// The exchange was upgraded to a connection.
    fn upgraded(&mut self);
    /// The connection carries bytes. Called for each piece, before it is passed on: must be quick.
    fn moved(&self, way: Way);
}

/// What is known of a request before it is known where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Visitor<'a> {
    /// The target's path, as it came.
    pub path: &'a str,
    /// The `User-Agent`; empty where there is none or it is no text.
    pub agent: &'a str,
}

/// Who knows what runs where: the floor below, or a table in a test.
#[async_trait]
pub trait Routes: Send + Sync + 'static {
    /// Where not everybody may open what is behind this route: who may. Called for each request before [`Routes::resolve`], which is
    /// not called for whom this refuses.
    fn gate(&self, _route: &Route) -> Option<Gate> {
        None
    }

    /// What [`Routes::gate`] and [`Routes::resolve`] would say, where one look tells: everybody may open what is behind this route, and it
    /// takes requests now. `None` says nothing, and both are asked.
    fn glance(&self, _route: &Route, _visitor: Visitor<'_>) -> Option<Found> {
        None
    }

    /// What is behind this route. Called once for each request; may wait, within the proxy's `resolve_ms_max`.
    async fn resolve(&self, route: &Route, visitor: Visitor<'_>) -> Found;

    /// Whose route it is, whether or not anybody gets there.
    fn container(&self, route: &Route) -> Option<ContainerId>;

    /// Whether a route leads somewhere, without waking anything.
    fn is_known(&self, route: &Route) -> bool;

    /// Whether this very start still runs at this address. Called after a connection stood and before a byte is
    /// sent on it; must read the same state that decides when an address may be given to another container.
    fn is_current(&self, upstream: &Upstream) -> bool;
}

/// How clients of a listener reach it, as containers are told.
#[derive(Debug, Clone, Copy)]
pub struct Door {
    /// `X-Forwarded-Proto`.
    pub scheme: Scheme,
    /// Where clients are sent instead: `https` at this port. No container is asked, or woken.
    pub https_port: Option<u16>,
}

/// The bounds of a proxy. Times are `Duration`s in whole milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct ProxyConfig {
    /// Threads that serve clients; at least one.
    pub threads: usize,
    /// Bytes of a request's target and headers.
    pub header_bytes_max: usize,
    /// Fields of a request; at most 100.
    pub header_count_max: usize,
    /// Bytes buffered for one direction of one connection; at least 8 KiB. A head larger than this gets hyper's bare 431.
    pub buffer_bytes_max: usize,
    /// From the first byte of a head, or the accept, to its end.
    pub header_read_ms_max: Duration,
    /// Between two requests of a client's connection.
    pub keep_alive_idle_ms_max: Duration,
    /// Without a byte of a request's body while the container would take one.
    pub request_body_idle_ms_max: Duration,
    /// Without a byte taken by the client.
    pub write_stall_ms_max: Duration,
    /// For [`Routes::resolve`].
    pub resolve_ms_max: Duration,
    /// For a connection to a container, and for a free slot to it.
    pub connect_ms_max: Duration,
    /// From the last byte the container took of a request to the head of its response.
    pub response_header_ms_max: Duration,
    /// From one byte of a response's body to the next: a stream that says nothing for longer is taken for dead.
    pub response_body_idle_ms_max: Duration,
    /// Without a byte in a tunnel, either way.
    pub tunnel_idle_ms_max: Duration,
    /// For open exchanges and tunnels after a shutdown was asked.
    pub drain_ms_max: Duration,
    /// Connections of clients; more wait in the listener's backlog.
    pub connections_max: usize,
    /// Requests open at once on one connection of HTTP/2.
    pub streams_max: u32,
    /// Streams that a client of HTTP/2 opened and reset before they were looked at; beyond it, its connection ends.
    pub resets_max: usize,
    /// Streams of one connection of HTTP/2 that ended in the client's error; beyond it, its connection ends.
    pub stream_errors_max: usize,
    /// Bytes of one request's body that a client of HTTP/2 may send before the container took any.
    pub stream_window_bytes: u32,
    /// The same for all of its requests: what is held in memory for one connection.
    pub connection_window_bytes: u32,
    /// Upgraded connections.
    pub tunnels_max: usize,
    /// Connections of raw TCP, also those that wait for their container.
    pub raw_max: usize,
    /// Requests and tunnels open towards one container.
    pub per_upstream_max: usize,
    /// Idle connections kept to one container: as many as it may have open. With fewer, a busy one's connections are closed and made
    /// anew all the time, and the kernel remembers each as a flow of the tenant's for minutes, of which it has a bounded number.
    pub idle_per_upstream_max: usize,
    /// Idle connections kept to all containers.
    pub idle_upstreams_max: usize,
    /// How long an idle connection to a container is kept: below the 5 s after which common servers (Node.js) close
    /// theirs, so that the proxy is the one who closes.
    pub upstream_idle_ms_max: Duration,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: TrustedProxies,
    /// Whether a line of each request is left in [`Proxy::access`]; somebody has to take them.
    pub access_log: bool,
}

impl ProxyConfig {
    /// Bytes buffered for one direction of a connection of HTTP/1.1.
    fn buffer_bytes(&self) -> usize {
        self.buffer_bytes_max.max(BUFFER_BYTES_MIN)
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            threads: 1,
            header_bytes_max: 32 * 1024,
            header_count_max: 96,
            buffer_bytes_max: 64 * 1024,
            header_read_ms_max: Duration::from_millis(10_000),
            keep_alive_idle_ms_max: Duration::from_millis(75_000),
            request_body_idle_ms_max: Duration::from_millis(60_000),
            write_stall_ms_max: Duration::from_millis(60_000),
            resolve_ms_max: Duration::from_millis(60_000),
            connect_ms_max: Duration::from_millis(5_000),
            response_header_ms_max: Duration::from_millis(60_000),
            response_body_idle_ms_max: Duration::from_millis(3_600_000),
            tunnel_idle_ms_max: Duration::from_millis(3_600_000),
            drain_ms_max: Duration::from_millis(10_000),
            connections_max: 8_192,
            streams_max: 128,
            resets_max: 32,
            stream_errors_max: 256,
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 1024 * 1024,
            tunnels_max: 4_096,
            raw_max: 2_048,
            per_upstream_max: 1_024,
            idle_per_upstream_max: 1_024,
            idle_upstreams_max: 4_096,
            upstream_idle_ms_max: Duration::from_millis(4_000),
            trusted_proxies: TrustedProxies::default(),
            access_log: false,
        }
    }
}

/// The proxy: names, routes, bounds, and the connections it holds. Served on any number of listeners.
pub struct Proxy {
    names: HostNames,
    routes: Arc<dyn Routes>,
    config: ProxyConfig,
    pool: Arc<pool::Pool>,
    connections: Arc<Semaphore>,
    tunnels: Arc<Semaphore>,
    raws: Arc<Semaphore>,
    counters: stats::Counters,
    guard: guard::Guard,
    challenges: OnceLock<Arc<Challenges>>,
    access: AccessQueue,
    threads: threads::Threads,
}

impl Proxy {
    /// A proxy for these names and routes.
    ///
    /// # Errors
    /// Its threads cannot be started.
    pub fn new(names: HostNames, routes: Arc<dyn Routes>, config: ProxyConfig) -> std::io::Result<Arc<Self>> {
        let threads = threads::Threads::start(config.threads)?;
        let bounds = pool::PoolBounds {
            per_upstream_max: config.per_upstream_max,
            idle_per_upstream_max: config.idle_per_upstream_max,
            idle_max: config.idle_upstreams_max,
            idle_for_max: config.upstream_idle_ms_max,
        };
        Ok(Arc::new(Self {
            names,
            routes,
            config,
            pool: Arc::new(pool::Pool::new(bounds, threads.count())),
            connections: Arc::new(Semaphore::new(config.connections_max)),
            tunnels: Arc::new(Semaphore::new(config.tunnels_max)),
            raws: Arc::new(Semaphore::new(config.raw_max)),
            counters: stats::Counters::default(),
            guard: guard::Guard::new(),
            challenges: OnceLock::new(),
            access: AccessQueue::default(),
            threads,
        }))
    }

    /// Answers ACME's challenges itself, under every host: nobody behind it is asked for them.
    pub fn answer_challenges(&self, challenges: Arc<Challenges>) {
        // The first ones stay; there is one daemon, which says so once.
        let _ = self.challenges.set(challenges);
    }

    /// Closes the idle connections to a container, as when it stops. Not needed for safety (the epoch is), only so
    /// that nothing is held open to a container that is gone.
    pub fn forget(&self, container: ContainerId) {
        self.pool.forget(container);
    }

    /// What waits to be written to access logs.
    pub const fn access(&self) -> &AccessQueue {
        &self.access
    }

    /// What is open now.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.counters.connections.load(Ordering::Relaxed),
            exchanges: self.counters.exchanges.load(Ordering::Relaxed),
            tunnels: self.counters.tunnels.load(Ordering::Relaxed),
            idle_upstreams: self.pool.idle_total(),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("names", &self.names).field("stats", &self.stats()).finish_non_exhaustive()
    }
}
