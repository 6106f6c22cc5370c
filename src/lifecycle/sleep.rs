//! Puts containers to sleep that nobody has used for their `idle_timeout`, and the longest unused ones where the awake need more
//! memory together than they may.
//!
//! One task looks around; whether a container sleeps is decided by its worker, behind a closed door ([`super::activity`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::activity::Sign;
use super::drowse::Drowse;
use super::supervisor::Shared;
use super::worker::Command;
use crate::domain::{Container, ContainerId, CpuMillis, Phase};

/// Between two looks, in milliseconds: what a container may stay awake longer than it says.
const LOOK_MS: u64 = 500;
/// Containers that one look puts to sleep; the others' turn is the next one.
const SLEEPS_A_LOOK_MAX: usize = 16;
/// Looks for one at how much memory the awake hold.
const LOOKS_PER_MEASURE: u32 = 2;

/// What one look remembers for the next.
#[derive(Debug, Default)]
struct Looks {
    count: u32,
    cpu: CpuLooks,
}

/// Processor time of containers that have a floor of it, in microseconds, and when it was read.
type CpuLooks = HashMap<ContainerId, (Instant, u64)>;

/// Looks around until `shutdown`.
pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let mut looks = Looks::default();
    loop {
        tokio::select! {
            // Both only wait.
            () = tokio::time::sleep(Duration::from_millis(LOOK_MS)) => {}
            () = shutdown.cancelled() => return,
        }
        look(&shared, &mut looks).await;
    }
}

async fn look(shared: &Arc<Shared>, looks: &mut Looks) {
    let awake: Vec<_> = shared.ledger.directory().containers();
    let awake: Vec<_> = awake.into_iter().filter(|one| one.phase.init().is_some() && one.receipt.is_none()).collect();
    note_busy(shared, &mut looks.cpu, &awake).await;
    for container in awake.iter().filter(|container| is_due(shared, container)).take(SLEEPS_A_LOOK_MAX) {
        // One with a full queue is busy: not now.
        let _ = shared.send(container.id, Command::Sleep { why: Drowse::Unused, reply: None });
    }
    if looks.count.is_multiple_of(LOOKS_PER_MEASURE) {
        shared.room.look(shared, &awake).await;
    }
    looks.count = looks.count.wrapping_add(1);
}

/// Whether nobody has used it for so long, as far as can be said from outside.
fn is_due(shared: &Shared, container: &Container) -> bool {
    let Some(timeout) = container.settings.idle_timeout() else { return false };
    let usage = shared.activities.usage(container.id, &container.settings.activity);
    matches!(container.phase, Phase::Running { .. }) && usage.open.is_none() && usage.since >= timeout
}

/// Notes which containers use more of the processor than counts as use.
async fn note_busy(shared: &Shared, looks: &mut CpuLooks, awake: &[Arc<Container>]) {
    let mut seen = CpuLooks::new();
    for container in awake.iter().filter(|one| one.settings.idle_timeout_s.is_some()) {
        let Some(floor) = container.settings.activity.cpu else { continue };
        let usage = shared.executor.drivers().cgroups.usage(container.id).await;
        let (now, Ok(Some(usage))) = (Instant::now(), usage) else { continue };
        if looks.get(&container.id).is_some_and(|before| is_busy(*before, (now, usage.cpu_us), floor)) {
            shared.activities.note(container.id, Sign::Cpu);
        }
        seen.insert(container.id, (now, usage.cpu_us));
    }
    *looks = seen;
}

/// Whether a floor was exceeded between two looks. A counter that went back belongs to another start.
fn is_busy(before: (Instant, u64), now: (Instant, u64), floor: CpuMillis) -> bool {
    let passed_us = u64::try_from(now.0.saturating_duration_since(before.0).as_micros()).unwrap_or(u64::MAX);
    let used_us = now.1.saturating_sub(before.1);
    used_us > passed_us.saturating_mul(floor.0.into()) / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_of_one_core_over_the_time_between_two_looks() {
        let began = Instant::now();
        let (before, after) = ((began, 1_000_000), |us| (began + Duration::from_millis(500), us));
        let floor = CpuMillis(20);
        assert!(!is_busy(before, after(1_010_000), floor), "just as much");
        assert!(is_busy(before, after(1_010_001), floor));
        assert!(!is_busy(before, after(5), floor), "it was started anew");
    }
}
