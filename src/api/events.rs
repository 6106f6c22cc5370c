//! `/events` and `/events/stream`: what happened, by page or as it happens.
//!
//! A stream is looked at, not pushed: it waits for news, reads what is kept from where it was, and holds nothing for a client
//! that does not read. One that comes back with `Last-Event-ID` gets what it missed; where part of that is not kept any more it
//! is told so by an event `gap`, since silence would be taken for peace.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Pairs, Query, wrong};
use super::follow::HEARTBEAT_S;
use super::page::Page;
use super::wire::event::{EventList, EventView};
use crate::domain::event::{Event, EventId, EventKind, EventPattern};
use crate::domain::{ContainerId, ProjectId};
use crate::lifecycle::Service;
use crate::store::EventLog;

/// The header with which a client of a stream says how far it came (the EventSource interface of WHATWG's HTML).
const LAST_EVENT_ID: &str = "last-event-id";
/// Between two looks whether the token still admits, in seconds.
const ADMIT_LOOK_S: u64 = 1;

/// Which events are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Filter {
    container: Option<ContainerId>,
    project: Option<ProjectId>,
    kinds: Option<EventPattern>,
}

impl Filter {
    fn take(pairs: &mut Pairs) -> Result<Self, ApiError> {
        fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
            pairs: &mut Pairs,
            name: &'static str,
        ) -> Result<Option<T>, ApiError> {
            let text = pairs.one(name)?;
            text.map(|text| text.parse().map_err(|error: T::Err| wrong(name, error))).transpose()
        }
        Ok(Self {
            container: parsed(pairs, "container_id")?,
            project: parsed(pairs, "project_id")?,
            kinds: parsed(pairs, "type")?,
        })
    }

    /// The notes of who wrote what lie apart, and are given to whoever asks for them by their type.
    fn wants_audit(self) -> bool {
        self.kinds.is_some_and(|kinds| kinds.has(EventKind::AuditWrite))
    }

    /// Where to look.
    ///
    /// # Errors
    /// 403.
    fn history(self, caller: &Caller) -> Result<History, ApiError> {
        if !self.wants_audit() {
            return Ok(Service::events);
        }
        caller.auditor().map(|()| Service::audit as History)
    }

    fn takes(self, caller: &Caller, event: &Event) -> bool {
        caller.sees(event.what.project)
            && self.container.is_none_or(|id| event.what.container == Some(id))
            && self.project.is_none_or(|id| event.what.project == id)
            && self.kinds.is_none_or(|kinds| kinds.has(event.what.kind))
    }
}

/// One of the service's histories.
type History = for<'a> fn(&'a Service) -> &'a EventLog;

/// Query of a page.
#[derive(Debug)]
pub struct ListQuery {
    filter: Filter,
    page: Page,
}

impl FromQuery for ListQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Ok(Self { filter: Filter::take(pairs)?, page: Page::take(pairs, &["created_at"])? })
    }
}

/// Query of a stream.
#[derive(Debug)]
pub struct StreamQuery {
    filter: Filter,
    last: Option<EventId>,
}

impl FromQuery for StreamQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let last = pairs.number("last_event_id", 0, u64::MAX)?.map(EventId);
        Ok(Self { filter: Filter::take(pairs)?, last })
    }
}

