//! `/exec/scripts` and `/exec/logs`: scripts as things, for tokens that may manage them.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use jiff::Timestamp;

use super::Api;
use super::audit::Object;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::scripts::of_management;
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Pairs, Path, Query, read_body_up_to, wrong};
use super::wire::Deleted;
use super::wire::script::{ScriptList, ScriptLog, ScriptView};
use crate::exec::folder::FILE_BYTES_MAX;
use crate::exec::log::TAIL_LINES_MAX;
use crate::exec::manage::Overview;
use crate::exec::routes::script_file;
use crate::exec::run::ScriptFile;

/// Lines of a log where the caller does not say.
const TAIL_DEFAULT: u64 = 200;

/// A script's file as it stands in a path.
fn named(text: &str) -> Result<ScriptFile, ApiError> {
    script_file(text).map_err(|error| ApiError::bad("INVALID_SCRIPT_NAME", error.to_string()).of("file"))
}

fn no_such(file: &ScriptFile) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "SCRIPT_NOT_FOUND", format!("there is no script `{file}`"))
}

/// With its text.
fn whole(overview: Overview) -> ScriptView {
    let source = overview.script.as_ref().ok().map(|script| script.source.to_string());
    ScriptView { source, ..overview.into() }
}

/// List scripts
///
/// Every file of the folder: endpoints, libraries, and those that answer nothing because something is wrong with them.
#[utoipa::path(get, path = "/api/v1/exec/scripts", tag = "scripts", operation_id = "list_scripts",
    responses((status = 200, description = "All of them", body = Success<ScriptList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, caller: Caller, _: Query<()>) -> Result<Answer<ScriptList>, ApiError> {
    caller.host_wide()?;
    let scripts = api.scripts()?.list().await.map_err(of_management)?;
    let scripts = scripts.into_iter().map(ScriptView::from).collect();
    Ok(Answer::ok("Scripts retrieved successfully", ScriptList { scripts }))
}

/// Show a script, with its text
#[utoipa::path(get, path = "/api/v1/exec/scripts/{file}", tag = "scripts", operation_id = "show_script",
    params(("file" = String, Path, description = "Its file, as shop/stripe.js")),
    responses((status = 200, description = "It", body = Success<ScriptView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn show(
    State(api): State<Api>,
    caller: Caller,
    Path(file): Path<String>,
    _: Query<()>,
) -> Result<Answer<ScriptView>, ApiError> {
    caller.host_wide()?;
    let file = named(&file)?;
    let found = api.scripts()?.show(&file).await.map_err(of_management)?;
    Ok(Answer::ok("Script retrieved successfully", whole(found.ok_or_else(|| no_such(&file))?)))
}

/// Write a script: the body is its text
///
/// What does not parse, or has comments that cannot be, is refused with its place, and what was there stays. It answers from the
/// next request on.
#[utoipa::path(put, path = "/api/v1/exec/scripts/{file}", tag = "scripts", operation_id = "write_script",
    request_body(content = String, content_type = "text/javascript", description = "Its text, at most 1 MiB, whatever the content type"),
    params(("file" = String, Path, description = "Its file, as shop/stripe.js")),
    responses((status = 200, description = "Written", body = Success<ScriptView>),
              (status = 201, description = "Written, and new", body = Success<ScriptView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn write(
    State(api): State<Api>,
    caller: Caller,
    Path(file): Path<String>,
    _: Query<()>,
    request: Request,
) -> Result<(axum::Extension<Object>, Answer<ScriptView>), ApiError> {
    caller.host_wide()?;
    let (scripts, file) = (api.scripts()?, named(&file)?);
    let bytes_max = usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX);
    let body = read_body_up_to(request.into_body(), bytes_max).await?;
    let source =
        String::from_utf8(body.to_vec()).map_err(|_| ApiError::bad("INVALID_BODY", "the body is not UTF-8"))?;
    let is_new = scripts.write(&file, source).await?;
    let found = scripts.show(&file).await.map_err(of_management)?;
    let view = ScriptView::from(found.ok_or_else(|| no_such(&file))?);
    let object = axum::Extension(Object(file.0));
    if is_new {
        Ok((object, Answer::created("Script created successfully", view)))
    } else {
        Ok((object, Answer::ok("Script written successfully", view)))
    }
}

/// Delete a script, and its log
#[utoipa::path(delete, path = "/api/v1/exec/scripts/{file}", tag = "scripts", operation_id = "delete_script",
    params(("file" = String, Path, description = "Its file, as shop/stripe.js")),
    responses((status = 200, description = "Deleted", body = Success<Deleted>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(file): Path<String>,
    _: Query<()>,
) -> Result<(axum::Extension<Object>, Answer<Deleted>), ApiError> {
    caller.host_wide()?;
    let file = named(&file)?;
    if !api.scripts()?.remove(&file).await.map_err(of_management)? {
        return Err(no_such(&file));
    }
    let object = axum::Extension(Object(file.0.clone()));
    Ok((object, Answer::ok("Script deleted successfully", Deleted { id: file.0 })))
}

/// Query of a script's log.
#[derive(Debug)]
pub struct LogQuery {
    tail: usize,
    since: Option<Timestamp>,
}

impl FromQuery for LogQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let tail = pairs.number("tail", 0, TAIL_LINES_MAX as u64)?.unwrap_or(TAIL_DEFAULT);
        let since = pairs.one("since")?.map(|text| text.parse().map_err(|error| wrong("since", error))).transpose()?;
        Ok(Self { tail: usize::try_from(tail).unwrap_or(TAIL_LINES_MAX), since })
    }
}

/// The end of a script's log
///
/// What it printed and how its runs ended; the last 512 KiB to 1 MiB are kept.
#[utoipa::path(get, path = "/api/v1/exec/logs/{file}", tag = "scripts", operation_id = "script_log",
    params(("file" = String, Path, description = "Its file, as shop/stripe.js"),
           ("tail" = Option<u64>, Query, description = "Lines, 0–10000 (200): the last ones"),
           ("since" = Option<String>, Query, description = "None from before this time (RFC 3339)")),
    responses((status = 200, description = "Lines, oldest first", body = Success<ScriptLog>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn log(
    State(api): State<Api>,
    caller: Caller,
    Path(file): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Answer<ScriptLog>, ApiError> {
    caller.host_wide()?;
    let file = named(&file)?;
    let lines = api.scripts()?.log().tail(&file, query.tail, query.since).await.map_err(|error| {
        tracing::error!(script = %file, %error, "a script's log cannot be read");
        let text = "the log cannot be read; the daemon's log has the details";
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", text)
    })?;
    let log = lines.into_iter().map(Into::into).collect();
    Ok(Answer::ok("Script log retrieved successfully", ScriptLog { log }))
}
