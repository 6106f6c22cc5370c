//! The client's side of plain exchanges: its bytes, and whether it is still there.

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBuf, Write};

use super::super::io::{ClientIo, Deadline};
use super::HEAD_BYTES_MAX;
use super::buffer::Buffer;

/// What is read of a client that sends its next request before it has this one's answer; the rest waits in its socket.
const AHEAD_BYTES_MAX: usize = 64;

/// Why something was not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The client has gone.
    Gone,
    /// It took too long.
    Late,
}

/// A client.
#[derive(Debug)]
pub(super) struct Side<S> {
    io: ClientIo<S>,
    /// What came while a request was served.
    ahead: [u8; AHEAD_BYTES_MAX],
    ahead_bytes: usize,
    reads_ahead: bool,
    deadline: Deadline,
}

impl<S: Read + Write + Unpin> Side<S> {
    pub fn new(io: ClientIo<S>) -> Self {
        Self { io, ahead: [0; AHEAD_BYTES_MAX], ahead_bytes: 0, reads_ahead: false, deadline: Deadline::default() }
    }

    /// Whether nothing of the client's is unread but the head that is served next. Where there is more, it is not asked whether it is
    /// still there: it may have said all it has to say.
    pub fn may_read_ahead(&mut self, nothing_else: bool) {
        self.reads_ahead = nothing_else;
    }

    /// Waits for the first bytes of the next head; whether they came. They do not where the client has left, took too long or, before
    /// it sent any, is to leave.
    pub async fn next(&mut self, heads: &mut Buffer, mut leave: Pin<&mut impl Future<Output = ()>>) -> bool {
        if self.ahead_bytes > 0 {
            // It was read where nothing else was unread: there is room for it.
            heads.put(&self.ahead[..mem::take(&mut self.ahead_bytes)]);
        }
        let has_some = !heads.unread().is_empty();
        let room = heads.room(HEAD_BYTES_MAX, HEAD_BYTES_MAX);
        if room.is_empty() {
            return has_some;
        }
        let read = poll_fn(|cx| match poll_read(&mut self.io, cx, room) {
            Poll::Ready(read) => Poll::Ready(read.unwrap_or(0)),
            Poll::Pending if has_some => Poll::Ready(0),
            Poll::Pending => leave.as_mut().poll(cx).map(|()| 0),
        });
        let bytes = read.await;
        heads.came(bytes);
        has_some || bytes > 0
    }

    /// Waits for something, at most so long, while the client is there.
    ///
    /// Where the client sends more, a little of it is read; who leaves after that is noticed when written to.
    pub async fn meanwhile<T>(&mut self, wait_max: Option<Duration>, what: impl Future<Output = T>) -> Result<T, Cut> {
        let mut what = pin!(what);
        let Self { io, ahead, ahead_bytes, reads_ahead, deadline } = self;
        deadline.clear();
        poll_fn(|cx| {
            if let Poll::Ready(done) = what.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            if *reads_ahead && let Poll::Ready(read) = poll_read(io, cx, ahead) {
                match read {
                    Ok(bytes) if bytes > 0 => (*ahead_bytes, *reads_ahead) = (bytes, false),
                    _ => return Poll::Ready(Err(Cut::Gone)),
                }
            }
            let Some(wait_max) = wait_max else { return Poll::Pending };
            if !deadline.is_set() {
                deadline.set_after(wait_max);
            }
            deadline.poll_passed(cx).map(|()| Err(Cut::Late))
        })
        .await
    }

    /// Hands bytes over; an error where the client has gone, or takes none for too long.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Cut> {
        let mut rest = bytes;
        let written = poll_fn(|cx| {
            while !rest.is_empty() {
                match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    bytes => rest = rest.get(bytes..).unwrap_or_default(),
                }
            }
            Pin::new(&mut self.io).poll_flush(cx)
        });
        written.await.map_err(|_| Cut::Gone)
    }

    /// Ends the connection.
    pub async fn close(mut self) {
        // It may have gone already.
        let _ = poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await;
    }

    /// The stream, with what was read of it and not served.
    pub fn into_io(mut self, unread: &[u8]) -> ClientIo<S> {
        self.io.unread(unread);
        self.io
    }
}

fn poll_read<S: Read + Unpin>(io: &mut ClientIo<S>, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buf = ReadBuf::new(room);
    ready!(Pin::new(io).poll_read(cx, buf.unfilled()))?;
    Poll::Ready(Ok(buf.filled().len()))
}
