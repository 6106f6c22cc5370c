//! Who may start now: a herd of wakes neither drowns the machine nor those who call the API, and no project's the others'.
//!
//! ```text
//!  verbs ───────────────────────────┐
//!                                    ├─ in turns ─► at most `at_once`, of them at most `wakes_at_once` wakes,
//!  wakes ─► a line each project ─────┘              at most `wakes_per_second`
//!           projects in turns
//! ```
//!
//! The decision is pure ([`Line`]); [`Starts`] hands out permits by it. A permit is given back when it is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::Error;
use crate::config;
use crate::domain::ProjectId;

/// Parts of a start: what a microsecond adds at one a second.
const PARTS: u64 = 1_000_000;
/// Wakes that may begin at once after a pause, as a part of a second's: a herd is not let in whole.
const BURST_PART: u32 = 10;

/// Who wants to start something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Somebody who called the API, or the daemon itself.
    Verb,
    /// A request to a container of this project.
    Wake(ProjectId),
}

/// As many wakes wait as may: of all, or of one project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
enum Step<T> {
    /// This one may start.
    Go(Class, T),
    /// The next wake may start then, if nothing happens before.
    At(Instant),
    /// Nobody waits who may.
    Nothing,
}

/// The line. Pure: the time is handed in.
#[derive(Debug)]
struct Line<T> {
    bounds: config::Starts,
    running: usize,
    /// Of those that run.
    waking: usize,
    verbs: VecDeque<T>,
    wakes: HashMap<ProjectId, VecDeque<T>>,
    /// Projects that have somebody in `wakes`, each once, the next one first.
    turns: VecDeque<ProjectId>,
    waiting: usize,
    verb_was_last: bool,
    parts: u64,
    filled: Instant,
}

impl<T> Line<T> {
    fn new(bounds: config::Starts, now: Instant) -> Self {
        let (verbs, turns) = (VecDeque::new(), VecDeque::new());
        let line = Self {
            bounds,
            running: 0,
            waking: 0,
            verbs,
            wakes: HashMap::new(),
            turns,
            waiting: 0,
            verb_was_last: false,
            parts: 0,
            filled: now,
        };
        Self { parts: line.burst_parts(), ..line }
    }

    /// At least as many as may wake at once.
    fn burst_parts(&self) -> u64 {
        let burst = self.bounds.wakes_per_second.div_ceil(BURST_PART) as usize;
        burst.max(self.bounds.wakes_at_once) as u64 * PARTS
    }

    /// Half of the queue is one project's at most, so that another one always finds a place.
    fn of_one_max(&self) -> usize {
        self.bounds.queue.div_ceil(2)
    }

    fn join(&mut self, class: Class, who: T) -> Result<(), Full> {
        let Class::Wake(project) = class else {
            self.verbs.push_back(who);
            return Ok(());
        };
        let theirs = self.wakes.get(&project).map_or(0, VecDeque::len);
        if self.waiting >= self.bounds.queue || theirs >= self.of_one_max() {
            return Err(Full);
        }
        if theirs == 0 {
            self.turns.push_back(project);
        }
        self.wakes.entry(project).or_default().push_back(who);
        self.waiting += 1;
        Ok(())
    }

    fn done(&mut self, class: Class) {
        self.running -= 1;
        self.waking -= usize::from(class != Class::Verb);
    }

    fn refill(&mut self, now: Instant) {
        let passed_us = u64::try_from(now.saturating_duration_since(self.filled).as_micros()).unwrap_or(u64::MAX);
        let added = passed_us.saturating_mul(self.bounds.wakes_per_second.into());
        self.parts = self.parts.saturating_add(added).min(self.burst_parts());
        self.filled = self.filled.max(now);
    }

    fn next(&mut self, now: Instant) -> Step<T> {
        self.refill(now);
        if self.running >= self.bounds.at_once {
            return Step::Nothing;
        }
        let wake_has_room = self.waiting > 0 && self.waking < self.bounds.wakes_at_once;
        let wake_may = wake_has_room && self.parts >= PARTS;
        if !(wake_may && self.verb_was_last)
            && let Some(who) = self.verbs.pop_front()
        {
            self.running += 1;
            self.verb_was_last = true;
            return Step::Go(Class::Verb, who);
        }
        if wake_may && let Some((project, who)) = self.next_wake() {
            self.parts -= PARTS;
            self.running += 1;
            self.waking += 1;
            self.verb_was_last = false;
            return Step::Go(Class::Wake(project), who);
        }
        if wake_has_room {
            let missing = PARTS.saturating_sub(self.parts).div_ceil(self.bounds.wakes_per_second.into());
            return Step::At(now + Duration::from_micros(missing));
        }
        Step::Nothing
    }

    fn next_wake(&mut self) -> Option<(ProjectId, T)> {
        let project = self.turns.pop_front()?;
        let line = self.wakes.get_mut(&project)?;
        let who = line.pop_front()?;
        self.waiting -= 1;
        if line.is_empty() {
            self.wakes.remove(&project);
        } else {
            self.turns.push_back(project);
        }
        Some((project, who))
    }
}

