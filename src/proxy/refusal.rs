//! What the proxy itself answers: a page for people, the API's error form for programs.
//!
//! The client is told what it can act on; what went wrong inside is for the log.

use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Response, StatusCode};

use super::headers::{REQUEST_ID, names_html};

/// Why a request was not forwarded, or its response not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("The Host header is missing, repeated, or not a host name with an optional port.")]
    BadHost,
    #[error("The request target is not a path, or names another host than the Host header.")]
    BadTarget,
    #[error("CONNECT is not served here.")]
    Connect,
    #[error("The request's headers are more or larger than this server takes.")]
    HeadTooLarge,
    #[error("This address is served by https alone.")]
    OnlyHttps(HeaderValue),
    #[error("No certificate is ordered by this token.")]
    NoChallenge,
    #[error("Nothing is served under this address.")]
    UnknownHost,
    #[error("This address is switched off.")]
    Disabled,
    #[error("This address is no longer in use.")]
    Expired,
    #[error("Whoever opens this has to say who they are.")]
    Unauthorized { basic: bool, bearer: bool },
    #[error("This may not be opened from here, or not by you.")]
    Forbidden,
    #[error("Too many wrong credentials came from here; wait before the next.")]
    TooManyTries(Duration),
    #[error("Too many who say who they are wait here.")]
    DoorBusy,
    #[error("This service is not running.")]
    NotRunning(String),
    #[error("This service is starting.")]
    NotReady(String),
    #[error("This service keeps failing; it is tried again in a while.")]
    Failing(Duration),
    #[error("This server is waking as many services as it may; it is tried again in a while.")]
    QueueFull,
    #[error("This server has no room in memory to wake this service now; it is tried again in a while.")]
    NoRoom,
    #[error("This service sleeps.")]
    Asleep,
    #[error("This service has as many requests open as it may.")]
    Busy,
    #[error("This server has as many upgraded connections open as it may.")]
    TunnelsFull,
    #[error("This service cannot be reached.")]
    Unreachable,
    #[error("This service broke the connection before it answered.")]
    Broken,
    #[error("This service did not answer in time.")]
    TimedOut,
    #[error("The request's body did not arrive in time.")]
    BodyTimedOut,
    #[error("The request's body is not framed as it says.")]
    BadBody,
}

/// What a refusal is on the wire.
struct Face {
    status: StatusCode,
    code: &'static str,
    /// Whether the same request may succeed later, and when to try.
    retry_after: Option<Duration>,
}

const fn face(status: StatusCode, code: &'static str, retry_after: Option<Duration>) -> Face {
    Face { status, code, retry_after }
}

/// When to come back to something that starts by itself.
const RETRY_SOON: Option<Duration> = Some(Duration::from_secs(1));
/// When to come back to something that somebody must start.
const RETRY_LATER: Option<Duration> = Some(Duration::from_secs(5));

/// What is asked of who could be let in (RFC 7617, RFC 6750): tokens in cookies and parameters have no scheme of their own.
const BASIC_CHALLENGE: &str = "Basic realm=\"access\", charset=\"UTF-8\"";
const BEARER_CHALLENGE: &str = "Bearer realm=\"access\"";

