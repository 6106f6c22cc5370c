//! `/containers/{id}/exec`: one command, run to its end. The interactive terminal comes later.

use axum::extract::State;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{Json, Path, Query};
use super::wire::ops::{ExecBody, ExecView};
use crate::domain::ContainerId;

/// Run a command inside a container
///
/// 200 also where the command fails: `exit_code` says so.
#[utoipa::path(post, path = "/api/v1/containers/{id}/exec", tag = "containers", operation_id = "exec",
    request_body = ExecBody,
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "It has ended", body = Success<ExecView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn exec(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    Json(body): Json<ExecBody>,
) -> Result<Answer<ExecView>, ApiError> {
    caller.container(&api.service, id)?;
    let outcome = api.service.exec(id, body.into_request()?).await?;
    Ok(Answer::ok("Command executed successfully", outcome.into()))
}
