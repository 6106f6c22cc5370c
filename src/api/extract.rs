//! Extractors that answer in our error form, name what is wrong, and take no more than a bound.

use std::collections::VecDeque;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::wire::Object;

/// Bytes of a JSON body, at most: 256 variables of 64 KiB each, and as much again for escapes.
pub const JSON_BODY_BYTES_MAX: usize = 32 << 20;
/// How long a JSON body may take to arrive, in milliseconds.
const JSON_BODY_WAIT_MS_MAX: u64 = 30_000;
/// Of a body that is refused, so much is still taken, and for so long.
const DISCARD_BYTES_MAX: usize = 64 << 20;
const DISCARD_MS_MAX: u64 = 2_000;
/// Query parameters of one request, at most.
const PARAMETERS_MAX: usize = 100;

/// A JSON body that has to be there.
#[derive(Debug)]
pub struct Json<T>(pub T);

/// A JSON body that may be left out.
#[derive(Debug)]
pub struct OptionalJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        require_json(&parts.headers)?;
        let bytes = read_body(body).await?;
        from_json(&bytes).map(Self)
    }
}

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = read_body(body).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        require_json(&parts.headers)?;
        from_json(&bytes).map(Self)
    }
}

/// Takes what still comes of a body that is refused, for a while: a client that is still sending when its connection is closed sees
/// that, and not why (RFC 9112 §9.6).
async fn discard(mut body: Body) {
    let taking = async {
        let mut taken = 0;
        while let Some(Ok(frame)) = body.frame().await {
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // Whoever sends more, or slower, is cut off.
    let _ = tokio::time::timeout(Duration::from_millis(DISCARD_MS_MAX), taking).await;
}

/// Reads a whole body, up to [`JSON_BODY_BYTES_MAX`].
///
/// # Errors
/// It is longer, slower, or breaks off.
pub async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    read_body_up_to(body, JSON_BODY_BYTES_MAX).await
}

/// Reads a whole body, up to so many bytes.
///
/// # Errors
/// It is longer, slower, or breaks off.
pub async fn read_body_up_to(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    read_body_within(body, bytes_max, |_| Ok(())).await
}

/// The same; `admit` is asked before each part is kept, with how much there is then, and may refuse.
///
/// # Errors
/// Those, and what `admit` says.
pub async fn read_body_within(
    mut body: Body,
    bytes_max: usize,
    mut admit: impl FnMut(usize) -> Result<(), ApiError>,
) -> Result<Bytes, ApiError> {
    let too_large = || {
        let text = format!("the body is longer than {bytes_max} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", text)
    };
    // One that says so itself is not kept.
    if body.size_hint().lower() > bytes_max as u64 {
        discard(body).await;
        return Err(too_large());
    }
    let mut limited = Limited::new(&mut body, bytes_max);
    let whole = async {
        let mut whole = Vec::new();
        while let Some(frame) = limited.frame().await {
            let Ok(part) = frame?.into_data() else { continue };
            if let Err(refused) = admit(whole.len() + part.len()) {
                return Ok(Err(refused));
            }
            whole.extend_from_slice(&part);
        }
        Ok::<_, axum::BoxError>(Ok(Bytes::from(whole)))
    };
    match tokio::time::timeout(Duration::from_millis(JSON_BODY_WAIT_MS_MAX), whole).await {
        Ok(Ok(whole)) => whole,
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(body).await;
            Err(too_large())
        }
        Ok(Err(error)) => Err(ApiError::bad("BODY_UNREADABLE", format!("the body broke off: {error}"))),
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "REQUEST_TIMEOUT",
            format!("the body did not arrive within {JSON_BODY_WAIT_MS_MAX} ms"),
        )),
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let wanted = "Content-Type: application/json is wanted";
    let Some(found) = headers.get(header::CONTENT_TYPE) else {
        return Err(ApiError::bad("INVALID_CONTENT_TYPE", format!("{wanted}, there is none")));
    };
    let text = String::from_utf8_lossy(found.as_bytes());
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if matches!(essence.as_str(), "application/json" | "application/merge-patch+json") {
        Ok(())
    } else {
        Err(ApiError::bad("INVALID_CONTENT_TYPE", format!("{wanted}, not `{text}`")))
    }
}

/// Reads a JSON object; an error names the field by its path.
///
/// # Errors
/// The text is no JSON, or not what `T` takes.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value: Object<T> = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path == "." => ApiError::bad("VALIDATION_ERROR", inner.to_string()),
            serde_json::error::Category::Data => ApiError::invalid(path, inner),
            _ => ApiError::bad("INVALID_JSON", format!("the body is not JSON: {inner}")),
        }
    })?;
    reader.end().map_err(|error| ApiError::bad("INVALID_JSON", format!("the body is not JSON: {error}")))?;
    Ok(value.0)
}

