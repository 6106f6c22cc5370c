//! Making connections to containers, and a place on the way to one.

use std::sync::Arc;

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::pool::Connection;
use super::refusal::Refusal;
use super::{BUFFER_BYTES_MIN, Proxy, Upstream};

impl Proxy {
    /// One of the places of a container, which may be taken for a while.
    pub(super) async fn slot(&self, slots: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Refusal> {
        match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => Ok(slot),
            Err(_) => match timeout(self.config.connect_ms_max, slots.acquire_owned()).await {
                Ok(Ok(slot)) => Ok(slot),
                _ => Err(Refusal::Busy),
            },
        }
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
        builder.max_buf_size(self.config.buffer_bytes_max.max(BUFFER_BYTES_MIN));
        let (sender, driver) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Refusal::Broken)?;
        Ok(Connection::new(sender, driver.with_upgrades()))
    }
}
