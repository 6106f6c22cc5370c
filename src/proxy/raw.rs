//! Raw TCP: a port of this host's that leads to one of a container. What sleeps is woken; what is said is nobody's business.
//!
//! ```text
//! client ──► server (accept) ──► who may come? (by address alone) ──► resolve ──► dial ──► carry, both ways
//! ```
//!
//! A connection counts as an upgraded one: it keeps its container awake, has the tunnels' bounds, and ends with them. A client that is
//! refused is let go without a word, as there is none that all programs understand.

use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::carry::{Early, carry_telling};
use super::conn::Client;
use super::pool::Wants;
use super::refusal::Refusal;
use super::server::Tasks;
use super::stats::Open;
use super::{Found, Occupancy, Proxy, Upstream, Visitor};
use crate::domain::host::Route;

/// One that comes for no page.
const VISITOR: Visitor<'static> = Visitor { path: "/", agent: "" };

/// Carries one client's bytes until either side has ended, is silent for too long or is cut.
pub(super) async fn serve(proxy: Arc<Proxy>, stream: TcpStream, route: Route, client: Client, tasks: Tasks) {
    let carried = tokio::select! {
        carried = carry(&proxy, stream, &route, client) => carried,
        () = tasks.abort.cancelled() => return,
    };
    if let Err(refusal) = carried {
        tracing::debug!(peer = %client.peer, ?route, %refusal, "a connection is let go");
    }
}

async fn carry(proxy: &Proxy, stream: TcpStream, route: &Route, client: Client) -> Result<(), Refusal> {
    let _tunnel = Arc::clone(&proxy.tunnels).try_acquire_owned().map_err(|_| Refusal::TunnelsFull)?;
    let (upstream, mut in_use) = proxy.reach(route, client).await?;
    let (_slot, _none) = proxy.place(client.home, &upstream, Wants::Nothing).await?;
    let inside = proxy.dial(&upstream).await?;
    if let Some(in_use) = &mut in_use {
        in_use.upgraded();
    }
    let _open = Open::count(&proxy.counters.tunnels);
    let moved = || in_use.iter().for_each(|in_use| in_use.moved());
    let container = upstream.container;
    match carry_telling(stream, inside, Early::default(), proxy.config.tunnel_idle_ms_max, moved).await {
        Ok((up, down)) => tracing::debug!(%container, up, down, "a connection ended"),
        Err(error) => tracing::debug!(%container, %error, "a connection broke"),
    }
    Ok(())
}

impl Proxy {
    /// Where a route leads, for whom its container lets in.
    async fn reach(&self, route: &Route, client: Client) -> Result<(Upstream, Option<Box<dyn Occupancy>>), Refusal> {
        if let Some(gate) = self.routes.gate(route) {
            self.guard.pass_bare(&gate, client.peer.ip())?;
        }
        let found = timeout(self.config.resolve_ms_max, self.routes.resolve(route, VISITOR)).await;
        let Found { resolution, in_use, .. } = found.map_err(|_| Refusal::NotReady("starting".to_owned()))?;
        Ok((resolution.upstream()?, in_use))
    }
}
