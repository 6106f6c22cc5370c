//! What every request goes through, first and last: an id, a span, the form of errors, one line in the log.

use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use super::Api;
use super::error::ApiError;

/// Bears the request's id, in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Characters of an id that a client may bring.
const REQUEST_ID_CHARS_MAX: usize = 128;

/// A request's id, for the one handler that writes errors itself; in the request's extensions.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Gives a request its id and its span, and an error its body.
pub async fn frame(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let id = incoming(request.headers()).unwrap_or_else(generate);
    request.extensions_mut().insert(RequestId(id.clone()));
    let began = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    // The query is left out: it is the caller's, and may hold what is not for a log.
    let span =
        tracing::info_span!("request", request_id = %id, method = %request.method(), path = request.uri().path());
    async {
        let mut response = next.run(request).await;
        if let Some(error) = response.extensions_mut().remove::<ApiError>() {
            write_error(&mut response, &error, &id);
        }
        if let Ok(value) = HeaderValue::try_from(&id) {
            response.headers_mut().insert(REQUEST_ID, value);
        }
        let took = began.elapsed();
        api.requests.note(&method, route.as_ref().map(MatchedPath::as_str), response.status(), took);
        let elapsed_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::debug!(status = response.status().as_u16(), elapsed_ms, "answered");
        response
    }
    .instrument(span)
    .await
}

/// An id that is safe to repeat in a header and in a log.
fn incoming(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(REQUEST_ID)?.to_str().ok()?;
    let sane = (1..=REQUEST_ID_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    sane.then(|| text.to_owned())
}

fn generate() -> String {
    hex::encode(rand::random::<[u8; 12]>())
}

/// Headers that are there already (`Allow` of a 405) stay.
fn write_error(response: &mut Response, error: &ApiError, id: &str) {
    if let Some(chain) = error.hidden_chain() {
        tracing::error!(request_id = id, code = error.code(), error = chain, "the request failed");
    }
    let body = serde_json::to_vec(&error.body(id)).unwrap_or_default();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(seconds) = error.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    *response.body_mut() = Body::from(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &'static str) -> Option<String> {
        incoming(&HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_static(text))]))
    }

    #[test]
    fn an_incoming_id_is_kept_when_it_is_sane() {
        assert_eq!(id("a-B_7.x"), Some("a-B_7.x".to_owned()));
        for bad in ["", "a b", "a\"b", "a/b", "%0a"] {
            assert_eq!(id(bad), None, "{bad}");
        }
        assert_eq!(incoming(&HeaderMap::new()), None);
        assert_eq!(generate().len(), 24);
    }
}
