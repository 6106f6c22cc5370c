//! Things that are open at once: so many of one tenant, so many of all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::ContainerId;

/// A bounded number of places. Cheap to clone; clones share the places.
#[derive(Debug, Clone)]
pub(super) struct Places {
    of_one_max: usize,
    of_all_max: usize,
    taken: Arc<Mutex<Taken>>,
}

/// Tenants that have none are not in it, so it is as long as tenants are active.
#[derive(Debug, Default)]
struct Taken {
    of_one: HashMap<ContainerId, usize>,
    of_all: usize,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    tenant: ContainerId,
}

impl Places {
    /// All of them free.
    pub(super) fn new(of_one_max: usize, of_all_max: usize) -> Self {
        Self { of_one_max, of_all_max, taken: Arc::default() }
    }

    /// A place for this tenant, where it and all together have not too many.
    pub(super) fn take(&self, tenant: ContainerId) -> Option<Place> {
        let mut taken = self.taken();
        let of_one = taken.of_one.get(&tenant).copied().unwrap_or_default();
        if of_one >= self.of_one_max || taken.of_all >= self.of_all_max {
            return None;
        }
        taken.of_one.insert(tenant, of_one + 1);
        taken.of_all += 1;
        Some(Place { places: self.clone(), tenant })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.of_all -= 1;
        match taken.of_one.get_mut(&self.tenant) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.of_one.remove(&self.tenant)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenant_cannot_take_anothers_places() {
        let places = Places::new(2, 10);
        let (one, two) = (ContainerId::generate(), ContainerId::generate());
        let held = [places.take(one), places.take(one)];
        assert!(held.iter().all(Option::is_some) && places.take(one).is_none());
        assert!(places.take(two).is_some());
        drop(held);
        assert!(places.take(one).is_some(), "they are free again");
    }

    #[test]
    fn all_together_have_a_bound_and_nothing_is_kept_of_who_has_none() {
        let places = Places::new(5, 3);
        let held: Vec<_> = (0..3).filter_map(|_| places.take(ContainerId::generate())).collect();
        assert!(held.len() == 3 && places.take(ContainerId::generate()).is_none());
        drop(held);
        assert!(places.taken().of_one.is_empty() && places.taken().of_all == 0);
    }
}
