//! A client's byte stream with its waits bounded.
//!
//! hyper has one time-out for a head and the idle time before it; a public edge wants them apart, and wants one for
//! a peer that takes no bytes. They live here, below HTTP:
//!
//! ```text
//! accepted ─► head (first byte … whole head) ─► busy (an exchange is open: no read bound here) ─► idle ─► head …
//! ```
//!
//! A timer is armed lazily: the deadline is a plain instant, and the sleep behind it is only moved when it fires
//! early, so a request costs no timer operation.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use tokio::time::{Instant, Sleep};

/// Bytes of a refused body that are read and thrown away, so that the client gets to see the answer.
const LINGER_BYTES_MAX: usize = 1 << 20;
/// How long a refused body is read and thrown away.
const LINGER_MS_MAX: Duration = Duration::from_millis(2_000);
/// How much of it at once.
const LINGER_CHUNK_BYTES: usize = 8 * 1024;

/// A deadline that may move often and fires rarely.
#[derive(Debug, Default)]
pub(super) struct Deadline {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(super) fn set_after(&mut self, wait: Duration) {
        self.at = Some(Instant::now() + wait);
    }

    pub(super) fn clear(&mut self) {
        self.at = None;
    }

    pub(super) fn is_set(&self) -> bool {
        self.at.is_some()
    }

    /// Ready when the deadline has passed; pending, with the task to be woken, when it has not or none is set.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

/// What the exchanges on a connection tell the stream below them.
#[derive(Debug, Default)]
pub(super) struct ConnState {
    /// A request was read and its response is not finished.
    in_exchange: AtomicBool,
    /// A request's body was left unread: closing at once would reset the connection and lose the answer.
    must_linger: AtomicBool,
    /// The connection's task, when it waits within an exchange.
    waker: AtomicWaker,
}

impl ConnState {
    pub(super) fn begin_exchange(&self) {
        self.in_exchange.store(true, Ordering::Release);
    }

    /// Wakes the connection's task: hyper does not look at the stream again after a response, and the idle time
    /// must begin.
    pub(super) fn end_exchange(&self) {
        self.in_exchange.store(false, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn linger(&self) {
        self.must_linger.store(true, Ordering::Release);
    }
}

/// The bounds of [`ClientIo`].
#[derive(Debug, Clone, Copy)]
pub(super) struct IoBounds {
    pub head: Duration,
    pub idle: Duration,
    pub write_stall: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Busy,
    Idle,
}

/// A client's stream, bounded.
#[derive(Debug)]
pub(super) struct ClientIo<S> {
    inner: S,
    state: Arc<ConnState>,
    bounds: IoBounds,
    phase: Phase,
    read_by: Deadline,
    write_by: Deadline,
    /// Set once the write side is shut and the rest is being thrown away: what may still be.
    lingering: Option<usize>,
}

impl<S> ClientIo<S> {
    pub(super) fn new(inner: S, state: Arc<ConnState>, bounds: IoBounds) -> Self {
        let mut read_by = Deadline::default();
        read_by.set_after(bounds.head);
        Self { inner, state, bounds, phase: Phase::Head, read_by, write_by: Deadline::default(), lingering: None }
    }

    /// The stream itself, for what follows an upgrade.
    pub(super) fn into_inner(self) -> S {
        self.inner
    }

    fn watch_read(&mut self, got_bytes: bool, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Registered before the look, so that an end in between is not missed.
        self.state.waker.register(cx.waker());
        if self.state.in_exchange.load(Ordering::Acquire) {
            self.phase = Phase::Busy;
            self.read_by.clear();
        } else if got_bytes && self.phase != Phase::Head {
            self.phase = Phase::Head;
            self.read_by.set_after(self.bounds.head);
        } else if !got_bytes && self.phase == Phase::Busy {
            self.phase = Phase::Idle;
            self.read_by.set_after(self.bounds.idle);
        }
        if got_bytes {
            return Poll::Pending;
        }
        ready!(self.read_by.poll_passed(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client sent no whole head in time"))
    }

    fn watch_write(&mut self, written: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.write_by.clear();
            return written;
        }
        if !self.write_by.is_set() {
            self.write_by.set_after(self.bounds.write_stall);
        }
        ready!(self.write_by.poll_passed(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client took no bytes in time")))
    }
}

impl<S: Read + Unpin> Read for ClientIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        match self.watch_read(read.is_ready(), cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => read,
        }
    }
}

impl<S: Read + Write + Unpin> Write for ClientIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch_write(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
            if !self.state.must_linger.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            self.lingering = Some(LINGER_BYTES_MAX);
            self.read_by.set_after(LINGER_MS_MAX);
        }
        let mut scratch = [0; LINGER_CHUNK_BYTES];
        while let Some(left) = self.lingering.filter(|left| *left > 0) {
            let mut buf = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.inner).poll_read(cx, buf.unfilled()) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    self.lingering = Some(left.saturating_sub(buf.filled().len()));
                }
                // The client is done, or gone: both end the linger well.
                Poll::Ready(_) => break,
                Poll::Pending => {
                    ready!(self.read_by.poll_passed(cx));
                    break;
                }
            }
        }
        self.lingering = Some(0);
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch_write(written, cx)
    }
}
