//! One request to a tenant's URL, or one connection of raw TCP, as its access log tells of it.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// What a line of the access log holds. The query is left out: it is where secrets stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessLine {
    /// When the request's head was read, or the connection began.
    pub at: Timestamp,
    /// Who asked.
    pub client: IpAddr,
    /// With which method; [`RAW_METHOD`] for a connection of raw TCP.
    pub method: Cow<'static, str>,
    /// For which path, as it came, at most [`PATH_BYTES_MAX`] of it; for a connection the port it came to, as in `:20000`.
    pub path: String,
    /// What was answered; `None`: the client had gone by then, or it is a connection.
    pub status: Option<u16>,
    /// Bytes of the response's body that were handed over, or all that came for the client by a connection.
    pub bytes: u64,
    /// Until the last of them, in microseconds.
    pub duration_us: u64,
    /// What of it the container took until the head of its response, in microseconds.
    pub upstream_us: Option<u64>,
    /// Whether the container had to be woken for it.
    pub woken: bool,
    /// The `x-request-id`.
    pub request_id: String,
}

/// What stands for the method of a connection of raw TCP.
pub const RAW_METHOD: &str = "TCP";
/// Bytes of a path that are kept.
pub const PATH_BYTES_MAX: usize = 512;

impl AccessLine {
    /// Appends the line of the log: JSON, and a line end.
    pub fn write_line(&self, out: &mut Vec<u8>) {
        let before = out.len();
        // Words and numbers always serialise, and to memory; half a line would spoil the next.
        match serde_json::to_writer(&mut *out, self) {
            Ok(()) => out.push(b'\n'),
            Err(_) => out.truncate(before),
        }
    }

    /// When it ended: the last byte of a response, the end of a connection.
    pub fn ended(&self) -> Timestamp {
        let took = SignedDuration::from_micros(i64::try_from(self.duration_us).unwrap_or(i64::MAX));
        self.at.checked_add(took).unwrap_or(Timestamp::MAX)
    }

    /// Reads a line; `None`: it was cut, by the log's bound or by a power cut.
    pub fn from_line(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_a_path_cannot_begin_another() {
        let access = AccessLine {
            at: Timestamp::UNIX_EPOCH,
            client: "2001:db8::1".parse().unwrap(),
            method: "GET".into(),
            path: "/a\"b\n{}".into(),
            status: None,
            bytes: 0,
            duration_us: 1,
            upstream_us: Some(1),
            woken: false,
            request_id: "ab".into(),
        };
        let mut text = Vec::new();
        access.write_line(&mut text);
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(AccessLine::from_line(text.trim_ascii_end()), Some(access));
        assert_eq!(AccessLine::from_line(&text[5..]), None);
    }
}
