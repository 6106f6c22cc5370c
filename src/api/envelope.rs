//! The form of every success: `{"statusCode", "message", "data"}`.

use std::fmt::Display;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::audit::Object;
use super::idempotency::Keep;
use crate::domain::ContainerId;
use crate::lifecycle::Timings;

/// How long each step took, as browsers and tools read it (W3C Server Timing).
pub const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// The body of every success.
#[derive(Debug, Serialize, ToSchema)]
pub struct Success<T> {
    /// The HTTP status again.
    #[serde(rename = "statusCode")]
    pub status_code: u16,
    /// For people.
    pub message: String,
    /// What was asked for.
    pub data: T,
}

/// A success on its way out.
#[derive(Debug)]
pub struct Answer<T> {
    status: StatusCode,
    message: &'static str,
    data: T,
    generation: Option<u64>,
    keep: Option<Keep>,
    made: Option<Object>,
    timings: Timings,
}

impl<T: Serialize> Answer<T> {
    /// 200.
    pub fn ok(message: &'static str, data: T) -> Self {
        let timings = Timings::new();
        Self { status: StatusCode::OK, message, data, generation: None, keep: None, made: None, timings }
    }

    /// 201.
    pub fn created(message: &'static str, data: T) -> Self {
        Self { status: StatusCode::CREATED, ..Self::ok(message, data) }
    }

    /// With an ETag.
    pub fn at_generation(mut self, generation: u64) -> Self {
        self.generation = Some(generation);
        self
    }

    /// Says how long each step took, for whoever wants to know where the time went.
    pub fn timed(mut self, timings: Timings) -> Self {
        self.timings = timings;
        self
    }

    /// Says whose data it holds, so that a copy kept for an idempotency key is erased with the container.
    pub fn about(mut self, container: ContainerId) -> Self {
        self.keep = Some(Keep::UntilDeleted(container));
        self
    }

    /// Says what was made, for the note of who made it.
    pub fn made(mut self, id: impl Display) -> Self {
        self.made = Some(Object(id.to_string()));
        self
    }

    /// Gives what an idempotency key keeps in this answer's place, because the answer holds a secret.
    pub fn kept_as(mut self, data: &T) -> Self {
        let kept = Success { status_code: self.status.as_u16(), message: self.message.to_owned(), data };
        self.keep = serde_json::to_string(&kept).ok().map(Keep::Instead);
        self
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        let body = Success { status_code: self.status.as_u16(), message: self.message.to_owned(), data: self.data };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(generation) = self.generation {
            response.headers_mut().insert(header::ETAG, etag(generation));
        }
        if let Some(value) = server_timing(&self.timings) {
            response.headers_mut().insert(SERVER_TIMING, value);
        }
        if let Some(keep) = self.keep {
            response.extensions_mut().insert(keep);
        }
        if let Some(made) = self.made {
            response.extensions_mut().insert(made);
        }
        response
    }
}

fn etag(generation: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{generation}\"")).unwrap_or(HeaderValue::from_static("\"0\""))
}

/// `snapshot;dur=3.214, prepare;dur=4.02`: the steps in the order they ended, in milliseconds. Steps of one stage run at
/// once, so they add up to more than the whole.
fn server_timing(timings: &Timings) -> Option<HeaderValue> {
    if timings.is_empty() {
        return None;
    }
    let one = |(step, took): &(String, Duration)| format!("{step};dur={:.3}", took.as_secs_f64() * 1000.0);
    HeaderValue::try_from(timings.iter().map(one).collect::<Vec<_>>().join(", ")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_milliseconds() {
        let timings =
            vec![("record".into(), Duration::from_micros(1_500)), ("snapshot".into(), Duration::from_millis(3))];
        let response = Answer::created("Made", ()).timed(timings).into_response();
        assert_eq!(response.headers()[SERVER_TIMING], "record;dur=1.500, snapshot;dur=3.000");
        assert!(!Answer::ok("Shown", ()).into_response().headers().contains_key(SERVER_TIMING));
    }
}
