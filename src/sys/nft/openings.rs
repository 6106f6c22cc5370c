//! What is open for tenants by hosts' names: what they were told, and where in the kernel's sets it lies.
//!
//! The firewall's task keeps it. A daemon that begins finds in the table what an earlier one has opened; what had ended by then, it
//! does not know, and so it does not hold that against the flows that are open ([`Memory::Lost`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::kernel::Rules;
use super::render::Moves;
use crate::domain::Slot;
use crate::domain::firewall::{Given, HostPattern, Step, Told};
use crate::sys::gateway::is_public;

/// What tenants were given, by slot.
pub(super) type AllGiven = BTreeMap<Slot, Given>;

/// What is known of that where open flows are judged.
#[derive(Debug, Clone)]
pub(super) enum Memory {
    /// All of it.
    Whole(AllGiven),
    /// An earlier daemon knew: any public address may have been given.
    Lost,
}

impl Default for Memory {
    fn default() -> Self {
        Self::Whole(AllGiven::new())
    }
}

impl Memory {
    pub(super) fn has(&self, slot: Slot, host: &HostPattern, address: Ipv4Addr) -> bool {
        match self {
            Self::Whole(given) => given.get(&slot).is_some_and(|given| given.has(host, address)),
            Self::Lost => is_public(address.into()),
        }
    }
}

/// The hosts that tenants' rules name, where they name any: kept by the task, looked at by whoever has something to tell.
#[derive(Debug, Clone, Default)]
pub(super) struct Named(Arc<Mutex<HashMap<Slot, Vec<HostPattern>>>>);

impl Named {
    /// Whether a slot's rules name this host.
    pub(super) fn name(&self, slot: Slot, host: &str) -> bool {
        self.all().get(&slot).is_some_and(|hosts| hosts.iter().any(|pattern| pattern.fits(host)))
    }

