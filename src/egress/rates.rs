//! How often each tenant may come: a bucket of tokens each, which fills by time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::ContainerId;

/// Between two looks for full buckets, which are as good as none, in seconds.
const SWEEP_S: u64 = 10;
/// Parts of a token: what a millisecond adds at one a second.
const PARTS: u64 = 1_000;

/// A rate, kept for each tenant on its own.
#[derive(Debug)]
pub(super) struct Rates {
    per_second: u32,
    burst: u32,
    buckets: Mutex<Buckets>,
}

#[derive(Debug)]
struct Buckets {
    of: HashMap<ContainerId, Bucket>,
    swept: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    parts: u64,
    filled: Instant,
}

impl Rates {
    /// So many a second, and so many at once after a pause.
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self { per_second, burst, buckets: Mutex::new(Buckets { of: HashMap::new(), swept: now }) }
    }

    /// Whether the tenant may come now; it is counted if so.
    pub(super) fn admits(&self, tenant: ContainerId, now: Instant) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(buckets.swept) >= Duration::from_secs(SWEEP_S) {
            buckets.swept = now;
            buckets.of.retain(|_, bucket| self.filled(*bucket, now).parts < self.full());
        }
        let bucket = buckets.of.entry(tenant).or_insert(Bucket { parts: self.full(), filled: now });
        *bucket = self.filled(*bucket, now);
        match bucket.parts.checked_sub(PARTS) {
            Some(left) => {
                bucket.parts = left;
                true
            }
            None => false,
        }
    }

    fn full(&self) -> u64 {
        u64::from(self.burst) * PARTS
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> Bucket {
        let passed_ms = u64::try_from(now.saturating_duration_since(bucket.filled).as_millis()).unwrap_or(u64::MAX);
        if passed_ms == 0 {
            // What is less than a millisecond counts later: asked often, time would otherwise stand still.
            return bucket;
        }
        let added = passed_ms.saturating_mul(self.per_second.into());
        Bucket { parts: bucket.parts.saturating_add(added).min(self.full()), filled: now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_then_the_rate_and_each_tenant_for_itself() {
        let now = Instant::now();
        let rates = Rates::new(10, 30, now);
        let (one, two) = (ContainerId::generate(), ContainerId::generate());
        let burst = (0..100).filter(|_| rates.admits(one, now)).count();
        assert_eq!(burst, 30);
        assert!(rates.admits(two, now));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..100).filter(|_| rates.admits(one, later)).count(), 10);
    }

    #[test]
    fn who_was_silent_for_long_is_forgotten() {
        let now = Instant::now();
        let rates = Rates::new(10, 30, now);
        assert!((0..50).all(|_| rates.admits(ContainerId::generate(), now)));
        assert!(rates.admits(ContainerId::generate(), now + Duration::from_secs(60)));
        assert_eq!(rates.buckets.lock().unwrap().of.len(), 1);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate_allow(pauses in proptest::collection::vec(0u64..200_000, 1..300)) {
            let began = Instant::now();
            let rates = Rates::new(50, 20, began);
            let tenant = ContainerId::generate();
            let (mut now, mut admitted) = (began, 0.0);
            for pause_us in pauses {
                now += Duration::from_micros(pause_us);
                admitted += f64::from(u8::from(rates.admits(tenant, now)));
                prop_assert!(admitted <= 20.0 + 50.0 * (now - began).as_secs_f64() + 1e-6);
            }
        }
    }
}
