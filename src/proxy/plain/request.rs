//! A request's head: whether it is plain, and how a container is told of it. Pure.
//!
//! A head is read and written in one pass, since most of it is passed on as it is. What is not plain is not wrong: hyper judges it.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use hyper::Method;

use super::super::Scheme;
use super::super::headers::{self, Forwarded};

/// Fields of a plain head, at most; a few more than browsers send.
const FIELDS_MAX: usize = 64;

/// What is asked for: methods that have no body, and may be sent twice (RFC 9110 §9.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Head,
}

impl Verb {
    fn of(method: &str) -> Option<Self> {
        match method {
            "GET" => Some(Self::Get),
            "HEAD" => Some(Self::Head),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

impl From<Verb> for Method {
    fn from(verb: Verb) -> Self {
        match verb {
            Verb::Get => Self::GET,
            Verb::Head => Self::HEAD,
        }
    }
}

/// What a plain head says to us; the rest of it is for the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    pub verb: Verb,
    /// A path and perhaps a query.
    pub target: &'a str,
    pub host: &'a str,
    /// Empty where there is none or it is no text.
    pub agent: &'a str,
    /// `X-Forwarded-For`, as it came.
    pub forwarded_for: Option<&'a str>,
    pub wants_html: bool,
    /// The client sends nothing more.
    pub closes: bool,
    /// Bytes of the head.
    pub length: usize,
    pub fields: usize,
}

impl<'a> Asked<'a> {
    /// The target without its query.
    pub fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    /// Reads a head, and begins `out` with what of it is for the container. `None` where the head is not whole or not plain; `out` means
    /// nothing then.
    pub fn read(bytes: &'a [u8], out: &mut Vec<u8>) -> Option<Self> {
        let mut slots = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut []);
        let Ok(httparse::Status::Complete(length)) = head.parse_with_uninit_headers(bytes, &mut slots) else {
            return None;
        };
        let verb = Verb::of(head.method?)?;
        let target = head.path.filter(|target| target_is_plain(target))?;
        if head.version != Some(1) {
            return None;
        }
        out.clear();
        put_line(out, verb, target);
        let mut host = None;
        let mut asked = Self {
            verb,
            target,
            host: "",
            agent: "",
            forwarded_for: None,
            wants_html: false,
            closes: false,
            length,
            fields: head.headers.len(),
        };
        for httparse::Header { name, value } in &*head.headers {
            match Field::of(name) {
                Field::Host if host.is_none() => host = Some(std::str::from_utf8(value).ok()?),
                Field::Agent => asked.agent = std::str::from_utf8(value).unwrap_or_default(),
                Field::Accept => asked.wants_html |= headers::names_html(value),
                Field::Connection if value.eq_ignore_ascii_case(b"close") => {
                    asked.closes = true;
                    continue;
                }
                Field::Connection if value.eq_ignore_ascii_case(b"keep-alive") => continue,
                Field::ForwardedFor if asked.forwarded_for.is_none() => {
                    asked.forwarded_for = Some(std::str::from_utf8(value).ok()?);
                    continue;
                }
                Field::Ours => continue,
                Field::Host | Field::Connection | Field::ForwardedFor | Field::Unusual => return None,
                Field::Other => {}
            }
            put_field(out, name, value);
        }
        asked.host = host?;
        Some(asked)
    }
}

/// What a field is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Host,
    Agent,
    Accept,
    Connection,
    ForwardedFor,
    /// Written by us, whatever the client says.
    Ours,
    /// Frames the message, changes the protocol, or is of this hop.
    Unusual,
    Other,
}

impl Field {
    fn of(name: &str) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            4 if is("host") => Self::Host,
            6 if is("accept") => Self::Accept,
            6 if is("expect") => Self::Unusual,
            7 if is("trailer") => Self::Unusual,
            10 if is("user-agent") => Self::Agent,
            10 if is("connection") => Self::Connection,
            12 if is("x-request-id") => Self::Ours,
            14 if is("content-length") => Self::Unusual,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            _ if headers::ends_here(name) => Self::Unusual,
            _ if headers::claims_origin(name) => Self::Ours,
            _ => Self::Other,
        }
    }
}

/// Whether a target is a path and perhaps a query of the characters that RFC 3986 (§3.3, §3.4) lets stand there.
fn target_is_plain(target: &str) -> bool {
    target.starts_with('/') && target.bytes().all(|byte| TARGET[usize::from(byte)])
}

/// Those characters: unreserved ones, `%`, sub-delims, `:`, `@`, `/` and `?`.
static TARGET: [bool; 256] = {
    let mut good = [false; 256];
    let text = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~%!$&'()*+,;=:@/?";
    let mut n = 0;
    while n < text.len() {
        good[text[n] as usize] = true;
        n += 1;
    }
    good
};

fn put_line(out: &mut Vec<u8>, verb: Verb, target: &str) {
    for part in [verb.as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

pub(super) fn put_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Who asks, as the container is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub ip: IpAddr,
    pub scheme: Scheme,
    pub host: &'a str,
    pub request_id: &'a str,
}

/// Ends a head that [`Asked::read`] began, with the fields that are ours.
pub(super) fn put_origin(out: &mut Vec<u8>, origin: Origin<'_>) {
    let Origin { ip, scheme, host, request_id } = origin;
    let proto = scheme.as_str();
    // Writing to a Vec cannot fail.
    let _ = write!(
        out,
        "x-forwarded-for: {ip}\r\nforwarded: {}\r\nx-forwarded-proto: {proto}\r\nx-forwarded-host: {host}\r\n\
         x-request-id: {request_id}\r\n\r\n",
        Forwarded { ip, host, scheme }
    );
}

/// Asks for another path, with the same query, in a head that was begun for this request; `None` where that is no path.
pub(super) fn lead_to(out: &mut Vec<u8>, asked: &Asked<'_>, path: &str) -> Option<()> {
    if !target_is_plain(path) {
        return None;
    }
    let from = asked.verb.as_str().len() + 1;
    out.splice(from..from + asked.path().len(), path.bytes());
    Some(())
}
