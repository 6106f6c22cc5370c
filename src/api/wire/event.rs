//! Events on the wire.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::page::Pagination;
use crate::domain::event::Event;

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
    /// In which project.
    pub project_id: String,
    /// To which container; null: to the project itself. It may be deleted by now.
    pub container_id: Option<String>,
    /// Why, in words of Tenantry's.
    pub reason: Option<String>,
    /// Numbers that belong to it: `count`, `since_start`, `used_bytes`, `limit_bytes`.
    pub data: BTreeMap<String, u64>,
}

impl From<&Event> for EventView {
    fn from(event: &Event) -> Self {
        Self {
            id: event.id.0.to_string(),
            kind: event.what.kind.as_str(),
            created_at: event.at,
            project_id: event.what.project.to_string(),
            container_id: event.what.container.map(|id| id.to_string()),
            reason: event.what.reason.clone(),
            data: event.what.numbers.clone(),
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
