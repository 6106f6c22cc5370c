//! `/leaks`: what nobody owns, for `tenantry doctor`.

use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::Query;

/// Objects of this instance that belong to no container.
#[derive(Debug, Serialize, ToSchema)]
pub struct LeaksView {
    /// Each in words; empty where all is well.
    pub leaks: Vec<String>,
}

/// What the drivers find and no record accounts for
#[utoipa::path(get, path = "/api/v1/leaks", tag = "host", operation_id = "list_leaks",
    responses((status = 200, description = "What nobody owns", body = Success<LeaksView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, caller: Caller, _: Query<()>) -> Result<Answer<LeaksView>, ApiError> {
    caller.admin()?;
    let leaks = api.service.strays().await?.iter().map(ToString::to_string).collect();
    Ok(Answer::ok("Leaks looked for", LeaksView { leaks }))
}
