//! What a proxy must change in a head on its way through. Pure.
//!
//! Hop-by-hop fields end here (RFC 9110 §7.6.1), the fields that say who asked are ours to write, since this is the
//! edge, and what frames a message is derived from the parsed body, never copied from the other side.
//!
//! No `Via` is written: it tells a tenant nothing, and servers are known to switch compression off when they see it.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri, Version};

use crate::domain::host::Scheme;

/// The id of a request, in our responses and towards the container.
pub(super) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Fields that are of one hop alone, beside `Connection` and those it names (RFC 9110 §7.6.1).
static OF_THIS_HOP: [HeaderName; 8] = [
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The id of a request: 128 random bits in hex.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestId([u8; 32]);

impl RequestId {
    /// The text of these bits.
    pub(super) fn of(bits: [u8; 16]) -> Self {
        let mut text = [0; 32];
        // The text is twice the bytes: it cannot fail.
        let _ = hex::encode_to_slice(bits, &mut text);
        Self(text)
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    pub(super) fn to_value(self) -> HeaderValue {
        // Hex is a good value.
        HeaderValue::from_bytes(&self.0).unwrap_or_else(|_| HeaderValue::from_static("0"))
    }
}

/// Whether a response of this status has no body, whatever it says of one (RFC 9112 §6.3); 1xx are not asked for.
pub(super) fn has_no_body(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// Bytes a head takes on the wire, without the status or request line's fixed parts.
pub(super) fn head_bytes(uri: &Uri, headers: &HeaderMap) -> usize {
    let target = uri.path_and_query().map_or(0, |p| p.as_str().len());
    let fields: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    target + fields
}

/// Makes one field of cookies that HTTP/2 may split (RFC 9113 §8.2.3), as HTTP/1.1 wants it.
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in headers.get_all(header::COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Of good values and a separator: a good value.
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// Whether a request of HTTP/2 has at most one length, a number, and no body where it says none. That a body has the length is seen
/// as it comes.
pub(super) fn length_is_good(headers: &HeaderMap, has_body: bool) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => true,
        (Some(only), None) => {
            let digits = only.as_bytes();
            let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            is_number && (has_body || digits.iter().all(|digit| *digit == b'0'))
        }
        (Some(_), Some(_)) => false,
    }
}

/// The protocol a request asks to switch to, if we let it: HTTP/1.1, no body, and not `h2c`, in which requests
/// would pass that we never see.
pub(super) fn wanted_upgrade(version: Version, has_body: bool, headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(header::UPGRADE)?;
    let is_h2c = |v: &HeaderValue| list_has(v, "h2c") || list_has(v, "h2");
    let named = headers.get_all(header::CONNECTION).iter().any(|v| list_has(v, "upgrade"));
    let single = headers.get_all(header::UPGRADE).iter().count() == 1;
    (version == Version::HTTP_11 && !has_body && named && single && !is_h2c(value)).then(|| value.clone())
}

/// Whether a comma-separated list has this token, in any case.
fn list_has(value: &HeaderValue, token: &str) -> bool {
    let has = |text: &str| text.split(',').any(|item| item.trim().eq_ignore_ascii_case(token));
    value.to_str().is_ok_and(has)
}

/// Removes what ends at this hop, and returns whether the sender takes trailers.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) -> bool {
    let takes_trailers = headers.get_all(header::TE).iter().any(|v| list_has(v, "trailers"));
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            // Both are end to end whatever the sender says: without them the receiver routes or frames differently.
            .filter(|name| name != header::HOST && name != header::CONTENT_LENGTH)
            .collect();
        named.iter().for_each(|name| remove_if_there(headers, name));
        headers.remove(header::CONNECTION);
    }
    OF_THIS_HOP.iter().for_each(|name| remove_if_there(headers, name));
    takes_trailers
}

/// `remove` takes all values of a name; looking first is cheaper for the many names that are not there.
fn remove_if_there(headers: &mut HeaderMap, name: &HeaderName) {
    if headers.contains_key(name) {
        headers.remove(name);
    }
}

