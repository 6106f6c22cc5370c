//! How a worker puts its container to sleep and wakes it: stopped or frozen, for silence or for others.

use std::time::{Duration, Instant};

use super::activity::Sign;
use super::error::Error;
use super::execute::Timings;
use super::ledger::Change;
use super::requests::STOP_GRACE_S_DEFAULT;
use super::room;
use super::starts::Permit;
use super::wake::BY_REQUEST;
use super::worker::{Settled, Worker};
use crate::domain::{Desired, IdleAction, PauseReason, Phase, StopReason};

/// What asking a container to wake came to.
#[derive(Debug)]
pub enum Waking {
    /// It runs, or was thawed, or was started.
    Awake(Settled),
    /// It has to be started, which wants a permit.
    Asleep,
}

/// Why a container is put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drowse {
    /// Nobody has used it for its `idle_timeout`.
    Unused,
    /// The memory is wanted for others, and nobody uses it.
    ForRoom,
}

impl Worker {
    /// Starts a container that is asked for while it is stopped, or lets it go on; where it runs already, says whether its port
    /// accepts. One that was paused by hand stays so.
    pub(super) async fn wake(&mut self, permit: Option<Permit>) -> Result<Waking, Error> {
        let container = self.record()?;
        if container.receipt.is_some() || !container.settings.wake_on_request {
            return Err(Error::NotRunning(container.status()));
        }
        let mut settled = match container.phase {
            Phase::Stopped { .. } if permit.is_none() => return Ok(Waking::Asleep),
            Phase::Stopped { .. } => self.start(BY_REQUEST, permit).await?,
            Phase::Paused { reason: PauseReason::Idle, .. } => {
                let began = Instant::now();
                let settled = self.freeze(None, Change::lazy(BY_REQUEST)).await?;
                Settled { timings: Timings::from([("thaw".to_owned(), began.elapsed())]), ..settled }
            }
            Phase::Running { .. } => Settled::at_rest(container, Timings::new()),
            _ => return Err(Error::NotRunning(container.status())),
        };
        settled.ready = settled.ready.or_else(|| self.ready.clone()).or_else(|| Some(self.watch_ready()));
        Ok(Waking::Awake(settled))
    }

    /// Puts a container to sleep that nobody uses; whether it sleeps then. What cannot be put to sleep now counts as just used, so that
    /// it is not tried all the while.
    pub(super) async fn sleep(&mut self, why: Drowse) -> bool {
        let Ok(container) = self.record() else { return false };
        let Some(timeout) = container.settings.idle_timeout() else { return false };
        let silence = match (why, &container.phase) {
            _ if container.receipt.is_some() => return false,
            (Drowse::Unused, Phase::Running { .. }) => timeout,
            (Drowse::ForRoom, Phase::Running { .. } | Phase::Paused { reason: PauseReason::Idle, .. }) => {
                room::silence(&container).unwrap_or(timeout)
            }
            _ => return false,
        };
        let shared = self.shared.clone();
        let closed = shared.activities.close(self.id, &container.settings.activity, silence);
        let Some(_closed) = closed else { return false };
        let grace = Some(Duration::from_secs(STOP_GRACE_S_DEFAULT));
        let began = Instant::now();
        let slept = match (why, container.settings.idle_action) {
            (Drowse::Unused, IdleAction::Pause) => {
                self.freeze(Some(PauseReason::Idle), Change::lazy("idle")).await.map(|_| shared.reclaim_later(self.id))
            }
            (Drowse::Unused, IdleAction::Stop) => {
                self.stop("idle", grace, Desired::Running, StopReason::Idle).await.map(drop)
            }
            (Drowse::ForRoom, _) => self.stop("memory", grace, Desired::Running, StopReason::MadeRoom).await.map(drop),
        };
        self.note("sleep", began, &slept);
        match &slept {
            Ok(()) => shared.wakes.slept(self.id),
            Err(error) => {
                shared.activities.note(self.id, Sign::Start);
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "a container that nobody uses cannot be put to sleep");
            }
        }
        slept.is_ok()
    }

    /// Freezes it for a reason, or lets it go on.
    pub(super) async fn freeze(&self, reason: Option<PauseReason>, how: Change<'_>) -> Result<Settled, Error> {
        let began = Instant::now();
        let before = self.record()?;
        let init = before.phase.init().ok_or(Error::NotRunning(before.status()))?;
        let cgroups = self.shared.executor.drivers().cgroups.clone();
        let by = how.by.to_owned();
        let done = match cgroups.freeze(self.id, reason.is_some()).await.map_err(Error::driver) {
            Ok(()) => {
                let set = self.set(how.since(began), |container| match reason {
                    Some(reason) => container.phase = Phase::Paused { init, reason },
                    None => {
                        container.phase = Phase::Running { init };
                        container.started_by = Some(by);
                    }
                });
                set.await
            }
            Err(error) => Err(error),
        };
        let container = match done {
            Ok(container) => container,
            Err(error) => {
                // What may be frozen must not be taken for awake.
                let was_frozen = matches!(before.phase, Phase::Paused { .. });
                if let Err(back) = cgroups.freeze(self.id, was_frozen).await {
                    tracing::error!(error = &back as &dyn std::error::Error, "it is not as its record says");
                }
                return Err(error);
            }
        };
        if reason.is_none() {
            self.shared.activities.note(self.id, Sign::Start);
        }
        Ok(Settled::at_rest(container, Timings::new()))
    }
}
