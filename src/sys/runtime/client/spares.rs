//! Helpers that wait for their order, so that no start pays for executing this binary: relocating it alone takes as long as
//! making a container's namespaces.
//!
//! ```text
//!  refill ──► spare (has executed, knows nothing, owns nothing) ──take──► one start, and its end
//!                     │ the daemon ends, or dies: end of its standard input
//!                     ▼ gone, with nothing to undo
//! ```
//!
//! One spare serves one start and ends, like any helper. Until it is told which, it has no container's folder, group, namespace or
//! mount. There are a few for the whole daemon, however many containers it has; more starts at once execute helpers of their
//! own. A start gives back the spare it took when it is over, so that making one does not compete with it.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::session::Helper;
use crate::domain::ContainerId;
use crate::sys::runtime::RuntimeError;

/// Spares that wait; a wake takes one, and a burst of signups a few.
const SPARES_MAX: usize = 4;

/// The spares of one daemon.
#[derive(Debug)]
pub struct Spares {
    helper: PathBuf,
    waiting: Mutex<Vec<Helper>>,
}

impl Spares {
    /// None yet.
    pub fn new(helper: &Path) -> Self {
        Self { helper: helper.to_owned(), waiting: Mutex::default() }
    }

    /// A helper for a start: a spare, or a new one where none waits.
    pub fn take(&self, id: ContainerId) -> Result<Helper, RuntimeError> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut spare) = waiting.pop() {
            // Somebody may have killed it meanwhile.
            if spare.is_waiting() {
                return Ok(spare);
            }
        }
        drop(waiting);
        self.spawn().map_err(|source| RuntimeError::Helper { action: "start", id, source })
    }

    /// Makes what is missing. Without the means for it, starts are slower and no worse.
    pub fn refill(&self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while waiting.len() < SPARES_MAX {
            match self.spawn() {
                Ok(spare) => waiting.push(spare),
                Err(error) => return tracing::debug!(%error, "a spare runtime helper cannot be started"),
            }
        }
    }

    fn spawn(&self) -> std::io::Result<Helper> {
        Helper::spawn(&self.helper, "start")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that waits for the end of its input, whatever it is called with.
    fn waiting() -> (tempfile::TempDir, Spares) {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("helper");
        std::fs::write(&program, "#!/bin/sh\nread line\n").unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        (dir, Spares::new(&program))
    }

    fn pids(spares: &Spares) -> Vec<u32> {
        spares.waiting.lock().unwrap().iter().filter_map(Helper::pid).collect()
    }

    #[tokio::test]
    async fn each_spare_is_taken_once_and_no_more_wait_than_may() {
        let (_dir, spares) = waiting();
        spares.refill();
        spares.refill();
        let made = pids(&spares);
        assert_eq!(made.len(), SPARES_MAX);
        let taken: Vec<_> = (0..=SPARES_MAX).map(|_| spares.take(ContainerId::NIL).unwrap()).collect();
        let mut ids: Vec<_> = taken.iter().filter_map(Helper::pid).collect();
        assert!(made.iter().all(|pid| ids.contains(pid)), "the spares come first");
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), SPARES_MAX + 1);
        assert!(pids(&spares).is_empty());
    }

    #[tokio::test]
    async fn a_spare_that_died_meanwhile_is_not_given_out() {
        let (_dir, spares) = waiting();
        spares.refill();
        let killed = pids(&spares);
        for pid in &killed {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        let dead = |pid: &u32| crate::sys::runtime::process::Stat::of(*pid as i32).is_none_or(|stat| stat.is_dead());
        while !killed.iter().all(dead) {
            tokio::task::yield_now().await;
        }
        let taken = spares.take(ContainerId::NIL).unwrap();
        assert!(taken.pid().is_some_and(|pid| !killed.contains(&pid)));
    }
}
