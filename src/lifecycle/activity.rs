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

use crate::domain::{ActivitySources, ContainerId};

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

/// Uses that last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// A request, until its response has ended.
    Request,
    /// A request that wakes nobody, such as a probe's: it is not cut off, and keeps nobody awake for longer than it lasts.
    Probe,
    /// An upgraded connection, until it closes.
    Connection,
    /// A command, until it ends.
    Exec,
}

/// How many kinds of them there are.
const USES: usize = 4;

/// What a container was last used by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A request began or ended.
    Request,
    /// An upgraded connection began, carried a byte, or ended.
    Connection,
    /// A command began or ended.
    Exec,
    /// It was started or thawed: always counts.
    Start,
    /// It asked for it from inside; this one may lie in the future.
    Keepalive,
    /// It used more of the processor than its floor.
    Cpu,
}

impl Sign {
    const ALL: [Self; 6] = [Self::Request, Self::Connection, Self::Exec, Self::Start, Self::Keepalive, Self::Cpu];

    const fn of(usage: Use) -> Option<Self> {
        match usage {
            Use::Request => Some(Self::Request),
            Use::Probe => None,
            Use::Connection => Some(Self::Connection),
            Use::Exec => Some(Self::Exec),
        }
    }

    const fn counts(self, sources: &ActivitySources) -> bool {
        match self {
            Self::Start => true,
            Self::Request => sources.requests,
            Self::Connection => sources.connections,
            Self::Exec => sources.exec,
            Self::Keepalive => sources.keepalive,
            Self::Cpu => sources.cpu.is_some(),
        }
    }
}

/// One container's.
#[derive(Debug, Default)]
struct Activity {
    inside: [AtomicUsize; USES],
    closed: AtomicBool,
    /// When each sign was last seen, in milliseconds since the clock began.
    last_ms: [AtomicU64; Sign::ALL.len()],
}

impl Activity {
    fn note(&self, sign: Sign, at_ms: u64) {
        self.last_ms[sign as usize].fetch_max(at_ms, Ordering::SeqCst);
    }

    fn last(&self, sign: Sign) -> u64 {
        self.last_ms[sign as usize].load(Ordering::SeqCst)
    }

    fn inside(&self, usage: Use) -> usize {
        self.inside[usage as usize].load(Ordering::SeqCst)
    }

    /// The last sign among those that count, and when it was.
    fn latest(&self, sources: &ActivitySources) -> (Sign, u64) {
        let counting = Sign::ALL.into_iter().filter(|sign| sign.counts(sources));
        counting.map(|sign| (sign, self.last(sign))).max_by_key(|(_, at)| *at).unwrap_or((Sign::Start, 0))
    }

    /// Uses that keep it awake now. Of connections it is enough to know when the last byte of any went.
    fn open(&self, sources: &ActivitySources, now_ms: u64) -> Open {
        let silent = Duration::from_millis(now_ms.saturating_sub(self.last(Sign::Connection)));
        let lease = sources.connections && sources.connection_idle().is_none_or(|idle| silent < idle);
        Open {
            requests: self.inside(Use::Request) + self.inside(Use::Probe),
            connections: if lease { self.inside(Use::Connection) } else { 0 },
            commands: if sources.exec { self.inside(Use::Exec) } else { 0 },
        }
    }
}

/// A use that goes on until it is dropped.
#[derive(Debug)]
pub struct InUse {
    activity: Arc<Activity>,
    clock: Clock,
    usage: Use,
}

impl InUse {
    /// Whether the container is being put to sleep; what the phase says is then about to change.
    pub fn is_closing(&self) -> bool {
        self.activity.closed.load(Ordering::SeqCst)
    }

    /// It is another use from now on: a request has become a connection. At no moment it is none.
    pub fn become_use(&mut self, usage: Use) {
        let before = std::mem::replace(&mut self.usage, usage);
        self.stir();
        self.activity.inside[usage as usize].fetch_add(1, Ordering::SeqCst);
        self.activity.inside[before as usize].fetch_sub(1, Ordering::SeqCst);
    }

