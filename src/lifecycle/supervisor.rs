//! Which container has a worker, and what all workers share.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};

use super::activity::Activities;
use super::alarms::Told;
use super::error::{Error, What};
use super::execute::{Executor, Subject};
use super::ledger::Ledger;
use super::metrics::Deeds;
use super::room::Room;
use super::starts::Starts;
use super::wake::Wakes;
use super::worker::{Command, Handle, Worker};
use crate::config;
use crate::domain::firewall::Ruleset;
use crate::domain::network::way_out;
use crate::domain::policy::Policies;
use crate::domain::receipt::Erasure;
use crate::domain::{Bytes, Container, ContainerId, PauseReason, Phase, Receipt, Subnet};
use crate::sys::btrfs::SubvolumeId;

/// Frozen containers whose page cache is given back at once: it is no hurry, and reclaiming takes a processor.
const RECLAIMS_AT_ONCE_MAX: usize = 1;
/// Between two looks whether the cleaner has dropped a subvolume, in milliseconds; doubled each time up to the maximum.
const CLEANER_LOOK_MS_MIN: u64 = 20;
/// The longest pause between two looks, in milliseconds.
const CLEANER_LOOK_MS_MAX: u64 = 5_000;
/// Looks before the rest is left to the next start of the daemon; together over a day.
const CLEANER_LOOKS_MAX: u32 = 20_000;
/// Between two looks whether workers have ended, in milliseconds.
const DRAIN_LOOK_MS: u64 = 20;

/// What of the configuration holds for all workers.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Where addresses come from.
    pub subnet: Subnet,
    /// How many start at once, and how fast.
    pub starts: config::Starts,
    /// How much memory the awake may hold together; `None`: as much as the host has.
    pub awake_memory_max: Option<Bytes>,
}

/// What workers share.
#[derive(Debug)]
pub struct Shared {
    /// The records.
    pub ledger: Ledger,
    /// The drivers and the journal.
    pub executor: Executor,
    /// The firewall policies by name.
    pub policies: Policies,
    /// Where addresses come from.
    pub subnet: Subnet,
    /// Who uses which container.
    pub activities: Activities,
    /// Which containers are being woken.
    pub wakes: Wakes,
    /// Which reached limits were told.
    pub told: Told,
    /// What was done, for metrics.
    pub deeds: Deeds,
    /// Who may start now.
    pub starts: Arc<Starts>,
    /// How much memory the awake may hold.
    pub room: Room,
    reclaims: Semaphore,
    workers: Mutex<HashMap<ContainerId, Handle>>,
    /// Commands that are queued or at work.
    at_work: AtomicUsize,
    closing: AtomicBool,
    /// Nothing is at work any more, or is not waited for.
    closed: AtomicBool,
}

impl Shared {
    /// With no worker yet.
    pub fn new(ledger: Ledger, executor: Executor, policies: Policies, bounds: Bounds) -> Arc<Self> {
        let Bounds { subnet, starts, awake_memory_max } = bounds;
        Arc::new(Self {
            ledger,
            executor,
            policies,
            subnet,
            activities: Activities::default(),
            wakes: Wakes::default(),
            told: Told::default(),
            deeds: Deeds::default(),
            starts: Starts::new(starts),
            room: Room::new(awake_memory_max),
            reclaims: Semaphore::new(RECLAIMS_AT_ONCE_MAX),
            workers: Mutex::new(HashMap::new()),
            at_work: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    fn workers(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, Handle>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a command into the container's queue; a worker is made where there is none.
    ///
    /// # Errors
    /// Too many commands wait, a verb comes while another one is queued or at work, or the daemon is shutting down.
    pub fn send(self: &Arc<Self>, id: ContainerId, command: Command) -> Result<(), Error> {
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::ShuttingDown);
        }
        let mut workers = self.workers();
        let handle = workers.entry(id).or_insert_with(|| {
            let (worker, handle) = Worker::new(id, self.clone());
            tokio::spawn(worker.run());
            handle
        });
        let exclusive = matches!(command, Command::Verb { .. });
        if exclusive && handle.busy.swap(true, Ordering::AcqRel) {
            return Err(Error::Busy(id));
        }
        if matches!(command, Command::Erase { .. }) {
            handle.hurry.send_replace(true);
        }
        self.at_work.fetch_add(1, Ordering::AcqRel);
        handle.commands.try_send(command).map_err(|_full| {
            self.served();
            if exclusive {
                handle.busy.store(false, Ordering::Release);
            }
            Error::Busy(id)
        })
    }

    /// Notes that a worker is through with a command.
    pub fn served(&self) {
        self.at_work.fetch_sub(1, Ordering::AcqRel);
    }

    /// Forgets the worker of a container that has nothing queued; whether it may end. Senders hold the same lock, so
    /// no command is lost between the look and the end.
    pub fn retire(&self, id: ContainerId, commands: &mpsc::Receiver<Command>) -> bool {
        let mut workers = self.workers();
        if !commands.is_empty() {
            return false;
        }
        workers.remove(&id);
        true
    }

    /// Whether a task owns the container now; it may then be at work on what the record does not show.
    pub fn has_worker(&self, id: ContainerId) -> bool {
        self.workers().contains_key(&id)
    }

    /// Refuses new commands and waits until none is at work, at most so long. Containers go on running.
    pub async fn close(&self, patience: Duration) {
        self.closing.store(true, Ordering::Release);
        let idle = async {
            while self.at_work.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(DRAIN_LOOK_MS)).await;
            }
        };
        if tokio::time::timeout(patience, idle).await.is_err() {
            tracing::warn!("verbs are still at work at the end; the next start resumes or undoes them");
        }
        self.closed.store(true, Ordering::Release);
    }

