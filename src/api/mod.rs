//! The REST API: with the proxy the only code that knows HTTP.
//!
//! ```text
//!  frame (id, span, form of errors) ─► route ─► require_token ─► [once] ─► handler: extract, convert, call, wrap
//! ```
//!
//! Invariants:
//! - no route below `/api/v1` without [`auth::require_token`] before it, and none that is not in the OpenAPI document:
//!   both are made from the one table in [`routes`], and a test compares them;
//! - a status code is chosen for an error in [`error`] alone;
//! - what the domain takes has been checked in [`wire`]; a handler decides nothing.

mod auth;
mod containers;
mod env;
mod envelope;
mod error;
mod exec;
mod extract;
mod health;
mod idempotency;
mod images;
mod logs;
mod openapi;
mod page;
mod projects;
mod receipts;
mod request;
mod routes;
mod tokens;
mod verbs;
pub mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::lifecycle::Service;

/// Where the API's routes lie.
pub const BASE: &str = "/api/v1";
/// How long requests that are under way may go on after a shutdown was asked for, in milliseconds.
pub const DRAIN_MS_MAX: u64 = 10_000;

/// What handlers share; cheap to clone.
#[derive(Debug, Clone)]
pub struct Api {
    service: Service,
    keys: Arc<idempotency::Keys>,
}

/// The whole API over a service.
pub fn router(service: Service) -> Router {
    routes::build(Api { service, keys: Arc::default() })
}

/// Serves until `shutdown`, then lets requests that are under way end, up to [`DRAIN_MS_MAX`].
///
/// # Errors
/// None that a bound listener has; `axum::serve` promises no more.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> std::io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // An answer is one small write: waiting for more only costs time.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let server = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone().cancelled_owned());
    tokio::select! {
        ended = async { server.await } => ended,
        () = async {
            shutdown.cancelled().await;
            tokio::time::sleep(Duration::from_millis(DRAIN_MS_MAX)).await;
        } => {
            tracing::warn!(DRAIN_MS_MAX, "requests still under way were cut off");
            Ok(())
        }
    }
}
