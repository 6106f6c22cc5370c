//! Limits that were reached become events.
//!
//! One task looks at all running containers: each second at two counters of the kernel's, which say how often it killed for want
//! of memory and how often it refused a task; and every few seconds at how much of a disk limit is used. (A waiting
//! descriptor a container, of another kind for each version of cgroups, would say the same a little sooner; a look is two short
//! reads a container, and needs nothing to be set up, adopted or torn down.)
//!
//! The kernel tells nobody that it refused a write for a disk limit, so *disk full* is seen from what is used, and that lags behind
//! by what the filesystem has not written yet: up to its commit interval, 30 s.
//!
//! What the kernel counts for no limit is counted here: answers that nobody reads, in netlink sockets. Who holds too much of it is killed.
//!
//! A tenant that is at its limit all the time must not push the others' events out of the history: what it does again and again is told
//! once a minute, with how often. What is told is in the numbers, so a daemon that was down tells what happened meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc::SIGKILL;

use super::ledger::Ledger;
use super::supervisor::Shared;
use crate::domain::event::{EventKind, Happening};
use crate::domain::{Bytes, Container, ContainerId};
use crate::sys::btrfs::{PoolError, QuotaUsage};
use crate::sys::cgroup::Alarms;

/// Between two looks at the counters, in milliseconds.
pub const ALARM_LOOK_MS: u64 = 1_000;
/// Looks at the counters for one at the disks.
const LOOKS_PER_DISK: u32 = 5;
/// Between two events of one kind of one container, at least, in seconds.
const REPEAT_S_MIN: u64 = 60;
/// A disk limit counts as reached when less is left than its 50th part, or this, whichever is less: a write that is refused leaves
/// a rest that is smaller than itself.
const DISK_LEFT_MAX: Bytes = Bytes::mib(4);
const DISK_LEFT_PART: u64 = 50;
/// It counts as left when more than a tenth is free again.
const DISK_FREE_PART: u64 = 10;

/// What the netlink sockets of one container may hold unread. Programs that ask for addresses or routes read what they asked for, some
/// kilobytes.
const UNREAD_MAX: Bytes = Bytes::mib(32);

/// How many the numbers of an event count since the container's start.
const TOTAL: &str = "since_start";

/// What has been told so far.
#[derive(Debug, Default)]
pub struct Told {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counters: BTreeMap<(ContainerId, EventKind), Counter>,
    full: BTreeSet<ContainerId>,
    looks: u32,
}

/// One counter of one container, as it was last told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counter {
    total: u64,
    at: Option<Instant>,
}

impl Counter {
    /// How many are to be told now, of `total` that the kernel has counted.
    fn due(&mut self, total: u64, now: Instant) -> Option<u64> {
        let more = total.checked_sub(self.total).filter(|more| *more > 0)?;
        if self.at.is_some_and(|at| now.duration_since(at) < Duration::from_secs(REPEAT_S_MIN)) {
            return None;
        }
        *self = Self { total, at: Some(now) };
        Some(more)
    }
}

/// What is left of a limit tells whether it is reached, left again, or in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    None,
    Little,
    Enough,
}

fn room(usage: QuotaUsage) -> Room {
    let Some(limit) = usage.limit else { return Room::Enough };
    let left = limit.0.saturating_sub(usage.used.0);
    if left <= (limit.0 / DISK_LEFT_PART).min(DISK_LEFT_MAX.0) {
        Room::None
    } else if left > limit.0 / DISK_FREE_PART {
        Room::Enough
    } else {
        Room::Little
    }
}

fn told_before(ledger: &Ledger, container: &Container, kind: EventKind) -> u64 {
    let since = container.started_at;
    let theirs = ledger.events().latest(|event| event.what.container == Some(container.id) && event.what.kind == kind);
    let theirs = theirs.filter(|event| since.is_some_and(|since| event.at >= since));
    theirs.and_then(|event| event.what.numbers.get(TOTAL).copied()).unwrap_or(0)
}

impl Told {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be told of a container's counters.
    fn counted(&self, ledger: &Ledger, container: &Container, alarms: Alarms, now: Instant) -> Vec<Happening> {
        let mut state = self.state();
        let kinds = [
            (EventKind::Oom, alarms.oom_kills, "the memory limit was reached and the kernel killed"),
            (EventKind::PidsLimit, alarms.pids_refused, "the limit of processes and threads was reached"),
        ];
        let mut found = Vec::new();
        for (kind, total, reason) in kinds.into_iter().filter(|(_, total, _)| *total > 0) {
            let first = || Counter { total: told_before(ledger, container, kind), at: None };
            let counter = state.counters.entry((container.id, kind)).or_insert_with(first);
            if let Some(more) = counter.due(total, now) {
                let event = Happening::to_container(kind, container.project, container.id).because(reason);
                found.push(event.with("count", more).with(TOTAL, total));
            }
        }
        found
    }

    /// What is to be told of a container's disk.
    fn filled(&self, container: &Container, usage: QuotaUsage) -> Option<Happening> {
        let mut state = self.state();
        match room(usage) {
            Room::Enough => drop(state.full.remove(&container.id)),
            Room::None if state.full.insert(container.id) => {
                let event = Happening::to_container(EventKind::DiskFull, container.project, container.id);
                let limit = usage.limit.unwrap_or_default().0;
                let event = event.because("the disk limit is reached: further writes are refused");
                return Some(event.with("used_bytes", usage.used.0).with("limit_bytes", limit));
            }
            Room::None | Room::Little => {}
        }
        None
    }

