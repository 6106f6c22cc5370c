//! Counts by tenant, of which only the busiest are told by name.
//!
//! A series for each tenant would be thousands that say nothing. The busiest get a label of their own; what all others do is
//! counted as one. A counter must not go down, or whoever reads it sees a restart and takes all of it for new: so what is counted
//! goes to a tenant's own series only while it has one, and what was counted among the others stays there.
//!
//! ```text
//!  a request ─► fresh[tenant]            one lock, one addition
//!  a scrape  ─► fresh is taken ─► score  halved every few minutes; the highest have a series
//!                             └─► added to the tenant's series, or to the others'
//! ```

use std::collections::HashMap;
use std::hash::Hash;
use std::mem;
use std::ops::AddAssign;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Tenants that have a series of their own, at most.
pub const LABELLED_MAX: usize = 50;
/// Tenants that are told apart between two scrapes; what further ones do is counted among the others.
const FRESH_MAX: usize = 8_192;
/// After so long without a request a tenant counts as half as busy.
const HALF_LIFE_S: f64 = 300.0;
/// A tenant takes another's series only where it is so much busier: two that are alike do not change places at every scrape.
const LEAD: f64 = 1.25;
/// Below this a tenant without a series is forgotten.
const SCORE_MIN: f64 = 0.5;

/// A count of something of which there is more and less.
pub trait Weighs {
    /// How busy it makes a tenant.
    fn weight(&self) -> f64;
}

/// Counts `C` by `K`.
#[derive(Debug)]
pub struct Busiest<K, C> {
    fresh: Mutex<Fresh<K, C>>,
    board: Mutex<Board<K, C>>,
}

#[derive(Debug)]
struct Fresh<K, C> {
    by_key: HashMap<K, C>,
    others: C,
}

#[derive(Debug)]
struct Board<K, C> {
    scores: HashMap<K, f64>,
    labelled: HashMap<K, C>,
    others: C,
    at: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under these locks; the numbers are good either way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, C: Default> Default for Busiest<K, C> {
    fn default() -> Self {
        let fresh = Fresh { by_key: HashMap::new(), others: C::default() };
        let board =
            Board { scores: HashMap::new(), labelled: HashMap::new(), others: C::default(), at: Instant::now() };
        Self { fresh: Mutex::new(fresh), board: Mutex::new(board) }
    }
}

impl<K: Copy + Eq + Hash + Ord, C: Default + Copy + AddAssign + Weighs> Busiest<K, C> {
    /// Counts something a tenant did.
    pub fn count(&self, key: K, what: C) {
        let mut fresh = lock(&self.fresh);
        if fresh.by_key.len() < FRESH_MAX || fresh.by_key.contains_key(&key) {
            *fresh.by_key.entry(key).or_default() += what;
        } else {
            fresh.others += what;
        }
    }

    /// The series by tenant, in the order of their keys, and what all others did.
    pub fn series(&self) -> (Vec<(K, C)>, C) {
        let mut board = lock(&self.board);
        let fresh = {
            let mut fresh = lock(&self.fresh);
            mem::replace(&mut *fresh, Fresh { by_key: HashMap::new(), others: C::default() })
        };
        board.settle(fresh, Instant::now());
        let mut labelled: Vec<_> = board.labelled.iter().map(|(key, count)| (*key, *count)).collect();
        labelled.sort_unstable_by_key(|(key, _)| *key);
        (labelled, board.others)
    }

    /// Forgets a tenant that is gone; its series ends.
    pub fn forget(&self, key: K) {
        let mut board = lock(&self.board);
        let left = lock(&self.fresh).by_key.remove(&key);
        if let Some(left) = left {
            board.others += left;
        }
        board.scores.remove(&key);
        board.labelled.remove(&key);
    }
}

impl<K: Copy + Eq + Hash + Ord, C: Default + Copy + AddAssign + Weighs> Board<K, C> {
    fn settle(&mut self, fresh: Fresh<K, C>, now: Instant) {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.at = now;
        let faded = 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE_S);
        self.scores.values_mut().for_each(|score| *score *= faded);
        for (key, count) in &fresh.by_key {
            *self.scores.entry(*key).or_default() += count.weight();
        }
        self.choose();
        self.others += fresh.others;
        for (key, count) in fresh.by_key {
            match self.labelled.get_mut(&key) {
                Some(series) => *series += count,
                None => self.others += count,
            }
        }
        let labelled = &self.labelled;
        self.scores.retain(|key, score| *score >= SCORE_MIN || labelled.contains_key(key));
    }

