//! `/proxy/aliases`: further names of containers.

use std::sync::Arc;

use axum::extract::State;
use jiff::Timestamp;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Json, Pairs, Path, Query};
use super::page::Page;
use super::wire::Deleted;
use super::wire::alias::{AliasBody, AliasList, AliasView, SwitchAlias};
use super::wire::checks::id_of;
use crate::domain::{AliasId, ContainerId, ProxyAlias};
use crate::lifecycle::{AliasPatch, AliasSettings, What};

/// Query of the list of aliases.
#[derive(Debug)]
pub struct AliasesQuery {
    page: Page,
    container: Option<ContainerId>,
}

impl FromQuery for AliasesQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let page = Page::take(pairs, &["created_at", "updated_at", "alias"])?;
        let container = pairs.one("container_id")?.map(|text| id_of("container_id", &text)).transpose()?;
        Ok(Self { page, container })
    }
}

fn view(api: &Api, alias: &ProxyAlias) -> AliasView {
    let names = api.service.host_names();
    let listening = alias.listen_port().map(|port| api.ports.is_open(port));
    AliasView::new(alias, alias.url(names), names.host_of_alias(&alias.alias), listening)
}

/// An alias of a container that this token may know of.
fn seen(api: &Api, caller: &Caller, id: AliasId) -> Result<Arc<ProxyAlias>, ApiError> {
    let alias = api.service.alias(id)?;
    match caller.container(&api.service, alias.container) {
        Ok(_container) => Ok(alias),
        Err(_unseen) => Err(ApiError::not_found(What::Alias, id)),
    }
}

/// Give a container a further name
#[utoipa::path(post, path = "/api/v1/proxy/aliases", tag = "aliases", operation_id = "create_alias",
    request_body = AliasBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body: the first answer again")),
    responses((status = 201, description = "Made", body = Success<AliasView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    _: Query<()>,
    Json(body): Json<AliasBody>,
) -> Result<Answer<AliasView>, ApiError> {
    let new = body.into_new(Timestamp::now())?;
    caller.own(&api.service, new.container)?;
    may_vouch(&caller, &new.settings)?;
    let alias = api.service.create_alias(new, &*api.ports).await?;
    Ok(Answer::created("Proxy alias created successfully", view(&api, &alias)).about(alias.container).made(alias.id))
}

/// List aliases
#[utoipa::path(get, path = "/api/v1/proxy/aliases", tag = "aliases", operation_id = "list_aliases",
    params(("container_id" = Option<String>, Query, description = "Only this container's"),
           ("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at, updated_at, alias"),
           ("sort_order" = Option<String>, Query, description = "asc, desc")),
    responses((status = 200, description = "A page", body = Success<AliasList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    Query(AliasesQuery { page, container }): Query<AliasesQuery>,
) -> Answer<AliasList> {
    let all = match container {
        Some(container) => api.service.aliases_of(container),
        None => api.service.aliases(),
    };
    let mine = all.into_iter().filter(|alias| caller.container(&api.service, alias.container).is_ok()).collect();
    let (aliases, pagination) = page.cut(mine, |a, b| match page.sort_by {
        "alias" => a.alias.cmp(&b.alias),
        "updated_at" => a.updated_at.cmp(&b.updated_at),
        _ => a.created_at.cmp(&b.created_at),
    });
    let aliases = aliases.iter().map(|alias| view(&api, alias)).collect();
    Answer::ok("Proxy aliases retrieved successfully", AliasList { aliases, pagination })
}

/// Show an alias
#[utoipa::path(get, path = "/api/v1/proxy/aliases/{id}", tag = "aliases", operation_id = "get_alias",
    params(("id" = String, Path, description = "The alias's id")),
    responses((status = 200, description = "The alias", body = Success<AliasView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<AliasId>,
    _: Query<()>,
) -> Result<Answer<AliasView>, ApiError> {
    let alias = seen(&api, &caller, id)?;
    Ok(Answer::ok("Proxy alias retrieved successfully", view(&api, &alias)))
}

/// Change an alias
#[utoipa::path(patch, path = "/api/v1/proxy/aliases/{id}", tag = "aliases", operation_id = "change_alias",
    request_body = AliasBody,
    params(("id" = String, Path, description = "The alias's id")),
    responses((status = 200, description = "Changed", body = Success<AliasView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn change(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<AliasId>,
    _: Query<()>,
    Json(body): Json<AliasBody>,
) -> Result<Answer<AliasView>, ApiError> {
    apply(&api, &caller, id, body.into_patch(Timestamp::now())?).await
}

/// Verify an alias's domain
///
/// The DNS is asked: a TXT record `_tenantry.<domain>` with the alias's `verification.txt_value`, or a CNAME of the domain to the alias's
/// own host. From then on the domain leads where the alias does.
#[utoipa::path(post, path = "/api/v1/proxy/aliases/{id}/verify", tag = "aliases", operation_id = "verify_alias",
    params(("id" = String, Path, description = "The alias's id")),
    responses((status = 200, description = "Verified, now or before", body = Success<AliasView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn verify(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<AliasId>,
    _: Query<()>,
) -> Result<Answer<AliasView>, ApiError> {
    seen(&api, &caller, id)?;
    let alias = api.service.verify_alias(id, &*api.names).await?;
    Ok(Answer::ok("Proxy alias verified successfully", view(&api, &alias)))
}

/// Whoever says that a domain is the customer's, in the DNS's place, must answer for the whole host.
fn may_vouch(caller: &Caller, settings: &AliasSettings) -> Result<(), ApiError> {
    if settings.verified.is_some() { caller.admin() } else { Ok(()) }
}

/// Switch an alias on or off
#[utoipa::path(patch, path = "/api/v1/proxy/aliases/{id}/state", tag = "aliases", operation_id = "switch_alias",
    request_body = SwitchAlias,
    params(("id" = String, Path, description = "The alias's id")),
    responses((status = 200, description = "Changed", body = Success<AliasView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn switch(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<AliasId>,
    _: Query<()>,
    Json(body): Json<SwitchAlias>,
) -> Result<Answer<AliasView>, ApiError> {
    apply(&api, &caller, id, body.into_request()?).await
}

async fn apply(api: &Api, caller: &Caller, id: AliasId, patch: AliasPatch) -> Result<Answer<AliasView>, ApiError> {
    seen(api, caller, id)?;
    may_vouch(caller, &patch.settings)?;
    let alias = api.service.update_alias(id, patch).await?;
    api.ports.look();
    Ok(Answer::ok("Proxy alias updated successfully", view(api, &alias)))
}

/// Take an alias away
#[utoipa::path(delete, path = "/api/v1/proxy/aliases/{id}", tag = "aliases", operation_id = "delete_alias",
    params(("id" = String, Path, description = "The alias's id")),
    responses((status = 200, description = "Deleted", body = Success<Deleted>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<AliasId>,
    _: Query<()>,
) -> Result<Answer<Deleted>, ApiError> {
    seen(&api, &caller, id)?;
    api.service.delete_alias(id).await?;
    Ok(Answer::ok("Proxy alias deleted successfully", Deleted { id: id.to_string() }))
}
