//! Which certificate is ordered next, and when again after one could not be had. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::host::CustomDomain;
use crate::proxy::tls::Validity;

/// After the first order that failed; three times as long after each further one. So four fail in the first hour, and Let's Encrypt
/// grants five for a name.
const PAUSE_S_MIN: u64 = 2 * 60;
const PAUSE_FACTOR: u64 = 3;
/// Between two orders for a name that keep failing.
const PAUSE_S_MAX: u64 = 24 * 3_600;
/// Orders in any hour, for all names together.
const ORDERS_PER_HOUR_MAX: usize = 60;
/// In seconds.
const HOUR_S: i64 = 3_600;

/// When a certificate is to be replaced: two thirds through, as RFC 9773 has it where the server names no time. So 30 days before the
/// end of 90, and two before that of six.
fn renew_at(validity: Validity) -> i64 {
    validity.not_after - (validity.not_after - validity.not_before) / 3
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    /// Not before.
    again_at: i64,
}

/// What was ordered, and what failed. Lives as long as the daemon.
#[derive(Debug, Default)]
pub struct Plan {
    failed: BTreeMap<CustomDomain, Failed>,
    /// When orders were made in the last hour.
    orders: Vec<i64>,
}

impl Plan {
    /// Of the names that are wanted, the one whose certificate is to be ordered now; `shown` says what there is for a name.
    pub fn next(
        &mut self,
        wanted: &BTreeSet<CustomDomain>,
        shown: impl Fn(&CustomDomain) -> Option<Validity>,
        now: i64,
    ) -> Option<CustomDomain> {
        self.failed.retain(|domain, _| wanted.contains(domain));
        self.orders.retain(|at| now - at < HOUR_S);
        if self.orders.len() >= ORDERS_PER_HOUR_MAX {
            return None;
        }
        let may = |domain: &&CustomDomain| self.failed.get(*domain).is_none_or(|failed| failed.again_at <= now);
        let due = wanted.iter().filter(may).filter_map(|domain| match shown(domain) {
            None => Some((i64::MIN, domain)),
            Some(validity) => (renew_at(validity) <= now).then_some((validity.not_after, domain)),
        });
        // Who has none before whose ends first.
        due.min_by_key(|(not_after, _)| *not_after).map(|(_, domain)| domain.clone())
    }

    /// An order was made.
    pub fn ordered(&mut self, now: i64) {
        self.orders.push(now);
    }

    /// It brought a certificate.
    pub fn succeeded(&mut self, domain: &CustomDomain) {
        self.failed.remove(domain);
    }

    /// It did not; how long the name is left alone.
    pub fn failed(&mut self, domain: &CustomDomain, now: i64) -> Duration {
        let failed = self.failed.entry(domain.clone()).or_insert(Failed { times: 0, again_at: now });
        let pause = PAUSE_S_MIN.saturating_mul(PAUSE_FACTOR.saturating_pow(failed.times)).min(PAUSE_S_MAX);
        failed.times += 1;
        failed.again_at = now.saturating_add_unsigned(pause);
        Duration::from_secs(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * HOUR_S;
    const NOW: i64 = 1_000 * DAY;

    fn names(texts: &[&str]) -> BTreeSet<CustomDomain> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn name(text: &str) -> CustomDomain {
        text.parse().unwrap()
    }

    #[test]
    fn who_has_none_comes_first_then_whose_ends_first_and_who_has_a_good_one_never() {
        let mut plan = Plan::default();
        let wanted = names(&["a.com", "b.com", "c.com", "d.com"]);
        let validity = |left: i64| Some(Validity { not_before: NOW + left - 90 * DAY, not_after: NOW + left });
        let shown = |with_d: bool| {
            move |domain: &CustomDomain| match domain.as_str() {
                "a.com" => validity(20 * DAY),
                "b.com" => validity(-DAY),
                "c.com" => validity(31 * DAY),
                _ => validity(60 * DAY).filter(|_| with_d),
            }
        };
        assert_eq!(plan.next(&wanted, shown(false), NOW), Some(name("d.com")));
        assert_eq!(plan.next(&wanted, shown(true), NOW), Some(name("b.com")));
        assert_eq!(plan.next(&names(&["a.com", "c.com"]), shown(true), NOW), Some(name("a.com")));
        assert_eq!(plan.next(&names(&["c.com", "d.com"]), shown(true), NOW), None);
        assert_eq!(plan.next(&names(&["c.com", "d.com"]), shown(true), NOW + 2 * DAY), Some(name("c.com")));
    }

    #[test]
    fn a_name_that_fails_is_left_alone_for_longer_each_time_and_holds_up_no_other() {
        let mut plan = Plan::default();
        let wanted = names(&["bad.com", "good.com"]);
        let none = |_: &CustomDomain| None;
        let mut now = NOW;
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert_eq!(plan.next(&wanted, none, now), Some(name("bad.com")));
            let pause = plan.failed(&name("bad.com"), now).as_secs();
            assert_eq!(plan.next(&wanted, none, now), Some(name("good.com")));
            assert_eq!(plan.next(&names(&["bad.com"]), none, now + pause.cast_signed() - 1), None);
            now += pause.cast_signed();
            pauses.push(pause);
        }
        assert_eq!(&pauses[..3], [2 * 60, 6 * 60, 18 * 60]);
        assert_eq!(pauses.last(), Some(&PAUSE_S_MAX));
        plan.succeeded(&name("bad.com"));
        assert_eq!(plan.failed(&name("bad.com"), now).as_secs(), PAUSE_S_MIN);
        // One that is wanted no more, and then again, begins anew.
        plan.next(&names(&["good.com"]), none, now);
        assert_eq!(plan.next(&wanted, none, now), Some(name("bad.com")));
    }

    #[test]
    fn no_more_is_ordered_in_an_hour_than_may_be() {
        let mut plan = Plan::default();
        let wanted = names(&["a.com"]);
        for n in 0..ORDERS_PER_HOUR_MAX {
            assert!(plan.next(&wanted, |_| None, NOW + n as i64).is_some());
            plan.ordered(NOW + n as i64);
        }
        assert_eq!(plan.next(&wanted, |_| None, NOW + 100), None);
        assert!(plan.next(&wanted, |_| None, NOW + HOUR_S).is_some());
    }
}
