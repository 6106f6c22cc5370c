//! Carries plans out: journalled, timed, undone in reverse when a step fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::bundle;
use super::error::{DriverError, Error};
use super::plan::{Make, Origin, Plan, Remove};
use crate::domain::firewall::Ruleset;
use crate::domain::{Container, ContainerId, Image, Init, Slot};
use crate::store::Records;
use crate::store::journal::{Entry, RunJournal};
use crate::sys::btrfs::{Access, Pool, SubvolumeId};
use crate::sys::cgroup::Cgroups;
use crate::sys::folders::{Folders, Layout};
use crate::sys::netlink::Links;
use crate::sys::nft::Firewall;
use crate::sys::runtime::{Launch, Pins, Runtime, RuntimeError};

/// One driver of each kind.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "each is named as its trait")]
pub struct Drivers {
    pub pool: Arc<dyn Pool>,
    pub folders: Arc<dyn Folders>,
    pub cgroups: Arc<dyn Cgroups>,
    pub links: Arc<dyn Links>,
    pub firewall: Arc<dyn Firewall>,
    pub runtime: Arc<dyn Runtime>,
}

/// What steps need to know, as it was when the plan was begun.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The record.
    pub container: Arc<Container>,
    /// How its image says it is run.
    pub image: Arc<Image>,
    /// What it may send and be sent.
    pub rules: Arc<Ruleset>,
}

/// What removals go by: enough to find every object, also where no record is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The container.
    pub id: ContainerId,
    /// Its slot.
    pub slot: Slot,
}

impl From<&Container> for Target {
    fn from(container: &Container) -> Self {
        Self { id: container.id, slot: container.slot }
    }
}

/// What a plan made.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Where a process was started.
    pub init: Option<Init>,
    /// How long each step took.
    pub timings: Timings,
}

/// Steps and how long each took.
pub type Timings = Vec<(String, Duration)>;

/// Carries plans out.
#[derive(Debug)]
pub struct Executor {
    drivers: Drivers,
    records: Records,
    journal: RunJournal,
    layout: Layout,
    uid_base: u32,
}

/// What the steps of one plan tell each other.
#[derive(Debug, Default)]
struct Scratch {
    pins: OnceLock<Pins>,
    init: OnceLock<Init>,
}

impl Executor {
    /// With these drivers and this journal.
    pub const fn new(drivers: Drivers, records: Records, journal: RunJournal, layout: Layout, uid_base: u32) -> Self {
        Self { drivers, records, journal, layout, uid_base }
    }

    /// The drivers, for what is no plan: signals, counters.
    pub const fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// The run journal.
    pub const fn journal(&self) -> &RunJournal {
        &self.journal
    }

    /// Which path is whose.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes what a plan says. Between stages `cancelled` is asked; what a failed plan made is removed when this returns, and
    /// what a cancelled one made is left to the erasure that cancelled it.
    ///
    /// # Errors
    /// The first step that failed, or that the plan was cancelled.
    pub async fn make(
        &self,
        subject: &Subject,
        verb: &str,
        plan: &Plan<Make>,
        cancelled: impl Fn() -> bool + Send,
    ) -> Result<Outcome, Error> {
        let target = Target::from(&*subject.container);
        if plan.is_of_the_kernel() {
            self.begin(target, verb)?;
        }
        let scratch = Scratch::default();
        let mut timings = Timings::new();
        for (n, stage) in plan.stages.iter().enumerate() {
            let failed = if cancelled() {
                Some((n, Error::DeletedMeanwhile(target.id)))
            } else {
                let steps = stage.iter().map(|step| timed(*step, self.make_one(subject, *step, &scratch)));
                let done = self.stage(target.id, join_all(steps).await, &mut timings);
                done.err().map(|error| (n + 1, error))
            };
            if let Some((begun, error)) = failed {
                // A container that was deleted meanwhile is erased next, as a whole: its receipt has to name the rootfs.
                if !cancelled() {
                    let _logged = self.remove(target, verb, &plan.undo(begun)).await;
                }
                return Err(error);
            }
        }
        let init = scratch.init.into_inner();
        if let Some(init) = init {
            let env_revision = subject.container.env_revision;
            self.journal.append(Entry::Running { id: target.id, slot: target.slot, init, env_revision })?;
        }
        Ok(Outcome { init, timings })
    }

    /// Removes what a plan says and closes the journal's entry.
    ///
    /// # Errors
    /// The first step that failed; the entry stays open then.
    pub async fn remove(&self, target: Target, verb: &str, plan: &Plan<Remove>) -> Result<(), Error> {
        self.remove_part(target, verb, plan, &mut Timings::new()).await?;
        self.close(target)
    }

    /// As [`Executor::remove`], but leaves the journal's entry open, for what is still to be removed. Goes on past errors, so that
    /// as little as can be is left; notes how long each step took, those of a failed plan too.
    ///
    /// # Errors
    /// The first step that failed.
    pub async fn remove_part(
        &self,
        target: Target,
        verb: &str,
        plan: &Plan<Remove>,
        timings: &mut Timings,
    ) -> Result<(), Error> {
        self.begin(target, verb)?;
        let mut first = Ok(());
        for stage in &plan.stages {
            let steps = stage.iter().map(|step| timed(*step, self.remove_one(target, *step)));
            first = first.and(self.stage(target.id, join_all(steps).await, timings));
        }
        first
    }

