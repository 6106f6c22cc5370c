//! The awake budget: how much memory the containers that are awake may hold together.
//!
//! Counted is what they hold, not what they may: limits are promises of which most are never called in, and a host that counted them would
//! keep a tenth of its tenants awake. What a container that is waking will hold is not known yet, so a share is kept for it until it is
//! counted.
//!
//! Beyond the budget those sleep first that nobody has used for longest, for as long as nothing of theirs is open; a container without an
//! `idle_timeout` never does. Where that is not enough a wake is refused. A verb of the API is not: who calls it decides.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::drowse::Drowse;
use super::supervisor::Shared;
use super::worker::Command;
use crate::domain::{Bytes, Container, ContainerId, PauseReason, Phase};

/// What is kept for a container until it is counted; less where its limit is.
const EXPECTED: Bytes = Bytes::mib(16);
/// Nobody is put to sleep for others who was used in the last so many milliseconds: a page's next request is on its way.
const SILENCE_MS: u64 = 1_000;
/// Containers that are put to sleep for one, at once.
const VICTIMS_MAX: usize = 16;
/// How often a wake looks for room before it gives up; each look waits until those it put to sleep are asleep.
const LOOKS_MAX: usize = 4;
/// How long it waits for them, in milliseconds: somewhat more than a container has to end by itself.
const SLEEPS_MS_MAX: u64 = 12_000;

/// How much the awake may hold, and what they do.
#[derive(Debug)]
pub struct Room {
    max: Option<Bytes>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// As it was last measured, and what is expected of those that have begun since.
    held: HashMap<ContainerId, Bytes>,
    /// Of those that are waking.
    expected: HashMap<ContainerId, Bytes>,
}

/// A container that could make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    id: ContainerId,
    holds: Bytes,
    unused: Duration,
}

/// What is to be done so that something fits.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Fits,
    /// These make room for it.
    Sleep(Vec<Candidate>),
    /// Not even if all slept who can.
    Full,
}

/// Who sleeps so that `wanted` more fits beside `held`: the longest unused first, and no more than it takes. Pure.
fn decide(max: Bytes, held: Bytes, wanted: Bytes, mut candidates: Vec<Candidate>) -> Plan {
    let Some(mut over) = (held.0 + wanted.0).checked_sub(max.0).filter(|over| *over > 0) else { return Plan::Fits };
    // Frozen pages of a container that holds nothing make no room.
    candidates.retain(|candidate| candidate.holds.0 > 0);
    candidates.sort_by_key(|candidate| std::cmp::Reverse(candidate.unused));
    let mut chosen = Vec::new();
    for candidate in candidates.into_iter().take(VICTIMS_MAX) {
        over = over.saturating_sub(candidate.holds.0);
        chosen.push(candidate);
        if over == 0 {
            return Plan::Sleep(chosen);
        }
    }
    Plan::Full
}

impl State {
    /// What was measured takes the place of what was expected.
    fn counted(&mut self, held: HashMap<ContainerId, Bytes>) {
        self.expected.retain(|id, _| !held.contains_key(id));
        self.held = held;
    }

    /// They are about to give it back.
    fn forget(&mut self, victims: &[Candidate]) {
        for victim in victims {
            self.held.remove(&victim.id);
        }
    }

    fn total(&self) -> Bytes {
        Bytes(self.held.values().chain(self.expected.values()).map(|bytes| bytes.0).sum())
    }
}

/// Room that is kept for a container until it is counted.
#[derive(Debug)]
pub struct Reserved<'a> {
    room: &'a Room,
    id: ContainerId,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.room.lock();
        if let Some(expected) = state.expected.remove(&self.id) {
            state.held.entry(self.id).or_insert(expected);
        }
    }
}

impl Room {
    /// For so much; `None`: as much as the host has.
    pub fn new(max: Option<Bytes>) -> Self {
        Self { max, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures the awake, and puts to sleep whom there is no room for any more.
    pub async fn look(&self, shared: &Arc<Shared>, awake: &[Arc<Container>]) {
        let Some(max) = self.max else { return };
        let ids = awake.iter().map(|container| container.id).collect();
        match shared.executor.drivers().cgroups.memory(ids).await {
            Ok(held) => self.lock().counted(held.into_iter().collect()),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "what the awake hold cannot be measured");
                return;
            }
        }
        let victims = {
            let mut state = self.lock();
            let plan = decide(max, state.total(), Bytes(0), candidates(shared, &state));
            let Plan::Sleep(victims) = plan else { return };
            state.forget(&victims);
            victims
        };
        // What they hold is measured again at the next look, asleep or not.
        for victim in victims {
            let _ = shared.send(victim.id, Command::Sleep { why: Drowse::ForRoom, reply: None });
        }
    }

