//! The threads that serve clients, each with a runtime of its own.
//!
//! A connection stays on the thread it was given to, and so do the connections to containers that its requests go out on. Then what
//! comes in wakes exactly the thread that answers: a request is read, sent on, answered and written without another thread
//! being told. On a runtime of many threads each piece that arrives also wakes a second one that looks for work and finds
//! none, which cost as much as the proxying itself.
//!
//! Nothing here waits for the disk or computes for long: what wakes a container, hashes a password or reads a file runs
//! elsewhere and is waited for.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// One of the threads, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Home(pub usize);

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

/// All of them; they end when this is dropped.
#[derive(Debug)]
pub(super) struct Threads {
    all: Vec<Thread>,
    _stop: DropGuard,
}

/// A connection's place on a thread, for as long as it is held.
#[derive(Debug)]
pub(super) struct Seat {
    pub home: Home,
    pub runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Threads {
    /// Starts so many; at least one.
    ///
    /// # Errors
    /// The kernel gives no thread, or nothing to wait with.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        // Those that started end where a later one does not start.
        let guard = stop.clone().drop_guard();
        let start = |n| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let handle = runtime.handle().clone();
            let stop = stop.clone();
            let serve = move || runtime.block_on(stop.cancelled());
            thread::Builder::new().name(format!("proxy-{n}")).spawn(serve)?;
            Ok(Thread { runtime: handle, connections: Arc::default() })
        };
        let all = (0..count.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { all, _stop: guard })
    }

    /// How many there are.
    pub(super) const fn count(&self) -> usize {
        self.all.len()
    }

    /// A place on the thread that has the fewest connections. `None` only where there is no thread, which cannot be.
    pub(super) fn seat(&self) -> Option<Seat> {
        let load = |(_, thread): &(usize, &Thread)| thread.connections.load(Ordering::Relaxed);
        let (n, thread) = self.all.iter().enumerate().min_by_key(load)?;
        thread.connections.fetch_add(1, Ordering::Relaxed);
        Some(Seat { home: Home(n), runtime: thread.runtime.clone(), connections: Arc::clone(&thread.connections) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_over_the_threads_and_what_has_ended_makes_room() {
        let threads = Threads::start(2).unwrap();
        let seats: Vec<Seat> = (0..4).map(|_| threads.seat().unwrap()).collect();
        assert_eq!(seats.iter().map(|seat| seat.home.0).collect::<Vec<_>>(), [0, 1, 0, 1]);
        let [_a, b, _c, d]: [Seat; 4] = seats.try_into().unwrap();
        drop((b, d));
        assert_eq!([threads.seat().unwrap().home, threads.seat().unwrap().home], [Home(1); 2]);
    }

    #[test]
    fn there_is_always_one_and_it_ends_with_its_owner() {
        let threads = Threads::start(0).unwrap();
        assert_eq!(threads.count(), 1);
        let seat = threads.seat().unwrap();
        let (held, released) = std::sync::mpsc::channel::<()>();
        seat.runtime.spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(threads);
        // Its runtime has dropped what ran on it.
        let _closed = released.recv_timeout(std::time::Duration::from_secs(10)).unwrap_err();
        assert!(matches!(released.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
    }
}
