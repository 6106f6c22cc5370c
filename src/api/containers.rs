//! `/containers`: create, copy, list, show, change, delete, stats.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use sha2::{Digest, Sha256};

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, IfMatch, Json, OptionalJson, Pairs, Path, Query, wrong};
use super::idempotency::{Under, forget};
use super::page::Page;
use super::wire::checks::Maps;
use super::wire::container::{ContainerList, ContainerView, Place, StatsView};
use super::wire::not_acted_on;
use super::wire::ops::ReceiptView;
use super::wire::settings::{ChangeContainer, CopyContainer, CreateContainer};
use crate::domain::container::SettingsPatch;
use crate::domain::{Confinement, Container, ContainerId, ProjectId, Status, Verb};
use crate::lifecycle::{
    Await, LabelFilter, Made, Provenance, Service, Until, WAIT_TIMEOUT_S_DEFAULT, WAIT_TIMEOUT_S_MAX, What,
};

const CREATED: &str = "Container created successfully";
const COPIED: &str = "Container copied successfully";
/// Query parameters that a client of the Hoody API may send and that mean nothing here.
const UNHEEDED_PARAMETERS: [&str; 4] = ["realm_ids", "include_prespawn", "include_expired", "runtime"];

/// `wait` and `timeout`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitQuery(pub Await);

impl WaitQuery {
    /// Takes them out of a query; `until` is where the caller does not say.
    ///
    /// # Errors
    /// One of them is not what it should be.
    pub fn take(pairs: &mut Pairs, until: Until) -> Result<Self, ApiError> {
        let words = [("ready", Until::Ready), ("started", Until::Started), ("none", Until::Nothing)];
        let until = pairs.word("wait", &words)?.unwrap_or(until);
        let timeout_s = pairs.number("timeout", 1, WAIT_TIMEOUT_S_MAX)?.unwrap_or(WAIT_TIMEOUT_S_DEFAULT);
        Ok(Self(Await { until, timeout: Duration::from_secs(timeout_s) }))
    }
}

impl FromQuery for WaitQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Self::take(pairs, Until::Ready)
    }
}

/// Filters and paging of a list of containers.
#[derive(Debug)]
pub struct ListQuery {
    page: Page,
    status: Option<Status>,
    labels: LabelFilter,
    external_id: Option<String>,
    include_deleting: bool,
    include_proxy_domains: bool,
    warnings: Vec<String>,
}

impl FromQuery for ListQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let all =
            [Status::Creating, Status::Running, Status::Paused, Status::Stopped, Status::Failed, Status::Deleting];
        let asked = |name: &&str| pairs.all(name).iter().any(|value| !matches!(value.as_str(), "" | "false" | "0"));
        let warnings = UNHEEDED_PARAMETERS.iter().copied().filter(asked).map(not_acted_on).collect();
        Ok(Self {
            page: Page::take(pairs, &["created_at", "updated_at", "name", "status"])?,
            status: pairs.word("status", &all.map(|status| (status.as_str(), status)))?,
            labels: pairs.all("label").iter().map(|text| label(text)).collect::<Result<_, _>>()?,
            external_id: pairs.one("external_id")?,
            include_deleting: pairs.flag("include_deleting")?.unwrap_or(false),
            include_proxy_domains: pairs.flag("include_proxy_domains")?.unwrap_or(true),
            warnings,
        })
    }
}

/// `key:value` or `key=value`; a key holds neither sign.
fn label(text: &str) -> Result<(String, String), ApiError> {
    match text.split_once([':', '=']) {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(wrong("label", "`key:value` is wanted")),
    }
}

impl ListQuery {
    fn takes(&self, container: &Container) -> bool {
        let status = container.status();
        // Who asks for `deleting` by name wants to see it.
        let shown = status != Status::Deleting || self.include_deleting || self.status == Some(Status::Deleting);
        let labels = &container.settings.labels;
        shown
            && self.status.is_none_or(|wanted| wanted == status)
            && self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self
                .external_id
                .as_ref()
                .is_none_or(|wanted| container.external_id.as_ref().is_some_and(|id| id.as_str() == wanted))
    }