/// Path parameters; an id that is none is 400.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        use axum::extract::path::ErrorKind;
        use axum::extract::rejection::PathRejection;
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(inner)) => Err(match inner.into_kind() {
                ErrorKind::DeserializeError { key, message, .. } => {
                    ApiError::bad("INVALID_ID", format!("{key}: {message}")).of(key)
                }
                other => ApiError::bad("INVALID_ID", other.to_string()),
            }),
            Err(other) => Err(ApiError::bad("INVALID_ID", other.body_text())),
        }
    }
}

/// Query parameters as they stand in the URL, taken out one by one; what is left at the end is unknown.
#[derive(Debug, Default)]
pub struct Pairs(VecDeque<(String, String)>);

/// What can be read from query parameters.
pub trait FromQuery: Sized {
    /// Takes its parameters out.
    ///
    /// # Errors
    /// One of them is not what it should be.
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError>;
}

impl FromQuery for () {
    fn from_query(_: &mut Pairs) -> Result<Self, ApiError> {
        Ok(())
    }
}

impl Pairs {
    /// Every value of a parameter that may be repeated.
    pub fn all(&mut self, name: &str) -> Vec<String> {
        let (found, rest) = std::mem::take(&mut self.0).into_iter().partition::<VecDeque<_>, _>(|(key, _)| key == name);
        self.0 = rest;
        found.into_iter().map(|(_, value)| value).collect()
    }

    /// The value of a parameter that may stand there once.
    ///
    /// # Errors
    /// It stands there twice.
    pub fn one(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        let mut found = self.all(name);
        if found.len() > 1 {
            return Err(wrong(name, "is given more than once"));
        }
        Ok(found.pop())
    }

    /// A yes or no.
    ///
    /// # Errors
    /// Neither.
    pub fn flag(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.one(name)?.as_deref() {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(wrong(name, format!("`{other}` is neither true nor false"))),
        }
    }

    /// A whole number between two bounds, both included.
    ///
    /// # Errors
    /// It is none, or outside.
    pub fn number(&mut self, name: &'static str, min: u64, max: u64) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match text.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(wrong(name, format!("`{text}` is not a whole number from {min} to {max}"))),
        }
    }

    /// One of some words.
    ///
    /// # Errors
    /// Another word.
    pub fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Result<Option<T>, ApiError> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                Err(wrong(name, format!("`{text}` is none of {}", known.join(", "))))
            }
        }
    }

    fn finish(self) -> Result<(), ApiError> {
        match self.0.front() {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::bad(
                "UNKNOWN_PARAMETER",
                format!("`{}` is not a query parameter of this request", name.chars().take(64).collect::<String>()),
            )
            .of(name.chars().take(64).collect::<String>())),
        }
    }
}

/// 400 for a query parameter.
pub fn wrong(name: &'static str, problem: impl std::fmt::Display) -> ApiError {
    ApiError::bad("INVALID_PARAMETER", format!("{name}: {problem}")).of(name)
}

/// Query parameters, all of them known.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: FromQuery> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        from_query(&parts.uri).map(Self)
    }
}

/// Reads a URL's query.
///
/// # Errors
/// A parameter that is unknown or wrong.
pub fn from_query<T: FromQuery>(uri: &axum::http::Uri) -> Result<T, ApiError> {
    let all = axum::extract::Query::<VecDeque<(String, String)>>::try_from_uri(uri)
        .map_err(|error| ApiError::bad("INVALID_PARAMETER", error.body_text()))?;
    if all.0.len() > PARAMETERS_MAX {
        return Err(ApiError::bad("INVALID_PARAMETER", format!("more than {PARAMETERS_MAX} query parameters")));
    }
    let mut pairs = Pairs(all.0);
    let value = T::from_query(&mut pairs)?;
    pairs.finish()?;
    Ok(value)
}

/// The generation a change is meant for, from `If-Match`; `None` where any will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IfMatch(pub Option<u64>);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        if_match(&parts.headers).map(Self)
    }
}