    /// Something happened in it: a byte went.
    pub fn stir(&self) {
        if let Some(sign) = Sign::of(self.usage) {
            self.activity.note(sign, self.clock.now_ms());
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.stir();
        self.activity.inside[self.usage as usize].fetch_sub(1, Ordering::SeqCst);
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

/// Uses that keep a container awake, as they are now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each counts what it is named after")]
pub struct Open {
    pub requests: usize,
    pub connections: usize,
    pub commands: usize,
}

impl Open {
    /// Whether there is none.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// How a container was used lately, as far as it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// What keeps it awake now.
    pub open: Open,
    /// When it was last used by anything; `None`: not since the daemon began.
    pub last_at: Option<Timestamp>,
    /// How long ago the last use was that counts, or how long the daemon runs.
    pub since: Duration,
    /// What that was.
    pub by: Sign,
    /// How much longer it has asked for to be kept awake.
    pub kept: Duration,
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
    pub fn enter(&self, id: ContainerId, usage: Use) -> InUse {
        let activity = self.of(id);
        activity.inside[usage as usize].fetch_add(1, Ordering::SeqCst);
        let in_use = InUse { activity, clock: self.clock, usage };
        in_use.stir();
        in_use
    }

    /// Closes the door of a container that nobody has used for so long; `None`: somebody has.
    pub fn close(&self, id: ContainerId, sources: &ActivitySources, silence: Duration) -> Option<Closed> {
        let activity = self.of(id);
        if activity.closed.swap(true, Ordering::SeqCst) {
            return None;
        }
        let closed = Closed(activity);
        let now_ms = self.clock.now_ms();
        // What it asked for may lie in the future: that is no silence, not even of no length.
        let silent_ms = now_ms.checked_sub(closed.0.latest(sources).1);
        let silent = silent_ms.is_some_and(|ms| Duration::from_millis(ms) >= silence);
        (closed.0.open(sources, now_ms).is_none() && silent).then_some(closed)
    }

    /// How a container was used lately.
    pub fn usage(&self, id: ContainerId, sources: &ActivitySources) -> Usage {
        let now_ms = self.clock.now_ms();
        let known = self.lock().get(&id).cloned();
        let is_known = known.is_some();
        let activity = known.unwrap_or_default();
        let last_ms = Sign::ALL.into_iter().map(|sign| activity.last(sign)).max().unwrap_or(0).min(now_ms);
        let (by, at) = activity.latest(sources);
        Usage {
            open: activity.open(sources, now_ms),
            last_at: is_known.then(|| self.clock.at(last_ms)),
            since: Duration::from_millis(now_ms.saturating_sub(at)),
            by,
            kept: match by {
                Sign::Keepalive => Duration::from_millis(at.saturating_sub(now_ms)),
                _ => Duration::ZERO,
            },
        }
    }

    /// Notes a use that does not last.
    pub fn note(&self, id: ContainerId, sign: Sign) {
        self.of(id).note(sign, self.clock.now_ms());
    }

    /// Counts as used for so long from now on; `false`: it is being put to sleep at this moment.
    pub fn keep(&self, id: ContainerId, time: Duration) -> bool {
        let activity = self.of(id);
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        activity.note(Sign::Keepalive, self.clock.now_ms().saturating_add(time_ms));
        !activity.closed.load(Ordering::SeqCst)
    }

    /// A stop or a start ends what was asked for from inside.
    pub fn keep_no_longer(&self, id: ContainerId) {
        let activity = self.of(id);
        activity.last_ms[Sign::Keepalive as usize].fetch_min(self.clock.now_ms(), Ordering::SeqCst);
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
    const ALL: ActivitySources = ActivitySources {
        requests: true,
        connections: true,
        connection_idle_s: None,
        exec: true,
        keepalive: true,
        cpu: None,
    };

    #[test]
    fn a_container_in_use_is_not_closed_and_one_that_was_just_used_neither() {
        let activities = Activities::default();
        let one = activities.enter(ID, Use::Request);
        let other = activities.enter(ID, Use::Exec);
        let open = activities.usage(ID, &ALL).open;
        assert_eq!(open, Open { requests: 1, connections: 0, commands: 1 });
        assert!(activities.close(ID, &ALL, Duration::ZERO).is_none());
        drop((one, other));
        assert!(activities.close(ID, &ALL, Duration::from_secs(60)).is_none());
        assert!(activities.close(ID, &ALL, Duration::ZERO).is_some());
    }

    #[test]
    fn whoever_comes_while_it_is_being_closed_is_told() {
        let activities = Activities::default();
        let closed = activities.close(ID, &ALL, Duration::ZERO).unwrap();
        assert!(activities.enter(ID, Use::Request).is_closing());
        assert!(!activities.keep(ID, Duration::ZERO));
        assert!(activities.close(ID, &ALL, Duration::ZERO).is_none(), "it is closed already");
        drop(closed);
        assert!(!activities.enter(ID, Use::Request).is_closing());
        assert!(activities.keep(ID, Duration::ZERO));
    }

    #[test]
    fn what_is_switched_off_keeps_nothing_awake_but_an_open_request_is_never_cut_off() {
        let none = ActivitySources { requests: false, connections: false, exec: false, keepalive: false, ..ALL };
        let activities = Activities::default();
        let command = activities.enter(ID, Use::Exec);
        let mut connection = activities.enter(ID, Use::Request);
        assert!(activities.close(ID, &none, Duration::ZERO).is_none(), "a request is open");
        connection.become_use(Use::Connection);
        activities.keep(ID, Duration::from_secs(60));
        activities.note(ID, Sign::Cpu);
        assert_eq!(activities.usage(ID, &none).by, Sign::Start);
        assert!(activities.close(ID, &none, Duration::ZERO).is_some());
        assert!(activities.close(ID, &ALL, Duration::ZERO).is_none());
        drop((command, connection));
        assert!(activities.close(ID, &ALL, Duration::ZERO).is_none(), "it asked to be kept awake");
        activities.keep_no_longer(ID);
        assert!(activities.close(ID, &ALL, Duration::ZERO).is_some());
    }

    #[test]
    fn a_connection_without_a_byte_counts_no_longer() {
        let activities = Activities::default();
        let limited = ActivitySources { connection_idle_s: Some(0), ..ALL };
        let mut connection = activities.enter(ID, Use::Request);
        connection.become_use(Use::Connection);
        assert_eq!(activities.usage(ID, &ALL).open.connections, 1);
        assert_eq!(activities.usage(ID, &limited).open.connections, 0);
        let limited = ActivitySources { connection_idle_s: Some(60), ..ALL };
        assert!(activities.close(ID, &limited, Duration::ZERO).is_none(), "a byte went not long ago");
    }

    #[test]
    fn a_probe_is_not_cut_off_and_does_not_begin_the_silence_anew() {
        let activities = Activities::default();
        std::thread::sleep(Duration::from_millis(30));
        let probe = activities.enter(ID, Use::Probe);
        assert!(activities.close(ID, &ALL, Duration::ZERO).is_none());
        drop(probe);
        assert!(activities.usage(ID, &ALL).since >= Duration::from_millis(30));
        assert!(activities.close(ID, &ALL, Duration::from_millis(30)).is_some());
    }

    #[test]
    fn a_request_and_a_sleep_never_miss_each_other() {
        const ROUNDS: usize = 2_000;
        for _ in 0..ROUNDS {
            let activities = Arc::new(Activities::default());
            let (sleeper, guest) = (activities.clone(), activities);
            let asleep = std::thread::spawn(move || sleeper.close(ID, &ALL, Duration::ZERO));
            let entered = guest.enter(ID, Use::Request);
            let warned = entered.is_closing();
            let asleep = asleep.join().unwrap();
            // The guest that saw an open door must have been seen, unless it came after the door was opened again.
            assert!(warned || asleep.is_none(), "a request went into a container that is put to sleep");
        }
    }
}
