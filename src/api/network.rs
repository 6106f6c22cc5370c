//! `/containers/{id}/network`: how what a container sends leaves this host. In force at once, also on a running container.

use axum::extract::State;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{IfMatch, Json, Path, Query};
use super::wire::network::{NetworkBody, NetworkView};
use crate::domain::network::NetworkChange;
use crate::domain::{Container, ContainerId, SettingsPatch};
use crate::lifecycle::ContainerPatch;

fn answer(message: &'static str, container: &Container) -> Answer<NetworkView> {
    let view = NetworkView::from(container.settings.network.as_ref());
    Answer::ok(message, view).at_generation(container.generation)
}

async fn apply(
    api: &Api,
    caller: &Caller,
    id: ContainerId,
    network: NetworkChange,
    if_match: Option<u64>,
) -> Result<Answer<NetworkView>, ApiError> {
    caller.container(&api.service, id)?;
    let settings = SettingsPatch { network, ..SettingsPatch::default() };
    let patch = ContainerPatch { settings, ..ContainerPatch::default() };
    let made = api.service.update(id, patch, if_match).await?;
    Ok(answer("Network settings updated successfully", &made.container))
}

/// Show a container's network settings
#[utoipa::path(get, path = "/api/v1/containers/{id}/network", tag = "network", operation_id = "get_network",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "The settings; `type` is null where there are none", body = Success<NetworkView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<NetworkView>, ApiError> {
    let container = caller.container(&api.service, id)?;
    Ok(answer("Network settings retrieved successfully", &container))
}

/// Replace a container's network settings
#[utoipa::path(put, path = "/api/v1/containers/{id}/network", tag = "network", operation_id = "put_network",
    request_body = NetworkBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "In force", body = Success<NetworkView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn replace(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<NetworkBody>,
) -> Result<Answer<NetworkView>, ApiError> {
    apply(&api, &caller, id, NetworkChange::Replace(body.into_patch()?), generation).await
}

/// Change a container's network settings by a JSON merge patch
#[utoipa::path(patch, path = "/api/v1/containers/{id}/network", tag = "network", operation_id = "patch_network",
    request_body = NetworkBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "In force", body = Success<NetworkView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn merge(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<NetworkBody>,
) -> Result<Answer<NetworkView>, ApiError> {
    apply(&api, &caller, id, NetworkChange::Merge(body.into_patch()?), generation).await
}

/// Remove a container's network settings
#[utoipa::path(delete, path = "/api/v1/containers/{id}/network", tag = "network", operation_id = "delete_network",
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Removed, there or not: what it sends leaves directly", body = Success<NetworkView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn clear(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
) -> Result<Answer<NetworkView>, ApiError> {
    apply(&api, &caller, id, NetworkChange::Clear, generation).await
}

/// Switch a container's network settings on
#[utoipa::path(post, path = "/api/v1/containers/{id}/network/start", tag = "network", operation_id = "start_network",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "In force", body = Success<NetworkView>),
              (status = "default", description = "Refused: 409 where there are none", body = ErrorBody)))]
pub async fn start(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<NetworkView>, ApiError> {
    apply(&api, &caller, id, NetworkChange::Switch(true), None).await
}

/// Switch a container's network settings off, and keep them
#[utoipa::path(post, path = "/api/v1/containers/{id}/network/stop", tag = "network", operation_id = "stop_network",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "What it sends leaves directly", body = Success<NetworkView>),
              (status = "default", description = "Refused: 409 where there are none", body = ErrorBody)))]
pub async fn stop(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<NetworkView>, ApiError> {
    apply(&api, &caller, id, NetworkChange::Switch(false), None).await
}