    fn order(&self, a: &Container, b: &Container) -> std::cmp::Ordering {
        match self.page.sort_by {
            "name" => a.name.cmp(&b.name),
            "status" => a.status().as_str().cmp(b.status().as_str()),
            "updated_at" => a.updated_at.cmp(&b.updated_at),
            _ => a.created_at.cmp(&b.created_at),
        }
    }
}

/// What a change may do beside.
#[derive(Debug)]
pub struct ChangeQuery {
    restart: bool,
}

impl FromQuery for ChangeQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Ok(Self { restart: pairs.flag("restart")?.unwrap_or(false) })
    }
}

/// What DELETE waits for.
#[derive(Debug)]
pub struct RemoveQuery {
    erased: bool,
}

impl FromQuery for RemoveQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let erased = pairs.word("wait", &[("removed", false), ("erased", true)])?.unwrap_or(false);
        Ok(Self { erased })
    }
}

/// This node's id: derived from its name, so that it needs no record.
fn server_id(server_name: &str) -> String {
    hex::encode(&Sha256::digest(server_name.as_bytes())[..12])
}

fn check_server(service: &Service, field: &'static str, wanted: Option<&str>) -> Result<(), ApiError> {
    let mine = service.server_name();
    match wanted {
        None | Some("") => Ok(()),
        Some(text) if text == mine || text == server_id(mine) => Ok(()),
        Some(text) => {
            let text = format!("{field}: there is no server `{text}`; this one is `{mine}`");
            Err(ApiError::new(StatusCode::NOT_FOUND, "SERVER_NOT_FOUND", text).of(field))
        }
    }
}

/// A container as it is answered.
pub fn view(service: &Service, container: &Container, warnings: Vec<String>) -> ContainerView {
    let place = Place {
        project_alias: service.project(container.project).ok().map(|project| project.alias.clone()),
        server_id: server_id(service.server_name()),
        server_name: service.server_name().to_owned(),
        urls: service.urls(container),
        ip: service.address(container),
        last_activity_at: service.usage(container).last_at,
        why_awake: service.why_awake(container),
    };
    ContainerView::new(container, place, warnings)
}

fn made(service: &Service, made: Made, mut warnings: Vec<String>, message: &'static str) -> Answer<ContainerView> {
    warnings.extend(made.warnings);
    let container = made.container;
    let answer = Answer::created(message, view(service, &container, warnings));
    answer.at_generation(container.generation).about(container.id).made(container.id).timed(made.timings)
}

/// The answer of a request that made a container and whose own answer was lost, as it is now.
pub fn made_before(service: &Service, container: &Container) -> Answer<ContainerView> {
    let message = if container.source.is_some() { COPIED } else { CREATED };
    let answer = Answer::created(message, view(service, container, Vec::new()));
    answer.at_generation(container.generation).about(container.id).made(container.id)
}

