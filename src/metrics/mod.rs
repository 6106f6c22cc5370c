//! Counts of what happens, and the text in which Prometheus reads them.
//!
//! Each floor keeps its own counts beside what it counts; whoever serves `/metrics` asks each to write them down. There is no
//! registry that all share: a count is an atomic in the struct it belongs to, a gauge is read when it is asked for, and a
//! test's daemon counts for itself.
//!
//! Bounded: a label's values are a fixed set of words, or are held to a number by who counts ([`Busiest`]).

mod busiest;
mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use busiest::{Busiest, LABELLED_MAX, Weighs};
pub use text::{Family, Format, Text};

/// Who has counts to write down.
pub trait Source: Send + Sync {
    /// Writes them, as they are now.
    fn write(&self, text: &mut Text);
}

/// Goes up.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, many: u64) {
        self.0.fetch_add(many, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where the buckets of a histogram end, in microseconds: from a request to a static file to one that waits for a wake.
const BUCKETS_US: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000,
];

/// How long things took. Two additions each, no lock.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Each counts what fell between the bound before and its own; the last has none.
    buckets: [AtomicU64; BUCKETS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Notes that something took so long.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US.partition_point(|bound| *bound < us);
        // One more than bounds: always there.
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// How many there were up to each bound, the last without one; and the sum, in seconds.
    fn cumulated(&self) -> (Vec<(f64, u64)>, f64) {
        let bounds = BUCKETS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let mut below = 0;
        let counts = self.buckets.iter().map(|bucket| {
            below += bucket.load(Ordering::Relaxed);
            below
        });
        (bounds.zip(counts).collect(), self.sum_us.load(Ordering::Relaxed) as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_is_no_longer_than_its_bound() {
        let histogram = Histogram::default();
        for us in [0, 500, 501, 30_000_000, 30_000_001] {
            histogram.observe(Duration::from_micros(us));
        }
        let (buckets, sum) = histogram.cumulated();
        assert_eq!(buckets[0], (0.0005, 2));
        assert_eq!(buckets[1], (0.001, 3));
        assert_eq!(buckets[BUCKETS_US.len() - 1], (30.0, 4));
        assert_eq!(buckets[BUCKETS_US.len()], (f64::INFINITY, 5));
        assert!((sum - 60.001_002).abs() < 1e-9, "{sum}");
    }
}