/// Leave to start one container.
#[derive(Debug)]
pub struct Permit {
    starts: Arc<Starts>,
    class: Class,
    /// Taken out where the permit never reached anybody.
    held: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.held {
            self.starts.line().done(self.class);
            self.starts.pump();
        }
    }
}

/// Hands out leave to start.
#[derive(Debug)]
pub struct Starts {
    line: Mutex<Line<oneshot::Sender<Permit>>>,
    /// Whether a timer waits for the next wake's time.
    timed: AtomicBool,
}

impl Starts {
    /// With nobody in it.
    pub fn new(bounds: config::Starts) -> Arc<Self> {
        Arc::new(Self { line: Mutex::new(Line::new(bounds, Instant::now())), timed: AtomicBool::new(false) })
    }

    fn line(&self) -> MutexGuard<'_, Line<oneshot::Sender<Permit>>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leave for a verb of the API's: only verbs that came before are before it, and a wake between two of them.
    ///
    /// # Errors
    /// The daemon is going down.
    pub async fn verb(self: &Arc<Self>) -> Result<Permit, Error> {
        let permit = self.join(Class::Verb);
        permit.map_err(|Full| Error::ShuttingDown)?.await.map_err(|_closed| Error::ShuttingDown)
    }

    /// Leave for a wake, in its project's turn; `None`: the daemon is going down.
    ///
    /// # Errors
    /// Too many wait.
    pub async fn wake(self: &Arc<Self>, project: ProjectId) -> Result<Option<Permit>, Full> {
        Ok(self.join(Class::Wake(project))?.await.ok())
    }

    /// How many wait for leave.
    pub fn waiting(&self) -> usize {
        let line = self.line();
        line.verbs.len() + line.waiting
    }

    fn join(self: &Arc<Self>, class: Class) -> Result<oneshot::Receiver<Permit>, Full> {
        let (sender, receiver) = oneshot::channel();
        self.line().join(class, sender)?;
        self.pump();
        Ok(receiver)
    }

    /// Lets start who may.
    fn pump(self: &Arc<Self>) {
        loop {
            // The lock is held for the decision alone: a permit that nobody takes is given back under it.
            let step = self.line().next(Instant::now());
            match step {
                Step::Go(class, who) => {
                    let permit = Permit { starts: self.clone(), class, held: true };
                    if let Err(mut unwanted) = who.send(permit) {
                        unwanted.held = false;
                        self.line().done(class);
                    }
                }
                Step::At(time) => return self.pump_at(time),
                Step::Nothing => return,
            }
        }
    }

