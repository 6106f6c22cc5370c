//! Who tried wrong credentials, and how often: a few times at once, then once in a while.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::ContainerId;

/// Wrong tries at one container from one address at once.
pub(super) const TRIES_MAX: u32 = 10;
/// After those, one more each time this has passed.
const TRY_EVERY: Duration = Duration::from_secs(6);
/// Addresses that are remembered, at most.
const REMEMBERED_MAX: usize = 16_384;
/// Of an address of version 6, what one visitor is given at the least.
const NETWORK_MASK: u128 = !0 << 64;

/// Somebody at a container's door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Who {
    pub container: ContainerId,
    address: IpAddr,
}

impl Who {
    pub fn new(container: ContainerId, client: IpAddr) -> Self {
        let address = match client.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK_MASK).into(),
            address => address,
        };
        Self { container, address }
    }
}

/// When whoever tried would have all tries again.
#[derive(Debug, Default)]
pub(super) struct Tries(Mutex<HashMap<Who, Instant>>);

impl Tries {
    /// How long it has to wait before it may try again, where it has to.
    pub fn rest(&self, who: Who) -> Option<Duration> {
        self.rest_at(who, Instant::now())
    }

    /// Counts a wrong try.
    pub fn wrong(&self, who: Who) {
        self.wrong_at(who, Instant::now());
    }

    /// Takes a try back that was not wrong.
    pub fn forgive(&self, who: Who) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(whole) = table.get_mut(&who) {
            *whole -= TRY_EVERY;
        }
    }

    fn rest_at(&self, who: Who, now: Instant) -> Option<Duration> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = table.get(&who)?.checked_duration_since(now)?;
        owed.checked_sub(TRY_EVERY * (TRIES_MAX - 1)).filter(|rest| !rest.is_zero())
    }

    fn wrong_at(&self, who: Who, now: Instant) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.len() >= REMEMBERED_MAX && !table.contains_key(&who) {
            table.retain(|_, whole| *whole > now);
            // So many at once are more addresses than any bound for one of them holds back.
            if table.len() >= REMEMBERED_MAX
                && let Some(any) = table.keys().next().copied()
            {
                table.remove(&any);
            }
        }
        let whole = table.entry(who).or_insert(now);
        *whole = (*whole).max(now) + TRY_EVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(address: &str) -> Who {
        Who::new(ContainerId::NIL, address.parse().unwrap())
    }

    #[test]
    fn some_wrong_tries_are_free_and_then_one_in_a_while() {
        let (tries, now, one) = (Tries::default(), Instant::now(), who("192.0.2.1"));
        for _ in 0..TRIES_MAX {
            assert_eq!(tries.rest_at(one, now), None);
            tries.wrong_at(one, now);
        }
        assert_eq!(tries.rest_at(one, now), Some(TRY_EVERY));
        assert_eq!(tries.rest_at(who("192.0.2.2"), now), None, "others are others");
        assert_eq!(tries.rest_at(one, now + TRY_EVERY), None);
        tries.wrong_at(one, now + TRY_EVERY);
        assert_eq!(tries.rest_at(one, now + TRY_EVERY), Some(TRY_EVERY));
        tries.forgive(one);
        assert_eq!(tries.rest_at(one, now + TRY_EVERY), None);
        assert_eq!(tries.rest_at(one, now + TRY_EVERY * 100), None);
    }

    #[test]
    fn a_network_of_version_6_is_one_visitor() {
        assert_eq!(who("2001:db8::1"), who("2001:db8::ffff:1"));
        assert_ne!(who("2001:db8::1"), who("2001:db8:0:1::1"));
        assert_eq!(who("::ffff:192.0.2.1"), who("192.0.2.1"));
    }

    #[test]
    fn the_table_has_a_bound() {
        let (tries, now) = (Tries::default(), Instant::now());
        for n in 0..REMEMBERED_MAX as u32 + 100 {
            tries.wrong_at(Who::new(ContainerId::NIL, std::net::Ipv4Addr::from(n).into()), now);
        }
        assert_eq!(tries.0.lock().unwrap().len(), REMEMBERED_MAX);
        tries.wrong_at(who("192.0.2.1"), now + TRY_EVERY * 2);
        assert_eq!(tries.0.lock().unwrap().len(), 1, "what is whole again is forgotten");
    }
}
