//! What a daemon does before it serves: takes over what an earlier one left running, removes what it left half done.
//!
//! Three sources are put together: the records (what there should be), the run journal (what was being made), and what
//! the drivers see (what there is). The decision for each container is pure ([`decide`]); whatever belongs to nobody after
//! that is swept.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::error::Error;
use super::execute::Target;
use super::ledger::Change;
use super::plan::{Plan, Remove};
use super::requests::STOP_GRACE_S_DEFAULT;
use super::strays::{self, Stray};
use super::supervisor::Shared;
use super::worker::Command;
use crate::domain::firewall::Ruleset;
use crate::domain::receipt::Erasure;
use crate::domain::{Container, ContainerId, Desired, Init, PauseReason, Phase, Slot, StopReason, Verb};
use crate::store::journal::Entry;

/// Containers that should run and are started at once: others' verbs wait for no more than these.
const STARTS_AT_ONCE_MAX: usize = 8;

/// What was found, for the log and `/readyz`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Containers that went on running and were taken over.
    pub adopted: usize,
    /// Containers whose half-made or half-removed objects were removed.
    pub undone: usize,
    /// Containers whose deletion is being finished.
    pub erasing: usize,
    /// Containers that are being started because they should run.
    pub starting: usize,
    /// Objects that belonged to nobody and were removed.
    pub swept: usize,
    /// Data without a record: left alone, for the operator to decide.
    pub orphans: usize,
}

/// What is to be done about one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// It runs: watch it.
    Adopt { init: Init, env_revision: u64 },
    /// It has no process and should have nothing in the kernel.
    Settle,
    /// Its rootfs was never finished.
    Forget,
    /// It is to be deleted.
    Erase,
}

/// `alive`: the process that the journal says serves it, if that very process lives. `rootfs`: whether its manifest, the
/// last thing that is made of a rootfs, is there.
fn decide(container: &Container, alive: Option<(Init, u64)>, rootfs: bool) -> Decision {
    match (&container.phase, alive) {
        _ if container.receipt.is_some() => Decision::Erase,
        // Init was created but the record of it may be behind: the journal says so only once the plan is through.
        (_, Some((init, env_revision))) => Decision::Adopt { init, env_revision },
        (Phase::Creating, None) if !rootfs => Decision::Forget,
        _ => Decision::Settle,
    }
}

/// Takes over and cleans up; nothing else may use `shared` before this has returned.
///
/// # Errors
/// The store, the journal or the firewall fail. A single object that cannot be removed is logged and left to the next
/// start.
pub async fn recover(shared: &Arc<Shared>) -> Result<Report, Error> {
    let mut report = Report::default();
    let entries: BTreeMap<ContainerId, Entry> = entries(shared);
    let containers = shared.ledger.directory().containers();
    let mut adopted: Vec<(Arc<Container>, Init)> = Vec::new();
    let mut erase = Vec::new();
    for container in &containers {
        let alive = alive(shared, entries.get(&container.id));
        let rootfs = has_manifest(shared, container.id).await?;
        match decide(container, alive, rootfs) {
            Decision::Adopt { init, env_revision } => {
                adopted.push((adopt(shared, container, init, env_revision).await?, init));
                report.adopted += 1;
            }
            Decision::Settle => report.undone += usize::from(settle(shared, container, &entries).await?),
            Decision::Forget => {
                shared.executor.remove(Target::from(&**container), "recovery", &Plan::<Remove>::erase()).await?;
                shared.ledger.forget(container.id).await?;
                report.undone += 1;
            }
            Decision::Erase => erase.push(container.id),
        }
    }
    load_rules(shared, &adopted).await?;
    // Of a container without a record only what lives in the kernel goes here; whether its data is a torn create's or what an
    // older store does not know of, the sweep tells.
    for (id, entry) in entries.iter().filter(|(id, _)| shared.ledger.directory().container(**id).is_err()) {
        let target = Target { id: *id, slot: slot_of(entry) };
        let taken = containers.iter().any(|container| container.slot == target.slot);
        let plan = if taken { Plan::<Remove>::tear_down_but_slot() } else { Plan::<Remove>::tear_down() };
        let _logged = shared.executor.remove(target, "recovery", &plan).await;
        report.undone += 1;
    }
    sweep(shared, &mut report).await?;
    for (container, _) in &adopted {
        shared.send(container.id, Command::Adopt)?;
        if container.desired == Desired::Stopped {
            let grace = std::time::Duration::from_secs(STOP_GRACE_S_DEFAULT);
            shared.send(container.id, Command::Verb { verb: Verb::Stop, grace, reply: oneshot::channel().0 })?;
        }
    }
    report.erasing = erase.len();
    for id in erase {
        shared.send(id, Command::Erase { tries: 0, reply: oneshot::channel().0 })?;
    }
    for receipt in shared.ledger.open_receipts().await? {
        if receipt.state == Erasure::Removed {
            shared.clean_later(receipt);
        }
    }
    report.starting = start_desired(shared);
    Ok(report)
}