/// Whether a field of this name, in any case, is of one hop alone; `Connection` is another.
pub(super) fn ends_here(name: &str) -> bool {
    OF_THIS_HOP.iter().any(|ends| ends.as_str().eq_ignore_ascii_case(name))
}

/// Whether a client-sent field of this name, in any case, claims who the client is. An underscore counts as a hyphen: many servers
/// hand both to the application under one name.
pub(super) fn claims_origin(name: &str) -> bool {
    let same = |(a, b): (u8, u8)| a.eq_ignore_ascii_case(&b) || (a == b'_' && b == b'-');
    let starts = |prefix: &str| name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(same);
    let is = |whole: &str| name.len() == whole.len() && starts(whole);
    starts("x-forwarded-") || is("forwarded") || is("x-real-ip")
}

/// Whether an `Accept` names HTML, as browsers' do and programs' do not.
pub(super) fn names_html(accept: &[u8]) -> bool {
    std::str::from_utf8(accept).is_ok_and(|text| text.contains("text/html"))
}

/// `Forwarded` as this hop writes it (RFC 7239).
#[derive(Debug, Clone, Copy)]
pub(super) struct Forwarded<'a> {
    pub ip: IpAddr,
    /// A parsed Host: it has no quote and no backslash.
    pub host: &'a str,
    pub scheme: Scheme,
}

impl fmt::Display for Forwarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "for={ip}")?,
            IpAddr::V6(ip) => write!(f, "for=\"[{ip}]\"")?,
        }
        write!(f, ";host=\"{}\";proto={}", self.host, self.scheme.as_str())
    }
}

/// Who asked for what, as the container is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub peer: SocketAddr,
    pub scheme: Scheme,
    pub host: &'a HeaderValue,
    pub request_id: &'a HeaderValue,
}

/// Writes the forwarding fields in place of any the client sent.
pub(super) fn set_forwarded(headers: &mut HeaderMap, origin: Origin<'_>) {
    let claimed: Vec<HeaderName> = headers.keys().filter(|name| claims_origin(name.as_str())).cloned().collect();
    claimed.iter().for_each(|name| remove_if_there(headers, name));
    let ip = origin.peer.ip().to_canonical();
    let proto = origin.scheme.as_str();
    let mut text = String::with_capacity(64 + origin.host.len());
    // Writing to a String cannot fail.
    let _ = write!(text, "{ip}");
    insert(headers, &X_FORWARDED_FOR, &text);
    text.clear();
    let host = origin.host.to_str().unwrap_or_default();
    let _ = write!(text, "{}", Forwarded { ip, host, scheme: origin.scheme });
    insert(headers, &header::FORWARDED, &text);
    headers.insert(X_FORWARDED_PROTO.clone(), HeaderValue::from_static(proto));
    headers.insert(X_FORWARDED_HOST.clone(), origin.host.clone());
    headers.insert(REQUEST_ID.clone(), origin.request_id.clone());
}

fn insert(headers: &mut HeaderMap, name: &HeaderName, text: &str) {
    // Digits, dots and a parsed host are always a good value.
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name.clone(), value);
    }
}

