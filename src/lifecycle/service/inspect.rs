//! Looking into a container: counters, logs, commands inside.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::activity::Use;
use super::super::error::Error;
use super::super::metrics;
use super::super::requests::{DiskUse, STOP_GRACE_S_DEFAULT, Stats};
use super::super::strays::{self, Stray};
use super::Service;
use crate::domain::container::Transition;
use crate::domain::event::Happening;
use crate::domain::firewall::Ruleset;
use crate::domain::{Bytes, Container, ContainerId, Phase};
use crate::metrics::Text;
use crate::store::EventLog;
use crate::sys::btrfs::PoolError;
use crate::sys::folders::LogPart;
use crate::sys::nft::{Inspection, Lines};
use crate::sys::runtime::{ExecOutcome, ExecRequest};

/// How long a command waits for a sleep to be over that has begun, in seconds: longer than a container may take to stop.
const SLEEP_WAIT_S_MAX: u64 = 2 * STOP_GRACE_S_DEFAULT;
/// Between two looks whether it is, in milliseconds.
const SLEEP_LOOK_MS: u64 = 5;
/// A sample that is older says nothing of now, in seconds.
const SAMPLE_AGE_S_MAX: u64 = 60;
/// Between the two samples of a container that was not looked at lately, in milliseconds.
const SAMPLE_GAP_MS: u64 = 100;

/// When a container's processor time was last read, and what it was, in microseconds.
#[derive(Debug, Default)]
pub struct CpuSamples(Mutex<HashMap<ContainerId, (Instant, u64)>>);

impl CpuSamples {
    /// Takes a sample; gives the percentage of one core since the last one, if that is not too old.
    fn take(&self, id: ContainerId, now: Instant, cpu_us: u64) -> Option<f64> {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Containers that are not looked at any more fall out: the map holds no more than are watched.
        samples.retain(|_, (at, _)| now.duration_since(*at) < Duration::from_secs(SAMPLE_AGE_S_MAX));
        let (at, before) = samples.insert(id, (now, cpu_us))?;
        let passed_us = now.duration_since(at).as_micros();
        (passed_us > 0).then(|| cpu_us.saturating_sub(before) as f64 * 100.0 / passed_us as f64)
    }
}

impl Service {
    /// What a container uses now.
    ///
    /// # Errors
    /// No such container, or the kernel does not say.
    pub async fn stats(&self, id: ContainerId) -> Result<Stats, Error> {
        let container = self.container(id)?;
        let drivers = self.drivers();
        let disk = match drivers.pool.usage(&self.layout().pool.rootfs(id)).await {
            Ok(usage) => Some(DiskUse { used: usage.used, limit: usage.limit }),
            Err(PoolError::NoQuota) => None,
            Err(_) if container.phase == Phase::Creating || container.receipt.is_some() => None,
            Err(error) => return Err(Error::driver(error)),
        };
        let cgroup = drivers.cgroups.usage(id).await.map_err(Error::driver)?;
        // A stop is answered before its link is away; nobody is at the link's other end any more.
        let Some(usage) = cgroup else {
            return Ok(Stats { cgroup: None, cpu_percent: None, disk, link: None });
        };
        let link = drivers.links.usage(container.slot).await.map_err(Error::driver)?;
        let mut cpu_percent = self.inner.cpu.take(id, Instant::now(), usage.cpu_us);
        let mut cgroup = Some(usage);
        if cpu_percent.is_none() {
            tokio::time::sleep(Duration::from_millis(SAMPLE_GAP_MS)).await;
            cgroup = drivers.cgroups.usage(id).await.map_err(Error::driver)?;
            cpu_percent = cgroup.and_then(|usage| self.inner.cpu.take(id, Instant::now(), usage.cpu_us));
        }
        Ok(Stats { cgroup, cpu_percent, disk, link: link.filter(|_| cgroup.is_some()) })
    }

    /// What should be in force for a container, and what its firewall has.
    ///
    /// # Errors
    /// No such container, or the kernel does not say.
    pub async fn inspect_firewall(&self, id: ContainerId) -> Result<(Arc<Container>, Ruleset, Inspection), Error> {
        let container = self.container(id)?;
        let rules = self.inner.shared.rules(&container)?;
        let mut inspection = self.drivers().firewall.inspect(container.slot).await.map_err(Error::driver)?;
        // A stop is answered before its rules are away; they are for nobody any more.
        if matches!(container.phase, Phase::Stopped { .. }) {
            inspection = Inspection { ingress: Lines::default(), egress: Lines::default(), ..inspection };
        }
        Ok((container, rules, inspection))
    }