    fn set(&self, slot: Slot, hosts: &[HostPattern]) {
        match hosts {
            [] => drop(self.all().remove(&slot)),
            hosts => drop(self.all().insert(slot, hosts.to_vec())),
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Slot, Vec<HostPattern>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one slot has open.
#[derive(Debug, Default)]
struct Held {
    /// Which set each host has: its place here.
    hosts: Vec<HostPattern>,
    given: Given,
}

/// What all slots have open; also those whose chains are gone, while any of it may be in the kernel.
#[derive(Debug)]
pub(super) struct Openings {
    held: BTreeMap<Slot, Held>,
    named: Named,
}

impl Openings {
    /// Nothing.
    pub(super) const fn new(named: Named) -> Self {
        Self { held: BTreeMap::new(), named }
    }

    /// What these slots were given.
    pub(super) fn memory(&self, wanted: impl Fn(&Slot) -> bool) -> Memory {
        let wanted = self.held.iter().filter(|(slot, _)| wanted(slot));
        Memory::Whole(wanted.map(|(slot, held)| (*slot, held.given.clone())).collect())
    }

    /// What becomes of a slot's values where its rules come to name these hosts.
    pub(super) fn moves(&self, slot: Slot, hosts: &[HostPattern], now: Instant) -> Moves {
        let moves = |held: &Held| Moves::between(&held.hosts, hosts, &held.given, now);
        self.held.get(&slot).map(moves).unwrap_or_default()
    }

    /// A slot's values where there are none yet.
    pub(super) fn anew(&self, slot: Slot, hosts: &[HostPattern], now: Instant) -> Moves {
        self.held.get(&slot).map(|held| Moves::between(&[], hosts, &held.given, now)).unwrap_or_default()
    }

    /// A slot's rules name these hosts now; a new tenant has nothing open.
    pub(super) fn applied(&mut self, slot: Slot, hosts: &[HostPattern], is_new: bool) {
        let held = self.held.remove(&slot).filter(|_| !is_new).unwrap_or_default();
        if !hosts.is_empty() {
            self.held.insert(slot, Held { hosts: hosts.to_vec(), given: held.given.of(hosts) });
        }
        self.named.set(slot, hosts);
    }

    /// The table holds these tenants' rules and nothing else.
    pub(super) fn loaded(&mut self, tenants: &Rules) {
        self.held.retain(|slot, _| tenants.contains_key(slot));
        self.named.all().clear();
        for (slot, rules) in tenants {
            self.applied(*slot, rules.hosts(), false);
        }
    }

    /// These slots' chains are being taken away. What is open is kept in mind until it has ended by itself, so that no next tenant has
    /// it whatever became of the removal.
    pub(super) fn removed(&mut self, slots: &BTreeSet<Slot>, now: Instant) {
        slots.iter().for_each(|slot| self.named.set(*slot, &[]));
        self.held.retain(|slot, held| !slots.contains(slot) || held.given.is_open(now));
    }

    /// What was found in the table of an earlier daemon.
    pub(super) fn recall(&mut self, found: AllGiven) {
        self.held = found.into_iter().map(|(slot, given)| (slot, Held { hosts: Vec::new(), given })).collect();
    }

    /// What is known once a slot's tenant is told this, and what has to change first.
    pub(super) fn tell(&self, slot: Slot, hosts: &[HostPattern], told: &Told, now: Instant) -> (Given, Vec<Step>) {
        let none = Given::default();
        self.held.get(&slot).map_or(&none, |held| &held.given).tell(hosts, told, now)
    }

    /// That has changed.
    pub(super) fn told(&mut self, slot: Slot, given: Given) {
        if let Some(held) = self.held.get_mut(&slot) {
            held.given = given;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hosts(names: &[&str]) -> Vec<HostPattern> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn tell(openings: &mut Openings, slot: Slot, hosts: &[HostPattern], name: &str, now: Instant) -> usize {
        let told = Told { name: name.to_owned(), addresses: vec![Ipv4Addr::new(198, 51, 100, 1)], ttl_s: 300 };
        let (given, steps) = openings.tell(slot, hosts, &told, now);
        openings.told(slot, given);
        steps.len()
    }

    #[test]
    fn a_slots_next_tenant_inherits_nothing_and_what_was_open_is_taken_away_first() {
        let (mut openings, now) = (Openings::new(Named::default()), Instant::now());
        let (first, second) = (hosts(&["a.test", "b.test"]), hosts(&["b.test"]));
        openings.applied(Slot(1), &first, true);
        assert_eq!(tell(&mut openings, Slot(1), &first, "b.test", now), 1);
        assert!(openings.named.name(Slot(1), "b.test") && !openings.named.name(Slot(2), "b.test"));
        openings.removed(&[Slot(1)].into(), now);
        assert!(!openings.named.name(Slot(1), "b.test"));
        // Whatever became of the removal.
        assert_eq!(openings.moves(Slot(1), &[], now).gone.len(), 1);
        openings.applied(Slot(1), &second, true);
        assert!(matches!(openings.memory(|_| true), Memory::Whole(all) if all[&Slot(1)] == Given::default()));
        openings.removed(&[Slot(1)].into(), now);
        assert!(openings.held.is_empty());
    }

    #[test]
    fn what_was_given_stays_with_its_host_when_rules_change_and_when_the_table_is_loaded_anew() {
        let (mut openings, now) = (Openings::new(Named::default()), Instant::now());
        let (before, after) = (hosts(&["a.test", "b.test"]), hosts(&["b.test", "c.test"]));
        openings.applied(Slot(1), &before, true);
        tell(&mut openings, Slot(1), &before, "a.test", now);
        tell(&mut openings, Slot(1), &before, "b.test", now);
        let moves = openings.moves(Slot(1), &after, now);
        assert_eq!((moves.gone.len(), moves.come.len()), (2, 1));
        openings.applied(Slot(1), &after, false);
        assert_eq!(openings.anew(Slot(1), &after, now).come.len(), 1);
        assert_eq!(openings.anew(Slot(1), &after, now + Duration::from_secs(400)).come.len(), 0);
        openings.loaded(&Rules::new());
        assert!(openings.held.is_empty());
    }

    #[test]
    fn a_lost_memory_holds_nothing_against_public_addresses() {
        let host: HostPattern = "a.test".parse().unwrap();
        let has = |memory: Memory, text: &str| memory.has(Slot(1), &host, text.parse().unwrap());
        assert!(has(Memory::Lost, "198.51.100.1") && !has(Memory::Lost, "10.0.0.1"));
        assert!(!has(Memory::default(), "198.51.100.1"));
    }
}
