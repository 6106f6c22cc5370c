//! `/exec/secrets`: what scripts know and nobody is shown.

use axum::extract::State;
use axum::http::StatusCode;

use super::Api;
use super::audit::Object;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{Json, Path, Query};
use super::wire::Deleted;
use super::wire::script::{ScriptSecretList, ScriptSecretView, SetSecret};
use crate::exec::secrets::is_name;

fn named(name: String) -> Result<String, ApiError> {
    if is_name(&name) {
        return Ok(name);
    }
    let text = "a secret's name begins with A-Z and has A-Z, 0-9 and _, at most 64";
    Err(ApiError::bad("INVALID_SECRET_NAME", text).of("name"))
}

/// List the secrets of scripts, without their values
#[utoipa::path(get, path = "/api/v1/exec/secrets", tag = "scripts", operation_id = "list_script_secrets",
    responses((status = 200, description = "All of them", body = Success<ScriptSecretList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, caller: Caller, _: Query<()>) -> Result<Answer<ScriptSecretList>, ApiError> {
    caller.host_wide()?;
    let secrets = api.scripts()?.secrets().list()?.into_iter().map(ScriptSecretView::from).collect();
    Ok(Answer::ok("Secrets retrieved successfully", ScriptSecretList { secrets }))
}

/// Set a secret: every script sees it as `secrets.NAME` from its next run on
///
/// It goes over one of the same name in the operator's file. Its value is never shown again, except to scripts.
#[utoipa::path(put, path = "/api/v1/exec/secrets/{name}", tag = "scripts", operation_id = "set_script_secret",
    request_body = SetSecret,
    params(("name" = String, Path, description = "A-Z, 0-9 and _, at most 64")),
    responses((status = 200, description = "Set", body = Success<ScriptSecretView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn set(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    _: Query<()>,
    Json(body): Json<SetSecret>,
) -> Result<(axum::Extension<Object>, Answer<ScriptSecretView>), ApiError> {
    caller.host_wide()?;
    let name = named(name)?;
    let known = api.scripts()?.secrets().put(&name, body.into_value()?).await?;
    Ok((axum::Extension(Object(name)), Answer::ok("Secret set successfully", known.into())))
}

/// Delete a secret that was set here
#[utoipa::path(delete, path = "/api/v1/exec/secrets/{name}", tag = "scripts", operation_id = "delete_script_secret",
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, description = "Deleted", body = Success<Deleted>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(name): Path<String>,
    _: Query<()>,
) -> Result<(axum::Extension<Object>, Answer<Deleted>), ApiError> {
    caller.host_wide()?;
    let name = named(name)?;
    if !api.scripts()?.secrets().remove(&name).await? {
        let text = format!("no secret `{name}` was set here");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "SECRET_NOT_FOUND", text));
    }
    Ok((axum::Extension(Object(name.clone())), Answer::ok("Secret deleted successfully", Deleted { id: name })))
}
