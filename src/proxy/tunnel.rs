//! An upgraded connection: bytes both ways until one side ends, nothing goes for too long, or the proxy stops.

use std::io;
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::carry::{Early, carry_telling};
use super::io::ClientIo;
use super::pool::Lease;
use super::stats::Open;

/// How long both sides may take to switch after the 101 was passed on.
const SWITCH_MS_MAX: Duration = Duration::from_millis(10_000);

/// Both ends of a tunnel to be, and what it holds while it is open.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub client: OnUpgrade,
    pub upstream: OnUpgrade,
    pub idle_max: Duration,
    pub stop: CancellationToken,
    pub lease: Lease,
    pub _slot: OwnedSemaphorePermit,
    pub _open: Open,
}

impl Tunnel {
    /// Carries bytes until the end. `S` is the client's stream below [`ClientIo`].
    pub(super) async fn run<S>(self)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let container = self.lease.upstream.container;
        let stop = self.stop.clone();
        let carried = tokio::select! {
            () = stop.cancelled() => return,
            carried = self.carry::<S>() => carried,
        };
        match carried {
            Ok((up, down)) => tracing::debug!(%container, up, down, "tunnel ended"),
            Err(error) => tracing::debug!(%container, %error, "tunnel broke"),
        }
    }

    async fn carry<S>(self) -> io::Result<(u64, u64)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let both = async { tokio::try_join!(self.client, self.upstream) };
        let (client, upstream) = tokio::time::timeout(SWITCH_MS_MAX, both)
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the switch took too long"))?
            .map_err(io::Error::other)?;
        let (client, early_up) = stream_of::<ClientIo<TokioIo<S>>>(client)?;
        let (upstream, early_down) = stream_of::<TokioIo<TcpStream>>(upstream)?;
        let early = Early { up: &early_up, down: &early_down };
        let moved = |way, _bytes| self.lease.in_use.iter().for_each(|in_use| in_use.moved(way));
        carry_telling(client.into_inner().into_inner(), upstream.into_inner(), early, self.idle_max, moved).await
    }
}

/// The stream below an upgraded connection, and what was already read from it.
fn stream_of<T>(upgraded: Upgraded) -> io::Result<(T, hyper::body::Bytes)>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + 'static,
{
    match upgraded.downcast::<T>() {
        Ok(parts) => Ok((parts.io, parts.read_buf)),
        Err(_) => Err(io::Error::other("the upgraded stream is not of the kind it was made from")),
    }
}