fn if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let trimmed = text.trim();
    if trimmed == "*" {
        return Ok(None);
    }
    let bare = trimmed.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(trimmed);
    bare.parse().map(Some).map_err(|_| {
        ApiError::bad(
            "INVALID_HEADER",
            format!("If-Match: `{text}` is not one ETag as an answer gave it, such as \"7\""),
        )
        .of("If-Match")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::http::HeaderValue;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only read")]
    struct Body {
        port: Option<u16>,
        vars: Option<BTreeMap<String, String>>,
    }

    fn refused(json: &str) -> (&'static str, Option<String>, String) {
        let error = from_json::<Body>(json.as_bytes()).unwrap_err();
        (error.code(), error.field().map(str::to_owned), error.message().to_owned())
    }

    #[test]
    fn a_bad_body_names_the_field() {
        for (json, code, field) in [
            ("{\"port\": \"x\"}", "VALIDATION_ERROR", Some("port")),
            ("{\"port\": 70000}", "VALIDATION_ERROR", Some("port")),
            ("{\"vars\": {\"PORT\": 1}}", "VALIDATION_ERROR", Some("vars.PORT")),
            ("{\"prot\": 1}", "VALIDATION_ERROR", Some("prot")),
            ("[]", "VALIDATION_ERROR", None),
            ("{", "INVALID_JSON", None),
            ("", "INVALID_JSON", None),
            ("{} {}", "INVALID_JSON", None),
        ] {
            let (found, name, message) = refused(json);
            assert_eq!((found, name.as_deref()), (code, field), "{json}: {message}");
        }
        assert!(refused("{\"prot\": 1}").2.contains("prot"));
    }

    fn content_type(text: &'static str) -> Result<(), ApiError> {
        require_json(&HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(text))]))
    }

    #[test]
    fn a_body_of_another_type_is_refused_by_its_name() {
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
            assert!(content_type(good).is_ok(), "{good}");
        }
        let error = content_type("text/plain").unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (400, "INVALID_CONTENT_TYPE"));
        assert!(error.message().contains("text/plain"));
        assert!(require_json(&HeaderMap::new()).is_err());
    }

    #[derive(Debug, PartialEq, Eq)]
    struct Filter {
        labels: Vec<String>,
        restart: bool,
        limit: u64,
    }

    impl FromQuery for Filter {
        fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
            Ok(Self {
                labels: pairs.all("label"),
                restart: pairs.flag("restart")?.unwrap_or(false),
                limit: pairs.number("limit", 1, 100)?.unwrap_or(50),
            })
        }
    }

    fn filter(query: &str) -> Result<Filter, ApiError> {
        from_query(&format!("/x?{query}").parse().unwrap())
    }

    #[test]
    fn parameters_are_read_and_may_be_repeated_where_that_makes_sense() {
        let want = Filter { labels: vec!["a:1".into(), "b=2".into()], restart: true, limit: 7 };
        assert_eq!(filter("label=a:1&restart=true&label=b%3D2&limit=7").unwrap(), want);
        assert_eq!(filter("").unwrap(), Filter { labels: vec![], restart: false, limit: 50 });
    }

    #[test]
    fn a_bad_parameter_is_named() {
        for (query, code, name) in [
            ("labels=a:1", "UNKNOWN_PARAMETER", "labels"),
            ("restart=maybe", "INVALID_PARAMETER", "restart"),
            ("restart=1&restart=0", "INVALID_PARAMETER", "restart"),
            ("limit=0", "INVALID_PARAMETER", "limit"),
            ("limit=101", "INVALID_PARAMETER", "limit"),
            ("limit=-1", "INVALID_PARAMETER", "limit"),
            ("limit=1e2", "INVALID_PARAMETER", "limit"),
        ] {
            let error = filter(query).unwrap_err();
            assert_eq!((error.code(), error.field()), (code, Some(name)), "{query}");
        }
        let error = from_query::<()>(&"/x?a=1".parse().unwrap()).unwrap_err();
        assert_eq!(error.code(), "UNKNOWN_PARAMETER");
        assert!(filter(&"label=x&".repeat(PARAMETERS_MAX + 1)).is_err());
    }

    #[test]
    fn if_match_takes_an_etag_and_nothing_else() {
        let read =
            |text: &'static str| if_match(&HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_static(text))]));
        assert_eq!(if_match(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("*").unwrap(), None);
        assert_eq!(read("\"7\"").unwrap(), Some(7));
        assert_eq!(read("7").unwrap(), Some(7));
        for bad in ["\"x\"", "\"1\", \"2\"", "W/\"1\"", ""] {
            assert_eq!(read(bad).unwrap_err().code(), "INVALID_HEADER", "{bad}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_bound_is_413() {
        let error = read_body(axum::body::Body::from(vec![b' '; JSON_BODY_BYTES_MAX + 1])).await.unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (413, "BODY_TOO_LARGE"));
    }
}
