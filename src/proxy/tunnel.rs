//! An upgraded connection: bytes both ways until one side ends, nothing goes for too long, or the proxy stops.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::io::ClientIo;
use super::pool::Lease;
use super::stats::Open;

/// Bytes on the way in one direction of a tunnel.
const TUNNEL_BUFFER_BYTES: usize = 8 * 1024;
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
        let moved = Arc::new(AtomicU64::new(0));
        let mut client = Watched { inner: client.into_inner().into_inner(), moved: Arc::clone(&moved) };
        let mut upstream = Watched { inner: upstream.into_inner(), moved: Arc::clone(&moved) };
        let copy = async {
            // What came along with the heads, before the switch.
            upstream.write_all(&early_up).await?;
            client.write_all(&early_down).await?;
            copy_bidirectional_with_sizes(&mut client, &mut upstream, TUNNEL_BUFFER_BYTES, TUNNEL_BUFFER_BYTES).await
        };
        tokio::select! {
            carried = copy => carried,
            () = silence(&moved, self.idle_max) => Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long")),
        }
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

/// Returns after one to two times `idle_max` without a byte.
async fn silence(moved: &AtomicU64, idle_max: Duration) {
    let mut seen = moved.load(Ordering::Relaxed);
    loop {
        tokio::time::sleep(idle_max).await;
        let now = moved.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
    }
}

/// A stream that counts its reads.
struct Watched<S> {
    inner: S,
    moved: Arc<AtomicU64>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if read.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