    /// Whether what happens from now on is the next daemon's to see.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Gives the kernel back what a container that was frozen for silence has only cached, behind the caller's back.
    pub fn reclaim_later(self: &Arc<Self>, id: ContainerId) {
        let shared = self.clone();
        tokio::spawn(async move {
            // Never closed.
            let Ok(_permit) = shared.reclaims.acquire().await else { return };
            let container = shared.ledger.directory().container(id);
            let asleep =
                container.is_ok_and(|one| matches!(one.phase, Phase::Paused { reason: PauseReason::Idle, .. }));
            if asleep && let Err(error) = shared.executor.drivers().cgroups.reclaim(id).await {
                tracing::debug!(container = %id, error = &error as &dyn std::error::Error, "its cache is kept");
            }
        });
    }

    /// Commands that are queued or at work.
    pub fn commands(&self) -> usize {
        self.at_work.load(Ordering::Relaxed)
    }

    /// What a plan needs to know of a container.
    ///
    /// # Errors
    /// Its image or its policy is not there.
    pub fn subject(&self, container: Arc<Container>) -> Result<Subject, Error> {
        let image = self.ledger.images().get(&container.image);
        let image = image.ok_or_else(|| Error::not_found(What::Image, &container.image_name))?;
        let rules = Arc::new(self.rules(&container)?);
        Ok(Subject { rules, image, container })
    }

    /// A container's own rules on top of its policy's.
    ///
    /// # Errors
    /// The policy is not there.
    pub fn rules(&self, container: &Container) -> Result<Ruleset, Error> {
        let name = &container.settings.firewall_policy;
        let policy = self.policies.get(name).ok_or_else(|| Error::not_found(What::Policy, name))?;
        // Both are within their bounds since they were read or made.
        let rules = Ruleset::new(policy, &container.settings.firewall_rules);
        let rules = rules.map_err(|error| Error::Config(error.to_string()))?;
        Ok(rules.led(way_out(container.settings.network.as_ref())))
    }

    /// A container's address.
    pub fn address(&self, container: &Container) -> Option<Ipv4Addr> {
        self.subnet.address(container.slot)
    }

    /// Looks after a receipt until BTRFS's cleaner has dropped the data, in a task of its own.
    pub fn clean_later(self: &Arc<Self>, receipt: Receipt) {
        let shared = self.clone();
        tokio::spawn(async move {
            let id = receipt.id;
            if let Err(error) = shared.clean(receipt).await {
                tracing::error!(receipt = %id, error = &error as &dyn std::error::Error, "an erasure cannot be followed");
            }
        });
    }

    async fn clean(&self, mut receipt: Receipt) -> Result<(), Error> {
        let mut pause_ms = CLEANER_LOOK_MS_MIN;
        for _look in 0..CLEANER_LOOKS_MAX {
            let mut dropped = true;
            for id in &receipt.subvolumes {
                let erased = self.executor.drivers().pool.is_erased(SubvolumeId(*id)).await;
                dropped &= erased.map_err(Error::driver)?;
            }
            if dropped {
                let now = Timestamp::now();
                receipt.note("data on the disk", "the filesystem's cleaner has dropped every extent", now);
                receipt.state = Erasure::Complete;
                receipt.completed_at = Some(now);
                return self.ledger.put_receipt(&receipt).await;
            }
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            pause_ms = (pause_ms * 2).min(CLEANER_LOOK_MS_MAX);
        }
        Ok(())
    }
}
