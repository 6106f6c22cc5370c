//! How many of each thing are open, for metrics and for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Live counters of a proxy.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub connections: Arc<AtomicUsize>,
    pub exchanges: Arc<AtomicUsize>,
    pub tunnels: Arc<AtomicUsize>,
}

/// What a proxy has open at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Connections of clients, tunnels included.
    pub connections: usize,
    /// Requests whose response is not finished.
    pub exchanges: usize,
    /// Upgraded connections.
    pub tunnels: usize,
    /// Connections to containers that wait for a request.
    pub idle_upstreams: usize,
}

/// One open thing; counted until dropped.
#[derive(Debug)]
pub(super) struct Open(Arc<AtomicUsize>);

impl Open {
    pub(super) fn count(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