/// Whether a request may be sent twice: RFC 9110 §9.2.2.
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// Frames a response's head for the client: the length is kept only where it is one number and the body agrees.
///
/// `is_chunked` says that the container sent a transfer coding, beside which a length means nothing.
pub(super) fn settle_length(headers: &mut HeaderMap, is_chunked: bool, has_no_body_by_status: bool) {
    if !headers.contains_key(header::CONTENT_LENGTH) {
        return;
    }
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let first_is_number = values.next().is_some_and(|v| !v.is_empty() && v.as_bytes().iter().all(u8::is_ascii_digit));
    if is_chunked || has_no_body_by_status || !first_is_number || values.next().is_some() {
        headers.remove(header::CONTENT_LENGTH);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn fields_named_by_connection_end_here() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "keep-alive, host, Content-Length"),
            ("x-secret", "1"),
            ("x-secret", "2"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers, deflate"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("host", "a"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ]);
        assert!(remove_hop_by_hop(&mut headers), "trailers were asked for");
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length", "host"]);
    }

    #[test]
    fn what_the_client_claims_about_itself_is_replaced() {
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded-server", "evil"),
            ("x-real-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("x-forward", "kept"),
            ("x-request-id", "theirs"),
        ]);
        let host = HeaderValue::from_static("acme.node1.localhost:8080");
        let id = HeaderValue::from_static("ours");
        let peer = "[::ffff:192.0.2.7]:4000".parse().unwrap();
        set_forwarded(&mut headers, Origin { peer, scheme: Scheme::Http, host: &host, request_id: &id });
        let get = |name: &str| headers.get(name).map(|v| v.to_str().unwrap());
        assert_eq!(get("x-forwarded-for"), Some("192.0.2.7"));
        assert_eq!(get("x-forwarded-proto"), Some("http"));
        assert_eq!(get("x-forwarded-host"), Some("acme.node1.localhost:8080"));
        assert_eq!(get("forwarded"), Some("for=192.0.2.7;host=\"acme.node1.localhost:8080\";proto=http"));
        assert_eq!(get("x-request-id"), Some("ours"));
        assert_eq!(get("x-forward"), Some("kept"));
        for gone in ["x_forwarded_for", "x-forwarded-server", "x-real-ip"] {
            assert_eq!(get(gone), None, "{gone}");
        }
    }

    #[test]
    fn an_ipv6_client_is_quoted() {
        let mut headers = HeaderMap::new();
        let (host, id) = (HeaderValue::from_static("h"), HeaderValue::from_static("i"));
        let peer = "[2001:db8::1]:1".parse().unwrap();
        set_forwarded(&mut headers, Origin { peer, scheme: Scheme::Https, host: &host, request_id: &id });
        assert_eq!(headers["forwarded"], "for=\"[2001:db8::1]\";host=\"h\";proto=https");
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
    }

    #[test]
    fn only_a_plain_upgrade_of_http_1_1_is_let_through() {
        let good = map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(wanted_upgrade(Version::HTTP_11, false, &good).unwrap(), "websocket");
        assert!(wanted_upgrade(Version::HTTP_10, false, &good).is_none());
        assert!(wanted_upgrade(Version::HTTP_11, true, &good).is_none());
        for (connection, upgrade) in [("keep-alive", "websocket"), ("upgrade", "h2c"), ("upgrade", "websocket, H2C")] {
            let headers = map(&[("connection", connection), ("upgrade", upgrade)]);
            assert!(wanted_upgrade(Version::HTTP_11, false, &headers).is_none(), "{connection} {upgrade}");
        }
    }

    #[test]
    fn split_cookies_become_one() {
        let mut headers = map(&[("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2; c=3"), ("cookie", "d=4")]);
        join_cookies(&mut headers);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3; d=4"]);
        let mut one = map(&[("cookie", "a=1")]);
        join_cookies(&mut one);
        assert_eq!(one, map(&[("cookie", "a=1")]));
    }

    #[test]
    fn a_length_of_http_2_is_one_number_that_fits_its_body() {
        for (lengths, has_body, good) in [
            (&[][..], true, true),
            (&["5"], true, true),
            (&["5"], false, false),
            (&["0"], false, true),
            (&["5", "5"], true, false),
            (&["5", "6"], true, false),
            (&["+5"], true, false),
            (&["5, 5"], true, false),
            (&[""], true, false),
        ] {
            let fields: Vec<_> = lengths.iter().map(|length| ("content-length", *length)).collect();
            assert_eq!(length_is_good(&map(&fields), has_body), good, "{lengths:?} {has_body}");
        }
    }

    #[test]
    fn a_length_stays_only_where_it_is_one_number() {
        for (fields, chunked, kept) in [
            (vec![("content-length", "5")], false, true),
            (vec![("content-length", "5")], true, false),
            (vec![("content-length", "5"), ("content-length", "5")], false, false),
            (vec![("content-length", "5, 5")], false, false),
            (vec![("content-length", "+5")], false, false),
        ] {
            let mut headers = map(&fields);
            settle_length(&mut headers, chunked, false);
            assert_eq!(headers.contains_key("content-length"), kept, "{fields:?} {chunked}");
        }
    }
}
