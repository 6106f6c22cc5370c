//! Whether the daemon lives, and whether it can be used.

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::Query;

/// What a load balancer is told to wait while the daemon recovers, in seconds.
const READY_RETRY_S: u64 = 1;

/// A probe's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok` or `ready`.
    status: &'static str,
}

/// Whether the daemon lives
#[utoipa::path(get, path = "/healthz", tag = "health", operation_id = "healthz", security(()),
    responses((status = 200, description = "It does", body = Success<Health>)))]
pub async fn healthz(_: Query<()>) -> Answer<Health> {
    Answer::ok("The daemon lives", Health { status: "ok" })
}

/// Whether recovery has finished and the host is fit
#[utoipa::path(get, path = "/readyz", tag = "health", operation_id = "readyz", security(()),
    responses((status = 200, description = "Ready", body = Success<Health>),
              (status = 503, description = "Not yet", body = ErrorBody)))]
pub async fn readyz(State(api): State<Api>, _: Query<()>) -> Result<Answer<Health>, ApiError> {
    if api.service.is_ready() {
        return Ok(Answer::ok("The daemon is ready", Health { status: "ready" }));
    }
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "NOT_READY", "the daemon is still recovering")
        .retry_after_s(READY_RETRY_S))
}
