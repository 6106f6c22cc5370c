//! `/containers/{id}/access-log`: what was asked of a container's URLs, and who came to its ports.

use std::net::IpAddr;

use axum::extract::State;
use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Pairs, Path, Query, wrong};
use crate::domain::{AccessLine, Bytes, ContainerId};

/// Bytes of a log that are looked through, at most: its end.
const LOOKED_AT_MAX: Bytes = Bytes::mib(2);
/// Requests where the caller does not say.
const TAIL_DEFAULT: u64 = 100;
/// Requests, at most.
const TAIL_MAX: u64 = 10_000;

/// A request to a container's URL, or a connection to one of its aliases of raw TCP.
#[derive(Debug, Serialize, ToSchema)]
pub struct AccessView {
    /// When its head was read, or the connection began.
    #[schema(value_type = String)]
    pub time: Timestamp,
    /// Who asked.
    #[schema(value_type = String)]
    pub client_ip: IpAddr,
    /// With which method; `TCP` for a connection.
    pub method: String,
    /// For which path, without the query; at most 512 bytes of it. For a connection the port it came to, as in `:20000`.
    pub path: String,
    /// What was answered; null: the client had gone by then, or it is a connection.
    pub status: Option<u16>,
    /// Bytes of the response's body that were sent, or all that came for the client by a connection.
    pub bytes: u64,
    /// Until the last of them, or the connection's end.
    pub duration_ms: f64,
    /// What of it the container took until the head of its response; null: it was not asked.
    pub upstream_ms: Option<f64>,
    /// Whether the container had to be woken for it.
    pub woken: bool,
    /// As in `x-request-id`; of a connection it is nowhere else.
    pub request_id: String,
}

impl From<AccessLine> for AccessView {
    fn from(access: AccessLine) -> Self {
        let ms = |us: u64| us as f64 / 1e3;
        Self {
            time: access.at,
            client_ip: access.client,
            method: access.method.into_owned(),
            path: access.path,
            status: access.status,
            bytes: access.bytes,
            duration_ms: ms(access.duration_us),
            upstream_ms: access.upstream_us.map(ms),
            woken: access.woken,
            request_id: access.request_id,
        }
    }
}

/// The end of a container's access log.
#[derive(Debug, Serialize, ToSchema)]
pub struct AccessLog {
    /// Each request and connection, in the order in which they ended.
    pub access_log: Vec<AccessView>,
}

/// Query of an access log.
#[derive(Debug)]
pub struct AccessLogQuery {
    tail: usize,
    since: Option<Timestamp>,
}

impl FromQuery for AccessLogQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let tail = pairs.number("tail", 0, TAIL_MAX)?.unwrap_or(TAIL_DEFAULT);
        let since = pairs.one("since")?.map(|text| text.parse().map_err(|error| wrong("since", error))).transpose()?;
        Ok(Self { tail: usize::try_from(tail).unwrap_or(usize::MAX), since })
    }
}

/// The end of a container's access log
///
/// One line a request, written some 200 ms after it ended. The last 1 to 2 MiB are kept. An upgraded connection is a line when it was
/// switched, one of raw TCP when it has ended. Where the configuration switches access logs off there are no lines.
#[utoipa::path(get, path = "/api/v1/containers/{id}/access-log", tag = "containers", operation_id = "access_log",
    params(("id" = String, Path, description = "The container's id"),
           ("tail" = Option<u64>, Query, description = "Requests, 0–10000 (100): the last ones"),
           ("since" = Option<String>, Query, description = "None that ended before this time (RFC 3339)")),
    responses((status = 200, description = "Requests and connections, in the order in which they ended", body = Success<AccessLog>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn access_log(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ContainerId>,
    Query(query): Query<AccessLogQuery>,
) -> Result<Answer<AccessLog>, ApiError> {
    caller.container(&api.service, id)?;
    let mut accesses = api.service.accesses(id, LOOKED_AT_MAX).await?;
    accesses.retain(|access| query.since.is_none_or(|since| access.ended() >= since));
    accesses.drain(..accesses.len().saturating_sub(query.tail));
    let access_log = accesses.into_iter().map(AccessView::from).collect();
    Ok(Answer::ok("Access log retrieved successfully", AccessLog { access_log }))
}
