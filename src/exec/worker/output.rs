//! The worker's sending side, synchronous: a script that writes faster than its client reads waits, and holds nothing in memory.

use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;

use serde::Serialize;

use crate::exec::protocol::{self, FRAME_BYTES_MAX, Kind};
use crate::sys::worker::wait_writable;

/// The socket, which does not block by itself, since its reading side is on an event loop.
#[derive(Debug)]
pub struct Output(UnixStream);

impl Output {
    /// Over this socket.
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The pool is gone.
    pub fn send(&self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        self.write(&protocol::head(kind, payload.len())?)?;
        self.write(payload)
    }

    /// Sends a value as JSON.
    ///
    /// # Errors
    /// The pool is gone; the value is too large.
    pub fn send_json(&self, kind: Kind, value: &impl Serialize) -> io::Result<()> {
        self.send(kind, &serde_json::to_vec(value)?)
    }

    /// Sends a body's part, in as many frames as it takes.
    ///
    /// # Errors
    /// The pool is gone.
    pub fn send_body(&self, bytes: &[u8]) -> io::Result<()> {
        bytes.chunks(FRAME_BYTES_MAX).try_for_each(|part| self.send(Kind::Body, part))
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&self.0).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait_writable(&self.0)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
