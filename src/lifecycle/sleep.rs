//! Puts containers to sleep that nobody has used for their `idle_timeout`.
//!
//! One task looks around; whether a container sleeps is decided by its worker, behind a closed door ([`super::activity`]).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::supervisor::Shared;
use super::worker::Command;
use crate::domain::{Container, Phase};

/// Between two looks, in milliseconds: what a container may stay awake longer than it says.
const LOOK_MS: u64 = 500;
/// Containers that one look puts to sleep; the others' turn is the next one.
const SLEEPS_A_LOOK_MAX: usize = 16;

/// Looks around until `shutdown`.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(Duration::from_millis(LOOK_MS)) => look(&shared),
            () = shutdown.cancelled() => return,
        }
    }
}

fn look(shared: &Arc<Shared>) {
    let due = shared.ledger.directory().containers().into_iter().filter(|container| is_due(shared, container));
    for container in due.take(SLEEPS_A_LOOK_MAX) {
        // One with a full queue is busy: not now.
        let _ = shared.send(container.id, Command::Sleep);
    }
}

/// Whether nobody has used it for so long, as far as can be said from outside.
fn is_due(shared: &Shared, container: &Container) -> bool {
    let Some(timeout) = container.settings.idle_timeout() else { return false };
    let usage = shared.activities.usage(container.id);
    let awake = matches!(container.phase, Phase::Running { .. }) && container.receipt.is_none();
    awake && usage.open == 0 && usage.since >= timeout
}
