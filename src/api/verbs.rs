//! `/containers/{id}/start`, `stop`, `force-stop`, `restart`, `pause`, `resume`.

use std::time::Duration;

use axum::extract::State;

use super::Api;
use super::auth::Caller;
use super::containers::WaitQuery;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Pairs, Path, Query};
use super::wire::ops::OperationView;
use crate::domain::{ContainerId, Verb};
use crate::lifecycle::{Await, Until, WAIT_TIMEOUT_S_DEFAULT, WAIT_TIMEOUT_S_MAX};

/// `wait` and `timeout` of a verb that leaves a process behind.
#[derive(Debug)]
pub struct StartQuery(Await);

impl FromQuery for StartQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        WaitQuery::take(pairs, Until::Started).map(|query| Self(query.0))
    }
}

/// `wait` and `timeout` of a stop: the timeout is what lies between SIGTERM and SIGKILL.
#[derive(Debug)]
pub struct StopQuery {
    wait: Await,
    grace: Option<Duration>,
}

impl FromQuery for StopQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let words = [("stopped", Until::Started), ("none", Until::Nothing)];
        let until = pairs.word("wait", &words)?.unwrap_or(Until::Started);
        let grace = pairs.number("timeout", 0, WAIT_TIMEOUT_S_MAX)?.map(Duration::from_secs);
        Ok(Self { wait: Await { until, timeout: Duration::from_secs(WAIT_TIMEOUT_S_DEFAULT) }, grace })
    }
}

async fn carry_out(
    api: &Api,
    caller: &Caller,
    id: ContainerId,
    verb: Verb,
    wait: Await,
    grace: Option<Duration>,
) -> Result<Answer<OperationView>, ApiError> {
    caller.container(&api.service, id)?;
    let mut done = api.service.verb(id, verb, wait, grace).await?;
    let message = match verb {
        Verb::Start => "Container started successfully",
        Verb::Stop | Verb::ForceStop => "Container stopped successfully",
        Verb::Restart => "Container restarted successfully",
        Verb::Pause => "Container paused successfully",
        Verb::Resume => "Container resumed successfully",
    };
    let timings = std::mem::take(&mut done.timings);
    Ok(Answer::ok(message, done.into()).timed(timings))
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $name:ident $query:ident($given:ident) $path:literal $id:literal $verb:expr, $wait:expr, $grace:expr, $waits:literal, $timeout:literal;)*) => {$(
        $(#[$doc])*
        #[utoipa::path(post, path = $path, tag = "verbs", operation_id = $id,
            params(("id" = String, Path, description = "The container's id"),
                   ("wait" = Option<String>, Query, description = $waits),
                   ("timeout" = Option<u64>, Query, description = $timeout)),
            responses((status = 200, description = "Done", body = Success<OperationView>,
                       headers(("Server-Timing" = String, description = "Milliseconds that each step took; some run at once"))),
                      (status = "default", description = "Refused", body = ErrorBody)))]
        pub async fn $name(
            State(api): State<Api>,
            caller: Caller,
            Path(id): Path<ContainerId>,
            Query($given): Query<$query>,
        ) -> Result<Answer<OperationView>, ApiError> {
            carry_out(&api, &caller, id, $verb, $wait, $grace).await
        }
    )*};
}

verbs! {
    /// Start a container
    start StartQuery(query) "/api/v1/containers/{id}/start" "start_container"
        Verb::Start, query.0, None, "started (where left out), ready, none", "Seconds to wait, 1–300 (10)";
    /// Stop a container: SIGTERM, then SIGKILL
    stop StopQuery(query) "/api/v1/containers/{id}/stop" "stop_container"
        Verb::Stop, query.wait, query.grace, "stopped (where left out), none", "Seconds between SIGTERM and SIGKILL, 0–300 (10)";
    /// Stop a container by SIGKILL
    force_stop StopQuery(query) "/api/v1/containers/{id}/force-stop" "force_stop_container"
        Verb::ForceStop, query.wait, query.grace, "stopped (where left out), none", "Taken and not needed";
    /// Stop a container, then start it
    restart StartQuery(query) "/api/v1/containers/{id}/restart" "restart_container"
        Verb::Restart, query.0, None, "started (where left out), ready, none", "Seconds to wait after the stop, 1–300 (10)";
    /// Freeze a container
    pause StartQuery(query) "/api/v1/containers/{id}/pause" "pause_container"
        Verb::Pause, query.0, None, "Taken and not needed", "Seconds to wait, 1–300 (10)";
    /// Thaw a container
    resume StartQuery(query) "/api/v1/containers/{id}/resume" "resume_container"
        Verb::Resume, query.0, None, "Taken and not needed", "Seconds to wait, 1–300 (10)";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::from_query;

    #[test]
    fn a_stops_timeout_is_its_grace() {
        let read = |query: &str| from_query::<StopQuery>(&format!("/x?{query}").parse().unwrap());
        assert_eq!(read("timeout=0").unwrap().grace, Some(Duration::ZERO));
        assert_eq!(read("").unwrap().grace, None);
        assert_eq!(read("wait=none").unwrap().wait.until, Until::Nothing);
        for bad in ["timeout=301", "timeout=-1", "wait=ready", "force=true"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_start_waits_for_its_process_where_nothing_is_said() {
        let read = |query: &str| from_query::<StartQuery>(&format!("/x?{query}").parse().unwrap());
        assert_eq!(read("").unwrap().0.until, Until::Started);
        assert_eq!(read("wait=ready").unwrap().0.until, Until::Ready);
    }
}