    /// Makes room for a container that is about to be woken; `None`: there is none to be had.
    pub async fn make(&self, shared: &Arc<Shared>, container: &Container) -> Option<Reserved<'_>> {
        let Some(max) = self.max else { return Some(Reserved { room: self, id: container.id }) };
        let wanted = container.settings.limits.memory.map_or(EXPECTED, |limit| limit.min(EXPECTED));
        for _look in 0..LOOKS_MAX {
            let victims = {
                // Decided and written down under one lock, so that two wakes do not count on the same room.
                let mut state = self.lock();
                state.held.remove(&container.id);
                match decide(max, state.total(), wanted, candidates(shared, &state)) {
                    Plan::Full => return None,
                    Plan::Fits => {
                        state.expected.insert(container.id, wanted);
                        return Some(Reserved { room: self, id: container.id });
                    }
                    Plan::Sleep(victims) => {
                        state.forget(&victims);
                        state.expected.insert(container.id, wanted);
                        victims
                    }
                }
            };
            let reserved = Reserved { room: self, id: container.id };
            let awake = still_awake(shared, victims).await;
            if awake.is_empty() {
                return Some(reserved);
            }
            // They were used meanwhile: what was kept for this one is not there.
            let mut state = self.lock();
            state.expected.remove(&container.id);
            state.held.extend(awake.iter().map(|victim| (victim.id, victim.holds)));
        }
        None
    }
}

/// How long nobody must have used a container that sleeps for others; `None`: it never does.
pub fn silence(container: &Container) -> Option<Duration> {
    container.settings.idle_timeout().map(|timeout| timeout.min(Duration::from_millis(SILENCE_MS)))
}

/// Who could be put to sleep now, and what that would give.
fn candidates(shared: &Shared, state: &State) -> Vec<Candidate> {
    let directory = shared.ledger.directory();
    let candidate = |(id, holds): (&ContainerId, &Bytes)| {
        let container = directory.container(*id).ok()?;
        let asleep = matches!(container.phase, Phase::Paused { reason: PauseReason::Idle, .. });
        let silence = silence(&container)?;
        let usage = shared.activities.usage(*id, &container.settings.activity);
        let unused = usage.open.is_none() && usage.since >= silence && usage.kept.is_zero();
        let sleeps =
            unused && container.receipt.is_none() && (asleep || matches!(container.phase, Phase::Running { .. }));
        sleeps.then_some(Candidate { id: *id, holds: *holds, unused: usage.since })
    };
    state.held.iter().filter_map(candidate).collect()
}

/// Puts containers to sleep and waits for that; those that are awake then.
async fn still_awake(shared: &Arc<Shared>, victims: Vec<Candidate>) -> Vec<Candidate> {
    let deadline = Instant::now() + Duration::from_millis(SLEEPS_MS_MAX);
    let sleeps = victims.into_iter().map(|victim| async move {
        let (reply, done) = oneshot::channel();
        let sent = shared.send(victim.id, Command::Sleep { why: Drowse::ForRoom, reply: Some(reply) });
        let slept = match sent {
            Ok(()) => matches!(tokio::time::timeout_at(deadline.into(), done).await, Ok(Ok(true))),
            Err(_busy) => false,
        };
        (!slept).then_some(victim)
    });
    join_all(sleeps).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(holds: u64, unused_s: u64) -> Candidate {
        Candidate { id: ContainerId::generate(), holds: Bytes(holds), unused: Duration::from_secs(unused_s) }
    }

    #[test]
    fn the_longest_unused_makes_room_and_no_more_than_it_takes() {
        let (new, old, older) = (candidate(50, 10), candidate(20, 20), candidate(20, 30));
        let all = || vec![new, older, old];
        assert_eq!(decide(Bytes(100), Bytes(90), Bytes(10), all()), Plan::Fits);
        assert_eq!(decide(Bytes(100), Bytes(90), Bytes(20), all()), Plan::Sleep(vec![older]));
        assert_eq!(decide(Bytes(100), Bytes(90), Bytes(31), all()), Plan::Sleep(vec![older, old]));
        assert_eq!(decide(Bytes(100), Bytes(200), Bytes(10), all()), Plan::Full);
    }

    proptest! {
        #[test]
        fn whoever_sleeps_gives_enough_and_is_unused_for_longer_than_all_who_do_not(
            max in 0u64..1_000, held in 0u64..1_000, wanted in 0u64..100,
            others in prop::collection::vec((0u64..200, 0u64..100), 0..20),
        ) {
            let all: Vec<_> = others.iter().map(|(holds, unused)| candidate(*holds, *unused)).collect();
            match decide(Bytes(max), Bytes(held), Bytes(wanted), all.clone()) {
                Plan::Fits => prop_assert!(held + wanted <= max),
                Plan::Full => prop_assert!(held + wanted > max),
                Plan::Sleep(chosen) => {
                    let given = |of: &[Candidate]| of.iter().map(|one| one.holds.0).sum::<u64>();
                    prop_assert!(given(&chosen) >= held + wanted - max);
                    prop_assert!(given(&chosen[..chosen.len() - 1]) < held + wanted - max, "one too many");
                    let newest = chosen.iter().map(|one| one.unused).min().unwrap();
                    let left = all.iter().filter(|one| one.holds.0 > 0 && !chosen.contains(one));
                    prop_assert!(left.clone().all(|one| one.unused <= newest));
                }
            }
        }
    }
}
