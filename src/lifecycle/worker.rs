//! One task owns one container: its verbs queue here, so that no two are at work on it at once, and its phase is
//! changed by nobody else.
//!
//! A worker lives while its container has a process or a verb, and is made anew for the next verb; thousands of sleeping
//! containers have none. What it was told to do it does to the end, also when the caller has gone away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use super::error::Error;
use super::execute::{Target, Timings};
use super::ledger::Change;
use super::plan::{Make, Origin, Plan, Remove};
use super::ready::{self, Readiness};
use super::requests::ContainerPatch;
use super::supervisor::Shared;
use crate::domain::receipt::Erasure;
use crate::domain::{Container, ContainerId, Desired, Exit, Init, Phase, Receipt, StopReason, Verb};
use crate::sys::runtime::Delivery;

/// Commands that may wait at one worker.
pub const COMMANDS_MAX: usize = 16;
/// How long init may take to end after SIGKILL, in milliseconds; longer only in an uninterruptible sleep.
const KILL_WAIT_MS_MAX: u64 = 10_000;
/// An erasure that failed is tried again so often, with a pause in between that is doubled each time, in milliseconds.
const ERASE_TRIES_MAX: u32 = 10;
const ERASE_PAUSE_MS_MIN: u64 = 500;
/// SIGTERM and SIGKILL (signal(7)).
const SIGTERM: i32 = libc::SIGTERM;
const SIGKILL: i32 = libc::SIGKILL;

/// What a start, or a stop, came to.
#[derive(Debug)]
pub struct Settled {
    /// The record afterwards.
    pub container: Arc<Container>,
    /// Where it was started: whether its port accepts yet.
    pub ready: Option<watch::Receiver<Readiness>>,
    /// How long each step took.
    pub timings: Timings,
}

impl Settled {
    /// Nothing is to be waited for.
    const fn at_rest(container: Arc<Container>, timings: Timings) -> Self {
        Self { container, ready: None, timings }
    }
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What a worker is told.
#[derive(Debug)]
pub enum Command {
    /// Make the rootfs of a container whose record is new, and start it.
    Build {
        /// What it is a snapshot of.
        origin: Origin,
        /// Whether to start it.
        start: bool,
        /// Who waits.
        reply: Reply<Settled>,
    },
    /// A verb of the API.
    Verb {
        /// Which.
        verb: Verb,
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
        /// Who waits.
        reply: Reply<Settled>,
    },
    /// Change the record, and what of it is in force.
    Update {
        /// How.
        patch: Box<ContainerPatch>,
        /// Refused at another generation.
        if_match: Option<u64>,
        /// Who waits.
        reply: Reply<Arc<Container>>,
    },
    /// Remove everything; the record is marked already.
    Erase {
        /// How often it has failed.
        tries: u32,
        /// Who waits.
        reply: Reply<Receipt>,
    },
    /// Watch a process that an earlier daemon started.
    Adopt,
}

/// What others hold of a worker.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Where commands queue.
    pub commands: mpsc::Sender<Command>,
    /// Whether a verb is queued or at work.
    pub busy: Arc<AtomicBool>,
    /// Says that nothing should be waited for any more: the container is being deleted or killed.
    pub hurry: watch::Sender<bool>,
}

/// The task.
#[derive(Debug)]
pub struct Worker {
    id: ContainerId,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    busy: Arc<AtomicBool>,
    hurry: watch::Receiver<bool>,
}

