//! What a request brings to be let in by: where it stands, and how it is taken away again. Pure.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::Uri;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use jiff::Timestamp;
use url::form_urlencoded;

use crate::domain::access::{Access, Place, Visit};

/// Bytes of Basic's credentials in base64, at most: the longest user and password fit.
const BASIC_BYTES_MAX: usize = 2_048;

/// What a request brings.
pub(super) struct Given<'a> {
    parts: &'a Parts,
    basic: Option<(String, String)>,
}

impl<'a> Given<'a> {
    pub fn new(parts: &'a Parts) -> Self {
        Self { parts, basic: single(&parts.headers, "authorization").and_then(basic) }
    }

    /// The user and the password, where they are named.
    pub fn password(&self) -> (&str, &str) {
        self.basic.as_ref().map_or(("", ""), |(user, password)| (user, password))
    }

    /// Asks about the visit.
    pub fn visit<T>(&self, port: u16, client: IpAddr, now: Timestamp, ask: impl FnOnce(&Visit<'_>) -> T) -> T {
        let find = |place: &Place| self.find(place);
        let basic = self.basic.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
        ask(&Visit { port, client, now, basic, find: &find })
    }

    /// Asks about the visit as if it had brought nothing.
    pub fn bare<T>(port: u16, client: IpAddr, now: Timestamp, ask: impl FnOnce(&Visit<'_>) -> T) -> T {
        ask(&Visit { port, client, now, basic: None, find: &|_| None })
    }

    fn find(&self, place: &Place) -> Option<Cow<'a, str>> {
        match place {
            Place::Header(name) => single(&self.parts.headers, name).map(Cow::Borrowed),
            Place::Cookie(name) => {
                cookies(&self.parts.headers).find(|(key, _)| key == name).map(|(_, value)| value.into())
            }
            Place::Param(name) => {
                let query = self.parts.uri.query()?;
                let mut found = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
                // Of two, the container might read the one that was not looked at.
                let (first, second) = (found.next()?.1, found.next());
                second.is_none().then_some(first)
            }
        }
    }
}

/// A header that stands there once.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut all = headers.get_all(name).iter();
    let (first, second) = (all.next()?, all.next());
    if second.is_none() { first.to_str().ok() } else { None }
}

/// User and password (RFC 7617).
fn basic(value: &str) -> Option<(String, String)> {
    let (scheme, rest) = value.trim().split_once(' ')?;
    let rest = rest.trim();
    if !scheme.eq_ignore_ascii_case("basic") || rest.len() > BASIC_BYTES_MAX {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='))
}

/// The address in an entry of `X-Forwarded-For`, which some write with a port.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// Takes away what a visitor was let in by, and every parameter that is there for that: those stay in a browser's history and in its
/// `Referer` for long.
pub(super) fn strip(parts: &mut Parts, spent: &[Place], access: &Access) {
    for place in spent {
        match place {
            Place::Header(name) => drop(parts.headers.remove(name.as_str())),
            Place::Cookie(name) => strip_cookie(&mut parts.headers, name),
            Place::Param(_) => {}
        }
    }
    let params: Vec<&str> = access.places().filter_map(Place::as_param).collect();
    if params.is_empty() {
        return;
    }
    if let Some(uri) = without_params(&parts.uri, &params) {
        parts.uri = uri;
    }
    if let Some(referer) = single(&parts.headers, "referer")
        && let Some((before, query)) = referer.split_once('?')
    {
        let text = joined(before, &kept(query, &params));
        match HeaderValue::try_from(text) {
            Ok(value) => drop(parts.headers.insert(header::REFERER, value)),
            Err(_) => drop(parts.headers.remove(header::REFERER)),
        }
    }
}

fn strip_cookie(headers: &mut HeaderMap, name: &str) {
    let is_spent = |pair: &str| pair.trim().split_once('=').is_some_and(|(key, _)| key == name);
    let kept: Vec<HeaderValue> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| {
            let Ok(text) = value.to_str() else { return Some(value.clone()) };
            let pairs: Vec<&str> = text.split(';').map(str::trim).filter(|pair| !is_spent(pair)).collect();
            // Parts of a good value are one.
            HeaderValue::try_from(pairs.join("; ")).ok().filter(|value| !value.is_empty())
        })
        .collect();
    headers.remove(header::COOKIE);
    for value in kept {
        headers.append(header::COOKIE, value);
    }
}

/// The pairs of a query that are not of these names, as they were written.
fn kept(query: &str, params: &[&str]) -> String {
    let is_ours = |pair: &str| form_urlencoded::parse(pair.as_bytes()).any(|(key, _)| params.contains(&key.as_ref()));
    query.split('&').filter(|pair| !is_ours(pair)).collect::<Vec<_>>().join("&")
}

fn joined(before: &str, query: &str) -> String {
    if query.is_empty() { before.to_owned() } else { format!("{before}?{query}") }
}

fn without_params(uri: &Uri, params: &[&str]) -> Option<Uri> {
    let query = uri.query()?;
    let left = kept(query, params);
    if left.len() == query.len() {
        return None;
    }
    let mut parts = uri.clone().into_parts();
    // Parts of a good query are one.
    parts.path_and_query = Some(PathAndQuery::try_from(joined(uri.path(), &left)).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = hyper::Request::get(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_user_and_a_password_are_read_as_basic_has_them() {
        // "Aladdin:open sesame" is the example of RFC 7617.
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(basic("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="), pair("Aladdin", "open sesame"));
        assert_eq!(basic(&format!("basic {}", BASE64.encode("a:b:c"))), pair("a", "b:c"));
        for bad in ["Basic", "Basic x", "Bearer QTpi", &format!("Basic {}", BASE64.encode("nocolon"))] {
            assert_eq!(basic(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_stands_twice_counts_as_not_there() {
        let parts = parts("/?k=1&k=2&j=3", &[("x-key", "a"), ("x-key", "b"), ("x-one", "c")]);
        let given = Given::new(&parts);
        assert_eq!(given.find(&Place::Param("k".into())), None);
        assert_eq!(given.find(&Place::Param("j".into())).as_deref(), Some("3"));
        assert_eq!(given.find(&Place::Header("x-key".into())), None);
        assert_eq!(given.find(&Place::Header("x-one".into())).as_deref(), Some("c"));
    }

    #[test]
    fn a_spent_cookie_goes_and_the_others_stay() {
        let mut parts = parts("/", &[("cookie", "a=1; door=secret; b=2"), ("cookie", "door=again"), ("cookie", "c=3")]);
        strip(&mut parts, &[Place::Cookie("door".into())], &Access::default());
        let left: Vec<_> = parts.headers.get_all("cookie").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(left, ["a=1; b=2", "c=3"]);
    }

    #[test]
    fn an_address_may_have_a_port() {
        for (text, want) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1:80", Some("192.0.2.1")),
            ("[2001:db8::1]:80", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(address(text), want.map(|text| text.parse().unwrap()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_query_without_the_parameter_is_the_rest_as_it_was(pairs in prop::collection::vec("(k|%6b|K|a|kk)(=[a-z0-9%+]{0,4})?", 0..6)) {
            let query = pairs.join("&");
            let left = kept(&query, &["k"]);
            prop_assert!(form_urlencoded::parse(left.as_bytes()).all(|(key, _)| key != "k"));
            let want: Vec<_> = pairs.iter().filter(|pair| !matches!(pair.split('=').next(), Some("k" | "%6b"))).cloned().collect();
            prop_assert_eq!(left, want.join("&"));
        }
    }
}
