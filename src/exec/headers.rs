//! Which of a script's headers go out. Pure.
//!
//! What belongs to the connection is the daemon's (RFC 9110 §7.6.1), and so is the length: a script that says one and writes another
//! would cut its client's stream to pieces.

use super::comments::{Cors, allowed_origin};

/// Headers of the connection, and those that this side decides.
const NOT_THE_SCRIPTS: [&str; 11] = [
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-request-id",
];
/// Headers of an answer, at most.
const COUNT_MAX: usize = 100;
/// Bytes of all of them, at most.
const BYTES_MAX: usize = 64 << 10;

/// What of a script's headers its client gets, in their order; several of one name stay several.
pub fn outgoing(headers: Vec<(String, String)>) -> Vec<(String, String)> {
    let named: Vec<String> = headers
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("connection"))
        .flat_map(|(_, value)| value.split(',').map(|name| name.trim().to_ascii_lowercase()))
        .collect();
    let mut bytes = 0;
    let lower = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
    lower
        .filter(|(name, value)| {
            is_name(name) && is_value(value) && !NOT_THE_SCRIPTS.contains(&name.as_str()) && !named.contains(name)
        })
        .take(COUNT_MAX)
        .take_while(|(name, value)| {
            bytes += name.len() + value.len();
            bytes <= BYTES_MAX
        })
        .collect()
}

/// A token (RFC 9110 §5.6.2).
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// No control but tab (RFC 9110 §5.5).
fn is_value(value: &str) -> bool {
    value.bytes().all(|b| b == b'\t' || (b >= b' ' && b != 0x7f))
}

/// Adds what lets a page of another origin read the answer; a script that says it itself is right.
pub fn with_cors(headers: &mut Vec<(String, String)>, cors: &Cors, origin: Option<&str>) {
    const ALLOW_ORIGIN: &str = "access-control-allow-origin";
    if headers.iter().any(|(name, _)| name == ALLOW_ORIGIN) {
        return;
    }
    if *cors != Cors::Any {
        // Also where there is none: a cache must not give this answer to a page that may read it.
        headers.push(("vary".to_owned(), "origin".to_owned()));
    }
    if let Some(allowed) = origin.and_then(|origin| allowed_origin(cors, origin)) {
        headers.push((ALLOW_ORIGIN.to_owned(), allowed.to_owned()));
    }
}

/// How long a browser may remember that it may ask, in seconds.
const PREFLIGHT_S: &str = "600";

/// The answer to a browser that asks whether a page may ask.
pub fn preflight(cors: &Cors, origin: &str, wanted_headers: Option<&str>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    with_cors(&mut headers, cors, Some(origin));
    if allowed_origin(cors, origin).is_some() {
        let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
        add("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE");
        add("access-control-max-age", PREFLIGHT_S);
        if let Some(wanted) = wanted_headers.filter(|wanted| is_value(wanted)) {
            add("access-control-allow-headers", wanted);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_the_connections_does_not_go_out() {
        let given = pairs(&[
            ("Content-Type", "text/plain"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("content-length", "7"),
            ("Transfer-Encoding", "chunked"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("bad name", "1"),
            ("x-split", "a\r\nset-cookie: c=3"),
            ("x-tab", "a\tb"),
        ]);
        let want =
            pairs(&[("content-type", "text/plain"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("x-tab", "a\tb")]);
        assert_eq!(outgoing(given), want);
    }

    #[test]
    fn headers_are_bounded() {
        let many = (0..1_000).map(|at| (format!("x-{at}"), "1".to_owned())).collect();
        assert_eq!(outgoing(many).len(), COUNT_MAX);
        let long = (0..10).map(|at| (format!("x-{at}"), "1".repeat(BYTES_MAX / 4))).collect();
        assert_eq!(outgoing(long).len(), 3);
    }

    #[test]
    fn a_page_of_another_origin_may_read_what_the_script_lets_it() {
        let some = Cors::Origins(vec!["https://a.example".into()]);
        let of = |cors: &Cors, origin: Option<&str>| {
            let mut headers = Vec::new();
            with_cors(&mut headers, cors, origin);
            headers
        };
        assert_eq!(of(&Cors::Any, Some("https://x")), pairs(&[("access-control-allow-origin", "*")]));
        assert_eq!(of(&some, Some("https://x")), pairs(&[("vary", "origin")]));
        let allowed = pairs(&[("vary", "origin"), ("access-control-allow-origin", "https://a.example")]);
        assert_eq!(of(&some, Some("https://a.example")), allowed);
        let mut own = pairs(&[("access-control-allow-origin", "https://own")]);
        with_cors(&mut own, &Cors::Any, Some("https://x"));
        assert_eq!(own.len(), 1);
        assert_eq!(preflight(&some, "https://a.example", Some("x-a")).len(), 5);
        assert_eq!(preflight(&some, "https://b.example", Some("x-a")), pairs(&[("vary", "origin")]));
    }
}
