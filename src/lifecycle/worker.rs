//! One task owns one container: its verbs queue here, so that no two are at work on it at once, and its phase is
//! changed by nobody else.
//!
//! A worker lives while its container has a process or a verb, and is made anew for the next verb; thousands of sleeping
//! containers have none. What it was told to do it does to the end, also when the caller has gone away.

mod update;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use super::activity::Sign;
use super::drowse::{Drowse, Waking};
use super::error::Error;
use super::execute::{Target, Timings};
use super::ledger::Change;
use super::plan::{Make, Origin, Plan, Remove};
use super::ready::{self, Readiness};
use super::requests::ContainerPatch;
use super::rules::{RulesChange, RulesChanged};
use super::starts::Permit;
use super::supervisor::Shared;
use crate::domain::{Container, ContainerId, Desired, Exit, Init, PauseReason, Phase, Receipt, StopReason, Verb};
use crate::sys::runtime::Delivery;

/// Commands that may wait at one worker.
pub const COMMANDS_MAX: usize = 16;
/// How long init may take to end after SIGKILL, in milliseconds; longer only in an uninterruptible sleep.
const KILL_WAIT_MS_MAX: u64 = 10_000;
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
    pub(super) const fn at_rest(container: Arc<Container>, timings: Timings) -> Self {
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
    /// Let it go on where it sleeps frozen; start it where it is stopped and may be woken.
    Wake {
        /// Without one it is not started.
        permit: Option<Permit>,
        /// Who waits.
        reply: Reply<Waking>,
    },
    /// Put it to sleep, if nobody uses it.
    Sleep {
        /// Why.
        why: Drowse,
        /// Who waits, and is told whether it sleeps.
        reply: Option<oneshot::Sender<bool>>,
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
    /// Change its own firewall rules.
    Rules {
        /// How.
        change: Box<RulesChange>,
        /// The generation the change is meant for.
        if_match: Option<u64>,
        /// Who waits.
        reply: Reply<RulesChanged>,
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
    pub(super) id: ContainerId,
    pub(super) shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    busy: Arc<AtomicBool>,
    hurry: watch::Receiver<bool>,
    /// Whether the port of the init that runs accepts.
    pub(super) ready: Option<watch::Receiver<Readiness>>,
}

impl Worker {
    /// Makes a worker and its handle; the caller spawns [`Worker::run`].
    pub fn new(id: ContainerId, shared: Arc<Shared>) -> (Self, Handle) {
        let (sender, commands) = mpsc::channel(COMMANDS_MAX);
        let busy = Arc::new(AtomicBool::new(false));
        let (hurry, hurried) = watch::channel(false);
        let handle = Handle { commands: sender, busy: busy.clone(), hurry };
        (Self { id, shared, commands, busy, hurry: hurried, ready: None }, handle)
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
                    exit = exit_of(self.shared.clone(), init), if init.is_some() => {
                        if self.shared.is_closed() {
                            return;
                        }
                        self.ended(exit).await;
                    }
                }
            }
        }
        .instrument(span)
        .await;
    }

    pub(super) fn record(&self) -> Result<Arc<Container>, Error> {
        self.shared.ledger.directory().container(self.id)
    }

    fn init(&self) -> Option<Init> {
        self.record().ok().and_then(|container| container.phase.init())
    }

    async fn serve(&mut self, command: Command) {
        let began = Instant::now();
        // A reply nobody waits for any more is no error: the work is done all the same.
        match command {
            Command::Build { origin, start, reply } => {
                let result = self.build(origin, start).await;
                self.note("create", began, &result);
                drop(reply.send(result));
            }
            Command::Verb { verb, grace, reply } => {
                let result = self.verb(verb, grace).await;
                self.note(&verb.to_string(), began, &result);
                self.busy.store(false, Ordering::Release);
                drop(reply.send(result));
                self.disconnect(verb).await;
            }
            Command::Update { patch, if_match, reply } => drop(reply.send(self.update(*patch, if_match).await)),
            Command::Rules { change, if_match, reply } => drop(reply.send(self.change_rules(&change, if_match).await)),
            Command::Erase { tries, reply } => {
                let result = self.erase().await;
                self.note("delete", began, &result);
                if result.is_err() && self.is_tombstoned() {
                    self.erase_later(tries);
                }
                drop(reply.send(result));
            }
            Command::Wake { permit, reply } => drop(reply.send(self.wake(permit).await)),
            Command::Sleep { why, reply } => {
                let sleeps = self.sleep(why).await;
                if let Some(reply) = reply {
                    let _ = reply.send(sleeps);
                }
                self.disconnect("idle").await;
            }
            Command::Adopt => drop(self.watch_ready()),
        }
    }

    /// For metrics; what was refused was not done at all.
    pub(super) fn note<T>(&self, verb: &str, began: Instant, result: &Result<T, Error>) {
        if matches!(result, Err(Error::WrongState { .. } | Error::NotFound { .. })) {
            return;
        }
        self.shared.deeds.note(verb, result.is_ok(), began.elapsed());
    }

    pub(super) fn is_tombstoned(&self) -> bool {
        self.record().map_or(true, |container| container.receipt.is_some())
    }

    pub(super) async fn set(
        &self,
        how: Change<'_>,
        change: impl FnOnce(&mut Container) + Send,
    ) -> Result<Arc<Container>, Error> {
        let change = |container: &mut Container| {
            change(container);
            Ok(())
        };
        self.shared.ledger.change(self.id, how, change).await
    }

    async fn build(&mut self, origin: Origin, start: bool) -> Result<Settled, Error> {
        let began = Instant::now();
        let plan = if start { Plan::build_and_start(origin) } else { Plan::build(origin) };
        match self.make(self.record()?, "create", &plan, None).await {
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
        permit: Option<Permit>,
    ) -> Result<(Option<Init>, Timings), Error> {
        let subject = self.shared.subject(container)?;
        let _permit = match permit {
            Some(permit) => permit,
            None => self.shared.starts.verb().await?,
        };
        let outcome = self.shared.executor.make(&subject, verb, plan, || self.is_tombstoned()).await?;
        Ok((outcome.init, outcome.timings))
    }

    /// Writes down what a plan made: a process, or a rootfs without one.
    async fn made(&mut self, init: Option<Init>, how: Change<'_>, timings: Timings) -> Result<Settled, Error> {
        let by = how.by.to_owned();
        let container = self
            .set(how, |container| {
                container.phase = match init {
                    Some(init) => Phase::Running { init },
                    None => Phase::Stopped { reason: StopReason::Created },
                };
                if init.is_some() {
                    container.started_at = Some(Timestamp::now());
                    container.started_by = Some(by);
                    container.ready_at = None;
                    container.env_revision_applied = container.env_revision;
                }
            })
            .await?;
        let ready = init.map(|_| {
            self.shared.activities.keep_no_longer(self.id);
            self.shared.activities.note(self.id, Sign::Start);
            self.watch_ready()
        });
        Ok(Settled { container, ready, timings })
    }

    pub(super) fn watch_ready(&mut self) -> watch::Receiver<Readiness> {
        let ready = ready::watch(self.shared.clone(), self.id);
        self.ready = Some(ready.clone());
        ready
    }

    async fn verb(&mut self, verb: Verb, grace: Duration) -> Result<Settled, Error> {
        let container = self.record()?;
        if container.receipt.is_some() || !container.phase.allows(verb) {
            return Err(Error::WrongState { verb, status: container.status() });
        }
        tracing::info!(%verb, generation = container.generation, "begins");
        match verb {
            Verb::Start => {
                self.shared.wakes.well(self.id);
                self.start("start", None).await
            }
            Verb::Stop => self.stop("stop", Some(grace), Desired::Stopped, StopReason::Requested).await,
            Verb::ForceStop => self.stop("force-stop", None, Desired::Stopped, StopReason::Requested).await,
            Verb::Restart => {
                let stopped = self.stop("restart", Some(grace), Desired::Running, StopReason::Requested).await?;
                self.disconnect(verb).await;
                let mut settled = self.start("restart", None).await?;
                settled.timings.splice(..0, stopped.timings);
                Ok(settled)
            }
            Verb::Pause => self.freeze(Some(PauseReason::Requested), Change::flushed("pause")).await,
            Verb::Resume => self.freeze(None, Change::flushed("resume")).await,
        }
    }

    pub(super) async fn start(&mut self, by: &str, permit: Option<Permit>) -> Result<Settled, Error> {
        let began = Instant::now();
        let container = self.record()?;
        let executor = &self.shared.executor;
        // What an earlier verb could not remove must not be taken for what this one makes.
        if executor.journal().is_open(self.id) {
            executor.remove(Target::from(&*container), by, &Plan::<Remove>::tear_down()).await?;
        }
        let container = self
            .set(Change::lazy(by), |container| {
                container.phase = Phase::Starting;
                container.desired = Desired::Running;
            })
            .await?;
        match self.make(container, by, &Plan::start(), permit).await {
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

    pub(super) async fn stop(
        &mut self,
        by: &str,
        grace: Option<Duration>,
        desired: Desired,
        reason: StopReason,
    ) -> Result<Settled, Error> {
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
        let container = self.let_go(by, began, reason, &mut timings).await?;
        Ok(Settled::at_rest(container, timings))
    }

    /// Ends init: asks first where there is a grace, then kills.
    pub(super) async fn end(&mut self, init: Init, grace: Option<Duration>) -> Result<(), Error> {
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

    /// Removes what a dead init leaves but for its link and rules, and writes down that it is stopped.
    async fn let_go(
        &self,
        by: &str,
        began: Instant,
        reason: StopReason,
        timings: &mut Timings,
    ) -> Result<Arc<Container>, Error> {
        let container = self.record()?;
        // The counters go with the cgroup.
        self.shared.last_alarms(&container).await;
        let target = Target::from(&*container);
        self.shared.executor.remove_part(target, by, &Plan::let_go(), timings).await?;
        self.set(Change::lazy(by).since(began), |container| {
            container.phase = Phase::Stopped { reason };
            container.ready_at = None;
        })
        .await
    }

    /// Removes the link and the rules of a container that was just stopped, after whoever asked for that has been answered. The
    /// journal's entry stays open until then: the next start, or the next daemon, does what fails here.
    async fn disconnect(&self, by: impl fmt::Display) {
        let Ok(container) = self.record() else { return };
        let executor = &self.shared.executor;
        if !matches!(container.phase, Phase::Stopped { .. }) || !executor.journal().is_open(self.id) {
            return;
        }
        if let Err(error) = executor.remove(Target::from(&*container), &by.to_string(), &Plan::disconnect()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "link or rules of a stopped container are left");
        }
    }

    /// Init ended by itself.
    async fn ended(&mut self, exit: Exit) {
        let began = Instant::now();
        let usage = self.shared.executor.drivers().cgroups.usage(self.id).await;
        let oom = usage.ok().flatten().is_some_and(|usage| usage.oom_kills > 0);
        tracing::info!(%exit, oom, "init ended");
        let reason = StopReason::Exited { exit, oom };
        let lived =
            self.record().ok().and_then(|container| container.started_at).map(|at| at.duration_until(Timestamp::now()));
        let lived = lived.and_then(|lived| lived.try_into().ok()).unwrap_or_default();
        self.shared.wakes.exited(self.id, lived, reason.to_string());
        if let Err(error) = self.let_go("exit", began, reason, &mut Timings::new()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "what a dead init left cannot be removed");
            // The record still says running with a dead init: without this pause the loop would spin on it.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.disconnect("exit").await;
    }
}

async fn exit_of(shared: Arc<Shared>, init: Option<Init>) -> Exit {
    match init {
        Some(init) => shared.executor.drivers().runtime.wait(init).await,
        None => std::future::pending().await,
    }
}
