//! Figures: collected, and written as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::client::Steps;
use crate::counters::Counters;

/// Names of what the ratio is made of.
pub const HELPER: &str = "helper alone: create + start";
pub const RUNC: &str = "runc: create + start";

/// Samples by name, in the order the names came first.
#[derive(Debug, Default)]
pub struct Samples(Vec<(String, Vec<f64>)>);

impl Samples {
    fn add(&mut self, name: &str, value: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, samples)) => samples.push(value),
            None => self.0.push((name.to_owned(), vec![value])),
        }
    }

    fn summaries(&self) -> impl Iterator<Item = (&str, Summary)> {
        self.0.iter().map(|(name, samples)| (name.as_str(), Summary::of(samples)))
    }

    fn get(&self, name: &str) -> Option<Summary> {
        self.summaries().find(|(known, _)| *known == name).map(|(_, summary)| summary)
    }
}

/// What many samples come to.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    min: f64,
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
    count: usize,
}

impl Summary {
    /// Percentiles by nearest rank: each is a sample that was measured.
    fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |p: usize| {
            let at = (sorted.len() * p).div_ceil(100).max(1) - 1;
            sorted.get(at).copied().unwrap_or(f64::NAN)
        };
        Self { min: rank(0), p50: rank(50), p95: rank(95), p99: rank(99), max: rank(100), count: sorted.len() }
    }

    fn json(&self) -> Value {
        let Self { min, p50, p95, p99, max, count } = *self;
        json!({"min": min, "p50": p50, "p95": p95, "p99": p99, "max": max, "count": count})
    }
}

/// All that was measured.
#[derive(Debug, Default)]
pub struct Report {
    times: Samples,
    steps: Vec<(&'static str, Samples)>,
    counts: Samples,
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

impl Report {
    /// One sample of one thing.
    pub fn took(&mut self, what: &str, took: Duration) {
        self.times.add(what, ms(took));
    }

    /// By how much one thing took longer than another; below 0 where it did not.
    pub fn longer(&mut self, what: &str, took: Duration, than: Duration) {
        self.times.add(what, ms(took) - ms(than));
    }

    /// The daemon's own account of a verb.
    pub fn steps(&mut self, verb: &'static str, steps: &Steps) {
        if !self.steps.iter().any(|(known, _)| *known == verb) {
            self.steps.push((verb, Samples::default()));
        }
        for (_, samples) in self.steps.iter_mut().filter(|(known, _)| *known == verb) {
            steps.iter().for_each(|(step, took)| samples.add(step, *took));
        }
    }

    /// What one copy was counted to cost.
    pub fn counted(&mut self, before: &Counters, after: &Counters) {
        self.counts.add("processes and threads made", after.forks.saturating_sub(before.forks) as f64);
        self.counts.add("disk flushes", after.flushes.saturating_sub(before.flushes) as f64);
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.times.get(HELPER)?.p50 / self.times.get(RUNC)?.p50)
    }

    /// For people.
    pub fn text(&self, machine: &[(&'static str, String)]) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{:<34} {:>8} {:>8} {:>8} {:>8}   n", "milliseconds", "p50", "p95", "p99", "max");
        for (name, s) in self.times.summaries() {
            let Summary { p50, p95, p99, max, count, .. } = s;
            let _ = writeln!(out, "{name:<34} {p50:>8.1} {p95:>8.1} {p99:>8.1} {max:>8.1}   {count}");
        }
        if let Some(ratio) = self.ratio() {
            let _ = writeln!(out, "{:<34} {ratio:>8.2}   of runc's p50", "helper's create + start");
        }
        for (verb, samples) in &self.steps {
            let steps = samples.summaries().map(|(step, s)| format!("{step} {:.1}", s.p50)).collect::<Vec<_>>();
            if !steps.is_empty() {
                let _ = writeln!(out, "steps of {verb}, p50: {}", steps.join(", "));
            }
        }
        let counts = self.counts.summaries().map(|(what, s)| format!("{what} {} (p50 {})", s.min, s.p50));
        let _ = writeln!(out, "a copy at least: {}", counts.collect::<Vec<_>>().join(", "));
        let machine = machine.iter().map(|(key, value)| format!("{key} {value}"));
        let _ = write!(out, "{}", machine.collect::<Vec<_>>().join("; "));
        out
    }

    /// For programs.
    pub fn json(&self, machine: &[(&'static str, String)], runs: usize) -> Value {
        let all = |samples: &Samples| -> Map<String, Value> {
            samples.summaries().map(|(name, s)| (name.trim().to_owned(), s.json())).collect()
        };
        let steps: Map<String, Value> =
            self.steps.iter().map(|(verb, samples)| ((*verb).to_owned(), Value::Object(all(samples)))).collect();
        let machine: Map<String, Value> =
            machine.iter().map(|(key, value)| ((*key).to_owned(), Value::String(value.clone()))).collect();
        json!({
            "machine": machine, "runs": runs, "unit": "ms", "times": all(&self.times), "steps": steps,
            "copy_counts": all(&self.counts), "helper_to_runc": self.ratio(),
        })
    }
}

/// What the figures were measured on.
pub fn machine(cgroups: &str) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |path: &str, name: &str| {
        let text = read(path);
        let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
        line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let runc = std::process::Command::new("runc").arg("--version").output();
    let runc = runc.map(|output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned());
    let load = read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ");
    let command = std::env::args().skip(1).filter(|arg| arg != "--bench").collect::<Vec<_>>().join(" ");
    vec![
        ("machine:", format!("{cores} cores {}", field("/proc/cpuinfo", "model name"))),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("cgroup", cgroups.to_owned()),
        ("beside", runc.unwrap_or_else(|_| "no runc".to_owned())),
        ("load at the end", load),
        ("date", jiff::Zoned::now().strftime("%Y-%m-%d").to_string()),
        ("command", format!("./dev bench {command}").trim().to_owned()),
    ]
}
