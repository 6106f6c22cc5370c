//! The REST API: with the proxy the only code that knows HTTP.
//!
//! ```text
//!  frame (id, span, form of errors) ─► route ─► require_token, note of who writes ─► [once] ─► handler: extract, convert, call, wrap
//! ```
//!
//! Invariants:
//! - no route below `/api/v1` without [`auth::require_token`] before it, and none that is not in the OpenAPI document:
//!   both are made from the one table in [`routes`], and a test compares them;
//! - a status code is chosen for an error in [`error`] alone;
//! - what the domain takes has been checked in [`wire`]; a handler decides nothing.

mod access_log;
mod aliases;
mod audit;
mod auth;
mod containers;
mod endpoint;
mod env;
mod envelope;
mod error;
mod events;
mod exec;
mod extract;
mod firewall;
mod follow;
mod health;
mod idempotency;
mod images;
mod leaks;
mod logs;
mod metrics;
mod network;
mod openapi;
mod page;
mod permissions;
mod projects;
mod receipts;
mod request;
mod routes;
mod script_secrets;
mod scripts;
mod server;
mod tokens;
mod verbs;
pub mod wire;

use std::sync::Arc;

use axum::Router;
use tokio_util::sync::CancellationToken;

use crate::exec::Scripts;
use crate::exec::runs::Runs;
use crate::lifecycle::{HostPorts, Names, Service};

pub use metrics::Monitoring;
pub use server::serve;

/// Where the API's routes lie.
pub const BASE: &str = "/api/v1";
/// What handlers share; cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    service: Service,
    names: Arc<dyn Names>,
    ports: Arc<dyn HostPorts>,
    keys: Arc<idempotency::Keys>,
    followers: follow::Followers,
    requests: Arc<metrics::Requests>,
    monitoring: Monitoring,
    door: auth::Door,
    hosted: Option<endpoint::Hosted>,
}

impl Api {
    /// Over a service; domains are verified by `names`, aliases of raw TCP have their `ports`, and answers that would not end by themselves do so at `shutdown`.
    pub fn new(
        service: Service,
        names: Arc<dyn Names>,
        ports: Arc<dyn HostPorts>,
        monitoring: Monitoring,
        shutdown: CancellationToken,
    ) -> Self {
        let (keys, requests) = (Arc::new(idempotency::Keys::new(&service)), Arc::default());
        let followers = follow::Followers::new(shutdown);
        Self { service, names, ports, keys, followers, requests, monitoring, door: auth::Door::Tokens, hosted: None }
    }

    /// With scripts, which answer and are managed.
    pub fn with_scripts(mut self, scripts: Scripts) -> Self {
        self.hosted = Some(endpoint::Hosted::new(scripts));
        self
    }

    fn hosted(&self) -> Result<&endpoint::Hosted, error::ApiError> {
        let off = "scripts do not answer here: they are switched off ([exec] enabled), or a script asks";
        self.hosted
            .as_ref()
            .ok_or_else(|| error::ApiError::new(axum::http::StatusCode::NOT_FOUND, "SCRIPTS_DISABLED", off))
    }

    fn scripts(&self) -> Result<&Scripts, error::ApiError> {
        self.hosted().map(endpoint::Hosted::scripts)
    }

    /// The whole API, for whoever has a token.
    pub fn router(&self) -> Router {
        routes::build(self.clone())
    }

    /// Scripts alone, for the proxy that leads their own host here.
    pub fn router_for_host(&self) -> Router {
        routes::build_for_host(self.clone())
    }

    /// The same for scripts: it admits the keys of runs and nothing else.
    pub fn router_for_scripts(&self, runs: Runs) -> Router {
        // No script asks another one: all workers could wait for each other.
        routes::build(Self { door: auth::Door::Runs(runs), hosted: None, ..self.clone() })
    }
}

#[cfg(test)]
mod tests;
