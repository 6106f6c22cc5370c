//! `/metrics`: what the daemon counts, for Prometheus.
//!
//! It tells which tenants are the busiest and how many there are, so it wants a token that may read the whole host, unless the
//! operator has opened it (`api.metrics_open`): then whoever reaches the API's port reads it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::{ApiError, ErrorBody};
use super::extract::Query;
use super::{Api, auth};
use crate::metrics::{Format, Histogram, Source, Text};

/// What `/metrics` tells beside what the service and the API count themselves.
#[derive(Clone, Default)]
pub struct Monitoring {
    /// Whether it is told to whoever asks.
    pub open: bool,
    /// Who else has something to tell.
    pub sources: Vec<Arc<dyn Source>>,
}

impl fmt::Debug for Monitoring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, sources) = (self.open, self.sources.len());
        f.debug_struct("Monitoring").field("open", &open).field("sources", &sources).finish()
    }
}

/// Route, method, status.
type Answered = (Box<str>, &'static str, u16);

/// Requests to the API by method, route and status: as many as there are routes and statuses of ours.
#[derive(Debug, Default)]
pub struct Requests {
    by_route: Mutex<BTreeMap<Answered, u64>>,
    took: Histogram,
}

/// The label of a path that is no route's.
const NO_ROUTE: &str = "none";

/// A method as a label: a client can make up any number of others.
const fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

impl Requests {
    /// Notes an answer; the route is its template.
    pub fn note(&self, method: &Method, route: Option<&str>, status: StatusCode, took: Duration) {
        self.took.observe(took);
        let key = (route.unwrap_or(NO_ROUTE).into(), word(method), status.as_u16());
        *self.by_route.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default() += 1;
    }

    fn write(&self, text: &mut Text) {
        let by_route = self.by_route.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut family = text.counter("tenantry_api_requests", "Requests to the API by method, route and status.");
        for ((route, method, status), count) in by_route {
            family.sample(&[("method", method), ("route", &route), ("status", &status.to_string())], count);
        }
        let help = "From a request's head to its answer's; streams are through with their head.";
        text.histogram("tenantry_api_request_duration_seconds", help).histogram(&[], &self.took);
    }
}

/// Counts and gauges for Prometheus
///
/// OpenMetrics 1.0 for a client that accepts it, else Prometheus's text format. Wants a token that is bound to no project, unless the
/// configuration opens it (`api.metrics_open`).
#[utoipa::path(get, path = "/metrics", tag = "health", operation_id = "metrics",
    responses((status = 200, description = "One family after the other", content_type = "text/plain", body = String),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn metrics(State(api): State<Api>, headers: HeaderMap, _: Query<()>) -> Result<Response, ApiError> {
    if !api.monitoring.open {
        auth::admit(&api, &headers)?.host_wide()?;
    }
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::for_accept(accept);
    let mut text = Text::new(format);
    api.service.write_metrics(&mut text).await;
    api.monitoring.sources.iter().for_each(|source| source.write(&mut text));
    api.requests.write(&mut text);
    let kind = HeaderValue::from_static(format.content_type());
    Ok(([(header::CONTENT_TYPE, kind)], text.finish()).into_response())
}
