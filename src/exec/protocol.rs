//! What a worker and its pool say to each other: frames on a socket.
//!
//! ```text
//! pool   ─► Run · Source · Body* · Go            worker ─► Ready
//! pool   ─► Check · Source · Go                  worker ─► Console* · Ask* · Head · Body* · (Done | Failed)
//! pool   ─► Told (the answer to an Ask)
//! ```
//!
//! A frame is its kind, four bytes of length (little-endian), and as much payload: JSON, or bytes as they are. Neither side believes
//! the other's lengths, and the pool believes nothing a worker says beyond what a client may see anyway.

use std::collections::BTreeMap;
use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::run::{Asked, Bounds, Run, ScriptFile};
use super::shared;
use crate::domain::Secret;

/// The largest payload of a frame, in bytes; what is longer goes in several.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// A script's largest text, in bytes.
pub const SOURCE_BYTES_MAX: usize = FRAME_BYTES_MAX;
/// A request's largest body, in bytes.
pub const BODY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Kind and length.
pub const HEAD_BYTES: usize = 5;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Worker: it can take a run. No payload.
    Ready = 1,
    /// Pool: an [`Order`] to run.
    Run = 2,
    /// Pool: look whether a script parses; the payload is its file.
    Check = 3,
    /// Pool: the script's text.
    Source = 4,
    /// Either: a part of a body.
    Body = 5,
    /// Pool: all is said.
    Go = 6,
    /// Worker: a line of the console.
    Console = 7,
    /// Worker: a question to the store that all runs share.
    Ask = 8,
    /// Pool: its answer.
    Told = 9,
    /// Worker: the answer's [`Head`].
    Head = 10,
    /// Worker: the run is over, and it can take another.
    Done = 11,
    /// Worker: the run failed; the payload is a `RunError` and whether the worker can take another.
    Failed = 12,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Ask, Body, Check, Console, Done, Failed, Go, Head, Ready, Run, Source, Told};
        [Ready, Run, Check, Source, Body, Go, Console, Ask, Told, Head, Done, Failed]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A [`Run`] without its large parts.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The script's file.
    pub file: ScriptFile,
    /// What is asked; the body comes in frames of its own.
    pub asked: Asked,
    /// What `metadata` says.
    pub metadata: serde_json::Value,
    /// What `secrets` holds.
    pub secrets: BTreeMap<String, Secret>,
    /// What `tenantry` presents.
    pub key: Option<Secret>,
    /// What it may use.
    pub bounds: Bounds,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// 200–599.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

/// A question to the shared store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// To tell answers apart.
    pub id: u32,
    /// What is asked.
    pub ask: shared::Ask,
}

/// The answer to an [`Ask`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// The question's.
    pub id: u32,
    /// The value, or why not.
    pub told: Result<serde_json::Value, String>,
}

/// A failed run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Why.
    pub error: super::run::RunError,
    /// Whether the worker can take another run.
    pub goes_on: bool,
}

/// The frames that hand a run over.
pub fn order(run: Run) -> (Order, std::sync::Arc<str>, Vec<u8>) {
    let Run { file, source, mut asked, metadata, secrets, key, bounds, console: _ } = run;
    let body = std::mem::take(&mut asked.body);
    (Order { file, asked, metadata, secrets, key, bounds }, source, body)
}

/// A frame's first bytes.
///
/// # Errors
/// A payload above [`FRAME_BYTES_MAX`].
pub fn head(kind: Kind, length: usize) -> io::Result<[u8; HEAD_BYTES]> {
    let fits = u32::try_from(length).ok().filter(|_| length <= FRAME_BYTES_MAX);
    let [a, b, c, d] = fits.ok_or_else(|| odd("a frame is too long"))?.to_le_bytes();
    Ok([kind as u8, a, b, c, d])
}

/// Kind and length from a frame's first bytes.
///
/// # Errors
/// No such kind; a length above [`FRAME_BYTES_MAX`].
pub fn parse_head(bytes: [u8; HEAD_BYTES]) -> io::Result<(Kind, usize)> {
    let [kind, length @ ..] = bytes;
    let kind = Kind::of(kind).ok_or_else(|| odd("a frame of no known kind"))?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX { Err(odd("a frame is too long")) } else { Ok((kind, length)) }
}

/// The next frame; `None` where the other end is gone.
///
/// # Errors
/// It is no frame, or cut off.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    let mut first = [0; HEAD_BYTES];
    match from.read_exact(&mut first).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let (kind, length) = parse_head(first)?;
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).await?;
    Ok(Some(Frame { kind, payload }))
}

/// Sends a frame.
///
/// # Errors
/// The socket's; a payload that is too long.
pub async fn write(to: &mut (impl AsyncWrite + Unpin), kind: Kind, payload: &[u8]) -> io::Result<()> {
    to.write_all(&head(kind, payload.len())?).await?;
    to.write_all(payload).await
}

/// Sends a value as JSON.
///
/// # Errors
/// The socket's.
pub async fn write_json(to: &mut (impl AsyncWrite + Unpin), kind: Kind, value: &impl Serialize) -> io::Result<()> {
    write(to, kind, &serde_json::to_vec(value)?).await
}

impl Frame {
    /// Its payload as JSON.
    ///
    /// # Errors
    /// It is something else.
    pub fn json<T: DeserializeOwned>(&self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.payload)?)
    }
}

/// What a peer said that it should not have.
pub fn odd(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let mut wire = Vec::new();
        write(&mut wire, Kind::Body, b"abc").await.unwrap();
        write_json(&mut wire, Kind::Head, &Head { status: 204, headers: vec![] }).await.unwrap();
        let mut from = wire.as_slice();
        assert_eq!(read(&mut from).await.unwrap(), Some(Frame { kind: Kind::Body, payload: b"abc".to_vec() }));
        let head: Head = read(&mut from).await.unwrap().unwrap().json().unwrap();
        assert_eq!(head.status, 204);
        assert_eq!(read(&mut from).await.unwrap(), None, "the other end is gone");
    }

    #[tokio::test]
    async fn a_length_is_not_believed() {
        assert!(parse_head([5, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(parse_head([99, 0, 0, 0, 0]).is_err(), "no such kind");
        assert!(head(Kind::Body, FRAME_BYTES_MAX + 1).is_err());
        let mut cut: &[u8] = &[5, 9, 0, 0, 0, 1];
        assert!(read(&mut cut).await.is_err());
    }

    #[test]
    fn every_kind_is_known_by_its_number() {
        for number in 1..=12 {
            assert_eq!(Kind::of(number).map(|kind| kind as u8), Some(number));
        }
        assert_eq!(Kind::of(13), None);
    }
}
