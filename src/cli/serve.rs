//! `tenantry serve`.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::daemon::Daemon;

/// Gives up what the daemon does not need. To be called while the process has one thread.
pub fn drop_privileges() {
    for (step, error) in crate::sys::privileges::drop_unneeded() {
        tracing::warn!(%error, "the daemon could not {step}");
    }
}

/// Runs the daemon until SIGTERM or SIGINT. Containers run on.
///
/// # Errors
/// What kept it from serving.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    raise_file_limit();
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let asked = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            // Both only wait.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down; containers run on");
        asked.cancel();
    });
    let token = config.admin_token_path();
    let daemon = tokio::select! {
        opened = Daemon::open(config) => opened.context("tenantry cannot serve")?,
        // What was half opened or half recovered is taken up by the next start, as after a crash.
        () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    tracing::info!(path = %token.display(), "the admin token lies here");
    daemon.serve(shutdown).await.context("tenantry stopped serving")?;
    Ok(ExitCode::SUCCESS)
}

/// Each running container costs the daemon a pidfd, each request two sockets; the usual soft limit of 1024 is there for
/// programs that still use select(2).
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