    /// Forgets a container that runs no more: its counters begin anew.
    fn forget(&self, id: ContainerId) {
        self.state().counters.retain(|(theirs, _), _| *theirs != id);
    }

    /// Forgets all but these; whether it is time to look at the disks.
    fn begin_look(&self, running: &BTreeSet<ContainerId>) -> bool {
        let mut state = self.state();
        state.counters.retain(|(id, _), _| running.contains(id));
        state.full.retain(|id| running.contains(id));
        state.looks = (state.looks + 1) % LOOKS_PER_DISK;
        state.looks == 0
    }
}

impl Shared {
    /// Looks at all running containers, and tells what of their limits was reached since the last look.
    pub async fn look_for_alarms(&self) {
        let containers = self.ledger.directory().containers();
        let running: Vec<_> = containers.into_iter().filter(|container| container.phase.init().is_some()).collect();
        let ids: BTreeSet<_> = running.iter().map(|container| container.id).collect();
        let disks = self.told.begin_look(&ids);
        let alarms = self.executor.drivers().cgroups.alarms(ids.into_iter().collect()).await;
        let alarms: BTreeMap<_, _> = match alarms {
            Ok(alarms) => alarms.into_iter().collect(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "limits that were reached cannot be seen");
                return;
            }
        };
        self.end_hoarders(&running).await;
        for container in running {
            let mut found = Vec::new();
            if let Some(alarms) = alarms.get(&container.id) {
                found.extend(self.told.counted(&self.ledger, &container, *alarms, Instant::now()));
            }
            if disks && container.settings.limits.disk.is_some() {
                found.extend(self.disk_alarm(&container).await);
            }
            self.tell(found).await;
        }
    }

    /// Kills containers whose netlink sockets hold too much. No cgroup counts that memory: 4000 sockets with answers that nobody reads
    /// held 900 MB of the host's under a limit of 64 MiB.
    async fn end_hoarders(&self, running: &[Arc<Container>]) {
        let runtime = &self.executor.drivers().runtime;
        let unread = runtime.unread(running.iter().filter_map(|container| container.phase.init()).collect()).await;
        for (init, held) in unread.into_iter().filter(|(_, held)| *held > UNREAD_MAX) {
            let Some(container) = running.iter().find(|container| container.phase.init() == Some(init)) else {
                continue;
            };
            if let Err(error) = runtime.signal(init, SIGKILL) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(container = %container.id, error, "a container that holds too much cannot be killed");
                continue;
            }
            let event = Happening::to_container(EventKind::Oom, container.project, container.id);
            let reason = "its netlink sockets held more unread than a container may, and it was killed";
            self.tell(vec![event.because(reason).with("unread_bytes", held.0).with("limit_bytes", UNREAD_MAX.0)]).await;
        }
    }

    /// The last look at a container whose init has ended, before its counters go with its cgroup.
    pub async fn last_alarms(&self, container: &Container) {
        let alarms = self.executor.drivers().cgroups.alarms(vec![container.id]).await;
        if let Some((_, alarms)) = alarms.ok().and_then(|alarms| alarms.into_iter().next()) {
            self.tell(self.told.counted(&self.ledger, container, alarms, Instant::now())).await;
        }
        self.told.forget(container.id);
    }

    async fn disk_alarm(&self, container: &Container) -> Option<Happening> {
        let rootfs = self.executor.layout().pool.rootfs(container.id);
        match self.executor.drivers().pool.usage(&rootfs).await {
            Ok(usage) => self.told.filled(container, usage),
            Err(PoolError::NoQuota | PoolError::ClassicQuota(_)) => None,
            // It may be being deleted; if not, its stats say what is wrong.
            Err(error) => {
                tracing::debug!(container = %container.id, error = &error as &dyn std::error::Error, "no disk usage");
                None
            }
        }
    }

    async fn tell(&self, happenings: Vec<Happening>) {
        for what in happenings {
            tracing::warn!(container = ?what.container, kind = %what.kind, "a limit was reached");
            if let Err(error) = self.ledger.emit(what).await {
                tracing::error!(error = &error as &dyn std::error::Error, "an event cannot be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_and_on_is_told_at_once_and_then_once_a_minute_and_nothing_is_lost() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut counter = Counter::default();
        assert_eq!(counter.due(0, at(0)), None);
        assert_eq!(counter.due(2, at(1)), Some(2));
        assert_eq!(counter.due(2, at(2)), None);
        assert_eq!(counter.due(5, at(3)), None);
        assert_eq!(counter.due(9, at(61)), Some(7));
        let mut adopted = Counter { total: 9, at: None };
        assert_eq!(adopted.due(9, at(62)), None, "an earlier daemon has told it");
        assert_eq!(adopted.due(10, at(62)), Some(1));
    }

    #[test]
    fn a_disk_is_full_when_the_rest_is_too_small_to_be_used() {
        let usage = |used: u64, limit: u64| room(QuotaUsage { used: Bytes::mib(used), limit: Some(Bytes::mib(limit)) });
        assert_eq!(usage(49, 50), Room::None);
        assert_eq!(usage(48, 50), Room::Little);
        assert_eq!(usage(30, 50), Room::Enough);
        assert_eq!(usage(10_000, 10_240), Room::Little, "four MiB of ten GiB are the bound there");
        assert_eq!(usage(10_237, 10_240), Room::None);
        assert_eq!(usage(60, 50), Room::None, "a limit that was lowered below what is used");
        assert_eq!(room(QuotaUsage { used: Bytes::gib(1), limit: None }), Room::Enough);
    }
}