async fn has_manifest(shared: &Shared, id: ContainerId) -> Result<bool, Error> {
    let found = shared.executor.drivers().folders.has_manifest(id).await;
    found.map_err(Error::driver)
}

fn entries(shared: &Shared) -> BTreeMap<ContainerId, Entry> {
    let id = |entry: &Entry| match entry {
        Entry::Begin { id, .. } | Entry::Running { id, .. } | Entry::End { id } => *id,
    };
    shared.executor.journal().open_entries().into_iter().map(|entry| (id(&entry), entry)).collect()
}

const fn slot_of(entry: &Entry) -> Slot {
    match entry {
        Entry::Begin { slot, .. } | Entry::Running { slot, .. } => *slot,
        // An ended entry is never open.
        Entry::End { .. } => Slot(0),
    }
}

fn alive(shared: &Shared, entry: Option<&Entry>) -> Option<(Init, u64)> {
    match entry {
        Some(Entry::Running { init, env_revision, .. }) if shared.executor.drivers().runtime.is_alive(*init) => {
            Some((*init, *env_revision))
        }
        _ => None,
    }
}

async fn adopt(shared: &Shared, container: &Container, init: Init, revision: u64) -> Result<Arc<Container>, Error> {
    let paused = match container.phase {
        Phase::Paused { reason, .. } => Some(reason),
        _ => None,
    };
    // A daemon that died between the freezer and the record leaves them apart.
    if let Err(error) = shared.executor.drivers().cgroups.freeze(container.id, paused.is_some()).await {
        tracing::error!(container = %container.id, error = &error as &dyn std::error::Error, "cannot freeze or thaw");
    }
    shared
        .ledger
        .change(container.id, Change::lazy("recovery"), |container| {
            // The record of the start may have been lost with the daemon; this is then the best that is known.
            if container.phase.init() != Some(init) || container.started_at.is_none() {
                container.started_at = Some(Timestamp::now());
                container.ready_at = None;
            }
            container.phase = phase_of(init, paused);
            container.env_revision_applied = revision;
            Ok(())
        })
        .await
}

const fn phase_of(init: Init, paused: Option<PauseReason>) -> Phase {
    match paused {
        Some(reason) => Phase::Paused { init, reason },
        None => Phase::Running { init },
    }
}

/// Removes what is in the kernel of a container without a process; whether there was anything to put right.
async fn settle(shared: &Shared, container: &Container, entries: &BTreeMap<ContainerId, Entry>) -> Result<bool, Error> {
    let open = entries.contains_key(&container.id);
    if open {
        shared.executor.remove(Target::from(container), "recovery", &Plan::<Remove>::tear_down()).await?;
    }
    let reason = match container.phase {
        Phase::Stopped { .. } | Phase::Failed { .. } => return Ok(open),
        Phase::Creating => StopReason::Created,
        _ => StopReason::Lost,
    };
    shared
        .ledger
        .change(container.id, Change::flushed("recovery"), |container| {
            container.phase = Phase::Stopped { reason };
            Ok(())
        })
        .await?;
    Ok(true)
}

