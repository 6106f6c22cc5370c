//! The statuses of inits: taken from the kernel once, kept for whoever asks again.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::sys::runtime::process::{self, Reaped, Stat};
use crate::sys::runtime::{Exit, Init};

/// Statuses remembered; the oldest is forgotten first. Waiters ask within moments, tenants number some thousands.
const STATUSES_MAX: usize = 4_096;
/// An init that dies while its helper still lives is the helper's child for that long at most, as the helper's steps
/// are bounded.
const REPARENT_WAIT_MS_MAX: u64 = 30_000;
const REPARENT_POLL_MS: u64 = 5;
/// Looks at whose child a dead process is; its parent can end under one of them.
const PARENT_LOOKS_MAX: u32 = 3;

/// Statuses that have been taken.
#[derive(Debug, Default)]
pub struct Statuses(Mutex<VecDeque<(Init, Exit)>>);

impl Statuses {
    /// Waits for a process's end. Dropped before that, it has taken nothing.
    pub async fn wait(&self, init: Init) -> Exit {
        if let Some(exit) = self.known(init) {
            return exit;
        }
        let Ok(Some(handle)) = process::open(init) else { return self.known(init).unwrap_or(Exit::Unknown) };
        let Ok(handle) = process::watch(handle) else { return Exit::Unknown };
        for _ in 0..REPARENT_WAIT_MS_MAX / REPARENT_POLL_MS {
            // A pidfd is readable from the process's death on.
            if handle.readable().await.is_err() {
                break;
            }
            if let Some(exit) = self.take(init, handle.get_ref()) {
                return exit;
            }
            tokio::time::sleep(Duration::from_millis(REPARENT_POLL_MS)).await;
        }
        Exit::Unknown
    }

    fn known(&self, init: Init) -> Option<Exit> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.iter().rev().find(|(known, _)| *known == init).map(|(_, exit)| *exit)
    }

    /// The status of a dead process; `None` while it is still its helper's child.
    fn take(&self, init: Init, handle: &OwnedFd) -> Option<Exit> {
        // Held over both, so that of two waiters the second finds what the first has taken.
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let exit = match process::reap(handle) {
            Reaped::Ended(exit) => exit,
            Reaped::Running => return None,
            Reaped::NotOurs => {
                if let Some((_, exit)) = taken.iter().rev().find(|(known, _)| *known == init) {
                    return Some(*exit);
                }
                return if will_be_ours(init) { None } else { Some(Exit::Unknown) };
            }
        };
        if taken.len() == STATUSES_MAX {
            taken.pop_front();
        }
        taken.push_back((init, exit));
        Some(exit)
    }
}

/// Whether it waits to be reaped by a child of ours, its helper, and so will be ours next; or is so by now, since the helper may end
/// between any two looks.
fn will_be_ours(init: Init) -> bool {
    let us = std::process::id() as i32;
    for _ in 0..PARENT_LOOKS_MAX {
        let Some(dead) = Stat::of(init.pid).filter(|stat| stat.start_ticks == init.start_ticks) else { return false };
        if dead.parent == us {
            return true;
        }
        // A parent that is gone by now was the helper, or another's: who has it now is looked at anew.
        if let Some(parent) = Stat::of(dead.parent) {
            return parent.parent == us;
        }
    }
    false
}

#[cfg(test)]
#[expect(clippy::zombie_processes, reason = "the code under test reaps them")]
mod tests {
    use super::*;
    use std::process::Command;

    #[tokio::test]
    async fn every_waiter_gets_the_status() {
        let statuses = Statuses::default();
        let child = Command::new("/bin/sh").args(["-c", "sleep 0.05; exit 9"]).spawn().unwrap();
        let init = process::identify(child.id() as i32).unwrap();
        let (first, second) = tokio::join!(statuses.wait(init), statuses.wait(init));
        assert_eq!((first, second), (Exit::Code(9), Exit::Code(9)));
        assert_eq!(statuses.wait(init).await, Exit::Code(9), "and one who comes late");
        assert!(Stat::of(init.pid).is_none(), "a zombie was left");
    }

    #[tokio::test]
    async fn a_dropped_wait_takes_nothing() {
        let statuses = Statuses::default();
        let child = Command::new("/bin/sleep").arg("5").spawn().unwrap();
        let init = process::identify(child.id() as i32).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(5), statuses.wait(init)).await.is_err());
        process::send(&process::open(init).unwrap().unwrap(), libc::SIGKILL).unwrap();
        assert_eq!(statuses.wait(init).await, Exit::Signal(libc::SIGKILL));
    }

    #[tokio::test]
    async fn a_process_that_is_not_ours_has_an_unknown_status() {
        assert_eq!(Statuses::default().wait(Init { pid: 1, start_ticks: u64::MAX }).await, Exit::Unknown);
    }
}
