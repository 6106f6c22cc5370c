//! Connections to containers, kept apart by who is at the other end.
//!
//! Addresses are reused: when a container stops, another may get its address. So a connection is known by the
//! container, the epoch of its start, and the address; what was pooled for one epoch is closed when a later one is
//! seen, and never handed out for another. Each thread of the proxy has its own idle ones: what a connection brings is
//! noticed by the thread that made it.
//!
//! A connection is either idle in here or in a [`Lease`]; a lease that is dropped, not given back, closes it.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::body::RequestBody;
use super::io::Deadline;
use super::threads::Home;
use super::{Occupancy, Upstream};
use crate::domain::ContainerId;

/// A connection to a container: where requests go in, and what moves its bytes.
pub(super) struct Connection {
    sender: SendRequest<RequestBody>,
    driver: Driver,
    /// Of the exchange that is under way; kept, so that its timer is.
    deadline: Deadline,
}

/// What moves a connection's bytes: hyper's future for it.
///
/// Nearly all requests have no body. Such an exchange moves only when its client's task looks at it, so that task moves the
/// connection as well, and a response crosses no queue between two tasks. With a body, or after an upgrade, both directions
/// must move for themselves: a client may send all before it reads anything.
enum Driver {
    /// By whoever uses the connection.
    Here(Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>),
    /// By a task of its own.
    Apart(AbortHandle),
    /// It has ended.
    Done,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn new(
        sender: SendRequest<RequestBody>,
        driver: impl Future<Output = hyper::Result<()>> + Send + 'static,
    ) -> Self {
        Self { sender, driver: Driver::Here(Box::pin(driver)), deadline: Deadline::default() }
    }

    /// Moves bytes, as far as they go.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Driver::Here(driver) = &mut self.driver
            && let Poll::Ready(ended) = driver.as_mut().poll(cx)
        {
            note(ended);
            self.driver = Driver::Done;
        }
    }

    /// Lets a task of its own move the bytes from now on.
    pub(super) fn drive_apart(&mut self) {
        match mem::replace(&mut self.driver, Driver::Done) {
            Driver::Here(driver) => {
                let task = tokio::spawn(async move { note(driver.await) });
                self.driver = Driver::Apart(task.abort_handle());
            }
            other => self.driver = other,
        }
    }

    /// Waits until a request can be sent, at most so long; whether one can.
    pub(super) async fn ready(&mut self, wait_max: Duration) -> bool {
        self.deadline.set_after(wait_max);
        let ready = poll_fn(|cx| {
            self.drive(cx);
            match self.sender.poll_ready(cx) {
                Poll::Ready(ready) => Poll::Ready(ready.is_ok()),
                Poll::Pending => self.deadline.poll_passed(cx).map(|()| false),
            }
        })
        .await;
        self.deadline.clear();
        ready
    }

    /// Hands a request over. The response comes where [`Connection::within`] waits for it.
    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.sender.try_send_request(request)
    }

    /// Waits for what this connection brings, at most so long; `None`: it did not come.
    pub(super) async fn within<T>(
        &mut self,
        wait_max: Duration,
        mut what: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        self.deadline.set_after(wait_max);
        let came = poll_fn(|cx| {
            self.drive(cx);
            match what.as_mut().poll(cx) {
                Poll::Ready(came) => Poll::Ready(Some(came)),
                Poll::Pending => self.deadline.poll_passed(cx).map(|()| None),
            }
        })
        .await;
        self.deadline.clear();
        came
    }
}

fn note(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "connection to a container ended early");
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A driver whose request body never ends would outlive its sender.
        if let Driver::Apart(task) = &self.driver {
            task.abort();
        }
    }
}

/// A connection that waits for a request.
#[derive(Debug)]
pub(super) enum Kept {
    /// Of plain exchanges, which keep no state between requests.
    Bare(TcpStream),
    /// Driven by hyper.
    Http(Connection),
}

impl Kept {
    /// Whether it stands, and nothing came unasked.
    pub(super) fn is_good(&self) -> bool {
        match self {
            // Looks at what the kernel has told already: a system call is made only where it told of something.
            Self::Bare(stream) => {
                stream.try_read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Http(connection) => !connection.sender.is_closed(),
        }
    }
}

/// What a connection is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// A plain exchange.
    Bare,
    /// Any exchange.
    Any,
    /// A place alone, for a connection of its own.
    Nothing,
}

#[derive(Debug)]
struct Idle {
    addr: SocketAddr,
    since: Instant,
    kept: Kept,
}

#[derive(Debug)]
struct Entry {
    epoch: u64,
    slots: Arc<Semaphore>,
    /// By thread; oldest first: taken from the end, so that the warmest is used and the rest expires.
    idle: Vec<Vec<Idle>>,
}

