//! Events on the wire.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::page::Pagination;
use crate::domain::ProjectId;
use crate::domain::event::{Audit, Event};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct EventView {
    /// Its place among all: later ones have greater ids, as numbers. Not dense. `Last-Event-ID` takes it.
    pub id: String,
    /// `container.created`, `container.oom`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// When.
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    /// In which project; null: a write that is no project's.
    pub project_id: Option<String>,
    /// To which container; null: to the project itself. It may be deleted by now.
    pub container_id: Option<String>,
    /// Why, in words of Tenantry's.
    pub reason: Option<String>,
    /// Numbers that belong to it: `count`, `since_start`, `used_bytes`, `limit_bytes`.
    pub data: BTreeMap<String, u64>,
    /// Of `audit.write`: who did what, from where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditView>,
}

/// A write through the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditView {
    /// The token.
    pub token_id: String,
    /// Its alias then; `scripts` for a script.
    pub token_alias: String,
    /// The script's file; null where it was none.
    pub script: Option<String>,
    /// The script's run.
    pub run: Option<String>,
    /// POST, PUT, PATCH or DELETE.
    pub method: String,
    /// The route below `/api/v1`, with `{id}` where an id stood.
    pub route: String,
    /// The id that stood there, else of what was made.
    pub object_id: Option<String>,
    /// The answer's; null: the client left before there was one, and it may have been done.
    pub status: Option<u16>,
    /// The client's address, or `unix` for a script.
    pub client: String,
}

impl From<&Audit> for AuditView {
    fn from(audit: &Audit) -> Self {
        let run = audit.run.as_ref();
        Self {
            token_id: audit.token.to_string(),
            token_alias: audit.alias.clone(),
            script: run.map(|run| run.script.clone()),
            run: run.map(|run| run.run.clone()),
            method: audit.method.clone(),
            route: audit.route.clone(),
            object_id: audit.object.clone(),
            status: audit.status,
            client: audit.client.map_or_else(|| "unix".to_owned(), |client| client.to_string()),
        }
    }
}

/// What an audit event says, in words.
fn words(audit: &Audit) -> String {
    let AuditView { token_alias, script, method, route, status, client, .. } = audit.into();
    let who = script.map_or_else(|| format!("token `{token_alias}`"), |script| format!("script {script}"));
    let status = status.map_or_else(|| "no answer was taken".to_owned(), |status| status.to_string());
    format!("{method} {route} by {who} from {client}: {status}")
}

impl From<&Event> for EventView {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id.0.to_string(),
            kind: event.what.kind.as_str(),
            created_at: event.at,
            project_id: Some(event.what.project).filter(|id| *id != ProjectId::NIL).map(|id| id.to_string()),
            container_id: event.what.container.map(|id| id.to_string()),
            reason: event.what.reason.clone().or_else(|| event.what.audit.as_deref().map(words)),
            data: event.what.numbers.clone(),
            audit: event.what.audit.as_deref().map(AuditView::from),
        }
    }
}

/// A page of events.
#[derive(Debug, Serialize, ToSchema)]
pub struct EventList {
    /// Each.
    pub events: Vec<EventView>,
    /// Where they stand.
    pub pagination: Pagination,
}
