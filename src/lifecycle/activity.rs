//! Who uses a container now, and since when nobody does: what a sleep is decided by.
//!
//! A surface that is about to use a container says so with [`Activities::enter`] *before* it looks at the container's phase, and
//! holds what it gets for as long as the use lasts: a request until its response has ended, an upgraded connection until it
//! closes. A sleep closes the door first and looks who is inside afterwards:
//!
//! ```text
//!  a request:  enter ─► door closed? ──no──► look at the phase, go on
//!                            └─yes─► asleep, or about to be: wake it
//!  a sleep:    close the door ─► anybody inside? ──no──► stop it, open the door
//!                                     └─yes─► open the door: it is in use
//! ```
//!
//! Both first write and then read, in one order for all (`SeqCst`), so at least one of the two sees the other: no request meets
//! a container that is being put to sleep under it. Where both see each other the sleep gives way.
//!
//! Kept in memory alone: after a restart of the daemon everybody counts as just used.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::domain::ContainerId;

/// The activity of every container that was used since the daemon began.
#[derive(Debug)]
pub struct Activities {
    clock: Clock,
    by_container: Mutex<HashMap<ContainerId, Arc<Activity>>>,
}

/// A moment both as time passes and as people read it.
#[derive(Debug, Clone, Copy)]
struct Clock {
    began: Instant,
    began_at: Timestamp,
}

impl Clock {
    fn now_ms(self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn at(self, ms: u64) -> Timestamp {
        let passed = SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX));
        self.began_at.checked_add(passed).unwrap_or(Timestamp::MAX)
    }
}

/// One container's.
#[derive(Debug, Default)]
struct Activity {
    inside: AtomicUsize,
    closed: AtomicBool,
    /// When the last use began or ended, in milliseconds since the clock began.
    last_ms: AtomicU64,
}

/// A use that goes on until it is dropped.
#[derive(Debug)]
pub struct InUse {
    activity: Arc<Activity>,
    clock: Clock,
}

impl InUse {
    /// Whether the container is being put to sleep; what the phase says is then about to change.
    pub fn is_closing(&self) -> bool {
        self.activity.closed.load(Ordering::SeqCst)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.activity.last_ms.fetch_max(self.clock.now_ms(), Ordering::SeqCst);
        self.activity.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A door that was closed behind the last one; opened again when dropped.
#[derive(Debug)]
pub struct Closed(Arc<Activity>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.store(false, Ordering::SeqCst);
    }
}

/// How a container was used lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Requests and upgraded connections that are open, commands that run.
    pub open: usize,
    /// When the last one began or ended; `None`: not since the daemon began.
    pub last_at: Option<Timestamp>,
    /// How long ago that is, or how long the daemon runs.
    pub since: Duration,
}

impl Default for Activities {
    fn default() -> Self {
        let clock = Clock { began: Instant::now(), began_at: Timestamp::now() };
        Self { clock, by_container: Mutex::default() }
    }
}

impl Activities {
    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<Activity>>> {
        self.by_container.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, id: ContainerId) -> Arc<Activity> {
        self.lock().entry(id).or_default().clone()
    }

    /// Begins a use of a container that there is.
    pub fn enter(&self, id: ContainerId) -> InUse {
        let activity = self.of(id);
        activity.inside.fetch_add(1, Ordering::SeqCst);
        activity.last_ms.fetch_max(self.clock.now_ms(), Ordering::SeqCst);
        InUse { activity, clock: self.clock }
    }

    /// Closes the door of a container that nobody has used for so long; `None`: somebody has.
    pub fn close(&self, id: ContainerId, silence: Duration) -> Option<Closed> {
        let activity = self.of(id);
        if activity.closed.swap(true, Ordering::SeqCst) {
            return None;
        }
        let closed = Closed(activity);
        (closed.0.inside.load(Ordering::SeqCst) == 0 && self.since(&closed.0) >= silence).then_some(closed)
    }

    /// How a container was used lately.
    pub fn usage(&self, id: ContainerId) -> Usage {
        let known = self.lock().get(&id).cloned();
        let last_at = known.as_ref().map(|activity| self.clock.at(activity.last_ms.load(Ordering::SeqCst)));
        let activity = known.unwrap_or_default();
        Usage { open: activity.inside.load(Ordering::SeqCst), last_at, since: self.since(&activity) }
    }

    fn since(&self, activity: &Activity) -> Duration {
        Duration::from_millis(self.clock.now_ms().saturating_sub(activity.last_ms.load(Ordering::SeqCst)))
    }

    /// Counts as just used: it was started.
    pub fn touch(&self, id: ContainerId) {
        drop(self.enter(id));
    }

    /// Forgets a container that is gone.
    pub fn forget(&self, id: ContainerId) {
        self.lock().remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ContainerId = ContainerId::NIL;

    #[test]
    fn a_container_in_use_is_not_closed_and_one_that_was_just_used_neither() {
        let activities = Activities::default();
        let one = activities.enter(ID);
        let other = activities.enter(ID);
        assert_eq!(activities.usage(ID).open, 2);
        assert!(activities.close(ID, Duration::ZERO).is_none());
        drop((one, other));
        assert!(activities.close(ID, Duration::from_secs(60)).is_none());
        assert!(activities.close(ID, Duration::ZERO).is_some());
    }

    #[test]
    fn whoever_comes_while_it_is_being_closed_is_told() {
        let activities = Activities::default();
        let closed = activities.close(ID, Duration::ZERO).unwrap();
        assert!(activities.enter(ID).is_closing());
        assert!(activities.close(ID, Duration::ZERO).is_none(), "it is closed already");
        drop(closed);
        assert!(!activities.enter(ID).is_closing());
    }

    #[test]
    fn a_request_and_a_sleep_never_miss_each_other() {
        const ROUNDS: usize = 2_000;
        for _ in 0..ROUNDS {
            let activities = Arc::new(Activities::default());
            let (sleeper, guest) = (activities.clone(), activities);
            let asleep = std::thread::spawn(move || sleeper.close(ID, Duration::ZERO));
            let entered = guest.enter(ID);
            let warned = entered.is_closing();
            let asleep = asleep.join().unwrap();
            // The guest that saw an open door must have been seen, unless it came after the door was opened again.
            assert!(warned || asleep.is_none(), "a request went into a container that is put to sleep");
        }
    }
}
