//! `/containers/{id}/firewall`: a container's own rules, and what is in force.

use axum::extract::State;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{IfMatch, Json, Path, Query};
use super::wire::firewall::{
    EffectiveView, RemoveRules, RuleAdded, RuleBody, RuleView, RulesChangedView, RulesReset, RulesView,
};
use crate::domain::ContainerId;
use crate::domain::firewall::{Removal, Side};
use crate::lifecycle::{RulesChange, RulesChanged};

async fn change(
    api: &Api,
    caller: &Caller,
    id: ContainerId,
    change: RulesChange,
    if_match: Option<u64>,
) -> Result<RulesChanged, ApiError> {
    caller.container(&api.service, id)?;
    Ok(api.service.change_rules(id, change, if_match).await?)
}

async fn add(
    api: &Api,
    caller: &Caller,
    id: ContainerId,
    side: Side,
    body: RuleBody,
    if_match: Option<u64>,
) -> Result<Answer<RuleAdded>, ApiError> {
    let rule = body.into_rule(side)?;
    let add = RulesChange::Add { side, rule: rule.clone() };
    let RulesChanged { container, effect } = change(api, caller, id, add, if_match).await?;
    let view = RuleAdded {
        container_id: id.to_string(),
        direction: side.as_str(),
        rule: RuleView::new(side, effect.rules.first().unwrap_or(&rule)),
        duplicate: effect.duplicate,
    };
    let answer = match effect.duplicate {
        false => Answer::created("Firewall rule added successfully", view),
        true => Answer::ok("Firewall rule exists already", view),
    };
    Ok(answer.at_generation(container.generation).about(id))
}

fn changed(changed: &RulesChanged, side: Side, message: &'static str) -> Answer<RulesChangedView> {
    let rules = RuleView::all(side, &changed.effect.rules);
    let container_id = changed.container.id.to_string();
    let view = RulesChangedView { container_id, direction: side.as_str(), count: rules.len(), rules };
    Answer::ok(message, view).at_generation(changed.container.generation)
}

async fn remove(
    api: &Api,
    caller: &Caller,
    id: ContainerId,
    side: Side,
    body: RemoveRules,
    if_match: Option<u64>,
) -> Result<Answer<RulesChangedView>, ApiError> {
    let (selector, all) = body.into_selector(side)?;
    let which = if all { Removal::All } else { Removal::First };
    let done = change(api, caller, id, RulesChange::Remove { side, selector, which }, if_match).await?;
    Ok(changed(&done, side, "Firewall rules removed successfully"))
}

async fn switch(
    api: &Api,
    caller: &Caller,
    id: ContainerId,
    side: Side,
    body: RuleBody,
    if_match: Option<u64>,
) -> Result<Answer<RulesChangedView>, ApiError> {
    let (selector, state) = body.into_switch(side)?;
    let done = change(api, caller, id, RulesChange::Switch { side, selector, state }, if_match).await?;
    Ok(changed(&done, side, "Firewall rules updated successfully"))
}

/// List a container's own firewall rules
///
/// They are looked at in this order, before its policy's; the first match decides.
#[utoipa::path(get, path = "/api/v1/containers/{id}/firewall/rules", tag = "firewall", operation_id = "list_firewall_rules",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "The rules", body = Success<RulesView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<RulesView>, ApiError> {
    let container = caller.container(&api.service, id)?;
    let answer = Answer::ok("Firewall rules retrieved successfully", RulesView::from(&*container));
    Ok(answer.at_generation(container.generation))
}