    fn pump_at(self: &Arc<Self>, time: Instant) {
        if self.timed.swap(true, Ordering::AcqRel) {
            return;
        }
        let starts = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until(time.into()).await;
            starts.timed.store(false, Ordering::Release);
            starts.pump();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: config::Starts = config::Starts { at_once: 4, wakes_at_once: 3, wakes_per_second: 1_000, queue: 20 };

    fn projects() -> [ProjectId; 3] {
        [ProjectId::NIL, "64b000000000000000000001".parse().unwrap(), "64b000000000000000000002".parse().unwrap()]
    }

    fn go<T: std::fmt::Debug>(line: &mut Line<T>, now: Instant) -> Vec<(Class, T)> {
        let mut gone = Vec::new();
        while let Step::Go(class, who) = line.next(now) {
            gone.push((class, who));
        }
        gone
    }

    #[test]
    fn projects_take_turns_and_none_takes_the_whole_queue() {
        let now = Instant::now();
        let bounds = config::Starts { at_once: 1, wakes_at_once: 1, ..BOUNDS };
        let (mut line, [one, two, _]) = (Line::new(bounds, now), projects());
        for n in 0..10 {
            line.join(Class::Wake(one), n).unwrap();
        }
        assert_eq!(line.join(Class::Wake(one), 99), Err(Full));
        line.join(Class::Wake(two), 100).unwrap();
        line.join(Class::Wake(two), 101).unwrap();
        let mut order = Vec::new();
        for ms in 0..12 {
            for (class, who) in go(&mut line, now + Duration::from_millis(ms)) {
                order.push(who);
                line.done(class);
            }
        }
        assert_eq!(order, [0, 100, 1, 101, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_verb_finds_room_in_a_herd_and_does_not_keep_it_out() {
        let now = Instant::now();
        let (mut line, [one, ..]) = (Line::new(BOUNDS, now), projects());
        (0..9).for_each(|n| line.join(Class::Wake(one), n).unwrap());
        assert_eq!(go(&mut line, now).len(), BOUNDS.wakes_at_once);
        (100..103).for_each(|n| line.join(Class::Verb, n).unwrap());
        assert_eq!(go(&mut line, now), [(Class::Verb, 100)], "the place that wakes may not take");
        line.done(Class::Wake(one));
        let later = now + Duration::from_secs(1);
        assert_eq!(go(&mut line, later), [(Class::Wake(one), 3)], "in turns");
        line.done(Class::Wake(one));
        assert_eq!(go(&mut line, later), [(Class::Verb, 101)]);
    }

    /// What a random run does next.
    #[derive(Debug, Clone)]
    enum Act {
        Join(Option<usize>),
        Done(usize),
        Wait(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => prop::option::weighted(0.8, 0usize..3).prop_map(Act::Join),
            3 => (0usize..8).prop_map(Act::Done),
            1 => (0u64..20_000).prop_map(Act::Wait),
        ];
        prop::collection::vec(act, 1..200)
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_every_bound_holds(acts in acts(), per_second in 1u32..2_000, at_once in 1usize..6, of in 1usize..6) {
            let bounds = config::Starts { at_once, wakes_at_once: of.min(at_once), wakes_per_second: per_second, queue: 20 };
            let began = Instant::now();
            let (mut line, projects, mut now) = (Line::new(bounds, began), projects(), began);
            let burst = (line.burst_parts() / PARTS) as f64;
            let (mut running, mut waiting, mut woken) = (Vec::<Class>::new(), Vec::<(Class, usize)>::new(), 0.0);
            // For every project that waits: grants to others since it began to, or since its last.
            let mut passed = HashMap::<ProjectId, HashMap<ProjectId, usize>>::new();
            let mut n = 0;
            let count = |running: &[Class]| (running.len(), running.iter().filter(|class| **class != Class::Verb).count());
            for act in acts {
                match act {
                    Act::Join(whose) => {
                        let class = whose.map_or(Class::Verb, |one| Class::Wake(projects[one]));
                        n += 1;
                        if line.join(class, n).is_ok() {
                            waiting.push((class, n));
                        } else {
                            let wakes = waiting.iter().filter(|(class, _)| *class != Class::Verb).count();
                            let theirs = waiting.iter().filter(|(other, _)| *other == class).count();
                            prop_assert!(wakes == 20 || theirs == 10);
                        }
                    }
                    Act::Done(which) if !running.is_empty() => line.done(running.swap_remove(which % running.len())),
                    Act::Done(_) => {}
                    Act::Wait(us) => now += Duration::from_micros(us),
                }
                for (class, who) in go(&mut line, now) {
                    let at = waiting.iter().position(|one| *one == (class, who));
                    prop_assert!(at.is_some(), "{who} was let in twice, or never came");
                    prop_assert!(!waiting[..at.unwrap()].iter().any(|(other, _)| *other == class), "out of its line's order");
                    waiting.remove(at.unwrap());
                    running.push(class);
                    if let Class::Wake(project) = class {
                        woken += 1.0;
                        passed.remove(&project);
                        let others = waiting.iter().filter_map(|(class, _)| match class {
                            Class::Wake(other) if *other != project => Some(*other),
                            _ => None,
                        });
                        for other in others.collect::<std::collections::HashSet<_>>() {
                            let times = passed.entry(other).or_default().entry(project).or_default();
                            *times += 1;
                            prop_assert!(*times <= 1, "one project came twice while another waited");
                        }
                    }
                }
                let (all, waking) = count(&running);
                prop_assert!(all <= bounds.at_once && waking <= bounds.wakes_at_once);
                prop_assert!(woken <= burst + f64::from(per_second) * (now - began).as_secs_f64() + 1e-3);
                prop_assert_eq!((line.running, line.waking), (all, waking));
            }
            // Once those that run are through, everybody's turn comes.
            while !waiting.is_empty() || !running.is_empty() {
                for class in running.drain(..) {
                    line.done(class);
                }
                match line.next(now) {
                    Step::Go(class, who) => {
                        waiting.retain(|(_, other)| *other != who);
                        running.push(class);
                    }
                    Step::At(time) => now = time,
                    Step::Nothing => prop_assert!(waiting.is_empty(), "these wait for ever: {waiting:?}"),
                }
            }
        }
    }

    #[tokio::test]
    async fn a_permit_is_given_back_and_one_that_nobody_takes_is_not_lost() {
        let starts = Starts::new(config::Starts { at_once: 1, wakes_at_once: 1, ..BOUNDS });
        let first = starts.wake(ProjectId::NIL).await.unwrap().unwrap();
        let given_up = starts.join(Class::Verb).unwrap();
        let waiting = tokio::spawn({
            let starts = starts.clone();
            async move { starts.verb().await.map(drop) }
        });
        tokio::task::yield_now().await;
        drop(given_up);
        drop(first);
        waiting.await.unwrap().unwrap();
        let line = starts.line();
        assert_eq!((line.running, line.waking), (0, 0));
    }

    #[tokio::test]
    async fn a_wake_that_is_too_early_starts_by_itself_when_its_time_comes() {
        let starts = Starts::new(config::Starts { at_once: 2, wakes_at_once: 1, wakes_per_second: 100, queue: 4 });
        let began = Instant::now();
        for _ in 0..13 {
            drop(starts.wake(ProjectId::NIL).await.unwrap().unwrap());
        }
        assert!(began.elapsed() >= Duration::from_millis(25), "{:?}", began.elapsed());
    }
}
