//! Bytes both ways between two streams, until one side ends or nothing goes for too long.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, copy_bidirectional_with_sizes};

/// Bytes on the way in one direction.
const BUFFER_BYTES: usize = 8 * 1024;

/// Which way a byte goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the upstream: a container, a proxy of its project's.
    Up,
    /// To the client.
    Down,
}

/// What was already read from a stream's other end, and is written before anything else.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Early<'a> {
    /// Towards the upstream.
    pub up: &'a [u8],
    /// Towards the client.
    pub down: &'a [u8],
}

/// Carries bytes until both sides have ended; how many went up, and down. A side that has only stopped sending still gets the
/// other's.
///
/// # Errors
/// A side broke off, or nothing came from either for one to two times `idle_max`.
pub(crate) async fn carry<C, U>(client: C, upstream: U, early: Early<'_>, idle_max: Duration) -> io::Result<(u64, u64)>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    carry_telling(client, upstream, early, idle_max, |_, _| ()).await
}

/// As [`carry`]; calls `tell` for every piece that was read from either side, with its length in bytes.
///
/// # Errors
/// As [`carry`].
pub(crate) async fn carry_telling<C, U, T>(
    client: C,
    upstream: U,
    early: Early<'_>,
    idle_max: Duration,
    tell: T,
) -> io::Result<(u64, u64)>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
    T: Fn(Way, usize),
{
    let moved = AtomicU64::new(0);
    let count = |way, bytes| {
        moved.fetch_add(1, Ordering::Relaxed);
        tell(way, bytes);
    };
    let mut client = Watched { inner: client, way: Way::Up, read: &count };
    let mut upstream = Watched { inner: upstream, way: Way::Down, read: &count };
    let copy = async {
        upstream.write_all(early.up).await?;
        client.write_all(early.down).await?;
        copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER_BYTES, BUFFER_BYTES).await
    };
    tokio::select! {
        carried = copy => carried,
        () = silence(&moved, idle_max) => Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long")),
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

/// A stream that tells of its reads, and which way they go.
struct Watched<'a, S, F> {
    inner: S,
    way: Way,
    read: &'a F,
}

impl<S: AsyncRead + Unpin, F: Fn(Way, usize)> AsyncRead for Watched<'_, S, F> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        if bytes > 0 {
            (self.read)(self.way, bytes);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, F> AsyncWrite for Watched<'_, S, F> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, duplex};

    const IDLE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_side_that_has_said_all_still_hears_the_rest() {
        let ((mut client, near), (far, mut upstream)) = (duplex(64), duplex(64));
        let carried = tokio::spawn(async move { carry(near, far, Early { up: b"first ", down: b"" }, IDLE).await });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        upstream.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "first question");
        upstream.write_all(b"answer").await.unwrap();
        drop(upstream);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!((answer.as_str(), carried.await.unwrap().unwrap()), ("answer", (8, 6)));
    }

    #[tokio::test]
    async fn silence_ends_it() {
        let ((_client, near), (far, _upstream)) = (duplex(64), duplex(64));
        assert_eq!(carry(near, far, Early::default(), IDLE).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