impl Entry {
    fn idle_count(&self) -> usize {
        self.idle.iter().map(Vec::len).sum()
    }

    /// Takes all idle connections out.
    fn clear(&mut self) -> Vec<Idle> {
        self.idle.iter_mut().flat_map(mem::take).collect()
    }
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
    threads: usize,
    entries: Mutex<Entries>,
}

/// What [`Pool::enter`] found.
#[derive(Debug)]
pub(super) struct Entered {
    pub slots: Arc<Semaphore>,
    pub kept: Option<Kept>,
}

impl Pool {
    pub(super) fn new(bounds: PoolBounds, threads: usize) -> Self {
        Self { bounds, threads, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // No code panics while it holds the lock; the data is good either way.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots of a container, and an idle connection of this thread to exactly this upstream if there is one.
    pub(super) fn enter(&self, home: Home, upstream: &Upstream, wants: Wants) -> Entered {
        let now = Instant::now();
        let mut outdated = Vec::new();
        let mut entries = self.lock();
        let Entries { by_container, idle_total } = &mut *entries;
        let entry = by_container.entry(upstream.container).or_insert_with(|| Entry {
            epoch: upstream.epoch,
            slots: Arc::new(Semaphore::new(self.bounds.per_upstream_max)),
            idle: (0..self.threads).map(|_| Vec::new()).collect(),
        });
        if upstream.epoch > entry.epoch {
            entry.epoch = upstream.epoch;
            outdated = entry.clear();
            *idle_total -= outdated.len();
        }
        let slots = Arc::clone(&entry.slots);
        let fits = |idle: &Idle| {
            let serves = match wants {
                Wants::Bare => matches!(idle.kept, Kept::Bare(_)),
                Wants::Any => true,
                Wants::Nothing => false,
            };
            serves && idle.addr == upstream.addr && now - idle.since < self.bounds.idle_for_max
        };
        let found = match entry.idle.get_mut(home.0) {
            Some(idle) if entry.epoch == upstream.epoch => idle.iter().rposition(fits).map(|at| {
                *idle_total -= 1;
                idle.remove(at).kept
            }),
            _ => None,
        };
        drop(entries);
        drop(outdated);
        Entered { slots, kept: found }
    }

    /// Keeps a connection on which nothing is under way.
    pub(super) fn put(&self, home: Home, upstream: &Upstream, kept: Kept) {
        let mut entries = self.lock();
        let Entries { by_container, idle_total } = &mut *entries;
        let Some(entry) = by_container.get_mut(&upstream.container) else { return };
        if entry.epoch != upstream.epoch {
            return;
        }
        let is_full = entry.idle_count() >= self.bounds.idle_per_upstream_max;
        let Some(idle) = entry.idle.get_mut(home.0) else { return };
        // The one that waited for longest makes room: it may be of a kind that nobody wants any more.
        let outdated = (is_full && !idle.is_empty()).then(|| idle.remove(0));
        *idle_total -= usize::from(outdated.is_some());
        if *idle_total < self.bounds.idle_max && (outdated.is_some() || !is_full) {
            *idle_total += 1;
            idle.push(Idle { addr: upstream.addr, since: Instant::now(), kept });
        }
        drop(entries);
        drop(outdated);
    }

    /// Closes the idle connections of a container, as when it stops.
    pub(super) fn forget(&self, container: ContainerId) {
        let mut entries = self.lock();
        let idle = entries.by_container.get_mut(&container).map(Entry::clear).unwrap_or_default();
        entries.idle_total -= idle.len();
    }

    /// Closes what idled for too long, and forgets containers with nothing open.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        let mut entries = self.lock();
        let Entries { by_container, idle_total } = &mut *entries;
        by_container.retain(|_, entry| {
            for idle in &mut entry.idle {
                let old = idle.partition_point(|idle| now - idle.since >= self.bounds.idle_for_max);
                expired.extend(idle.drain(..old));
            }
            // A permit and a waiter each hold the slots.
            entry.idle_count() > 0 || Arc::strong_count(&entry.slots) > 1
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
    /// The thread that made it.
    pub(super) home: Home,
    pub(super) upstream: Upstream,
    pub(super) pool: Arc<Pool>,
    /// Keeps the container awake.
    pub(super) in_use: Option<Box<dyn Occupancy>>,
    pub(super) _slot: OwnedSemaphorePermit,
}

impl Lease {
    /// Returns the connection for the next request.
    pub(super) fn give_back(self) {
        let Self { connection, home, upstream, pool, .. } = self;
        if !connection.sender.is_closed() {
            pool.put(home, &upstream, Kept::Http(connection));
        }
    }
}