/// Events
///
/// What is kept: the last 20000, and none that is older than 30 days. Events of deleted containers stay; they hold ids and numbers,
/// nothing of a tenant's. Who wrote what through this API is kept apart, as much of it: it is given to tokens with full_access that ask
/// for `type=audit.*`, and is in no other answer.
#[utoipa::path(get, path = "/api/v1/events", tag = "events", operation_id = "list_events",
    params(("container_id" = Option<String>, Query, description = "Of this container"),
           ("project_id" = Option<String>, Query, description = "Of this project"),
           ("type" = Option<String>, Query, description = "Of this type, or of all that begin so: container.*"),
           ("page" = Option<u64>, Query, description = "From 1"),
           ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at"),
           ("sort_order" = Option<String>, Query, description = "asc, desc")),
    responses((status = 200, description = "A page", body = Success<EventList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Result<Answer<EventList>, ApiError> {
    let history = query.filter.history(&caller)?;
    let all = history(&api.service).all(|event| query.filter.takes(&caller, event));
    let (page, pagination) = query.page.cut(all, |a, b| a.id.cmp(&b.id));
    let events = page.iter().map(|event| EventView::from(&**event)).collect();
    Ok(Answer::ok("Events retrieved successfully", EventList { events, pagination }))
}

/// Events as they happen
///
/// `text/event-stream`. Each event's name is its type, its id is for `Last-Event-ID`, its data the event as in `/events`. With
/// `Last-Event-ID` (or the parameter `last_event_id`) the stream begins behind that event, else with what happens from now on. An event
/// `gap` says that events up to its id are not kept any more. The last one, `end`, says why it ends: `token_refused` or
/// `shutting_down`.
#[utoipa::path(get, path = "/api/v1/events/stream", tag = "events", operation_id = "stream_events",
    params(("container_id" = Option<String>, Query, description = "Of this container"),
           ("project_id" = Option<String>, Query, description = "Of this project"),
           ("type" = Option<String>, Query, description = "Of this type, or of all that begin so: container.*"),
           ("last_event_id" = Option<u64>, Query, description = "As the header Last-Event-ID, which wins"),
           ("Last-Event-ID" = Option<u64>, Header, description = "Begin behind this event")),
    responses((status = 200, description = "The stream", content_type = "text/event-stream", body = String),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn stream(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let history = query.filter.history(&caller)?;
    let news = history(&api.service).watch();
    let now = *news.borrow();
    let reader = Reader {
        last: from_header(&headers)?.or(query.last).unwrap_or(now),
        filter: query.filter,
        history,
        news,
        service: api.service.clone(),
        caller,
        shutdown: api.followers.shutdown.clone(),
        ended: false,
        _place: api.followers.place()?,
    };
    let heartbeat = KeepAlive::new().interval(Duration::from_secs(HEARTBEAT_S));
    Ok(Sse::new(frames(reader)).keep_alive(heartbeat).into_response())
}

fn from_header(headers: &HeaderMap) -> Result<Option<EventId>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() {
        // What a browser sends that has seen none.
        return Ok(None);
    }
    let number = text.parse().map_err(|_| wrong("Last-Event-ID", "the id of an event is wanted"))?;
    Ok(Some(EventId(number)))
}

/// One client of the stream.
struct Reader {
    service: Service,
    caller: Caller,
    shutdown: CancellationToken,
    filter: Filter,
    history: History,
    last: EventId,
    news: watch::Receiver<EventId>,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

fn frames(reader: Reader) -> impl Stream<Item = Result<Frame, Infallible>> {
    futures_util::stream::unfold(reader, |mut reader| async move {
        if reader.ended {
            return None;
        }
        let frame = match reader.next().await {
            Ok(frame) => frame,
            Err(why) => {
                reader.ended = true;
                Frame::default().event("end").data(why)
            }
        };
        Some((Ok(frame), reader))
    })
}

impl Reader {
    /// The next frame, once there is one; else why there will be none.
    async fn next(&mut self) -> Result<Frame, &'static str> {
        loop {
            if self.shutdown.is_cancelled() {
                return Err("shutting_down");
            }
            if !self.caller.is_still_known(&self.service) {
                return Err("token_refused");
            }
            // Before the look: news that comes in between is not waited for.
            self.news.mark_unchanged();
            match (self.history)(&self.service).next(self.last, |event| self.filter.takes(&self.caller, event)) {
                Ok(Ok(event)) => {
                    self.last = event.id;
                    return Ok(frame(event.what.kind.as_str(), event.id, json!(EventView::from(&*event))));
                }
                Err(lost) => {
                    self.last = lost;
                    return Ok(frame("gap", lost, json!({ "id": lost.0.to_string() })));
                }
                Ok(Err(looked_at)) => self.last = looked_at,
            }
            tokio::select! {
                // All three only wait. The sender lives as long as the service.
                _ = self.news.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(ADMIT_LOOK_S)) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }
}

fn frame(name: &str, id: EventId, data: serde_json::Value) -> Frame {
    Frame::default().event(name).id(id.0.to_string()).data(data.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::from_query;

    #[test]
    fn a_filter_that_cannot_be_is_refused_by_its_name() {
        let list = |query: &str| from_query::<ListQuery>(&format!("/x?{query}").parse().unwrap());
        let id = ContainerId::NIL.to_string();
        assert_eq!(list(&format!("container_id={id}")).unwrap().filter.container, Some(ContainerId::NIL));
        assert!(list("type=container.*&sort_order=desc&limit=3").unwrap().filter.kinds.is_some());
        for (bad, name) in [
            ("container_id=shop", "container_id"),
            ("project_id=", "project_id"),
            ("type=oom", "type"),
            ("kind=container.oom", "kind"),
            ("sort_by=id", "sort_by"),
            ("last_event_id=1", "last_event_id"),
        ] {
            assert_eq!(list(bad).unwrap_err().field(), Some(name), "{bad}");
        }
        let stream = |query: &str| from_query::<StreamQuery>(&format!("/x?{query}").parse().unwrap());
        assert_eq!(stream("last_event_id=7").unwrap().last, Some(EventId(7)));
        assert_eq!(stream("page=1").unwrap_err().field(), Some("page"));
    }

    #[test]
    fn where_a_client_was_is_a_number_or_nothing() {
        let header = |text: &str| {
            from_header(
                &[("last-event-id", text)]
                    .into_iter()
                    .map(|(name, value)| (name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap()))
                    .collect(),
            )
        };
        assert_eq!(header("42").unwrap(), Some(EventId(42)));
        assert_eq!(header("").unwrap(), None);
        assert_eq!(header("x").unwrap_err().field(), Some("Last-Event-ID"));
        assert_eq!(from_header(&HeaderMap::new()).unwrap(), None);
    }
}
