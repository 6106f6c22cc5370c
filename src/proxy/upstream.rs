//! Making connections to containers, and a place on the way to one.

use std::sync::Arc;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::pool::{Connection, Entered, Kept, Wants};
use super::refusal::Refusal;
use super::threads::Home;
use super::{Proxy, Upstream};

impl Proxy {
    /// One of the places of a container, which may all be taken for a while, and a kept connection to it, if there is a good one.
    pub(super) async fn place(
        &self,
        home: Home,
        upstream: &Upstream,
        wants: Wants,
    ) -> Result<(OwnedSemaphorePermit, Option<Kept>), Refusal> {
        let Entered { slots, kept } = self.pool.enter(home, upstream, wants);
        let slot = match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => match timeout(self.config.connect_ms_max, slots.acquire_owned()).await {
                Ok(Ok(slot)) => slot,
                _ => return Err(Refusal::Busy),
            },
        };
        // Looked at last: what it brought while this waited is no answer to what is sent next.
        Ok((slot, kept.filter(Kept::is_good)))
    }

    /// A new connection that provably leads to this start of this container: it stood at a moment after which the
    /// address still was the container's, and an epoch never comes back.
    pub(super) async fn dial(&self, upstream: &Upstream) -> Result<TcpStream, Refusal> {
        let container = upstream.container;
        let stream = match timeout(self.config.connect_ms_max, TcpStream::connect(upstream.addr)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%container, addr = %upstream.addr, %error, "a container refused the connection");
                return Err(Refusal::Unreachable);
            }
            Err(_) => return Err(Refusal::TimedOut),
        };
        if !self.routes.is_current(upstream) {
            return Err(Refusal::NotReady("restarting".to_owned()));
        }
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        Ok(stream)
    }

    /// hyper at our end of a connection on which nothing is under way.
    pub(super) async fn speak_http(&self, stream: TcpStream) -> Result<Connection, Refusal> {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.config.buffer_bytes());
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Refusal::Broken)?;
        Ok(Connection::new(sender, driver.with_upgrades()))
    }
}
