//! Counts of what containers went through, and how they stand now.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::execute::Timings;
use super::supervisor::Shared;
use super::wake::{NotAwake, Woken};
use crate::domain::Status;
use crate::metrics::{Counter, Histogram, Text};

/// What was done to containers since the daemon began. Its keys are our own words: verbs and steps.
#[derive(Debug, Default)]
pub struct Deeds {
    verbs: Mutex<BTreeMap<String, Arc<Deed>>>,
    wakes: Deed,
    wake_steps: Mutex<BTreeMap<String, Arc<Histogram>>>,
}

#[derive(Debug, Default)]
struct Deed {
    done: Counter,
    failed: Counter,
    took: Histogram,
}

impl Deed {
    fn note(&self, succeeded: bool, took: Duration) {
        if succeeded { &self.done } else { &self.failed }.count();
        self.took.observe(took);
    }

    const fn results(&self) -> [(&'static str, &Counter); 2] {
        [("done", &self.done), ("failed", &self.failed)]
    }
}

fn of<T: Default>(map: &Mutex<BTreeMap<String, Arc<T>>>, word: &str) -> Arc<T> {
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    match map.get(word) {
        Some(known) => known.clone(),
        None => map.entry(word.to_owned()).or_default().clone(),
    }
}

fn all<T>(map: &Mutex<BTreeMap<String, Arc<T>>>) -> BTreeMap<String, Arc<T>> {
    map.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Deeds {
    /// Notes that a worker is through with a verb.
    pub fn note(&self, verb: &str, succeeded: bool, took: Duration) {
        of(&self.verbs, verb).note(succeeded, took);
    }

    /// Notes how a wake ended.
    pub fn woke(&self, outcome: &Result<Woken, NotAwake>, took: Duration) {
        self.wakes.note(outcome.is_ok(), took);
        let timings: &Timings = match outcome {
            Ok(woken) => &woken.timings,
            Err(_) => return,
        };
        for (step, took) in timings {
            of(&self.wake_steps, step).observe(*took);
        }
    }

    fn write(&self, text: &mut Text) {
        let verbs = all(&self.verbs);
        let mut family = text.counter("tenantry_verbs", "What was done to containers, by verb and result.");
        for (verb, deed) in &verbs {
            for (result, count) in deed.results() {
                family.sample(&[("verb", verb), ("result", result)], count.get());
            }
        }
        let mut family = text.histogram("tenantry_verb_duration_seconds", "How long a verb took.");
        for (verb, deed) in &verbs {
            family.histogram(&[("verb", verb)], &deed.took);
        }
        let mut family = text.counter("tenantry_wakes", "Containers started because they were asked for, by result.");
        for (result, count) in self.wakes.results() {
            family.sample(&[("result", result)], count.get());
        }
        let help = "From the first request to a port that accepts.";
        text.histogram("tenantry_wake_duration_seconds", help).histogram(&[], &self.wakes.took);
        let mut family = text.histogram("tenantry_wake_step_duration_seconds", "How long a step of a wake took.");
        for (step, took) in all(&self.wake_steps) {
            family.histogram(&[("step", &step)], &took);
        }
    }
}

/// Writes what is known without waiting for anything.
pub fn write(shared: &Shared, text: &mut Text) {
    shared.deeds.write(text);
    let mut by_status: BTreeMap<&'static str, usize> = Status::ALL.iter().map(|status| (status.as_str(), 0)).collect();
    let (containers, projects) = {
        let directory = shared.ledger.directory();
        (directory.containers(), directory.projects().len())
    };
    for container in containers {
        *by_status.entry(container.status().as_str()).or_default() += 1;
    }
    let mut family = text.gauge("tenantry_containers", "Containers by status.");
    for (status, count) in by_status {
        family.sample(&[("status", status)], count);
    }
    text.gauge("tenantry_projects", "Projects.").sample(&[], projects);
    let help = "Commands that are queued or at work at containers' workers.";
    text.gauge("tenantry_commands", help).sample(&[], shared.commands());
    text.gauge("tenantry_starts_waiting", "Starts that wait for their turn.").sample(&[], shared.starts.waiting());
    let help = "Requests that wait for a container to wake.";
    text.gauge("tenantry_wake_waiters", help).sample(&[], shared.wakes.waiters());
    let help = "Containers of which the kernel may hold something: open entries of the run journal.";
    text.gauge("tenantry_journal_open", help).sample(&[], shared.executor.journal().open_count());
    let events = shared.ledger.events();
    text.gauge("tenantry_events_kept", "Events that can be read.").sample(&[], events.len());
    let help = "Events that were dropped from the history, by its bounds, since the daemon began.";
    text.counter("tenantry_events_lost", help).sample(&[], events.lost());
}
