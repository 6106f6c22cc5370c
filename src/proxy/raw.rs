//! Raw TCP: a port of this host's that leads to one of a container. What sleeps is woken; what is said is nobody's business.
//!
//! ```text
//! client ──► server (accept) ──► who may come? (by address alone) ──► resolve ──► dial ──► carry, both ways
//!                                └────── unless the client leaves meanwhile ──────┘
//! ```
//!
//! A connection counts as an upgraded one: it keeps its container awake, and ends after as long a silence. There is room for
//! `raw_max` of them, waiting or not, and for `per_upstream_max` towards one container. A client that is refused is let go without a
//! word, as there is none that all programs understand.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::account::Account;
use super::carry::{Early, Way, carry_telling};
use super::conn::Client;
use super::forward::Visit;
use super::pool::Wants;
use super::refusal::Refusal;
use super::server::Tasks;
use super::stats::Open;
use super::{Occupancy, Proxy, Upstream, Visitor};
use crate::domain::host::Route;

/// One that comes for no page.
const VISITOR: Visitor<'static> = Visitor { path: "/", agent: "" };
/// The first pause before a port is tried again that nobody listens at yet; each further one is twice as long.
const DIAL_PAUSE_MS_FIRST: Duration = Duration::from_millis(20);
/// A client that is silent for so long is asked whether it is there, and again after each further pause, so many times: two minutes in
/// all. Programs that speak raw TCP are often silent, and a client that vanished would keep its container awake.
const KEEPALIVE_IDLE_S: u32 = 60;
const KEEPALIVE_PAUSE_S: u32 = 15;
const KEEPALIVE_PROBES: u32 = 4;

/// The way into a container.
struct Inside {
    upstream: Upstream,
    stream: TcpStream,
    in_use: Option<Box<dyn Occupancy>>,
    _slot: OwnedSemaphorePermit,
}

/// Carries one client's bytes until either side has ended, is silent for too long or is cut.
pub(super) async fn serve(proxy: Arc<Proxy>, stream: TcpStream, port: NonZeroU16, client: Client, tasks: Tasks) {
    let route = Route::Port(port);
    let mut account = Account::open_raw(&proxy, client.peer, port);
    // Also of one who leaves before it is known whether it can be reached: it may be awake by then.
    account.container = proxy.routes.container(&route);
    let sent = AtomicU64::new(0);
    let carried = tokio::select! {
        carried = carry(&proxy, stream, &route, client, &mut account, &sent) => carried,
        () = tasks.abort.cancelled() => Ok(()),
    };
    account.bytes = sent.load(Ordering::Relaxed);
    if let Err(refusal) = carried {
        tracing::debug!(peer = %client.peer, %port, %refusal, "a connection is let go");
    }
}

/// `sent`: bytes that came for the client, counted as they do.
async fn carry(
    proxy: &Proxy,
    stream: TcpStream,
    route: &Route,
    client: Client,
    account: &mut Account,
    sent: &AtomicU64,
) -> Result<(), Refusal> {
    let _place = Arc::clone(&proxy.raws).try_acquire_owned().map_err(|_| Refusal::Busy)?;
    if let Err(error) = keep_alive(&stream) {
        tracing::debug!(%error, "a client will not be asked whether it is there");
    }
    let reached = tokio::select! {
        reached = proxy.reach(route, client, account) => reached?,
        () = gone(&stream) => return Ok(()),
    };
    let Inside { upstream, stream: inside, mut in_use, _slot } = reached;
    if let Some(in_use) = &mut in_use {
        in_use.upgraded();
    }
    let _open = Open::count(&proxy.counters.tunnels);
    let moved = |way, bytes: usize| {
        if way == Way::Down {
            sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        in_use.iter().for_each(|in_use| in_use.moved(way));
    };
    let container = upstream.container;
    match carry_telling(stream, inside, Early::default(), proxy.config.tunnel_idle_ms_max, moved).await {
        Ok((up, down)) => tracing::debug!(%container, up, down, "a connection ended"),
        Err(error) => tracing::debug!(%container, %error, "a connection broke"),
    }
    Ok(())
}

fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_PAUSE_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_PROBES)
}

/// Returns when the client has left without a word. One that has said something is there until it is written to.
async fn gone(stream: &TcpStream) {
    if stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes > 0) {
        std::future::pending().await
    }
}

impl Proxy {
    /// A connection to where a route leads, for whom its container lets in.
    async fn reach(&self, route: &Route, client: Client, account: &mut Account) -> Result<Inside, Refusal> {
        if let Some(gate) = self.routes.gate(route) {
            self.guard.pass_bare(&gate, client.peer.ip())?;
        }
        let Visit { upstream, in_use, .. } = self.resolve(route, VISITOR, account).await?;
        let (_slot, _none) = self.place(client.home, &upstream, Wants::Nothing).await?;
        let stream = self.dial_patiently(&upstream).await?;
        Ok(Inside { upstream, stream, in_use, _slot })
    }

    /// A connection to a port that may open soon: somebody else may have woken the container a moment ago.
    async fn dial_patiently(&self, upstream: &Upstream) -> Result<TcpStream, Refusal> {
        let began = Instant::now();
        let mut pause = DIAL_PAUSE_MS_FIRST;
        loop {
            match self.dial(upstream).await {
                Err(Refusal::Unreachable) if began.elapsed() + pause < self.config.connect_ms_max => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                dialled => return dialled,
            }
        }
    }
}