    /// The subvolumes that a container has now: its rootfs and its log.
    ///
    /// # Errors
    /// The pool cannot be looked at.
    pub async fn subvolumes(&self, id: ContainerId) -> Result<Vec<SubvolumeId>, Error> {
        let mut found = Vec::new();
        for path in [self.layout.pool.rootfs(id), self.layout.log_volume(id)] {
            found.extend(self.drivers.pool.id(&path).await.map_err(Error::driver)?);
        }
        Ok(found)
    }

    /// Notes in the journal that nothing of the container is left in the kernel.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub fn close(&self, target: Target) -> Result<(), Error> {
        Ok(self.journal.append(Entry::End { id: target.id })?)
    }

    fn begin(&self, target: Target, verb: &str) -> Result<(), Error> {
        let entry = Entry::Begin { id: target.id, slot: target.slot, verb: verb.to_owned() };
        Ok(self.journal.append(entry)?)
    }

    /// Notes a stage's timings; gives its first error and logs all.
    fn stage(
        &self,
        id: ContainerId,
        results: Vec<(String, Duration, Result<(), DriverError>)>,
        timings: &mut Timings,
    ) -> Result<(), Error> {
        let mut first = Ok(());
        for (step, took, result) in results {
            if let Err(source) = result {
                tracing::warn!(container = %id, step, error = &source as &dyn std::error::Error, "a step failed");
                first = first.and(Err(Error::step(id, &step, source)));
            }
            timings.push((step, took));
        }
        first
    }

    async fn make_one(&self, subject: &Subject, step: Make, scratch: &Scratch) -> Result<(), DriverError> {
        let Drivers { pool, folders, cgroups, links, firewall, runtime } = &self.drivers;
        let container = &*subject.container;
        let (id, slot) = (container.id, container.slot);
        match step {
            Make::Folders => folders.make(id).await?,
            Make::Snapshot(origin) => {
                pool.snapshot(&self.origin(origin), &self.layout.pool.rootfs(id), Access::ReadWrite).await?;
            }
            Make::FlushRecord => self.records.flush().await?,
            Make::LimitDisk => self.limit_disk(container).await?,
            Make::Personalise => folders.personalise(id, &bundle::identity(container)).await?,
            Make::WriteManifest => folders.write_manifest(id, &bundle::manifest(container)).await?,
            Make::WriteBundle => {
                let spec = bundle::spec(subject, &self.layout, cgroups.path(id), self.uid_base);
                folders.write_bundle(id, &spec).await?;
            }
            Make::Prepare => {
                cgroups.expect_move();
                let pins = runtime.prepare(&self.launch(container)).await?;
                let _ = scratch.pins.set(pins);
            }
            Make::ApplyRules => firewall.apply(slot, &subject.rules).await?,
            Make::AttachLink => {
                // Every plan prepares in an earlier stage.
                let pins = scratch.pins.get().ok_or(RuntimeError::NotRunning(id))?;
                links.attach(slot, &pins.net, (&container.settings.limits).into()).await?;
            }
            Make::CreateInit => {
                let _ = scratch.init.set(runtime.create(id).await?);
            }
            Make::LimitCgroup => cgroups.set_limits(id, &container.settings.limits).await?,
            Make::LinkUp => links.up(slot).await?,
            Make::StartInit => runtime.start(id).await?,
        }
        Ok(())
    }

    async fn remove_one(&self, target: Target, step: Remove) -> Result<(), DriverError> {
        let drivers = &self.drivers;
        match step {
            Remove::FlushRecord => self.records.flush().await?,
            Remove::Cgroup => drivers.cgroups.remove(target.id).await?,
            Remove::Runtime => drivers.runtime.remove(target.id).await?,
            Remove::Link => drivers.links.detach(target.slot).await?,
            Remove::Rules => drivers.firewall.remove(target.slot).await?,
            Remove::Rootfs => drop(drivers.pool.delete(&self.layout.pool.rootfs(target.id)).await?),
            Remove::Folders => drivers.folders.remove(target.id).await?,
        }
        Ok(())
    }

    /// The disk limit as the record has it; none where the kernel keeps none and none is asked for.
    pub async fn limit_disk(&self, container: &Container) -> Result<(), DriverError> {
        let Some(limit) = container.settings.limits.disk else { return Ok(()) };
        Ok(self.drivers.pool.set_limit(&self.layout.pool.rootfs(container.id), Some(limit)).await?)
    }

    fn origin(&self, origin: Origin) -> PathBuf {
        match origin {
            Origin::Image(id) => self.layout.pool.image_rootfs(id),
            Origin::Container(id) => self.layout.pool.rootfs(id),
        }
    }

    fn launch(&self, container: &Container) -> Launch {
        Launch {
            id: container.id,
            bundle: self.layout.bundle(container.id),
            rootfs: self.layout.pool.rootfs(container.id),
            first_id: container.slot.first_id(self.uid_base),
            log: self.layout.log(container.id),
        }
    }
}

/// Runs a step and says how long it took.
async fn timed<T>(step: impl ToString, run: impl Future<Output = T>) -> (String, Duration, T) {
    let began = Instant::now();
    let result = run.await;
    (step.to_string(), began.elapsed(), result)
}
