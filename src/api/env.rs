//! `/containers/{id}/env`. What is changed here is in force at the next start, or at once with `?restart=true` on PATCH.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{IfMatch, Json, Path, Query};
use super::wire::checks::{Maps, Secrets, env_change};
use super::wire::ops::{EnvValue, EnvView, env_map};
use crate::domain::container::EnvChange;
use crate::domain::{ContainerId, EnvKey, SettingsPatch};
use crate::lifecycle::ContainerPatch;

async fn apply(api: &Api, id: ContainerId, env: EnvChange, if_match: Option<u64>) -> Result<Answer<EnvView>, ApiError> {
    let settings = SettingsPatch { env, ..SettingsPatch::default() };
    let patch = ContainerPatch { settings, ..ContainerPatch::default() };
    let made = api.service.update(id, patch, if_match).await?;
    let answer = Answer::ok("Environment updated successfully", EnvView::from(&*made.container));
    Ok(answer.at_generation(made.container.generation))
}

/// Show a container's environment
#[utoipa::path(get, path = "/api/v1/containers/{id}/env", tag = "env", operation_id = "get_env",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "The variables", body = Success<EnvView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<EnvView>, ApiError> {
    let container = caller.container(&api.service, id)?;
    let answer = Answer::ok("Environment retrieved successfully", EnvView::from(&*container));
    Ok(answer.at_generation(container.generation))
}

/// Replace a container's environment
#[utoipa::path(put, path = "/api/v1/containers/{id}/env", tag = "env", operation_id = "put_env",
    request_body = BTreeMap<String, String>,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Replaced", body = Success<EnvView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn replace(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<Value>,
) -> Result<Answer<EnvView>, ApiError> {
    caller.container(&api.service, id)?;
    apply(&api, id, env_change(env_map(body)?, Maps::Replace)?, generation).await
}

/// Set one variable
#[utoipa::path(method(put, patch), path = "/api/v1/containers/{id}/env/{key}", tag = "env", operation_id = "set_env",
    request_body = EnvValue,
    params(("id" = String, Path, description = "The container's id"), ("key" = String, Path, description = "The variable"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Set", body = Success<EnvView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn set(
    State(api): State<Api>,
    caller: Caller,
    Path((id, key)): Path<(ContainerId, String)>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<EnvValue>,
) -> Result<Answer<EnvView>, ApiError> {
    caller.container(&api.service, id)?;
    let change = env_change(Secrets::from([(key, Some(body.value))]), Maps::Merge)?;
    apply(&api, id, change, generation).await
}

/// Remove one variable
#[utoipa::path(delete, path = "/api/v1/containers/{id}/env/{key}", tag = "env", operation_id = "delete_env",
    params(("id" = String, Path, description = "The container's id"), ("key" = String, Path, description = "The variable"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Removed", body = Success<EnvView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn unset(
    State(api): State<Api>,
    caller: Caller,
    Path((id, key)): Path<(ContainerId, String)>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
) -> Result<Answer<EnvView>, ApiError> {
    let container = caller.container(&api.service, id)?;
    let key: EnvKey = key.parse()?;
    if container.settings.env.get(&key).is_none() {
        let text = format!("there is no environment variable `{key}`");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "ENV_KEY_NOT_FOUND", text));
    }
    apply(&api, id, EnvChange::Merge(BTreeMap::from([(key, None)])), generation).await
}
