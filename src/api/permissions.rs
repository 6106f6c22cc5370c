//! `/containers/{id}/proxy/permissions`: who may open a container's URL. In force from the next request on.

use axum::extract::State;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{IfMatch, Json, Path, Query};
use super::wire::permissions::{DefaultBody, Draft, Drafts, GroupBody, PermissionsBody, PermissionsView, group_name};
use crate::domain::access::{Access, AccessChange, Entry, Group};
use crate::domain::{Container, ContainerId, SettingsPatch};
use crate::lifecycle::{ContainerPatch, Service};

fn answer(message: &'static str, container: &Container) -> Answer<PermissionsView> {
    let view = PermissionsView::new(container.id, container.settings.access.as_deref());
    Answer::ok(message, view).at_generation(container.generation)
}

async fn apply(
    api: &Api,
    id: ContainerId,
    access: AccessChange,
    if_match: Option<u64>,
) -> Result<Answer<PermissionsView>, ApiError> {
    let settings = SettingsPatch { access, ..SettingsPatch::default() };
    let patch = ContainerPatch { settings, ..ContainerPatch::default() };
    let made = api.service.update(id, patch, if_match).await?;
    Ok(answer("Proxy permissions updated successfully", &made.container))
}

async fn finished(service: &Service, draft: Draft) -> Result<Group, ApiError> {
    match draft {
        Draft::Ready(group) => Ok(group),
        Draft::Password(plain) => Ok(Group::Password(service.hash_password(plain).await?)),
    }
}

async fn assembled(service: &Service, drafts: Drafts) -> Result<Access, ApiError> {
    let mut access = Access::new(drafts.default);
    for (name, draft, reach) in drafts.groups {
        let group = finished(service, draft).await?;
        access.put(name, Entry { group, reach })?;
    }
    Ok(access)
}

/// Show who may open a container's URL
#[utoipa::path(get, path = "/api/v1/containers/{id}/proxy/permissions", tag = "permissions", operation_id = "get_permissions",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "Without passwords, tokens and keys", body = Success<PermissionsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<PermissionsView>, ApiError> {
    let container = caller.container(&api.service, id)?;
    Ok(answer("Proxy permissions retrieved successfully", &container))
}

/// Replace who may open a container's URL
#[utoipa::path(put, path = "/api/v1/containers/{id}/proxy/permissions", tag = "permissions", operation_id = "put_permissions",
    request_body = PermissionsBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "In force from the next request on", body = Success<PermissionsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn replace(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<PermissionsBody>,
) -> Result<Answer<PermissionsView>, ApiError> {
    caller.container(&api.service, id)?;
    let access = assembled(&api.service, body.into_drafts(id)?).await?;
    apply(&api, id, AccessChange::Replace(access), generation).await
}

/// Open a container's URL to everybody
#[utoipa::path(delete, path = "/api/v1/containers/{id}/proxy/permissions", tag = "permissions", operation_id = "delete_permissions",
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Removed, there or not: everybody may", body = Success<PermissionsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn clear(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
) -> Result<Answer<PermissionsView>, ApiError> {
    caller.container(&api.service, id)?;
    apply(&api, id, AccessChange::Clear, generation).await
}

/// Set what becomes of whom no group knows
#[utoipa::path(method(put, patch), path = "/api/v1/containers/{id}/proxy/permissions/default", tag = "permissions", operation_id = "set_permissions_default",
    request_body = DefaultBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "In force from the next request on", body = Success<PermissionsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn set_default(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<DefaultBody>,
) -> Result<Answer<PermissionsView>, ApiError> {
    caller.container(&api.service, id)?;
    apply(&api, id, AccessChange::Default(body.policy()?), generation).await
}

async fn put(
    api: &Api,
    caller: &Caller,
    (id, name): (ContainerId, &str),
    kind: Option<&str>,
    if_match: Option<u64>,
    body: GroupBody,
) -> Result<Answer<PermissionsView>, ApiError> {
    caller.container(&api.service, id)?;
    let name = group_name(name)?;
    let group = finished(&api.service, body.into_draft(kind)?).await?;
    apply(api, id, AccessChange::Put(name, Box::new(group)), if_match).await
}

/// Set a group
#[utoipa::path(put, path = "/api/v1/containers/{id}/proxy/permissions/groups/{name}", tag = "permissions", operation_id = "put_permissions_group",
    request_body = GroupBody,
    params(("id" = String, Path, description = "The container's id"), ("name" = String, Path, description = "The group's name"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "In force from the next request on; what the group may open stays", body = Success<PermissionsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn put_group(
    State(api): State<Api>,
    caller: Caller,
    Path((id, name)): Path<(ContainerId, String)>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<GroupBody>,
) -> Result<Answer<PermissionsView>, ApiError> {
    put(&api, &caller, (id, &name), None, generation, body).await
}

/// Set a group whose type stands in the path
#[utoipa::path(put, path = "/api/v1/containers/{id}/proxy/permissions/groups/{name}/{type}", tag = "permissions", operation_id = "put_permissions_group_of_type",
    request_body = GroupBody,
    params(("id" = String, Path, description = "The container's id"), ("name" = String, Path, description = "The group's name"),
           ("type" = String, Path, description = "password, token, jwt, ip"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "In force from the next request on; what the group may open stays", body = Success<PermissionsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn put_group_of_type(
    State(api): State<Api>,
    caller: Caller,
    Path((id, name, kind)): Path<(ContainerId, String, String)>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<GroupBody>,
) -> Result<Answer<PermissionsView>, ApiError> {
    put(&api, &caller, (id, &name), Some(&kind), generation, body).await
}

/// Remove a group
#[utoipa::path(delete, path = "/api/v1/containers/{id}/proxy/permissions/groups/{name}", tag = "permissions", operation_id = "delete_permissions_group",
    params(("id" = String, Path, description = "The container's id"), ("name" = String, Path, description = "The group's name"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Removed, there or not; the default stays, so without any group nobody may where that is deny", body = Success<PermissionsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove_group(
    State(api): State<Api>,
    caller: Caller,
    Path((id, name)): Path<(ContainerId, String)>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
) -> Result<Answer<PermissionsView>, ApiError> {
    caller.container(&api.service, id)?;
    apply(&api, id, AccessChange::Remove(group_name(&name)?), generation).await
}