/// Add a rule for what is sent to a container
#[utoipa::path(post, path = "/api/v1/containers/{id}/firewall/ingress", tag = "firewall", operation_id = "add_ingress_rule",
    request_body = RuleBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another"),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key and body: the first answer again")),
    responses((status = 201, description = "Added behind the others; in force where the container runs", body = Success<RuleAdded>),
              (status = 200, description = "A rule that does the same is there already", body = Success<RuleAdded>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn add_ingress(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<RuleBody>,
) -> Result<Answer<RuleAdded>, ApiError> {
    add(&api, &caller, id, Side::Ingress, body, generation).await
}

/// Add a rule for what a container sends
#[utoipa::path(post, path = "/api/v1/containers/{id}/firewall/egress", tag = "firewall", operation_id = "add_egress_rule",
    request_body = RuleBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another"),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key and body: the first answer again")),
    responses((status = 201, description = "Added behind the others; in force where the container runs", body = Success<RuleAdded>),
              (status = 200, description = "A rule that does the same is there already", body = Success<RuleAdded>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn add_egress(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<RuleBody>,
) -> Result<Answer<RuleAdded>, ApiError> {
    add(&api, &caller, id, Side::Egress, body, generation).await
}

/// Remove rules for what is sent to a container
///
/// The first rule that has all the parts given, or every one with `all`.
#[utoipa::path(delete, path = "/api/v1/containers/{id}/firewall/ingress", tag = "firewall", operation_id = "remove_ingress_rules",
    request_body = RemoveRules,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Removed", body = Success<RulesChangedView>),
              (status = "default", description = "Refused; 404 where no rule fits", body = ErrorBody)))]
pub async fn remove_ingress(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<RemoveRules>,
) -> Result<Answer<RulesChangedView>, ApiError> {
    remove(&api, &caller, id, Side::Ingress, body, generation).await
}

/// Remove rules for what a container sends
///
/// The first rule that has all the parts given, or every one with `all`.
#[utoipa::path(delete, path = "/api/v1/containers/{id}/firewall/egress", tag = "firewall", operation_id = "remove_egress_rules",
    request_body = RemoveRules,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Removed", body = Success<RulesChangedView>),
              (status = "default", description = "Refused; 404 where no rule fits", body = ErrorBody)))]
pub async fn remove_egress(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<RemoveRules>,
) -> Result<Answer<RulesChangedView>, ApiError> {
    remove(&api, &caller, id, Side::Egress, body, generation).await
}

/// Enable or disable rules for what is sent to a container
///
/// Every rule that has all the parts given gets the `state`; where that is left out, its other one.
#[utoipa::path(patch, path = "/api/v1/containers/{id}/firewall/ingress", tag = "firewall", operation_id = "switch_ingress_rules",
    request_body = RuleBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "The rules as they are now", body = Success<RulesChangedView>),
              (status = "default", description = "Refused; 404 where no rule fits", body = ErrorBody)))]
pub async fn switch_ingress(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<RuleBody>,
) -> Result<Answer<RulesChangedView>, ApiError> {
    switch(&api, &caller, id, Side::Ingress, body, generation).await
}

/// Enable or disable rules for what a container sends
///
/// Every rule that has all the parts given gets the `state`; where that is left out, its other one.
#[utoipa::path(patch, path = "/api/v1/containers/{id}/firewall/egress", tag = "firewall", operation_id = "switch_egress_rules",
    request_body = RuleBody,
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "The rules as they are now", body = Success<RulesChangedView>),
              (status = "default", description = "Refused; 404 where no rule fits", body = ErrorBody)))]
pub async fn switch_egress(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<RuleBody>,
) -> Result<Answer<RulesChangedView>, ApiError> {
    switch(&api, &caller, id, Side::Egress, body, generation).await
}

/// Remove all of a container's own firewall rules
///
/// Its policy alone is in force then.
#[utoipa::path(post, path = "/api/v1/containers/{id}/firewall/reset", tag = "firewall", operation_id = "reset_firewall",
    params(("id" = String, Path, description = "The container's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "There are none any more", body = Success<RulesReset>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn reset(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
) -> Result<Answer<RulesReset>, ApiError> {
    let RulesChanged { container, effect } = change(&api, &caller, id, RulesChange::Reset, generation).await?;
    let removed = effect.rules.len();
    let firewall_policy = container.settings.firewall_policy.to_string();
    let view = RulesReset { container_id: id.to_string(), removed, firewall_policy };
    Ok(Answer::ok("Firewall rules reset successfully", view).at_generation(container.generation))
}

/// Show what should be in force for a container, and what is
#[utoipa::path(get, path = "/api/v1/containers/{id}/firewall/effective", tag = "firewall", operation_id = "effective_firewall",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "The rules, and the kernel's", body = Success<EffectiveView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn effective(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<EffectiveView>, ApiError> {
    caller.container(&api.service, id)?;
    let (container, rules, seen) = api.service.inspect_firewall(id).await?;
    Ok(Answer::ok("Effective firewall retrieved successfully", EffectiveView::new(&container, &rules, seen)))
}