/// The whole table in one transaction: the base rules and those of the containers that run.
async fn load_rules(shared: &Shared, adopted: &[(Arc<Container>, Init)]) -> Result<(), Error> {
    let rules = |container: &Arc<Container>| match shared.rules(container) {
        Ok(rules) => Some((container.slot, Arc::new(rules))),
        Err(error) => {
            // One container's policy must not keep the others from being served; a link without rules passes nothing.
            tracing::error!(container = %container.id, error = &error as &dyn std::error::Error, "cut off");
            None
        }
    };
    let tenants: Vec<(Slot, Arc<Ruleset>)> = adopted.iter().filter_map(|(container, _)| rules(container)).collect();
    shared.executor.drivers().firewall.load(&tenants).await.map_err(Error::driver)
}

/// Removes objects of ours that belong to nobody.
async fn sweep(shared: &Shared, report: &mut Report) -> Result<(), Error> {
    for stray in strays::find(shared).await? {
        match strays::remove(shared, stray).await {
            Ok(()) if matches!(stray, Stray::Orphan(_)) => {
                tracing::warn!(%stray, "is left alone");
                report.orphans += 1;
            }
            Ok(()) => {
                tracing::warn!(%stray, "a leak is removed");
                report.swept += 1;
            }
            Err(error) => {
                tracing::error!(%stray, error = &error as &dyn std::error::Error, "a leak cannot be removed");
            }
        }
    }
    Ok(())
}

/// Starts what should run and does not, a bounded number at once, behind the caller's back; how many those are.
fn start_desired(shared: &Arc<Shared>) -> usize {
    let due: Vec<ContainerId> = shared
        .ledger
        .directory()
        .containers()
        .iter()
        .filter(|one| one.desired == Desired::Running && one.settings.autostart && one.receipt.is_none())
        // What sleeps when nobody uses it can sleep until somebody does: no herd after a reboot.
        .filter(|one| {
            let asleep = matches!(&one.phase, Phase::Stopped { reason } if reason.is_sleep());
            one.settings.idle_timeout_s.is_none() && !asleep
        })
        .filter(|one| one.phase.allows(Verb::Start))
        .map(|one| one.id)
        .collect();
    let count = due.len();
    let shared = shared.clone();
    tokio::spawn(async move {
        futures_util::stream::iter(due)
            .for_each_concurrent(STARTS_AT_ONCE_MAX, |id| {
                let shared = shared.clone();
                async move {
                    let (reply, done) = oneshot::channel();
                    let command = Command::Verb { verb: Verb::Start, grace: std::time::Duration::ZERO, reply };
                    let result = match shared.send(id, command) {
                        Ok(()) => done.await.unwrap_or(Err(Error::ShuttingDown)).map(drop),
                        Err(error) => Err(error),
                    };
                    if let Err(error) = result {
                        tracing::error!(container = %id, error = &error as &dyn std::error::Error, "autostart failed");
                    }
                }
            })
            .await;
    });
    count
}

#[cfg(test)]
mod tests {
    use super::super::directory::tests::container;
    use super::*;
    use crate::domain::{ProjectId, ReceiptId};

    const INIT: Init = Init { pid: 7, start_ticks: 9 };

    fn in_phase(phase: Phase) -> Container {
        Container { phase, ..container(ProjectId::NIL, "one", Slot(1)) }
    }

    #[test]
    fn a_tombstone_wins_over_a_living_process() {
        let mut container = in_phase(Phase::Running { init: INIT });
        container.receipt = Some(ReceiptId::NIL);
        assert_eq!(decide(&container, Some((INIT, 1)), true), Decision::Erase);
    }

    #[test]
    fn a_process_that_lives_is_adopted_whatever_the_record_says() {
        for phase in [Phase::Starting, Phase::Creating, Phase::Running { init: INIT }] {
            let decision = decide(&in_phase(phase), Some((INIT, 3)), true);
            assert_eq!(decision, Decision::Adopt { init: INIT, env_revision: 3 });
        }
    }

    #[test]
    fn a_rootfs_that_was_never_finished_is_forgotten_and_a_finished_one_is_kept() {
        assert_eq!(decide(&in_phase(Phase::Creating), None, false), Decision::Forget);
        assert_eq!(decide(&in_phase(Phase::Creating), None, true), Decision::Settle);
        assert_eq!(decide(&in_phase(Phase::Running { init: INIT }), None, false), Decision::Settle);
    }
}
