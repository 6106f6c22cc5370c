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
        let (mut host, mut agent) = (None, None);
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
                Field::Agent if agent.is_none() => agent = Some(std::str::from_utf8(value).unwrap_or_default()),
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
                Field::Host | Field::Agent | Field::Connection | Field::ForwardedFor | Field::Unusual => return None,
                Field::Other => {}
            }
            put_field(out, name, value);
        }
        asked.host = host?;
        asked.agent = agent.unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &str) -> Option<(Asked<'_>, String)> {
        let mut out = Vec::new();
        let asked = Asked::read(head.as_bytes(), &mut out)?;
        Some((asked, String::from_utf8(out).unwrap()))
    }

    const PLAIN: &str =
        "GET /a%20b?q=1 HTTP/1.1\r\nHost: acme.node1.localhost\r\nUser-Agent: curl/8\r\nAccept: text/html\r\n";

    #[test]
    fn a_plain_head_is_written_anew_with_our_fields_in_place_of_what_the_client_claims() {
        let head = format!(
            "{PLAIN}X-Forwarded-For: 6.6.6.6\r\nX_Forwarded_Host: evil\r\nForwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
             X-Request-Id: theirs\r\nConnection: Keep-Alive\r\nCookie:a=b\r\n\r\nmore"
        );
        let mut out = Vec::new();
        let asked = Asked::read(head.as_bytes(), &mut out).unwrap();
        put_origin(
            &mut out,
            Origin { ip: "192.0.2.7".parse().unwrap(), scheme: Scheme::Https, host: asked.host, request_id: "ours" },
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "GET /a%20b?q=1 HTTP/1.1\r\nHost: acme.node1.localhost\r\nUser-Agent: curl/8\r\nAccept: text/html\r\n\
             Cookie: a=b\r\nx-forwarded-for: 192.0.2.7\r\n\
             forwarded: for=192.0.2.7;host=\"acme.node1.localhost\";proto=https\r\nx-forwarded-proto: https\r\n\
             x-forwarded-host: acme.node1.localhost\r\nx-request-id: ours\r\n\r\n"
        );
        let wanted = Asked {
            verb: Verb::Get,
            target: "/a%20b?q=1",
            host: "acme.node1.localhost",
            agent: "curl/8",
            forwarded_for: Some("6.6.6.6"),
            wants_html: true,
            closes: false,
            length: head.len() - "more".len(),
            fields: 10,
        };
        assert_eq!((asked, asked.path()), (wanted, "/a%20b"));
    }

    #[test]
    fn a_head_with_anything_unusual_is_not_plain() {
        let good = format!("{PLAIN}\r\n");
        assert!(read(&good).is_some());
        for field in [
            "Content-Length: 0",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
            "Upgrade: websocket",
            "TE: trailers",
            "Trailer: x",
            "Connection: upgrade",
            "Connection: keep-alive, x-hop",
            "Keep-Alive: 5",
            "Proxy-Connection: close",
            "Proxy-Authorization: Basic x",
            "HTTP2-Settings: x",
            "Host: acme.node1.localhost",
            "User-Agent: another",
            "X-Forwarded-For: 1\r\nX-Forwarded-For: 2",
            "no colon",
            "Space : x",
            " folded",
            "Null: \0",
        ] {
            assert!(read(&format!("{PLAIN}{field}\r\n\r\n")).is_none(), "{field}");
        }
        for line in [
            "POST / HTTP/1.1",
            "get / HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "GET / HTTP/1.0",
            "GET / HTTP/2.0",
            "GET http://acme.node1.localhost/ HTTP/1.1",
            "GET * HTTP/1.1",
            "GET /a b HTTP/1.1",
            "GET /a\"b HTTP/1.1",
            "GET /a#b HTTP/1.1",
            "GET /\u{e4} HTTP/1.1",
            "GET  / HTTP/1.1",
        ] {
            assert!(read(&good.replacen("GET /a%20b?q=1 HTTP/1.1", line, 1)).is_none(), "{line}");
        }
        assert!(read("GET / HTTP/1.1\r\n\r\n").is_none(), "no host");
        assert!(read(&good[..good.len() - 1]).is_none(), "not whole");
        let many = "X: y\r\n".repeat(FIELDS_MAX);
        assert!(read(&format!("{PLAIN}{many}\r\n")).is_none(), "too many");
    }

    #[test]
    fn a_client_that_closes_is_plain_and_is_not_repeated() {
        let head = format!("{PLAIN}Connection: close\r\n\r\n");
        let (asked, out) = read(&head).unwrap();
        assert!(asked.closes && !out.to_lowercase().contains("connection"), "{out}");
    }

    #[test]
    fn another_path_takes_the_place_of_the_one_that_was_asked_for() {
        let mut out = Vec::new();
        let head = format!("{PLAIN}\r\n");
        let asked = Asked::read(head.as_bytes(), &mut out).unwrap();
        assert_eq!(lead_to(&mut out, &asked, "/v2 x"), None);
        lead_to(&mut out, &asked, "/v2/longer").unwrap();
        assert!(out.starts_with(b"GET /v2/longer?q=1 HTTP/1.1\r\nHost: "), "{}", String::from_utf8_lossy(&out));
    }
}
