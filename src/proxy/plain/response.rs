//! A container's response: how its body is framed (RFC 9112 §6.3), and how its head is passed on. Pure.

use std::io::Write as _;
use std::mem::MaybeUninit;

use hyper::StatusCode;
use hyper::header::HeaderValue;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

use super::super::headers;
use super::super::refusal::Refusal;
use super::request::{Asked, Verb, put_field};

/// The end of the last line of a head, and the empty line.
const HEAD_END: &[u8] = b"\n\r\n";
/// Fields of a container's head, at most: as many as hyper takes.
const FIELDS_MAX: usize = 100;

/// A container's response is not HTTP, or nothing that can be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the container's response is no HTTP/1.1")]
pub(super) struct Malformed;

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Nothing,
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

/// What we add to a head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ours<'a> {
    pub request_id: &'a str,
    /// `Server-Timing` of a container that was woken.
    pub timing: Option<&'a str>,
    /// The connection ends after this response.
    pub closes: bool,
}

/// A head that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Another comes before the response itself (RFC 9110 §15.2).
    Interim {
        length: usize,
    },
    Final(Final),
}

/// The head of the response itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Final {
    pub status: StatusCode,
    pub framing: Framing,
    /// Whether the connection can take another request.
    pub keeps: bool,
    /// Bytes of the head.
    pub length: usize,
}

/// Reads a head, and makes `out` the client's one. `None` where it is not whole.
///
/// # Errors
/// It is no head of HTTP/1, one that switches protocols, or one whose body ends in two places.
pub(super) fn read(bytes: &[u8], verb: Verb, ours: Ours<'_>, out: &mut Vec<u8>) -> Result<Option<Head>, Malformed> {
    let mut slots = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut head, bytes, &mut slots);
    let httparse::Status::Complete(length) = parsed.map_err(|_| Malformed)? else { return Ok(None) };
    let status = head.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed)?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Malformed);
    }
    if status.is_informational() {
        return Ok(Some(Head::Interim { length }));
    }
    let seen = Seen::of(head.headers);
    let is_http_1_1 = head.version == Some(1);
    let framing = seen.framing(verb, status, is_http_1_1)?;
    let told_length = match framing {
        Framing::Length(length) => Some(length),
        // What the body of a GET would be.
        Framing::Nothing if !headers::has_no_body(status) && seen.is_chunked.is_none() => seen.length.ok().flatten(),
        _ => None,
    };
    out.clear();
    let _ = write!(out, "HTTP/1.1 {} {}\r\n", status.as_str(), head.reason.unwrap_or_default());
    let passed = put_fields(out, head.headers, &seen, status, framing);
    put_ours(out, &passed, framing, told_length, ours);
    let keeps = is_http_1_1 && seen.keeps() && framing != Framing::Close;
    Ok(Some(Head::Final(Final { status, framing, keeps, length })))
}

/// What a container's fields say to us, as hyper reads them.
#[derive(Debug)]
struct Seen<'a> {
    /// The length, where it is one and the same in all places.
    length: Result<Option<u64>, Malformed>,
    /// Whether `chunked` is the last transfer coding; `None`: there is no coding.
    is_chunked: Option<bool>,
    closes: bool,
    /// Names that `Connection` makes fields of this hop.
    named: Vec<&'a str>,
}

