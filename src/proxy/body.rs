//! Bodies on their way through, and what their progress tells the exchange around them.
//!
//! Neither type holds more than the frame it passes on. Back-pressure is the poll itself: the sender polls a body
//! only when its socket takes bytes, and an unpolled body leaves the other socket unread.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::account::Account;
use super::io::{ConnState, Deadline};
use super::pool::Lease;
use super::stats::Open;

/// How long a body waits for `100 Continue` from a container that may not know it (RFC 9110 §10.1.1 wants a bound).
const CONTINUE_WAIT_MS_MAX: Duration = Duration::from_millis(1_000);

/// Why a body could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("nothing of the body came in time")]
    Stalled,
    #[error("the body broke off")]
    Read(#[source] hyper::Error),
}

/// What the exchange knows of a request body that hyper owns by then.
#[derive(Debug, Default)]
pub(super) struct BodyWatch {
    frames: AtomicU64,
    done: AtomicBool,
    client_owes: AtomicBool,
    stalled: AtomicBool,
    broke: AtomicBool,
    go: AtomicBool,
    waker: AtomicWaker,
}

impl BodyWatch {
    /// Frames passed on so far.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Whether the container took all of it.
    pub(super) fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }

    /// Whether the container would take more and the client has not sent it.
    pub(super) fn client_owes(&self) -> bool {
        self.client_owes.load(Ordering::Relaxed)
    }

    /// Whether the client went silent for too long.
    pub(super) fn client_stalled(&self) -> bool {
        self.stalled.load(Ordering::Acquire)
    }

    /// Whether the client's body ended early or was framed wrongly.
    pub(super) fn client_broke(&self) -> bool {
        self.broke.load(Ordering::Acquire)
    }

    /// The container said `100 Continue`.
    pub(super) fn go(&self) {
        self.go.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// A request's body towards the container.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Option<(Incoming, Arc<BodyWatch>)>,
    stall: Deadline,
    stall_max: Duration,
    /// Held back until the container asks for it.
    gated: bool,
}

impl RequestBody {
    /// No body.
    pub(super) fn empty() -> Self {
        Self { inner: None, stall: Deadline::default(), stall_max: Duration::ZERO, gated: false }
    }

    /// A body to stream; `gated` holds it back until [`BodyWatch::go`] or a short wait.
    pub(super) fn stream(body: Incoming, watch: Arc<BodyWatch>, stall_max: Duration, gated: bool) -> Self {
        let mut stall = Deadline::default();
        if gated {
            stall.set_after(CONTINUE_WAIT_MS_MAX);
        }
        Self { inner: Some((body, watch)), stall, stall_max, gated }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { inner, stall, stall_max, gated } = &mut *self;
        let Some((body, watch)) = inner else { return Poll::Ready(None) };
        if *gated {
            watch.waker.register(cx.waker());
            if !watch.go.load(Ordering::Acquire) {
                ready!(stall.poll_passed(cx));
            }
            *gated = false;
            stall.clear();
        }
        let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) else {
            watch.client_owes.store(true, Ordering::Relaxed);
            if !stall.is_set() {
                stall.set_after(*stall_max);
            }
            ready!(stall.poll_passed(cx));
            watch.stalled.store(true, Ordering::Release);
            return Poll::Ready(Some(Err(BodyError::Stalled)));
        };
        stall.clear();
        watch.client_owes.store(false, Ordering::Relaxed);
        watch.frames.fetch_add(1, Ordering::Relaxed);
        match frame {
            Some(Ok(frame)) => {
                if body.is_end_stream() || frame.is_trailers() {
                    watch.done.store(true, Ordering::Release);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                watch.broke.store(true, Ordering::Release);
                Poll::Ready(Some(Err(BodyError::Read(error))))
            }
            None => {
                watch.done.store(true, Ordering::Release);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(|(body, _)| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), |(body, _)| body.size_hint())
    }
}

/// One request and its response on a client's connection, from the head read to the last byte handed over.
#[derive(Debug)]
pub(super) struct Exchange {
    conn: Arc<ConnState>,
    /// Whether its connection was told that the client has a chunk to take.
    owes: bool,
    _open: Open,
}

impl Exchange {
    pub(super) fn begin(conn: Arc<ConnState>, open: Open) -> Self {
        conn.begin_exchange();
        Self { conn, owes: false, _open: open }
    }

    /// Another chunk is asked for: the client took the last one.
    fn chunk_taken(&mut self) {
        if self.owes {
            self.owes = false;
            self.conn.settle();
        }
    }

    /// A chunk goes out. Of a connection's only exchange the socket tells the same.
    fn chunk_given(&mut self) {
        if self.conn.is_shared() {
            self.owes = true;
            self.conn.owe();
        }
    }

