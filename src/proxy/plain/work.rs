//! The memory of an exchange, and reading into it from a container.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::buffer::Buffer;
use super::request::Verb;
use super::response::{self, Final, Head, Ours};

/// Bytes of a response read at once, at first.
const RESPONSE_BYTES: usize = 8 * 1024;
/// Interim responses before the one that was asked for.
const INTERIMS_MAX: usize = 16;
/// Sets of buffers that a thread keeps for its next exchanges.
const SPARES_MAX: usize = 128;
/// Bytes of a buffer that is kept.
const SPARE_BYTES_MAX: usize = 32 * 1024;

/// Why a container's connection brought no head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// It ended before one came. One that was kept may have been closed while the request was on its way.
    Closed,
    /// What came is none.
    Malformed,
}

/// The buffers of one exchange.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// What the container is asked.
    pub request: Vec<u8>,
    /// What it answered and was not passed on.
    pub response: Buffer,
    /// What goes to the client next.
    pub out: Vec<u8>,
}

impl Work {
    /// Sends the request, and reads the response up to the end of its head, which is then `out`.
    pub async fn ask(
        &mut self,
        stream: &mut TcpStream,
        verb: Verb,
        ours: Ours<'_>,
        most: usize,
    ) -> Result<Final, Lost> {
        self.response.clear();
        stream.write_all(&self.request).await.map_err(|_| Lost::Closed)?;
        let mut interims = 0;
        loop {
            let seen = self.response.unread().len();
            match self.read(stream, most).await {
                Ok(0) if seen >= most => return Err(Lost::Malformed),
                Ok(0) | Err(_) => return Err(Lost::Closed),
                Ok(_) => {}
            }
            let Self { response, out, .. } = self;
            // A head that comes in pieces is parsed when it may be whole, not for each of them.
            if seen > 0 && !response::may_have_ended(response.unread(), seen) {
                continue;
            }
            while let Some(head) = response::read(response.unread(), verb, ours, out).map_err(|_| Lost::Malformed)? {
                match head {
                    Head::Final(head) => {
                        response.take(head.length);
                        return Ok(head);
                    }
                    Head::Interim { length } => {
                        response.take(length);
                        interims += 1;
                        if interims > INTERIMS_MAX {
                            return Err(Lost::Malformed);
                        }
                    }
                }
            }
        }
    }

    /// Reads what of a response is there, at least a byte; 0 at its end, or where `most` bytes are unread.
    pub async fn read(&mut self, stream: &mut TcpStream, most: usize) -> io::Result<usize> {
        let bytes = stream.read(self.response.room(RESPONSE_BYTES, most)).await?;
        self.response.came(bytes);
        Ok(bytes)
    }
}

thread_local! {
    /// Buffers between exchanges: of a connection that waits for its next request only the one that it is read into stays.
    static SPARES: RefCell<Vec<Work>> = const { RefCell::new(Vec::new()) };
}

/// Buffers of this thread, which get back to it. What they held is overwritten or forgotten before anything of it could be read.
#[derive(Debug)]
pub(super) struct Loan(Work);

impl Loan {
    pub fn take() -> Self {
        Self(SPARES.with_borrow_mut(Vec::pop).unwrap_or_default())
    }
}

impl Deref for Loan {
    type Target = Work;
    fn deref(&self) -> &Work {
        &self.0
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut Work {
        &mut self.0
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut work = std::mem::take(&mut self.0);
        work.request.clear();
        work.out.clear();
        work.response.clear();
        work.response.shrink(RESPONSE_BYTES);
        let is_small = work.request.capacity().max(work.out.capacity()) <= SPARE_BYTES_MAX;
        // There are none where the thread ends.
        let _ = SPARES.try_with(|spares| {
            let mut spares = spares.borrow_mut();
            if is_small && spares.len() < SPARES_MAX {
                spares.push(work);
            }
        });
    }
}