/// Make a container from an image
#[utoipa::path(post, path = "/api/v1/projects/{id}/containers", tag = "containers", operation_id = "create_container",
    request_body = CreateContainer,
    params(("id" = String, Path, description = "The project's id"),
           ("wait" = Option<String>, Query, description = "ready (where left out), started, none"),
           ("timeout" = Option<u64>, Query, description = "Seconds to wait, 1–300 (10); past it the answer has a warning"),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key and body: the first answer again")),
    responses((status = 201, description = "Made", body = Success<ContainerView>,
               headers(("Server-Timing" = String, description = "Milliseconds that each step took: `snapshot;dur=3.2, …`; some run at once"))),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    Path(project): Path<ProjectId>,
    Query(wait): Query<WaitQuery>,
    Under(under): Under,
    Json(body): Json<CreateContainer>,
) -> Result<Answer<ContainerView>, ApiError> {
    caller.project(&api.service, project)?;
    check_server(&api.service, "server_id", body.server_id.as_deref())?;
    let (mut new, warnings) = body.into_request()?;
    may_open(&caller, &new.settings)?;
    new.made = Provenance { by: Some(caller.token()), under };
    let done = api.service.create(project, new, wait.0).await?;
    Ok(made(&api.service, done, warnings, CREATED))
}

/// Make a container from another one
#[utoipa::path(post, path = "/api/v1/containers/{id}/copy", tag = "containers", operation_id = "copy_container",
    request_body = CopyContainer,
    params(("id" = String, Path, description = "The source's id"),
           ("wait" = Option<String>, Query, description = "ready (where left out), started, none"),
           ("timeout" = Option<u64>, Query, description = "Seconds to wait, 1–300 (10); past it the answer has a warning"),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key and body: the first answer again")),
    responses((status = 201, description = "Made", body = Success<ContainerView>,
               headers(("Server-Timing" = String, description = "Milliseconds that each step took: `snapshot;dur=3.2, …`; some run at once"))),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn copy(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    Query(wait): Query<WaitQuery>,
    Under(under): Under,
    OptionalJson(body): OptionalJson<CopyContainer>,
) -> Result<Answer<ContainerView>, ApiError> {
    caller.container(&api.service, id)?;
    check_server(&api.service, "target_server_id", body.target_server_id.as_deref())?;
    let (mut new, warnings) = body.into_request()?;
    may_open(&caller, &new.settings)?;
    new.made = Provenance { by: Some(caller.token()), under };
    if let Some(target) = new.project {
        caller.project(&api.service, target)?;
    }
    let done = api.service.copy(id, new, wait.0).await?;
    Ok(made(&api.service, done, warnings, COPIED))
}

fn listed(api: &Api, caller: &Caller, query: &ListQuery, project: Option<ProjectId>) -> Answer<ContainerList> {
    let wanted = |one: &Arc<Container>| {
        caller.sees(one.project) && project.is_none_or(|id| id == one.project) && query.takes(one)
    };
    let all = api.service.containers().into_iter().filter(wanted).collect();
    let (containers, pagination) = query.page.cut(all, |a, b| query.order(a, b));
    let show = |container: &Arc<Container>| {
        let mut view = view(&api.service, container, Vec::new());
        if !query.include_proxy_domains {
            view.proxy_domains.clear();
        }
        view
    };
    containers.iter().for_each(|container| caller.told_of(container.id));
    let containers = containers.iter().map(show).collect();
    let list = ContainerList { containers, pagination, warnings: query.warnings.clone() };
    Answer::ok("Containers retrieved successfully", list)
}

/// List containers of all projects
#[utoipa::path(get, path = "/api/v1/containers/", tag = "containers", operation_id = "list_containers",
    params(("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at, updated_at, name, status"),
           ("sort_order" = Option<String>, Query, description = "asc, desc"),
           ("status" = Option<String>, Query, description = "Only of this status"),
           ("label" = Option<Vec<String>>, Query, description = "key:value; repeated: all of them"),
           ("external_id" = Option<String>, Query, description = "Only with this external id"),
           ("include_deleting" = Option<bool>, Query, description = "Also those being removed (false)"),
           ("include_proxy_domains" = Option<bool>, Query, description = "With their hosts (true)")),
    responses((status = 200, description = "A page", body = Success<ContainerList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, caller: Caller, Query(query): Query<ListQuery>) -> Answer<ContainerList> {
    listed(&api, &caller, &query, None)
}

/// List a project's containers
#[utoipa::path(get, path = "/api/v1/projects/{id}/containers", tag = "containers", operation_id = "list_project_containers",
    params(("id" = String, Path, description = "The project's id"),
           ("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at, updated_at, name, status"),
           ("sort_order" = Option<String>, Query, description = "asc, desc"),
           ("status" = Option<String>, Query, description = "Only of this status"),
           ("label" = Option<Vec<String>>, Query, description = "key:value; repeated: all of them"),
           ("external_id" = Option<String>, Query, description = "Only with this external id"),
           ("include_deleting" = Option<bool>, Query, description = "Also those being removed (false)"),
           ("include_proxy_domains" = Option<bool>, Query, description = "With their hosts (true)")),
    responses((status = 200, description = "A page", body = Success<ContainerList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list_of_project(
    State(api): State<Api>,
    caller: Caller,
    Path(project): Path<ProjectId>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<ContainerList>, ApiError> {
    caller.project(&api.service, project)?;
    Ok(listed(&api, &caller, &query, Some(project)))
}

/// Show a container
#[utoipa::path(get, path = "/api/v1/containers/{id}", tag = "containers", operation_id = "get_container",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "The container, with its ETag", body = Success<ContainerView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<ContainerView>, ApiError> {
    let container = caller.container(&api.service, id)?;
    let answer = Answer::ok("Container retrieved successfully", view(&api.service, &container, Vec::new()));
    Ok(answer.at_generation(container.generation))
}

/// Change a container by a JSON merge patch
#[utoipa::path(patch, path = "/api/v1/containers/{id}", tag = "containers", operation_id = "patch_container",
    request_body = ChangeContainer,
    params(("id" = String, Path, description = "The container's id"),
           ("restart" = Option<bool>, Query, description = "Restart it where it runs, so that its environment is in force"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Changed", body = Success<ContainerView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn patch(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    Query(query): Query<ChangeQuery>,
    IfMatch(generation): IfMatch,
    Json(body): Json<ChangeContainer>,
) -> Result<Answer<ContainerView>, ApiError> {
    caller.container(&api.service, id)?;
    let (made, warnings) = change(&api.service, &caller, id, body, Maps::Merge, generation).await?;
    changed(&api.service, made, warnings, query.restart).await
}

/// Change a container; maps are replaced whole
#[utoipa::path(put, path = "/api/v1/containers/{id}", tag = "containers", operation_id = "put_container",
    request_body = ChangeContainer,
    params(("id" = String, Path, description = "The container's id"),
           ("restart" = Option<bool>, Query, description = "Restart it where it runs, so that its environment is in force"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Changed", body = Success<ContainerView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn put(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    Query(query): Query<ChangeQuery>,
    IfMatch(generation): IfMatch,
    Json(body): Json<ChangeContainer>,
) -> Result<Answer<ContainerView>, ApiError> {
    caller.container(&api.service, id)?;
    let (made, warnings) = change(&api.service, &caller, id, body, Maps::Replace, generation).await?;
    changed(&api.service, made, warnings, query.restart).await
}

/// What opens more of the kernel to a container is for admins; what a copy takes along from its source, one has given to that.
fn may_open(caller: &Caller, settings: &SettingsPatch) -> Result<(), ApiError> {
    match settings.confinement {
        None | Some(Confinement::Standard) => Ok(()),
        Some(_) => caller.admin(),
    }
}

async fn change(
    service: &Service,
    caller: &Caller,
    id: ContainerId,
    body: ChangeContainer,
    maps: Maps,
    if_match: Option<u64>,
) -> Result<(Made, Vec<String>), ApiError> {
    let (patch, warnings) = body.into_request(maps)?;
    may_open(caller, &patch.settings)?;
    Ok((service.update(id, patch, if_match).await?, warnings))
}

async fn changed(
    service: &Service,
    mut made: Made,
    mut warnings: Vec<String>,
    restart: bool,
) -> Result<Answer<ContainerView>, ApiError> {
    warnings.append(&mut made.warnings);
    if restart && matches!(made.container.status(), Status::Running | Status::Paused) {
        let wait = Await { until: Until::Ready, timeout: Duration::from_secs(WAIT_TIMEOUT_S_DEFAULT) };
        let done = service.verb(made.container.id, Verb::Restart, wait, None).await?;
        made.container = done.container;
        made.timings = done.timings;
        warnings.extend(done.warnings);
    }
    let answer = Answer::ok("Container updated successfully", view(service, &made.container, warnings));
    Ok(answer.at_generation(made.container.generation).timed(made.timings))
}

/// Delete a container and all its data
///
/// Legal in every state. Asked again, it answers the same, also after the container is gone.
#[utoipa::path(delete, path = "/api/v1/containers/{id}", tag = "containers", operation_id = "delete_container",
    params(("id" = String, Path, description = "The container's id"),
           ("wait" = Option<String>, Query, description = "removed (where left out): every object is; erased: its data too"),
           ("If-Match" = Option<String>, Header, description = "The ETag the deletion is meant for; 412 where it is another")),
    responses((status = 200, description = "Deleted", body = Success<ReceiptView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    Query(query): Query<RemoveQuery>,
    IfMatch(generation): IfMatch,
) -> Result<Answer<ReceiptView>, ApiError> {
    may_remove(&api.service, &caller, id).await?;
    let receipt = api.service.delete(id, query.erased, generation).await?;
    forget(api.service.records(), id).await?;
    Ok(Answer::ok("Container deleted successfully", receipt.into()))
}

/// What is gone leaves a receipt that names its project.
async fn may_remove(service: &Service, caller: &Caller, id: ContainerId) -> Result<(), ApiError> {
    let gone = || ApiError::not_found(What::Container, id);
    let project = match service.container(id) {
        Ok(container) => container.project,
        Err(_) => service.receipt(service.receipt_of(id).ok_or_else(gone)?).await?.project,
    };
    if caller.sees(project) { Ok(()) } else { Err(gone()) }
}

/// What a container uses now
#[utoipa::path(get, path = "/api/v1/containers/{id}/stats", tag = "containers", operation_id = "container_stats",
    params(("id" = String, Path, description = "The container's id")),
    responses((status = 200, description = "Counters; cpu and memory are null when stopped", body = Success<StatsView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn stats(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    _: Query<()>,
) -> Result<Answer<StatsView>, ApiError> {
    let container = caller.container(&api.service, id)?;
    let stats = api.service.stats(id).await?;
    Ok(Answer::ok("Container stats retrieved successfully", StatsView::new(&container, stats)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::from_query;

    fn list(query: &str) -> Result<ListQuery, ApiError> {
        from_query(&format!("/x?{query}").parse().unwrap())
    }

    fn wait(query: &str) -> Result<Await, ApiError> {
        from_query::<WaitQuery>(&format!("/x?{query}").parse().unwrap()).map(|query| query.0)
    }

    #[test]
    fn filters_are_read_and_a_typo_lists_nothing() {
        let query =
            list("label=plan:pro&label=tier=a:b&status=running&external_id=cus_1&include_deleting=true").unwrap();
        assert_eq!(
            query.labels,
            std::collections::BTreeMap::from([("plan".into(), "pro".into()), ("tier".into(), "a:b".into())])
        );
        assert_eq!((query.status, query.external_id.as_deref()), (Some(Status::Running), Some("cus_1")));
        for (bad, name) in [
            ("label=plan", "label"),
            ("label=:x", "label"),
            ("status=gone", "status"),
            ("include_deleting=maybe", "include_deleting"),
            ("sort_by=ip", "sort_by"),
            ("lable=a:b", "lable"),
        ] {
            assert_eq!(list(bad).unwrap_err().field(), Some(name), "{bad}");
        }
    }

    #[test]
    fn parameters_we_do_not_act_on_are_named() {
        assert!(list("runtime=false").unwrap().warnings.is_empty());
        assert_eq!(list("runtime=true&realm_ids=a").unwrap().warnings.len(), 2);
    }

    #[test]
    fn ready_is_what_create_waits_for() {
        assert_eq!(wait("").unwrap(), Await { until: Until::Ready, timeout: Duration::from_secs(10) });
        assert_eq!(
            wait("wait=none&timeout=3").unwrap(),
            Await { until: Until::Nothing, timeout: Duration::from_secs(3) }
        );
        for (bad, name) in
            [("wait=soon", "wait"), ("timeout=0", "timeout"), ("timeout=301", "timeout"), ("timeout=1s", "timeout")]
        {
            assert_eq!(wait(bad).unwrap_err().field(), Some(name), "{bad}");
        }
    }

    #[test]
    fn the_servers_id_looks_like_every_id() {
        assert!(server_id("node1").parse::<ContainerId>().is_ok());
        assert_ne!(server_id("node1"), server_id("node2"));
    }
}