impl<'a> Seen<'a> {
    fn of(fields: &[httparse::Header<'a>]) -> Self {
        let mut seen = Self { length: Ok(None), is_chunked: None, closes: false, named: Vec::new() };
        for httparse::Header { name, value } in fields {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            match name.len() {
                10 if is("connection") => seen.connection(value),
                14 if is("content-length") => seen.length = seen.length.and_then(|before| length_of(value, before)),
                17 if is("transfer-encoding") => {
                    let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
                    seen.is_chunked = Some(last.trim_ascii().eq_ignore_ascii_case(b"chunked"));
                }
                _ => {}
            }
        }
        seen
    }

    fn connection(&mut self, value: &'a [u8]) {
        for name in std::str::from_utf8(value).unwrap_or_default().split(',').map(str::trim) {
            self.closes |= name.eq_ignore_ascii_case("close");
            self.named.push(name);
        }
    }

    fn framing(&self, verb: Verb, status: StatusCode, is_http_1_1: bool) -> Result<Framing, Malformed> {
        if verb == Verb::Head || headers::has_no_body(status) {
            return Ok(Framing::Nothing);
        }
        match self.is_chunked {
            // A coding that the version does not have (RFC 9112 §6.1).
            Some(_) if !is_http_1_1 => Err(Malformed),
            Some(true) => Ok(Framing::Chunked),
            Some(false) => Ok(Framing::Close),
            None => Ok(self.length?.map_or(Framing::Close, Framing::Length)),
        }
    }

    /// Whether the connection is good for another request. A length beside a coding, which wins, may have been meant by somebody else
    /// on the way (RFC 9112 §6.1).
    fn keeps(&self) -> bool {
        !self.closes && (self.is_chunked.is_none() || self.length == Ok(None))
    }

    /// Whether a field is of this hop.
    fn ends(&self, name: &str) -> bool {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        is("connection") || is("content-length") || headers::ends_here(name) || self.named.iter().any(|named| is(named))
    }
}

/// A length, or the same one several times (RFC 9112 §6.3).
fn length_of(value: &[u8], mut before: Option<u64>) -> Result<Option<u64>, Malformed> {
    for text in value.split(|byte| *byte == b',') {
        let digits = text.trim_ascii();
        let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(digits).ok().filter(|_| is_number).and_then(|digits| digits.parse().ok());
        let number: u64 = number.ok_or(Malformed)?;
        if before.replace(number).is_some_and(|before| before != number) {
            return Err(Malformed);
        }
    }
    Ok(before)
}

/// Whether the client gets the body in chunks.
fn is_chunked(framing: Framing) -> bool {
    matches!(framing, Framing::Chunked | Framing::Close)
}

/// Which of the fields that we would add passed already.
#[derive(Debug, Default)]
struct Passed {
    date: bool,
    request_id: bool,
}

/// The fields that pass.
fn put_fields(
    out: &mut Vec<u8>,
    fields: &[httparse::Header<'_>],
    seen: &Seen<'_>,
    status: StatusCode,
    framing: Framing,
) -> Passed {
    let mut passed = Passed::default();
    // A 426 names what to upgrade to (RFC 9110 §15.5.22).
    let mut needs_upgrade = status == StatusCode::UPGRADE_REQUIRED;
    let has_trailers = is_chunked(framing);
    for httparse::Header { name, value } in fields {
        if needs_upgrade && name.eq_ignore_ascii_case("upgrade") {
            put_field(out, name, value);
            put_field(out, "connection", b"upgrade");
            needs_upgrade = false;
        } else if !seen.ends(name) && (has_trailers || !name.eq_ignore_ascii_case("trailer")) {
            put_field(out, name, value);
            passed.date |= name.eq_ignore_ascii_case("date");
            passed.request_id |= name.eq_ignore_ascii_case("x-request-id");
        }
    }
    passed
}

/// The fields that are ours, and the head's end.
fn put_ours(out: &mut Vec<u8>, passed: &Passed, framing: Framing, told_length: Option<u64>, ours: Ours<'_>) {
    // Writing to a Vec cannot fail.
    if let Some(length) = told_length {
        let _ = write!(out, "content-length: {length}\r\n");
    }
    if is_chunked(framing) {
        put_field(out, "transfer-encoding", b"chunked");
    }
    if !passed.date {
        put_date(out, Timestamp::now());
    }
    if !passed.request_id {
        put_field(out, "x-request-id", ours.request_id.as_bytes());
    }
    if let Some(timing) = ours.timing {
        put_field(out, "server-timing", timing.as_bytes());
    }
    if ours.closes {
        put_field(out, "connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a head may have ended in what was read since so many bytes were there (RFC 9112 §2.2: a line may end without CR).
pub(super) fn may_have_ended(bytes: &[u8], seen: usize) -> bool {
    let fresh = bytes.get(seen.saturating_sub(HEAD_END.len() - 1)..).unwrap_or_default();
    fresh.windows(2).any(|pair| pair == b"\n\n") || fresh.windows(HEAD_END.len()).any(|end| end == HEAD_END)
}

/// A response of our own; how many bytes its body has.
pub(super) fn put_refusal(out: &mut Vec<u8>, refusal: &Refusal, asked: &Asked<'_>, ours: Ours<'_>) -> u64 {
    // Made by us of hex digits.
    let id = HeaderValue::from_str(ours.request_id).unwrap_or_else(|_| HeaderValue::from_static("0"));
    let response = refusal.response(asked.wants_html, id);
    let (status, body) = (response.status(), response.body());
    out.clear();
    let _ = write!(out, "HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    for (name, value) in response.headers() {
        put_field(out, name.as_str(), value.as_bytes());
    }
    put_date(out, Timestamp::now());
    if !headers::has_no_body(status) {
        let _ = write!(out, "content-length: {}\r\n", body.len());
    }
    if ours.closes {
        put_field(out, "connection", b"close");
    }
    out.extend_from_slice(b"\r\n");
    if asked.verb == Verb::Head {
        return 0;
    }
    out.extend_from_slice(body);
    body.len() as u64
}

/// Whoever passes a response on that has no date gives it one (RFC 9110 §6.6.1).
pub(super) fn put_date(out: &mut Vec<u8>, now: Timestamp) {
    // Fails for years beyond 9999 alone.
    if let Ok(date) = DateTimePrinter::new().timestamp_to_rfc9110_string(&now) {
        put_field(out, "date", date.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Ours<'_> = Ours { request_id: "id", timing: None, closes: false };

    fn passed(verb: Verb, head: &str) -> Result<Option<(Head, String)>, Malformed> {
        let mut out = Vec::new();
        let head = read(head.as_bytes(), verb, OURS, &mut out)?;
        Ok(head.map(|head| (head, String::from_utf8(out).unwrap())))
    }

    fn whole(verb: Verb, head: &str) -> (Final, String) {
        match passed(verb, head) {
            Ok(Some((Head::Final(head), out))) => (head, out),
            other => panic!("{head}: {other:?}"),
        }
    }

    #[test]
    fn a_head_is_written_anew_without_what_is_of_one_hop() {
        let (head, out) = whole(
            Verb::Get,
            "HTTP/1.1 200 Fine\r\nDate: now\r\nConnection: X-Back, keep-alive\r\nX-Back: secret\r\nKeep-Alive: 5\r\n\
             Content-Length: 05\r\nContent-Length: 5, 5\r\nX-End: kept\r\nTE: x\r\n\r\nhello",
        );
        assert_eq!(
            out,
            "HTTP/1.1 200 Fine\r\nDate: now\r\nX-End: kept\r\ncontent-length: 5\r\nx-request-id: id\r\n\r\n"
        );
        assert_eq!((head.framing, head.keeps), (Framing::Length(5), true));
    }

    #[test]
    fn what_we_add_stands_beside_what_the_container_says() {
        let ours = Ours { request_id: "id", timing: Some("spawn;dur=9.0"), closes: true };
        let mut out = Vec::new();
        let head = b"HTTP/1.1 204 No Content\r\nX-Request-Id: own\r\nServer-Timing: db;dur=1\r\n\r\n";
        read(head, Verb::Get, ours, &mut out).unwrap().unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("\r\nX-Request-Id: own\r\n") && !out.contains("x-request-id"), "{out}");
        assert!(
            out.contains("Server-Timing: db;dur=1\r\n") && out.contains("server-timing: spawn;dur=9.0\r\n"),
            "{out}"
        );
        assert!(out.contains("\r\ndate: ") && out.ends_with("connection: close\r\n\r\n"), "{out}");
        assert!(!out.contains("content-length") && !out.contains("transfer-encoding"), "{out}");
    }

    #[test]
    fn a_body_ends_where_the_rules_say() {
        for (verb, head, framing, keeps) in [
            (Verb::Get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::Length(3), true),
            (Verb::Get, "HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::Length(3), false),
            (Verb::Get, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: Close\r\n\r\n", Framing::Length(3), false),
            (Verb::Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked, true),
            (
                Verb::Get,
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n",
                Framing::Chunked,
                false,
            ),
            (Verb::Get, "HTTP/1.1 200 OK\r\n\r\n", Framing::Close, false),
            (Verb::Get, "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n", Framing::Nothing, true),
            (Verb::Get, "HTTP/1.1 204 No Content\r\n\r\n", Framing::Nothing, true),
            (Verb::Head, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Framing::Nothing, true),
            (Verb::Head, "HTTP/1.1 200 OK\r\n\r\n", Framing::Nothing, true),
            (
                Verb::Get,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: x, chunked\r\n\r\n",
                Framing::Chunked,
                true,
            ),
            (Verb::Get, "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n", Framing::Close, false),
            (Verb::Get, "HTTP/1.1 204 No Content\r\nContent-Length: x\r\n\r\n", Framing::Nothing, true),
            (Verb::Get, "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: gzip\r\n\r\n", Framing::Nothing, true),
        ] {
            let (passed, out) = whole(verb, head);
            assert_eq!((passed.framing, passed.keeps, passed.length), (framing, keeps, head.len()), "{head}");
            let told = out.contains("content-length: 3\r\n");
            let is_told = matches!(framing, Framing::Length(_)) || (verb == Verb::Head && head.contains("Length"));
            assert_eq!(told, is_told, "{out}");
            assert_eq!(
                out.contains("transfer-encoding"),
                matches!(framing, Framing::Chunked | Framing::Close),
                "{out}"
            );
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_passed() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nSpace : x\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "HTTP/1.1 099 Low\r\n\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            assert_eq!(passed(Verb::Get, head), Err(Malformed), "{head}");
        }
        assert_eq!(passed(Verb::Get, "HTTP/1.1 200 OK\r\nContent-"), Ok(None));
        let early = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n";
        let Ok(Some((Head::Interim { length }, _))) = passed(Verb::Get, early) else { panic!("it is one") };
        assert_eq!(length, early.len());
    }

    #[test]
    fn a_426_says_what_to_upgrade_to() {
        let (_, out) = whole(
            Verb::Get,
            "HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.0\r\nUpgrade: x\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\n",
        );
        assert_eq!(out.to_lowercase().matches("upgrade:").count(), 1, "{out}");
        assert!(out.contains("\r\nUpgrade: TLS/1.0\r\nconnection: upgrade\r\n"), "{out}");
    }

    #[test]
    fn a_head_that_comes_in_pieces_is_looked_at_when_it_may_be_whole() {
        for whole in
            ["HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody", "HTTP/1.1 200 OK\nA: b\n\n", "HTTP/1.1 200 OK\r\nA: b\n\r\n"]
        {
            let end = whole.find("\n\n").map_or_else(|| whole.find("\n\r\n").unwrap() + 3, |at| at + 2);
            for seen in 1..whole.len() {
                let looked = may_have_ended(whole.as_bytes(), seen);
                assert!(looked || seen >= end, "{whole:?} from {seen}");
            }
            assert!((1..end - 1).all(|to| !may_have_ended(&whole.as_bytes()[..to], 1)), "{whole:?}");
        }
    }
}
