//! Addresses that a tenant was given for hosts that its rules name, and until when each opens new flows. Pure.
//!
//! What is kept outlives that moment: a flow that is open goes on when its address no longer opens new ones, and when rules
//! change it has to be known that it was let out rightly.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::host::HostPattern;

/// Addresses that are kept of one tenant.
const GIVEN_MAX: usize = 256;
/// Addresses of one answer that open anything.
const ADDRESSES_OF_ANSWER_MAX: usize = 64;
/// How long an address opens new flows at least, in seconds: programs connect a while after they have asked.
const TTL_S_MIN: u64 = 60;
/// And at most, in seconds.
const TTL_S_MAX: u64 = 3_600;
/// So much longer than that, in seconds, so that a name that is asked for all the time does not change the kernel's table every time.
const SLACK_S: u64 = 30;

/// What a tenant is told about a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its name, in lower case, without a final dot.
    pub name: String,
    /// Where it is. Public addresses alone: no name opens the way to another network.
    pub addresses: Vec<Ipv4Addr>,
    /// How long that holds, in seconds.
    pub ttl_s: u32,
}

/// A change to what is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// From now on and for so long.
    Open {
        /// By the rules that name this.
        host: HostPattern,
        /// To here.
        address: Ipv4Addr,
        /// For how long.
        duration: Duration,
    },
    /// No more.
    Close {
        /// By the rules that name this.
        host: HostPattern,
        /// To here.
        address: Ipv4Addr,
    },
}

/// Addresses that one tenant was given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given(BTreeMap<(HostPattern, Ipv4Addr), Instant>);

impl Given {
    /// Whether it was given this address for this host, and it is not too long ago to be known.
    pub fn has(&self, host: &HostPattern, address: Ipv4Addr) -> bool {
        self.0.contains_key(&(host.clone(), address))
    }

    /// Whether any of it still opens new flows.
    pub fn is_open(&self, now: Instant) -> bool {
        self.0.values().any(|end| *end > now)
    }

    /// Takes note that an address opens new flows until then.
    pub fn note(&mut self, host: HostPattern, address: Ipv4Addr, end: Instant) {
        self.0.insert((host, address), end);
    }

    /// What is known once the tenant is told this, and what has to change first. `hosts` are those that its rules name.
    pub fn tell(&self, hosts: &[HostPattern], told: &Told, now: Instant) -> (Self, Vec<Step>) {
        let ttl = Duration::from_secs(u64::from(told.ttl_s).clamp(TTL_S_MIN, TTL_S_MAX));
        let (mut after, mut new) = (self.clone(), BTreeSet::new());
        for host in hosts.iter().filter(|host| host.fits(&told.name)) {
            for address in told.addresses.iter().take(ADDRESSES_OF_ANSWER_MAX) {
                let key = (host.clone(), *address);
                if self.0.get(&key).is_none_or(|end| *end < now + ttl) {
                    after.0.insert(key.clone(), now + ttl + Duration::from_secs(SLACK_S));
                    new.insert(key);
                }
            }
        }
        let mut steps = Vec::new();
        while after.0.len() > GIVEN_MAX {
            // What ends first goes first, and what was given just now goes last.
            let first = after.0.iter().min_by_key(|(key, end)| (new.contains(key), **end)).map(|(key, _)| key.clone());
            let Some(key) = first else { break };
            let end = after.0.remove(&key);
            if !new.remove(&key) && end.is_some_and(|end| end > now) {
                steps.push(Step::Close { host: key.0, address: key.1 });
            }
        }
        let opened = |(host, address): (HostPattern, Ipv4Addr)| {
            let duration = ttl + Duration::from_secs(SLACK_S);
            Step::Open { host, address, duration }
        };
        steps.extend(new.into_iter().map(opened));
        (after, steps)
    }

    /// What is left where the rules name these hosts alone.
    pub fn of(&self, hosts: &[HostPattern]) -> Self {
        let kept = self.0.iter().filter(|((host, _), _)| hosts.binary_search(host).is_ok());
        Self(kept.map(|(key, end)| (key.clone(), *end)).collect())
    }