    /// The request's body will not be read to its end.
    pub(super) fn leave_body_unread(&self) {
        self.conn.linger();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.chunk_taken();
        self.conn.end_exchange();
    }
}

/// A response's body towards the client.
#[derive(Debug)]
pub(super) struct ResponseBody {
    source: Source,
    exchange: Option<Exchange>,
    account: Option<Box<Account>>,
    /// Where the container broke off, told at the next look: hyper drops what it has not sent when it is told.
    broke: Option<BodyError>,
    idle: Deadline,
    idle_max: Duration,
}

#[derive(Debug)]
enum Source {
    Full(Option<Bytes>),
    Stream { body: Incoming, lease: Option<Lease>, watch: Option<Arc<BodyWatch>> },
}

impl ResponseBody {
    /// A body of our own.
    pub(super) fn full(bytes: Bytes) -> Self {
        Self::of(Source::Full(Some(bytes).filter(|b| !b.is_empty())))
    }

    fn of(source: Source) -> Self {
        let idle = Deadline::default();
        Self { source, exchange: None, account: None, broke: None, idle, idle_max: Duration::MAX }
    }

    /// The container's body; the connection it comes on goes back to the pool when both bodies are through.
    ///
    /// It breaks off where no byte of it comes for `idle_max`.
    pub(super) fn stream(body: Incoming, lease: Lease, watch: Option<Arc<BodyWatch>>, idle_max: Duration) -> Self {
        let ended = body.is_end_stream();
        let source = Source::Stream { body, lease: Some(lease), watch };
        let mut this = Self::of(source);
        this.idle_max = idle_max;
        // Where the exchange is not known yet, an unread request body is noticed in `hold`.
        if ended && this.request_is_through() {
            this.finish();
        }
        this
    }

    /// Keeps the exchange and its account open until this body is through.
    pub(super) fn hold(mut self, exchange: Exchange, account: Box<Account>) -> Self {
        self.exchange = Some(exchange);
        self.account = Some(account);
        self
    }

    fn count(&mut self, bytes: &Bytes) {
        if let Some(account) = &mut self.account {
            account.bytes += bytes.len() as u64;
        }
    }

    fn request_is_through(&self) -> bool {
        match &self.source {
            Source::Full(_) => true,
            Source::Stream { watch, .. } => watch.as_ref().is_none_or(|w| w.is_done()),
        }
    }

    /// The response is through: the connection is returned when the request is as well, else closed.
    fn finish(&mut self) {
        let reusable = self.request_is_through();
        if let Source::Stream { lease, .. } = &mut self.source {
            match lease.take() {
                Some(lease) if reusable => lease.give_back(),
                unfinished => drop(unfinished),
            }
        }
        if let Some(exchange) = self.exchange.take_if(|_| !reusable) {
            exchange.leave_body_unread();
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        // hyper drops an ended body without polling it; a body dropped midway must not give its connection back.
        if self.is_end_stream() {
            self.finish();
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(exchange) = &mut self.exchange {
            exchange.chunk_taken();
        }
        if let Some(error) = self.broke.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let Self { source, idle, idle_max, .. } = &mut *self;
        let (frame, ended) = match source {
            Source::Full(bytes) => {
                let Some(bytes) = bytes.take() else { return Poll::Ready(None) };
                self.count(&bytes);
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Source::Stream { body, lease, .. } => {
                let frame = match poll_driven(body, lease.as_mut(), cx) {
                    Poll::Ready(frame) => frame.map(|frame| frame.map_err(BodyError::Read)),
                    Poll::Pending => {
                        if !idle.is_set() {
                            idle.set_after(*idle_max);
                        }
                        ready!(idle.poll_passed(cx));
                        Some(Err(BodyError::Stalled))
                    }
                };
                idle.clear();
                let last = match &frame {
                    None => true,
                    Some(Ok(frame)) => frame.is_trailers() || body.is_end_stream(),
                    Some(Err(_)) => false,
                };
                (frame, last)
            }
        };
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.count(data);
        }
        if ended {
            self.finish();
        } else if let Some(exchange) = &mut self.exchange {
            exchange.chunk_given();
        }
        if let Some(Err(error)) = frame {
            self.broke = Some(error);
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Full(bytes) => bytes.is_none(),
            Source::Stream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Source::Stream { body, .. } => body.size_hint(),
        }
    }
}

/// The next frame of a response, which its connection has to bring: a body asks for it when it is polled, so that the connection
/// is looked at before and after.
fn poll_driven(
    body: &mut Incoming,
    mut lease: Option<&mut Lease>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    for _ in 0..2 {
        if let Some(lease) = &mut lease {
            lease.connection.drive(cx);
        }
        if let ready @ Poll::Ready(_) = Pin::new(&mut *body).poll_frame(cx) {
            return ready;
        }
    }
    Poll::Pending
}

/// The service never fails: what goes wrong becomes a response.
pub(super) type Answer = Result<hyper::Response<ResponseBody>, Infallible>;