    /// The changes of status that are kept, oldest first.
    ///
    /// # Errors
    /// No such container.
    pub async fn status_log(&self, id: ContainerId) -> Result<Vec<Transition>, Error> {
        self.container(id)?;
        self.ledger().transitions(id).await
    }

    /// The end of what init wrote to standard output and error.
    ///
    /// # Errors
    /// No such container, or the log cannot be read.
    pub async fn log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, Error> {
        self.container(id)?;
        self.drivers().folders.log_tail(id, max).await.map_err(Error::driver)
    }

    /// What was written to the log after a place, at most `max`; places are counted from the log's first byte ever.
    ///
    /// # Errors
    /// No such container, or the log cannot be read.
    pub async fn log_after(&self, id: ContainerId, position: u64, max: Bytes) -> Result<LogPart, Error> {
        self.container(id)?;
        self.drivers().folders.log_after(id, position, max).await.map_err(Error::driver)
    }

    /// Objects of this instance that nobody owns: a fault of ours, or what a crash left since the start.
    ///
    /// # Errors
    /// A driver cannot list what there is.
    pub async fn strays(&self) -> Result<Vec<Stray>, Error> {
        strays::find(&self.inner.shared).await
    }

    /// Writes down what is counted of containers and the pool.
    pub async fn write_metrics(&self, text: &mut Text) {
        metrics::write(&self.inner.shared, text);
        // Where the pool cannot be asked the families are missing, which an alert can be made of.
        if let Ok(space) = self.drivers().pool.space().await {
            text.gauge("tenantry_pool_bytes", "The pool's size.").sample(&[], space.total.0);
            let help = "What of the pool is available.";
            text.gauge("tenantry_pool_available_bytes", help).sample(&[], space.available.0);
        }
    }

    /// Cuts the logs of running containers that have grown beyond their bound.
    pub async fn trim_logs(&self) {
        for container in self.containers().into_iter().filter(|one| one.phase.init().is_some()) {
            if let Err(error) = self.drivers().folders.trim_log(container.id).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(container = %container.id, error, "a log cannot be cut");
            }
        }
    }

    /// Tells which limits of running containers were reached since the last look; to be called every [`super::super::ALARM_LOOK_MS`].
    pub async fn look_for_alarms(&self) {
        self.inner.shared.look_for_alarms().await;
    }

    /// What happened.
    pub fn events(&self) -> &EventLog {
        self.ledger().events()
    }

    /// Who wrote what through the API.
    pub fn audit(&self) -> &EventLog {
        self.ledger().audit()
    }

    /// Notes a write through the API.
    ///
    /// # Errors
    /// The store's.
    pub async fn note_write(&self, what: Happening) -> Result<(), Error> {
        self.ledger().note_write(what).await
    }

    /// Notes something that happened and is no change of a record's.
    ///
    /// # Errors
    /// The store's.
    pub async fn emit(&self, what: Happening) -> Result<(), Error> {
        self.ledger().emit(what).await
    }

    /// Runs a command inside, as init would.
    ///
    /// # Errors
    /// No such container, it is not running, there is no such program in it.
    pub async fn exec(&self, id: ContainerId, request: ExecRequest) -> Result<ExecOutcome, Error> {
        use crate::sys::runtime::RuntimeError;
        self.container(id)?;
        let in_use = self.enter(id, Use::Exec);
        // One that is being put to sleep may give way to this; its phase says so when that is over.
        let deadline = Instant::now() + Duration::from_secs(SLEEP_WAIT_S_MAX);
        while in_use.is_closing() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(SLEEP_LOOK_MS)).await;
        }
        let container = self.container(id)?;
        let Phase::Running { init } = container.phase else { return Err(Error::NotRunning(container.status())) };
        match self.drivers().runtime.exec(id, init, &request).await {
            Ok(outcome) => Ok(outcome),
            Err(RuntimeError::NotRunning(_)) => Err(Error::NotRunning(self.container(id)?.status())),
            Err(RuntimeError::NotExecutable { message, .. }) => Err(Error::NotExecutable(message)),
            Err(error) => Err(Error::driver(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_needs_two_samples_that_are_not_far_apart() {
        let samples = CpuSamples::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(samples.take(ContainerId::NIL, at(0), 0), None);
        assert_eq!(samples.take(ContainerId::NIL, at(100), 50_000), Some(50.0));
        assert_eq!(samples.take(ContainerId::NIL, at(200_000), 60_000), None, "the last one was too old");
    }
}