impl Worker {
    /// Makes a worker and its handle; the caller spawns [`Worker::run`].
    pub fn new(id: ContainerId, shared: Arc<Shared>) -> (Self, Handle) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let busy = Arc::new(AtomicBool::new(false));
        let (hurry, hurried) = watch::channel(false);
        let handle = Handle { commands: sender, busy: busy.clone(), hurry };
        (Self { id, shared, commands, busy, hurry: hurried }, handle)
    }

    /// Serves commands until there is nothing left to own.
    pub async fn run(mut self) {
        let span = tracing::info_span!("container", id = %self.id);
        async {
            loop {
                let init = self.init();
                if init.is_none() && self.shared.retire(self.id, &self.commands) {
                    return;
                }
                tokio::select! {
                    // Cancel-safe: a command is taken from the queue only by the branch that runs.
                    command = self.commands.recv() => match command {
                        Some(command) => {
                            self.serve(command).await;
                            self.shared.served();
                        }
                        None => return,
                    },
                    // Cancel-safe: waiting on a pidfd takes nothing from it.
                    exit = exit_of(self.shared.clone(), init), if init.is_some() => self.ended(exit).await,
                }
            }
        }
        .instrument(span)
        .await;
    }

    fn record(&self) -> Result<Arc<Container>, Error> {
        self.shared.ledger.directory().container(self.id)
    }

    fn init(&self) -> Option<Init> {
        self.record().ok().and_then(|container| container.phase.init())
    }

    async fn serve(&mut self, command: Command) {
        // A reply nobody waits for any more is no error: the work is done all the same.
        match command {
            Command::Build { origin, start, reply } => drop(reply.send(self.build(origin, start).await)),
            Command::Verb { verb, grace, reply } => {
                let result = self.verb(verb, grace).await;
                self.busy.store(false, Ordering::Release);
                drop(reply.send(result));
            }
            Command::Update { patch, if_match, reply } => drop(reply.send(self.update(*patch, if_match).await)),
            Command::Erase { tries, reply } => {
                let result = self.erase().await;
                if result.is_err() && self.is_tombstoned() {
                    self.erase_later(tries);
                }
                drop(reply.send(result));
            }
            Command::Adopt => drop(self.watch_ready()),
        }
    }

    fn is_tombstoned(&self) -> bool {
        self.record().map_or(true, |container| container.receipt.is_some())
    }

    async fn set(&self, how: Change<'_>, change: impl FnOnce(&mut Container) + Send) -> Result<Arc<Container>, Error> {
        let change = |container: &mut Container| {
            change(container);
            Ok(())
        };
        self.shared.ledger.change(self.id, how, change).await
    }

    async fn build(&mut self, origin: Origin, start: bool) -> Result<Settled, Error> {
        let began = Instant::now();
        let plan = if start { Plan::build_and_start(origin) } else { Plan::build(origin) };
        match self.make(self.record()?, "create", &plan).await {
            Ok((init, timings)) => {
                let change = Change::lazy("create").since(began);
                self.made(init, change, timings).await
            }
            Err(error) if self.is_tombstoned() => Err(error),
            Err(error) => {
                // Everything the plan made is undone; the record goes last, and with it name and slot.
                self.shared.ledger.forget(self.id).await?;
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        container: Arc<Container>,
        verb: &str,
        plan: &Plan<Make>,
    ) -> Result<(Option<Init>, Timings), Error> {
        let subject = self.shared.subject(container)?;
        let _permit = self.shared.start_permit().await?;
        let outcome = self.shared.executor.make(&subject, verb, plan, || self.is_tombstoned()).await?;
        Ok((outcome.init, outcome.timings))
    }

    /// Writes down what a plan made: a process, or a rootfs without one.
    async fn made(&self, init: Option<Init>, how: Change<'_>, timings: Timings) -> Result<Settled, Error> {
        let container = self
            .set(how, |container| {
                container.phase = match init {
                    Some(init) => Phase::Running { init },
                    None => Phase::Stopped { reason: StopReason::Created },
                };
                if init.is_some() {
                    container.started_at = Some(Timestamp::now());
                    container.ready_at = None;
                    container.env_revision_applied = container.env_revision;
                }
            })
            .await?;
        let ready = init.map(|_| self.watch_ready());
        Ok(Settled { container, ready, timings })
    }

    fn watch_ready(&self) -> watch::Receiver<Readiness> {
        ready::watch(self.shared.clone(), self.id)
    }

    async fn verb(&mut self, verb: Verb, grace: Duration) -> Result<Settled, Error> {
        let container = self.record()?;
        if container.receipt.is_some() || !container.phase.allows(verb) {
            return Err(Error::WrongState { verb, status: container.status() });
        }
        tracing::info!(%verb, generation = container.generation, "begins");
        match verb {
            Verb::Start => self.start("start").await,
            Verb::Stop => self.stop("stop", Some(grace), Desired::Stopped).await,
            Verb::ForceStop => self.stop("force-stop", None, Desired::Stopped).await,
            Verb::Restart => {
                let stopped = self.stop("restart", Some(grace), Desired::Running).await?;
                let mut settled = self.start("restart").await?;
                settled.timings.splice(..0, stopped.timings);
                Ok(settled)
            }
            Verb::Pause => self.freeze(true).await,
            Verb::Resume => self.freeze(false).await,
        }
    }

    async fn start(&mut self, by: &str) -> Result<Settled, Error> {
        let began = Instant::now();
        let container = self
            .set(Change::lazy(by), |container| {
                container.phase = Phase::Starting;
                container.desired = Desired::Running;
            })
            .await?;
        match self.make(container, by, &Plan::start()).await {
            Ok((init, timings)) => self.made(init, Change::lazy(by).since(began), timings).await,
            Err(error) => {
                let reason = StopReason::StartFailed { message: error.to_string() };
                self.set(Change::lazy(by).since(began), |container| {
                    container.phase = Phase::Stopped { reason };
                    container.desired = Desired::Stopped;
                })
                .await?;
                Err(error)
            }
        }
    }

    async fn stop(&mut self, by: &str, grace: Option<Duration>, desired: Desired) -> Result<Settled, Error> {
        let began = Instant::now();
        let container = self.record()?;
        let Some(init) = container.phase.init() else { return Ok(Settled::at_rest(container, Timings::new())) };
        if matches!(container.phase, Phase::Paused { .. }) {
            self.shared.executor.drivers().cgroups.freeze(self.id, false).await.map_err(Error::driver)?;
        }
        self.set(Change::lazy(by), |container| {
            container.phase = Phase::Stopping { init };
            container.desired = desired;
        })
        .await?;
        let ending = Instant::now();
        self.end(init, grace).await?;
        let mut timings = Timings::from([("end-init".to_owned(), ending.elapsed())]);
        let container = self.torn_down(by, began, StopReason::Requested, &mut timings).await?;
        Ok(Settled::at_rest(container, timings))
    }

    /// Ends init: asks first where there is a grace, then kills.
    async fn end(&mut self, init: Init, grace: Option<Duration>) -> Result<(), Error> {
        let runtime = self.shared.executor.drivers().runtime.clone();
        if let Some(grace) = grace
            && runtime.signal(init, SIGTERM).map_err(Error::driver)? == Delivery::Sent
        {
            tokio::select! {
                // All three are cancel-safe: they only look.
                _ = runtime.wait(init) => return Ok(()),
                () = tokio::time::sleep(grace) => {}
                _ = self.hurry.wait_for(|hurry| *hurry) => {}
            }
        }
        runtime.signal(init, SIGKILL).map_err(Error::driver)?;
        // A process that outlives this bound hangs in the kernel; removing its cgroup then says so.
        let _ = tokio::time::timeout(Duration::from_millis(KILL_WAIT_MS_MAX), runtime.wait(init)).await;
        Ok(())
    }

    /// Removes what a dead init leaves, and writes down that it is stopped.
    async fn torn_down(
        &self,
        by: &str,
        began: Instant,
        reason: StopReason,
        timings: &mut Timings,
    ) -> Result<Arc<Container>, Error> {
        let target = Target::from(&*self.record()?);
        self.shared.executor.remove_timed(target, by, &Plan::<Remove>::tear_down(), timings).await?;
        self.set(Change::lazy(by).since(began), |container| {
            container.phase = Phase::Stopped { reason };
            container.ready_at = None;
        })
        .await
    }

    /// Init ended by itself.
    async fn ended(&mut self, exit: Exit) {
        let began = Instant::now();
        let usage = self.shared.executor.drivers().cgroups.usage(self.id).await;
        let oom = usage.ok().flatten().is_some_and(|usage| usage.oom_kills > 0);
        tracing::info!(%exit, oom, "init ended");
        let reason = StopReason::Exited { exit, oom };
        if let Err(error) = self.torn_down("exit", began, reason, &mut Timings::new()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "what a dead init left cannot be removed");
            // The record still says running with a dead init: without this pause the loop would spin on it.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn freeze(&self, frozen: bool) -> Result<Settled, Error> {
        let began = Instant::now();
        let init = self.init().ok_or(Error::NotRunning(self.record()?.status()))?;
        self.shared.executor.drivers().cgroups.freeze(self.id, frozen).await.map_err(Error::driver)?;
        let by = if frozen { "pause" } else { "resume" };
        let container = self
            .set(Change::flushed(by).since(began), |container| {
                container.phase = if frozen { Phase::Paused { init } } else { Phase::Running { init } };
            })
            .await?;
        Ok(Settled::at_rest(container, Timings::new()))
    }

    /// First what is in force, then the record: a limit that the kernel does not take is not written down.
    async fn update(&self, patch: ContainerPatch, if_match: Option<u64>) -> Result<Arc<Container>, Error> {
        let old = self.record()?;
        if old.receipt.is_some() {
            return Err(Error::not_found(super::What::Container, self.id));
        }
        if let Some(wanted) = if_match.filter(|wanted| *wanted != old.generation) {
            return Err(Error::Stale { what: super::What::Container, wanted, found: old.generation });
        }
        let mut new = (*old).clone();
        patch.apply(&mut new)?;
        let new = Arc::new(new);
        let result = match self.enforce(&old, &new).await {
            Ok(()) => self.shared.ledger.change(self.id, Change::flushed("update"), |record| patch.apply(record)).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(record) => {
                self.write_manifest(&record).await;
                Ok(record)
            }
            Err(error) => {
                if let Err(back) = self.enforce(&new, &old).await {
                    tracing::error!(error = &back as &dyn std::error::Error, "limits cannot be put back");
                }
                Err(error)
            }
        }
    }

    async fn enforce(&self, old: &Arc<Container>, new: &Arc<Container>) -> Result<(), Error> {
        let drivers = self.shared.executor.drivers();
        let (was, is) = (&old.settings, &new.settings);
        if was.limits.disk != is.limits.disk {
            let rootfs = self.shared.executor.layout().pool.rootfs(self.id);
            drivers.pool.set_limit(&rootfs, is.limits.disk).await.map_err(Error::driver)?;
        }
        if new.phase.init().is_none() {
            return Ok(());
        }
        if was.limits != is.limits {
            drivers.cgroups.set_limits(self.id, &is.limits).await.map_err(Error::driver)?;
        }
        if was.firewall_policy != is.firewall_policy {
            let subject = self.shared.subject(new.clone())?;
            drivers.firewall.apply(new.slot, &subject.policy).await.map_err(Error::driver)?;
        }
        Ok(())
    }

    /// The copy beside the data is for rebuilding the store: that it could not be written is told, and no more.
    async fn write_manifest(&self, record: &Container) {
        let json = super::bundle::manifest(record);
        if let Err(error) = self.shared.executor.drivers().folders.write_manifest(self.id, &json).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the manifest is behind the record");
        }
    }

    /// Removes everything and puts the receipt in the record's place.
    async fn erase(&mut self) -> Result<Receipt, Error> {
        let Ok(container) = self.record() else {
            let known = self.shared.ledger.receipt_of(self.id);
            let known = known.ok_or_else(|| Error::not_found(super::What::Container, self.id))?;
            return self.shared.ledger.receipt(known).await;
        };
        let Some(receipt) = container.receipt else { return Err(Error::Busy(self.id)) };
        let mut receipt = self.shared.ledger.receipt(receipt).await?;
        if let Some(init) = container.phase.init() {
            self.end(init, None).await?;
        }
        let target = Target::from(&*container);
        let erased = self.shared.executor.remove(target, "delete", &Plan::<Remove>::erase()).await?;
        let erased = erased.map(|id| id.0).filter(|id| !receipt.subvolumes.contains(id));
        receipt.subvolumes.extend(erased);
        self.verify(target, &mut receipt).await?;
        receipt.state = Erasure::Removed;
        self.shared.ledger.bury(self.id, &receipt).await?;
        self.shared.clean_later(receipt.clone());
        Ok(receipt)
    }

    /// What was deleted must go, whether or not somebody asks again; what is not gone after the last try is left to the next
    /// start of the daemon.
    fn erase_later(&self, tries: u32) {
        if tries >= ERASE_TRIES_MAX {
            return;
        }
        let (id, shared) = (self.id, self.shared.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ERASE_PAUSE_MS_MIN << tries)).await;
            let command = Command::Erase { tries: tries + 1, reply: oneshot::channel().0 };
            // Refused where DELETE came again meanwhile or the daemon ends.
            let _ = shared.send(id, command);
        });
    }

    /// Looks whether what was removed is gone; the receipt says how that was seen.
    async fn verify(&self, target: Target, receipt: &mut Receipt) -> Result<(), Error> {
        let drivers = self.shared.executor.drivers();
        let left = |what: &str| Error::Left { id: target.id, what: what.to_owned() };
        if drivers.cgroups.usage(target.id).await.map_err(Error::driver)?.is_some() {
            return Err(left("cgroup"));
        }
        if drivers.links.usage(target.slot).await.map_err(Error::driver)?.is_some() {
            return Err(left("link"));
        }
        if drivers
            .pool
            .id(&self.shared.executor.layout().pool.rootfs(target.id))
            .await
            .map_err(Error::driver)?
            .is_some()
        {
            return Err(left("rootfs"));
        }
        if drivers.folders.list().await.map_err(Error::driver)?.contains(&target.id) {
            return Err(left("folders"));
        }
        let now = Timestamp::now();
        receipt.note("processes and cgroup", "no cgroup of the container exists", now);
        receipt.note("network link, address and route", "no link of the container's slot exists", now);
        receipt.note("firewall chains", "removed in one transaction that nft confirmed", now);
        receipt.note("rootfs", "its subvolume is deleted and the deletion committed", now);
        receipt.note("logs, manifest and bundle", "no folder of the container exists", now);
        receipt.note(
            "record, environment, name and status log",
            "removed from the store, which reuses their bytes as it writes on",
            now,
        );
        Ok(())
    }
}

async fn exit_of(shared: Arc<Shared>, init: Option<Init>) -> Exit {
    match init {
        Some(init) => shared.executor.drivers().runtime.wait(init).await,
        None => std::future::pending().await,
    }
}
