//! A client's byte stream with its waits bounded.
//!
//! hyper has one time-out for a head and the idle time before it; a public edge wants them apart, and wants one for
//! a peer that takes no bytes. They live here, below HTTP:
//!
//! ```text
//! accepted ─► head (first byte … whole head) ─► busy (an exchange is open: no read bound here) ─► idle ─► head …
//! ```
//!
//! Where many exchanges share a connection (HTTP/2), bytes say nothing of heads: after the first exchange this stream bounds
//! writes alone, and [`ConnState::silence`] and [`ConnState::stall`] the rest.
//!
//! A timer is armed lazily: the deadline is a plain instant, and the sleep behind it is only moved when it fires
//! early, so a request costs no timer operation.

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
/// Read at once to see what a client speaks: most heads, and less than hyper's smallest buffer.
const FIRST_BYTES_MAX: usize = 2 * 1024;
/// What a client of HTTP/2 begins with (RFC 9113 §3.4); no request of HTTP/1.1 does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
    /// Exchanges whose request was read and whose response is not finished.
    open: AtomicUsize,
    /// Exchanges there ever were.
    begun: AtomicUsize,
    /// Set before the first exchange of a connection that many share.
    is_shared: AtomicBool,
    /// Responses that gave a chunk and were not asked for the next one; counted where exchanges share the connection.
    owed: AtomicUsize,
    /// Chunks after which the next was asked for.
    taken: AtomicUsize,
    /// A request's body was left unread: closing at once would reset the connection and lose the answer.
    must_linger: AtomicBool,
    /// The connection's task, when it waits within an exchange.
    waker: AtomicWaker,
}

impl ConnState {
    /// Exchanges will run beside each other here.
    pub(super) fn share(&self) {
        self.is_shared.store(true, Ordering::Release);
    }

    pub(super) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::Acquire)
    }

    /// Whether an exchange is open.
    pub(super) fn is_busy(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    pub(super) fn begin_exchange(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
        self.begun.fetch_add(1, Ordering::Release);
    }

    /// Wakes the connection's task: hyper does not look at the stream again after a response, and the idle time
    /// must begin.
    pub(super) fn end_exchange(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        if !self.is_shared() {
            self.waker.wake();
        }
    }

    /// The same, by the connection's own task, which looks at the stream next.
    pub(super) fn end_exchange_here(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// A response gave a chunk, which the client has to take before another is asked for.
    pub(super) fn owe(&self) {
        self.owed.fetch_add(1, Ordering::Relaxed);
    }

    /// The client took it, or the response ended with it.
    pub(super) fn settle(&self) {
        self.owed.fetch_sub(1, Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn linger(&self) {
        if !self.is_shared() {
            self.must_linger.store(true, Ordering::Release);
        }
    }

    /// Returns after one to two times `idle_max` in which no exchange was open.
    pub(super) async fn silence(&self, idle_max: Duration) {
        let mut seen = self.begun.load(Ordering::Acquire);
        loop {
            let was_busy = self.is_busy();
            tokio::time::sleep(idle_max).await;
            let begun = self.begun.load(Ordering::Acquire);
            if begun == seen && !was_busy && !self.is_busy() {
                return;
            }
            seen = begun;
        }
    }

    /// Returns after one to two times `stall_max` in which the client owed to take something and took nothing: a window of
    /// its own that it never opens stalls a response where the socket below still takes bytes.
    pub(super) async fn stall(&self, stall_max: Duration) {
        let mut seen = self.taken.load(Ordering::Relaxed);
        loop {
            let owed = self.owed.load(Ordering::Relaxed);
            tokio::time::sleep(stall_max).await;
            let taken = self.taken.load(Ordering::Relaxed);
            if taken == seen && owed > 0 && self.owed.load(Ordering::Relaxed) > 0 {
                return;
            }
            seen = taken;
        }
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
    /// Exchanges there had been when it was last looked at outside of one.
    begun: usize,
    read_by: Deadline,
    write_by: Deadline,
    /// Set once the write side is shut and the rest is being thrown away: what may still be.
    lingering: Option<usize>,
    /// The first bytes, read to see what they are, and not yet read by HTTP.
    first: Vec<u8>,
}

impl<S> ClientIo<S> {
    pub(super) fn new(inner: S, state: Arc<ConnState>, bounds: IoBounds) -> Self {
        let mut read_by = Deadline::default();
        read_by.set_after(bounds.head);
        let write_by = Deadline::default();
        Self {
            inner,
            state,
            bounds,
            phase: Phase::Head,
            begun: 0,
            read_by,
            write_by,
            lingering: None,
            first: Vec::new(),
        }
    }

    /// The stream itself, for what follows an upgrade. HTTP has read all of the first bytes by then: its buffer is larger.
    pub(super) fn into_inner(self) -> S {
        debug_assert!(self.first.is_empty());
        self.inner
    }

    /// Bytes that were read, and are to be read again by another reader, whose first room is no smaller.
    pub(super) fn unread(&mut self, bytes: &[u8]) {
        debug_assert!(self.first.is_empty());
        self.first = bytes.to_vec();
    }

    fn watch_read(&mut self, got_bytes: bool, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Registered before the look, so that an end in between is not missed.
        self.state.waker.register(cx.waker());
        if self.state.is_shared() {
            if self.state.begun.load(Ordering::Acquire) > 0 {
                self.read_by.clear();
            }
        } else if self.state.is_busy() {
            self.phase = Phase::Busy;
            self.read_by.clear();
        } else {
            // An exchange that ended before anybody looked here has been all the same.
            let begun = self.state.begun.load(Ordering::Acquire);
            let was_missed = mem::replace(&mut self.begun, begun) != begun;
            let was_busy = was_missed || self.phase == Phase::Busy;
            if got_bytes && (was_busy || self.phase != Phase::Head) {
                self.phase = Phase::Head;
                self.read_by.set_after(self.bounds.head);
            } else if !got_bytes && was_busy {
                self.phase = Phase::Idle;
                self.read_by.set_after(self.bounds.idle);
            }
        }
        if got_bytes {
            return Poll::Pending;
        }
        ready!(self.read_by.poll_passed(cx));
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client sent no whole head in time"))
    }

    fn watch_write<T>(&mut self, written: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
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

impl<S: Read + Unpin> ClientIo<S> {
    /// Whether the client's first bytes are those of HTTP/2 (RFC 9113 §3.4); they are read again by whoever serves it.
    ///
    /// As much is read as is there, so that a head that came in one piece is still read in one.
    pub(super) async fn begins_http2(&mut self) -> io::Result<bool> {
        let mut first = vec![0; FIRST_BYTES_MAX];
        let mut length = 0;
        while length < PREFACE.len() && PREFACE.starts_with(&first[..length]) {
            let mut buf = ReadBuf::new(&mut first[length..]);
            poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, buf.unfilled())).await?;
            match buf.filled().len() {
                0 => break,
                more => length += more,
            }
        }
        first.truncate(length);
        let is_http2 = first.starts_with(PREFACE);
        self.first = first;
        Ok(is_http2)
    }
}

impl<S: Read + Unpin> Read for ClientIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buf.remaining());
            buf.put_slice(&self.first[..length]);
            self.first.drain(..length);
            if self.first.is_empty() {
                self.first = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
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
        // TLS takes bytes that its socket does not.
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.watch_write(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
            ready!(self.watch_write(shut, cx))?;
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
