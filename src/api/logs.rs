//! `/containers/{id}/logs` and `/status-logs`.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Pairs, Path, Query, wrong};
use super::follow::follow;
use super::page::Page;
use super::wire::container::{StatusLogList, StatusLogView};
use crate::domain::{Bytes, ContainerId};

/// Bytes of a log that are answered, at most: its end.
const LOG_MAX: Bytes = Bytes::mib(1);
/// Lines of a log where the caller does not say.
const TAIL_LINES_DEFAULT: u64 = 1_000;
/// Lines of a log, at most.
const TAIL_LINES_MAX: u64 = 100_000;

/// Query of a log.
#[derive(Debug)]
pub struct LogsQuery {
    tail: usize,
    follow: bool,
}

impl FromQuery for LogsQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let follow = pairs.flag("follow")?.unwrap_or(false);
        if pairs.one("since")?.is_some() {
            return Err(wrong("since", "lines bear no time, so that they cannot be chosen by it; use tail"));
        }
        let tail = pairs.number("tail", 0, TAIL_LINES_MAX)?.unwrap_or(TAIL_LINES_DEFAULT);
        Ok(Self { tail: usize::try_from(tail).unwrap_or(usize::MAX), follow })
    }
}

/// The last lines of a text; a line end at the very end ends the last line and begins none.
pub(super) fn last_lines(text: &[u8], lines: usize) -> &[u8] {
    if lines == 0 {
        return &[];
    }
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match ends.map(|(at, _)| at).nth(lines - 1) {
        Some(at) => text.get(at + 1..).unwrap_or_default(),
        None => text,
    }
}

/// The end of a container's log
///
/// With `follow=true` the answer is `text/event-stream` and goes on: the data of its events, one after the other, is the log's
/// text from the last `tail` lines on. The last event, `end`, says why it ends: `container_deleted`, `token_refused`,
/// `shutting_down` or `log_unreadable`. There is no choosing by time: `since` is refused, as lines bear no time.
#[utoipa::path(get, path = "/api/v1/containers/{id}/logs", tag = "containers", operation_id = "container_logs",
    params(("id" = String, Path, description = "The container's id"),
           ("tail" = Option<u64>, Query, description = "Lines, 0–100000 (1000); never more than 1 MiB"),
           ("follow" = Option<bool>, Query, description = "Go on with what is written from now on (false)")),
    responses((status = 200, description = "Standard output and error, as they came", content_type = "text/plain", body = String),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn logs(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, ApiError> {
    caller.container(&api.service, id)?;
    if query.follow {
        return follow(&api, caller, id, query.tail, LOG_MAX).await;
    }
    let text = api.service.log_tail(id, LOG_MAX).await?;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    // A tenant wrote it: no browser shall take it for a page.
    let nosniff = (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(([(header::CONTENT_TYPE, plain), nosniff], last_lines(&text, query.tail).to_vec()).into_response())
}

/// Query of a status log.
#[derive(Debug)]
pub struct StatusLogsQuery(Page);

impl FromQuery for StatusLogsQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Page::take(pairs, &["transition_time"]).map(Self)
    }
}

/// A container's changes of status
#[utoipa::path(get, path = "/api/v1/containers/{id}/status-logs", tag = "containers", operation_id = "status_logs",
    params(("id" = String, Path, description = "The container's id"),
           ("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "transition_time"),
           ("sort_order" = Option<String>, Query, description = "asc, desc")),
    responses((status = 200, description = "A page", body = Success<StatusLogList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn status_logs(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    Query(query): Query<StatusLogsQuery>,
) -> Result<Answer<StatusLogList>, ApiError> {
    caller.container(&api.service, id)?;
    let log = api.service.status_log(id).await?;
    let (page, pagination) = query.0.cut(log, |a, b| a.at.cmp(&b.at));
    let status_logs = page.into_iter().map(StatusLogView::from).collect();
    Ok(Answer::ok("Status logs retrieved successfully", StatusLogList { status_logs, pagination }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::from_query;

    #[test]
    fn the_last_lines_are_whole_lines() {
        let log = b"one\ntwo\nthree\n";
        assert_eq!(last_lines(log, 1), b"three\n");
        assert_eq!(last_lines(log, 2), b"two\nthree\n");
        assert_eq!(last_lines(log, 9), log);
        assert_eq!(last_lines(log, 0), b"");
        assert_eq!(last_lines(b"one\ntwo", 1), b"two");
        assert_eq!(last_lines(b"", 3), b"");
        assert_eq!(last_lines(b"\n\n", 1), b"\n");
    }

    #[test]
    fn what_a_log_cannot_do_is_said_by_name() {
        let read = |query: &str| from_query::<LogsQuery>(&format!("/x?{query}").parse().unwrap());
        assert_eq!(read("tail=5").unwrap().tail, 5);
        for (bad, name) in [("follow=maybe", "follow"), ("since=1h", "since"), ("tail=x", "tail"), ("lines=5", "lines")]
        {
            assert_eq!(read(bad).unwrap_err().field(), Some(name), "{bad}");
        }
        assert!(read("follow=true").unwrap().follow && !read("").unwrap().follow);
    }
}
