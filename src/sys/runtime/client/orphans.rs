//! What a killed helper leaves to its subreaper: our children that nobody will wait for.
//!
//! * Processes that never got to execve. They have their name from their helper or from libcontainer.
//! * Zombies of commands exec'd in a container, which die with their helper. Their pid in the container is not 1. These
//!   must be reaped: a container's init does not finish dying before every process of its pid namespace is reaped.
//!
//! Those that somebody waits for are in a register. Children are the process's, not a runtime's, and so is the
//! register.

use std::collections::HashSet;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::helper;
use super::super::process::{self, Reaped, Stat};

/// How long killed orphans may take to die before they are left for the next time.
const END_POLLS_MAX: u32 = 200;
const END_POLL_MS: u64 = 5;

/// Helpers and the inits they report: children, or children to be, with somebody who waits for them.
static REGISTER: Mutex<Option<HashSet<i32>>> = Mutex::new(None);

/// A registered pid; dropping it takes it out.
#[derive(Debug)]
pub struct Registered(i32);

impl Registered {
    /// Notes that somebody waits for this process.
    pub fn new(pid: i32) -> Self {
        register().get_or_insert_default().insert(pid);
        Self(pid)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(pids) = register().as_mut() {
            pids.remove(&self.0);
        }
    }
}

fn register() -> MutexGuard<'static, Option<HashSet<i32>>> {
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills and reaps every orphan.
pub async fn end() {
    for _ in 0..END_POLLS_MAX {
        let orphans = find();
        if orphans.is_empty() {
            return;
        }
        for pid in orphans {
            // Our own unreaped child: the pid is its.
            let Ok(handle) = process::open_child(pid) else { continue };
            if process::reap(&handle) == Reaped::Running {
                let _ = process::send(&handle, libc::SIGKILL);
            }
        }
        tokio::time::sleep(Duration::from_millis(END_POLL_MS)).await;
    }
    tracing::warn!("processes of a killed runtime helper do not die");
}

fn find() -> Vec<i32> {
    let me = std::process::id() as i32;
    let lost = |pid: &i32| {
        let stat = Stat::of(*pid).filter(|stat| stat.parent == me);
        stat.is_some_and(|stat| is_ours(&stat.comm) || (stat.is_dead() && was_a_command(*pid)))
    };
    // The register is asked last: a helper takes its name only after it was registered.
    let known = |pid: &i32| register().as_ref().is_some_and(|pids| pids.contains(pid));
    children().into_iter().filter(|pid| lost(pid) && !known(pid)).collect()
}

/// Whether it lived in a pid namespace below ours, and not as its init.
fn was_a_command(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    is_below(&status)
}

fn is_below(status: &str) -> bool {
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    pids.split_ascii_whitespace().nth(1).is_some_and(|inside| inside != "1")
}

fn is_ours(comm: &str) -> bool {
    helper::NAME.to_str() == Ok(comm) || comm.starts_with(helper::LIBCONTAINER_NAMES)
}

/// Our children, by thread as the kernel lists them.
fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_of_a_container_is_told_from_its_init_and_from_our_own_children() {
        assert!(is_below("Name:\tsh\nNSpid:\t4711\t23\n"));
        assert!(!is_below("Name:\tsh\nNSpid:\t4711\t1\n"), "an init has a waiter");
        assert!(!is_below("Name:\tsh\nNSpid:\t4711\n"), "not in a container");
    }
}
