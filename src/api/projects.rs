//! `/projects`.

use axum::extract::State;
use futures_util::StreamExt;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, IfMatch, Json, Pairs, Path, Query};
use super::idempotency::forget;
use super::page::Page;
use super::wire::container::{StatsList, StatsView};
use super::wire::project::{ChangeProject, CreateProject, ProjectDeleted, ProjectList, ProjectView};
use crate::domain::{Project, ProjectId};
use crate::lifecycle::Error;

/// Containers of a project that are measured at once.
const STATS_AT_ONCE_MAX: usize = 8;

/// Query of the list of projects.
#[derive(Debug)]
pub struct ProjectsQuery(Page);

impl FromQuery for ProjectsQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Page::take(pairs, &["created_at", "updated_at", "alias"]).map(Self)
    }
}

/// Query of a project's stats.
#[derive(Debug)]
pub struct StatsQuery(Page);

impl FromQuery for StatsQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Page::take(pairs, &["created_at", "name"]).map(Self)
    }
}

fn view(api: &Api, project: &Project, warnings: Vec<String>) -> ProjectView {
    let count =
        api.service.containers().iter().filter(|one| one.project == project.id && one.receipt.is_none()).count();
    ProjectView::new(project, count as u64, warnings)
}

/// Make a project
#[utoipa::path(post, path = "/api/v1/projects/", tag = "projects", operation_id = "create_project",
    request_body = CreateProject,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key and body: the first answer again")),
    responses((status = 201, description = "Made", body = Success<ProjectView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    _: Query<()>,
    Json(body): Json<CreateProject>,
) -> Result<Answer<ProjectView>, ApiError> {
    caller.host_wide()?;
    let (new, warnings) = body.into_request()?;
    let project = api.service.create_project(new).await?;
    Ok(Answer::created("Project created successfully", view(&api, &project, warnings))
        .at_generation(project.generation)
        .made(project.id))
}

/// List projects
#[utoipa::path(get, path = "/api/v1/projects/", tag = "projects", operation_id = "list_projects",
    params(("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at, updated_at, alias"),
           ("sort_order" = Option<String>, Query, description = "asc, desc")),
    responses((status = 200, description = "A page", body = Success<ProjectList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, caller: Caller, Query(query): Query<ProjectsQuery>) -> Answer<ProjectList> {
    let page = query.0;
    let seen = api.service.projects().into_iter().filter(|project| caller.sees(project.id)).collect();
    let (projects, pagination) = page.cut(seen, |a, b| match page.sort_by {
        "alias" => a.alias.cmp(&b.alias),
        "updated_at" => a.updated_at.cmp(&b.updated_at),
        _ => a.created_at.cmp(&b.created_at),
    });
    let projects = projects.iter().map(|project| view(&api, project, Vec::new())).collect();
    Answer::ok("Projects retrieved successfully", ProjectList { projects, pagination })
}

/// Show a project
#[utoipa::path(get, path = "/api/v1/projects/{id}", tag = "projects", operation_id = "get_project",
    params(("id" = String, Path, description = "The project's id")),
    responses((status = 200, description = "The project, with its ETag", body = Success<ProjectView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    _: Query<()>,
) -> Result<Answer<ProjectView>, ApiError> {
    let project = caller.project(&api.service, id)?;
    Ok(Answer::ok("Project retrieved successfully", view(&api, &project, Vec::new())).at_generation(project.generation))
}

/// Change a project
#[utoipa::path(method(put, patch), path = "/api/v1/projects/{id}", tag = "projects", operation_id = "change_project",
    request_body = ChangeProject,
    params(("id" = String, Path, description = "The project's id"),
           ("If-Match" = Option<String>, Header, description = "The ETag the change is meant for; 412 where it is another")),
    responses((status = 200, description = "Changed", body = Success<ProjectView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn change(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    _: Query<()>,
    IfMatch(generation): IfMatch,
    Json(body): Json<ChangeProject>,
) -> Result<Answer<ProjectView>, ApiError> {
    caller.project(&api.service, id)?;
    caller.host_wide()?;
    let (patch, warnings) = body.into_request()?;
    let project = api.service.update_project(id, patch, generation).await?;
    Ok(Answer::ok("Project updated successfully", view(&api, &project, warnings)).at_generation(project.generation))
}

/// Delete a project and all its containers
#[utoipa::path(delete, path = "/api/v1/projects/{id}", tag = "projects", operation_id = "delete_project",
    params(("id" = String, Path, description = "The project's id")),
    responses((status = 200, description = "Deleted", body = Success<ProjectDeleted>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    _: Query<()>,
) -> Result<Answer<ProjectDeleted>, ApiError> {
    caller.project(&api.service, id)?;
    caller.host_wide()?;
    let all = api.service.containers();
    let receipts = api.service.delete_project(id).await?;
    for container in all.iter().filter(|container| container.project == id) {
        forget(api.service.records(), container.id).await?;
    }
    let receipt_ids = receipts.iter().map(ToString::to_string).collect();
    Ok(Answer::ok("Project deleted successfully", ProjectDeleted { id: id.to_string(), receipt_ids }))
}

/// What each container of a project uses now
#[utoipa::path(get, path = "/api/v1/projects/{id}/stats", tag = "projects", operation_id = "project_stats",
    params(("id" = String, Path, description = "The project's id"),
           ("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at, name"),
           ("sort_order" = Option<String>, Query, description = "asc, desc")),
    responses((status = 200, description = "A page", body = Success<StatsList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn stats(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ProjectId>,
    Query(query): Query<StatsQuery>,
) -> Result<Answer<StatsList>, ApiError> {
    caller.project(&api.service, id)?;
    let page = query.0;
    let mine = api.service.containers().into_iter().filter(|one| one.project == id && one.receipt.is_none()).collect();
    let (mine, pagination) = page.cut(mine, |a, b| match page.sort_by {
        "name" => a.name.cmp(&b.name),
        _ => a.created_at.cmp(&b.created_at),
    });
    let measured = futures_util::stream::iter(mine)
        .map(|container| async { (api.service.stats(container.id).await, container) })
        .buffered(STATS_AT_ONCE_MAX);
    let measured: Vec<_> = measured.collect().await;
    let mut containers = Vec::new();
    for (stats, container) in measured {
        match stats {
            Ok(stats) => containers.push(StatsView::new(&container, stats)),
            // Deleted since the list was taken.
            Err(Error::NotFound { .. } | Error::DeletedMeanwhile(_) | Error::Deleting { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Answer::ok("Project stats retrieved successfully", StatsList { containers, pagination }))
}