impl Refusal {
    fn face(&self) -> Face {
        match self {
            Self::BadHost => face(StatusCode::BAD_REQUEST, "BAD_HOST", None),
            Self::BadTarget => face(StatusCode::BAD_REQUEST, "BAD_REQUEST_TARGET", None),
            Self::Connect => face(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", None),
            Self::HeadTooLarge => face(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", None),
            Self::OnlyHttps(_) => face(StatusCode::PERMANENT_REDIRECT, "HTTPS_ONLY", None),
            Self::NoChallenge => face(StatusCode::NOT_FOUND, "NO_CHALLENGE", None),
            Self::UnknownHost => face(StatusCode::NOT_FOUND, "UNKNOWN_HOST", None),
            Self::Disabled => face(StatusCode::NOT_FOUND, "ALIAS_DISABLED", None),
            Self::Expired => face(StatusCode::GONE, "ALIAS_EXPIRED", None),
            Self::Unauthorized { .. } => face(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", None),
            Self::Forbidden => face(StatusCode::FORBIDDEN, "FORBIDDEN", None),
            Self::TooManyTries(rest) => face(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_TRIES", Some(*rest)),
            Self::DoorBusy => face(StatusCode::SERVICE_UNAVAILABLE, "DOOR_BUSY", RETRY_SOON),
            Self::NotRunning(_) => face(StatusCode::SERVICE_UNAVAILABLE, "CONTAINER_NOT_RUNNING", RETRY_LATER),
            Self::NotReady(_) => face(StatusCode::SERVICE_UNAVAILABLE, "CONTAINER_NOT_READY", RETRY_SOON),
            Self::Failing(rest) => face(StatusCode::SERVICE_UNAVAILABLE, "CONTAINER_FAILING", Some(*rest)),
            Self::QueueFull => face(StatusCode::SERVICE_UNAVAILABLE, "WAKE_QUEUE_FULL", RETRY_LATER),
            Self::NoRoom => face(StatusCode::SERVICE_UNAVAILABLE, "NO_ROOM_TO_WAKE", RETRY_LATER),
            Self::Asleep => face(StatusCode::NO_CONTENT, "CONTAINER_ASLEEP", None),
            Self::Busy => face(StatusCode::SERVICE_UNAVAILABLE, "CONTAINER_BUSY", RETRY_SOON),
            Self::TunnelsFull => face(StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_TUNNELS", RETRY_LATER),
            Self::Unreachable => face(StatusCode::BAD_GATEWAY, "CONTAINER_UNREACHABLE", RETRY_SOON),
            Self::Broken => face(StatusCode::BAD_GATEWAY, "CONTAINER_BROKE", None),
            Self::TimedOut => face(StatusCode::GATEWAY_TIMEOUT, "CONTAINER_TIMEOUT", None),
            Self::BodyTimedOut => face(StatusCode::REQUEST_TIMEOUT, "BODY_TIMEOUT", None),
            Self::BadBody => face(StatusCode::BAD_REQUEST, "BAD_BODY", None),
        }
    }

    /// The status the response will have.
    pub(super) fn status(&self) -> StatusCode {
        self.face().status
    }

    /// The response: HTML where the client prefers it, else the API's error form.
    pub(super) fn response(&self, wants_html: bool, request_id: HeaderValue) -> Response<Bytes> {
        let face = self.face();
        // Made by us of hex digits.
        let id = request_id.to_str().unwrap_or_default();
        if face.status == StatusCode::NO_CONTENT {
            return asleep(request_id);
        }
        let (kind, text) = if wants_html {
            ("text/html; charset=utf-8", self.html(&face, id))
        } else {
            ("application/json", self.json(&face, id))
        };
        let mut response = Response::new(Bytes::from(text));
        *response.status_mut() = face.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::VARY, HeaderValue::from_static("accept"));
        let later = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS].contains(&face.status);
        if let Some(after) = face.retry_after.filter(|_| later) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        if let Self::Unauthorized { basic, bearer } = self {
            let challenges = [(*basic, BASIC_CHALLENGE), (*bearer, BEARER_CHALLENGE)];
            for (_, challenge) in challenges.into_iter().filter(|(wanted, _)| *wanted) {
                headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
            }
        }
        if let Self::OnlyHttps(location) = self {
            headers.insert(header::LOCATION, location.clone());
        }
        if face.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        }
        headers.insert(REQUEST_ID.clone(), request_id);
        response
    }

    fn json(&self, face: &Face, request_id: &str) -> String {
        let mut value = serde_json::json!({
            "statusCode": face.status.as_u16(),
            "error": face.code,
            "message": self.to_string(),
            "retryable": face.retry_after.is_some(),
            "request_id": request_id,
        });
        if let Self::NotRunning(status) | Self::NotReady(status) = self {
            value["data"] = serde_json::json!({ "status": status });
        }
        value.to_string()
    }

    fn html(&self, face: &Face, request_id: &str) -> String {
        let reason = face.status.canonical_reason().unwrap_or("Error");
        // A page of somebody who waits loads itself again.
        let waits = matches!(self, Self::NotReady(_) | Self::Failing(_) | Self::QueueFull | Self::NoRoom);
        let after = face.retry_after.filter(|_| waits).map(|after| after.as_secs().max(1));
        let again = after.map_or(String::new(), |s| format!("<meta http-equiv=\"refresh\" content=\"{s}\">\n"));
        // No field here comes from the request or the container.
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n{again}<title>{reason}</title>\n\
             <style>body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}}\
             small{{color:#666}}</style>\n<h1>{reason}</h1>\n<p>{self}</p>\n\
             <p><small>{} · request {request_id}</small></p>\n</html>\n",
            face.status.as_u16()
        )
    }
}

/// The answer to a probe that does not wake: it is well, and there is nothing to say.
fn asleep(request_id: HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert("tenantry-status", HeaderValue::from_static("asleep"));
    response.headers_mut().insert(REQUEST_ID.clone(), request_id);
    response
}

/// Whether the client names HTML in its Accept.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| names_html(value.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_gets_the_error_form_of_the_api() {
        let text = Refusal::NotRunning("stopped".into()).json(&Refusal::NotRunning(String::new()).face(), "abc");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "statusCode": 503, "error": "CONTAINER_NOT_RUNNING", "message": "This service is not running.",
                "retryable": true, "request_id": "abc", "data": {"status": "stopped"},
            })
        );
    }

    #[test]
    fn a_page_of_somebody_who_waits_loads_itself_again() {
        let page = |refusal: Refusal| refusal.html(&refusal.face(), "id");
        assert!(page(Refusal::NotReady("starting".into())).contains("http-equiv=\"refresh\" content=\"1\""));
        let failing = page(Refusal::Failing(Duration::from_secs(8)));
        assert!(failing.contains("content=\"8\"") && failing.contains("keeps failing"), "{failing}");
        assert!(!page(Refusal::NotRunning("stopped".into())).contains("http-equiv"));
    }

    #[test]
    fn every_503_says_when_to_come_back() {
        for refusal in
            [Refusal::NotRunning("x".into()), Refusal::NotReady("x".into()), Refusal::Busy, Refusal::TunnelsFull]
        {
            let response = refusal.response(true, HeaderValue::from_static("id"));
            assert_eq!(response.status(), 503);
            assert!(response.headers().contains_key(header::RETRY_AFTER), "{refusal:?}");
            assert_eq!(response.headers()["x-request-id"], "id");
        }
    }
}
