//! Connections to containers, kept apart by who is at the other end.
//!
//! Addresses are reused: when a container stops, another may get its address. So a connection is known by the
//! container, the epoch of its start, and the address; what was pooled for one epoch is closed when a later one is
//! seen, and never handed out for another.
//!
//! A connection is either idle in here or in a [`Lease`]; a lease that is dropped, not given back, closes it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::http1::SendRequest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::body::RequestBody;
use super::{Occupancy, Upstream};
use crate::domain::ContainerId;

/// A connection to a container: where requests go in, and the task that moves its bytes.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<RequestBody>,
    driver: AbortHandle,
}

impl Connection {
    pub(super) fn new(sender: SendRequest<RequestBody>, driver: AbortHandle) -> Self {
        Self { sender, driver }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A driver whose request body never ends would outlive its sender.
        self.driver.abort();
    }
}

#[derive(Debug)]
struct Idle {
    addr: SocketAddr,
    since: Instant,
    connection: Connection,
}

#[derive(Debug)]
struct Entry {
    epoch: u64,
    slots: Arc<Semaphore>,
    /// Oldest first; taken from the end, so that the warmest is used and the rest expires.
    idle: Vec<Idle>,
}

#[derive(Debug, Default)]
struct Entries {
    by_container: HashMap<ContainerId, Entry>,
    idle_total: usize,
}

/// The bounds of a [`Pool`].
#[derive(Debug, Clone, Copy)]
pub(super) struct PoolBounds {
    pub per_upstream_max: usize,
    pub idle_per_upstream_max: usize,
    pub idle_max: usize,
    pub idle_for_max: Duration,
}

/// Idle connections and the open count, per container. The lock is held for a map lookup, never across an await.
#[derive(Debug)]
pub(super) struct Pool {
    bounds: PoolBounds,
    entries: Mutex<Entries>,
}

/// What [`Pool::enter`] found.
#[derive(Debug)]
pub(super) struct Entered {
    pub slots: Arc<Semaphore>,
    pub connection: Option<Connection>,
}

impl Pool {
    pub(super) fn new(bounds: PoolBounds) -> Self {
        Self { bounds, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // No code panics while it holds the lock; the data is good either way.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots of a container, and an idle connection to exactly this upstream if there is one.
    pub(super) fn enter(&self, upstream: &Upstream) -> Entered {
        let now = Instant::now();
        let mut outdated = Vec::new();
        let mut entries = self.lock();
        let Entries { by_container, idle_total } = &mut *entries;
        let entry = by_container.entry(upstream.container).or_insert_with(|| Entry {
            epoch: upstream.epoch,
            slots: Arc::new(Semaphore::new(self.bounds.per_upstream_max)),
            idle: Vec::new(),
        });
        if upstream.epoch > entry.epoch {
            entry.epoch = upstream.epoch;
            *idle_total -= entry.idle.len();
            outdated = std::mem::take(&mut entry.idle);
        }
        let slots = Arc::clone(&entry.slots);
        let fits = |idle: &Idle| idle.addr == upstream.addr && now - idle.since < self.bounds.idle_for_max;
        let found = match entry.idle.iter().rposition(fits) {
            Some(at) if entry.epoch == upstream.epoch => {
                *idle_total -= 1;
                Some(entry.idle.remove(at).connection)
            }
            _ => None,
        };
        drop(entries);
        drop(outdated);
        Entered { slots, connection: found.filter(|c| !c.sender.is_closed()) }
    }

    fn put(&self, upstream: &Upstream, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut entries = self.lock();
        let Entries { by_container, idle_total } = &mut *entries;
        let Some(entry) = by_container.get_mut(&upstream.container) else { return };
        let room = *idle_total < self.bounds.idle_max && entry.idle.len() < self.bounds.idle_per_upstream_max;
        if entry.epoch == upstream.epoch && room {
            *idle_total += 1;
            entry.idle.push(Idle { addr: upstream.addr, since: Instant::now(), connection });
        }
    }

    /// Closes the idle connections of a container, as when it stops.
    pub(super) fn forget(&self, container: ContainerId) {
        let mut entries = self.lock();
        let idle = entries.by_container.get_mut(&container).map(|e| std::mem::take(&mut e.idle)).unwrap_or_default();
        entries.idle_total -= idle.len();
    }

    /// Closes what idled for too long, and forgets containers with nothing open.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        let mut entries = self.lock();
        let Entries { by_container, idle_total } = &mut *entries;
        by_container.retain(|_, entry| {
            let old = entry.idle.partition_point(|idle| now - idle.since >= self.bounds.idle_for_max);
            expired.extend(entry.idle.drain(..old));
            // A permit and a waiter each hold the slots.
            !entry.idle.is_empty() || Arc::strong_count(&entry.slots) > 1
        });
        *idle_total -= expired.len();
        drop(entries);
    }

    /// Closes every idle connection.
    pub(super) fn clear(&self) {
        *self.lock() = Entries::default();
    }

    /// Idle connections over all containers.
    pub(super) fn idle_total(&self) -> usize {
        self.lock().idle_total
    }
}

/// A connection in use, and the slot it takes.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) connection: Connection,
    pub(super) upstream: Upstream,
    pub(super) pool: Arc<Pool>,
    /// Keeps the container awake.
    pub(super) in_use: Option<Box<dyn Occupancy>>,
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Lease {
    /// Returns the connection for the next request.
    pub(super) fn give_back(self) {
        let Self { connection, upstream, pool, .. } = self;
        pool.put(&upstream, connection);
    }
}