    /// What opens new flows, and for how much longer.
    pub fn open(&self, now: Instant) -> impl Iterator<Item = (&HostPattern, Ipv4Addr, Duration)> {
        let left = move |end: &Instant| end.checked_duration_since(now).filter(|left| !left.is_zero());
        self.0.iter().filter_map(move |((host, address), end)| Some((host, *address, left(end)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts() -> Vec<HostPattern> {
        ["*.example.com", "api.example.com", "b.test"].map(|text| text.parse().unwrap()).into()
    }

    fn told(name: &str, addresses: &[u8], ttl_s: u32) -> Told {
        let addresses = addresses.iter().map(|n| Ipv4Addr::new(198, 51, 100, *n)).collect();
        Told { name: name.to_owned(), addresses, ttl_s }
    }

    fn after(given: &Given, told: &Told, now: Instant) -> (Given, usize) {
        let (after, steps) = given.tell(&hosts(), told, now);
        (after, steps.len())
    }

    #[test]
    fn what_is_told_about_a_host_that_rules_name_is_open_for_its_time_and_what_else_is_told_is_not() {
        let now = Instant::now();
        let (given, steps) = Given::default().tell(&hosts(), &told("api.example.com", &[1], 300), now);
        let address = Ipv4Addr::new(198, 51, 100, 1);
        let open =
            |host: usize| Step::Open { host: hosts()[host].clone(), address, duration: Duration::from_secs(330) };
        assert_eq!(steps, [open(0), open(1)], "by each of the rules");
        assert!(given.has(&hosts()[0], address) && given.has(&hosts()[1], address) && !given.has(&hosts()[2], address));
        assert_eq!(after(&given, &told("elsewhere.test", &[2], 300), now), (given.clone(), 0));
        let second = |s| now + Duration::from_secs(s);
        assert!(given.is_open(second(329)) && !given.is_open(second(330)));
        assert!(given.has(&hosts()[0], address), "which open flows go by");
    }

    #[test]
    fn times_are_bounded_and_asking_again_seldom_changes_anything() {
        let now = Instant::now();
        let length =
            |ttl_s| Given::default().tell(&hosts(), &told("b.test", &[1], ttl_s), now).0.open(now).next().unwrap().2;
        assert_eq!((length(0).as_secs(), length(u32::MAX).as_secs()), (90, 3_630));
        let (given, _) = after(&Given::default(), &told("b.test", &[1], 60), now);
        for (later_s, changes) in [(1, 0), (30, 0), (31, 1), (500, 1)] {
            let later = now + Duration::from_secs(later_s);
            assert_eq!(after(&given, &told("b.test", &[1], 60), later).1, changes, "after {later_s} s");
        }
    }

    #[test]
    fn rules_that_name_a_host_no_more_forget_it() {
        let now = Instant::now();
        let (given, _) = after(&Given::default(), &told("api.example.com", &[1], 300), now);
        let left = given.of(&hosts()[1..]);
        assert_eq!(left.open(now).map(|(host, ..)| host.as_str()).collect::<Vec<_>>(), ["api.example.com"]);
        assert_eq!(given.of(&[]), Given::default());
    }

    proptest! {
        #[test]
        fn the_kernel_holds_what_is_known_and_never_too_much(
            answers in proptest::collection::vec((0..3usize, 0..60u32, proptest::collection::vec(any::<u16>(), 0..90), 0..200u32), 1..40)
        ) {
            let (mut now, mut given) = (Instant::now(), Given::default());
            let mut kernel: BTreeMap<(HostPattern, Ipv4Addr), Instant> = BTreeMap::new();
            for (name, wait_s, addresses, ttl_s) in answers {
                now += Duration::from_secs(wait_s.into());
                let addresses = addresses.iter().map(|n| Ipv4Addr::from_bits(0xc633_0000 + u32::from(*n))).collect();
                let told = Told { name: ["api.example.com", "x.example.com", "b.test"][name].to_owned(), addresses, ttl_s };
                let (after, steps) = given.tell(&hosts(), &told, now);
                for step in steps {
                    match step {
                        Step::Open { host, address, duration } => drop(kernel.insert((host, address), now + duration)),
                        Step::Close { host, address } => prop_assert!(kernel.remove(&(host, address)).is_some()),
                    }
                }
                given = after;
                prop_assert!(given.0.len() <= GIVEN_MAX);
                kernel.retain(|_, end| *end > now);
                let open = given.open(now).map(|(host, address, left)| ((host.clone(), address), now + left)).collect();
                prop_assert_eq!(&kernel, &open);
            }
        }
    }
}