    /// Who has a series from now on. Who had one keeps it unless another leads.
    fn choose(&mut self) {
        let mut ranked: Vec<_> = self
            .scores
            .iter()
            .map(|(key, score)| (*key, if self.labelled.contains_key(key) { score * LEAD } else { *score }))
            .collect();
        ranked.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        ranked.truncate(LABELLED_MAX);
        let before = mem::take(&mut self.labelled);
        self.labelled =
            ranked.into_iter().map(|(key, _)| (key, before.get(&key).copied().unwrap_or_default())).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, Default, PartialEq)]
    struct Requests(u64);

    impl AddAssign for Requests {
        fn add_assign(&mut self, other: Self) {
            self.0 += other.0;
        }
    }

    impl Weighs for Requests {
        fn weight(&self) -> f64 {
            self.0 as f64
        }
    }

    #[test]
    fn only_the_busiest_are_told_apart_and_nothing_is_lost() {
        let counts = Busiest::default();
        let tenants = LABELLED_MAX as u64 + 20;
        for tenant in 1..=tenants {
            counts.count(tenant, Requests(tenant));
        }
        let (labelled, others) = counts.series();
        assert_eq!(labelled.len(), LABELLED_MAX);
        assert_eq!(labelled.first(), Some(&(21, Requests(21))));
        assert_eq!(others, Requests((1..=20).sum()));
        assert_eq!(counts.series(), (labelled, others), "nothing happened meanwhile");
    }

    #[test]
    fn no_series_ever_goes_down() {
        let counts = Busiest::default();
        for tenant in 0..LABELLED_MAX as u64 {
            counts.count(tenant, Requests(10));
        }
        let newcomer = 1_000;
        counts.count(newcomer, Requests(9));
        let (before, others) = counts.series();
        assert!(!before.iter().any(|(key, _)| *key == newcomer));
        assert_eq!(others, Requests(9));
        // It becomes the busiest: its series begins with what it does from then on, and one of the old ones ends.
        counts.count(newcomer, Requests(100));
        let (after, others_after) = counts.series();
        assert_eq!(after.iter().find(|(key, _)| *key == newcomer), Some(&(newcomer, Requests(100))));
        assert_eq!((after.len(), others_after), (LABELLED_MAX, others));
    }

    #[test]
    fn tenants_that_are_alike_do_not_change_places() {
        let counts = Busiest::default();
        let labelled =
            |counts: &Busiest<u64, Requests>| counts.series().0.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        (0..LABELLED_MAX as u64).for_each(|tenant| counts.count(tenant, Requests(10)));
        let before = labelled(&counts);
        counts.count(1_000, Requests(11));
        assert_eq!(labelled(&counts), before);
    }

    #[test]
    fn a_tenant_that_is_gone_has_no_series_and_its_count_stays_in_the_sum() {
        let counts = Busiest::default();
        counts.count(1, Requests(5));
        counts.series();
        counts.count(1, Requests(2));
        counts.forget(1);
        assert_eq!(counts.series(), (vec![], Requests(2)));
    }

    #[test]
    fn what_is_told_apart_between_two_scrapes_is_bounded() {
        let counts = Busiest::default();
        let tenants = FRESH_MAX as u64 + 5;
        (0..tenants).for_each(|tenant| counts.count(tenant, Requests(1)));
        assert_eq!(lock(&counts.fresh).by_key.len(), FRESH_MAX);
        let (labelled, others) = counts.series();
        let sum: u64 = labelled.iter().map(|(_, count)| count.0).sum();
        assert_eq!(sum + others.0, tenants);
    }
}
