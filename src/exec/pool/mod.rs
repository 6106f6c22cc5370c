//! The pool: a few workers that wait, and who gets which.
//!
//! ```text
//!   cold ──start──► warm ──run──► busy ──Ready──► warm
//!    ▲                             │
//!    └────── its process ended ◄───┘ a bound was hit, it died, or nobody wants the answer
//! ```
//!
//! There are as many seats as workers may be at once; a seat has a number, from which user and control group follow, and a worker or
//! none. Whoever has taken a seat owns it, and gives it back in the end: with its worker, or to be made warm anew. A run is refused
//! when no seat was free in time.
//!
//! Invariants: a worker does one run at a time; after a run that hit a bound its process is gone before its seat is used again; after
//! [`Pool::close`] nothing is left.

mod going;
mod seat;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::protocol::{self};
use super::run::{Answer, Engine, Run, RunError, ScriptFile};
use super::shared::Shared;
use crate::domain::{Bytes, Instance, chain};
use crate::sys::worker::{Api, Cage, OVERHEAD_MIB, Setup, WorkerError, group::Groups};
use going::{Going, Said};
use seat::{Seat, Worker};

/// Workers at once, at most.
pub const WORKERS_MAX: u16 = 16;
/// Runs of one worker; then it is replaced, whatever it may have gathered.
const RUNS_MAX: u32 = 1_000;
/// How much longer than a run's own bound the pool waits for the worker to say that it was reached, in milliseconds: native code
/// that computes does not look at the clock.
const GRACE_MS: u64 = 250;
/// Parts of an answer that wait for its client.
const PARTS_WAITING_MAX: usize = 8;
/// How long a client that reads slowly has to hear that its answer is cut short, in milliseconds.
const LAST_WORD_MS_MAX: u64 = 30_000;
/// How long a check may take, in milliseconds.
const CHECK_MS_MAX: u64 = 5_000;
/// How long `close` waits for runs to be cut off, in milliseconds.
const CLOSE_MS_MAX: u64 = 10_000;

/// What a pool is made of.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// This binary.
    pub program: PathBuf,
    /// Where the scripts are.
    pub scripts_dir: PathBuf,
    /// How they reach the API.
    pub api: Api,
    /// How much is taken away from workers.
    pub confine: Confine,
    /// Workers that are kept waiting.
    pub warm: u16,
    /// Workers at once, up to [`WORKERS_MAX`].
    pub workers_max: u16,
    /// The largest memory bound of a run: what a worker's control group is made for.
    pub memory_max: Bytes,
    /// How long a run waits for a worker.
    pub wait_max: Duration,
}

/// How much is taken away from workers.
#[derive(Debug, Clone)]
pub enum Confine {
    /// Everything; wants root.
    Full {
        /// Whose workers they are: part of their control groups' names. `None`: they have none.
        instance: Option<Instance>,
        /// Ids of nobody's from here on, one a seat: `users.uid_base` and the numbers above it belong to slot 0, which no container has.
        first_id: u32,
    },
    /// What can be given up without a privilege.
    Partial,
}

/// The ids that workers have, with this one as [`Confine::Full`]'s first.
pub fn worker_ids(first_id: u32) -> RangeInclusive<u32> {
    first_id + 1..=first_id + u32::from(WORKERS_MAX)
}

/// The engine: workers, warm and to be had.
#[derive(Debug, Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: PoolConfig,
    groups: Option<Groups>,
    /// As many permits as there are free seats.
    free: Arc<Semaphore>,
    seats: Mutex<Seats>,
    shared: Mutex<Shared>,
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct Seats {
    warm: VecDeque<Worker>,
    cold: VecDeque<Seat>,
    /// Seats with a worker, taken ones too.
    live: u16,
}

/// A seat that somebody has taken. Dropped with a worker in it, that one is ended and replaced.
#[derive(Debug)]
struct Taken {
    inner: Arc<Inner>,
    worker: Option<Worker>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Pool {
    /// Starts the warm workers.
    ///
    /// # Errors
    /// A worker that does not come up.
    pub async fn start(mut config: PoolConfig) -> Result<Self, WorkerError> {
        config.workers_max = config.workers_max.clamp(1, WORKERS_MAX);
        config.warm = config.warm.min(config.workers_max);
        let groups = match &config.confine {
            Confine::Full { instance: Some(instance), .. } => Some(Groups::prepare(instance)?),
            Confine::Full { instance: None, .. } | Confine::Partial => None,
        };
        let seats = Seats { cold: (0..config.workers_max).map(Seat).collect(), ..Seats::default() };
        let free = Arc::new(Semaphore::new(config.workers_max.into()));
        let inner = Inner {
            config,
            groups,
            free,
            seats: Mutex::new(seats),
            shared: Mutex::default(),
            closing: CancellationToken::new(),
        };
        let pool = Self { inner: Arc::new(inner) };
        for _ in 0..pool.inner.config.warm {
            // One after the other: a first one that fails says why, and leaves nothing.
            let Some(seat) = pool.inner.seats().cold.pop_front() else { break };
            match pool.inner.start(seat).await {
                Ok(worker) => pool.inner.put(worker),
                Err(error) => {
                    pool.close().await;
                    return Err(error);
                }
            }
        }
        Ok(pool)
    }

    /// Ends every worker and whatever it runs; nothing is left of them.
    pub async fn close(&self) {
        let inner = &self.inner;
        inner.closing.cancel();
        let all = inner.free.acquire_many(inner.config.workers_max.into());
        match timeout(Duration::from_millis(CLOSE_MS_MAX), all).await {
            Ok(Ok(permits)) => permits.forget(),
            Ok(Err(_)) => return,
            Err(_) => tracing::warn!("a script's worker is still busy at the end"),
        }
        inner.free.close();
        let workers: Vec<Worker> = inner.seats().warm.drain(..).collect();
        for worker in workers {
            worker.end(inner.groups.as_ref()).await;
        }
        if let Some(groups) = &inner.groups {
            groups.remove_parent().await;
        }
    }

    /// The pids of the waiting workers' keepers.
    pub fn warm(&self) -> Vec<u32> {
        self.inner.seats().warm.iter().filter_map(|worker| worker.process.pid()).collect()
    }

    /// A worker, waited for within the bound.
    async fn take(&self) -> Result<Taken, RunError> {
        let inner = &self.inner;
        let busy = || RunError::Busy { waited: inner.config.wait_max };
        let permit = timeout(inner.config.wait_max, Arc::clone(&inner.free).acquire_owned()).await;
        let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        let (warm, cold) = {
            let mut seats = inner.seats();
            match seats.warm.pop_front() {
                Some(worker) => (Some(worker), None),
                None => (None, seats.cold.pop_front()),
            }
        };
        match (warm, cold) {
            (Some(worker), _) => Ok(Taken { inner: Arc::clone(inner), worker: Some(worker), permit: Some(permit) }),
            (None, Some(seat)) => Arc::clone(inner).warm_up(seat, permit).await,
            (None, None) => Err(busy()),
        }
    }
}

impl Inner {
    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, worker: Worker) {
        self.seats().warm.push_back(worker);
    }

    /// A seat's worker; on failure the seat is cold again.
    async fn start(&self, seat: Seat) -> Result<Worker, WorkerError> {
        self.seats().live += 1;
        let started = self.try_start(seat.0).await;
        if started.is_err() {
            let mut seats = self.seats();
            seats.live -= 1;
            seats.cold.push_back(seat);
        }
        started
    }

    async fn try_start(&self, seat: u16) -> Result<Worker, WorkerError> {
        let memory = self.config.memory_max.0.saturating_add(OVERHEAD_MIB * 1024 * 1024);
        let group = self.groups.as_ref().map(|groups| groups.make(seat, Bytes(memory))).transpose()?;
        let cage = match self.config.confine {
            Confine::Full { first_id, .. } => {
                Cage::Full { id: worker_ids(first_id).start() + u32::from(seat), group: group.unwrap_or_default() }
            }
            Confine::Partial => Cage::Partial,
        };
        let setup = Setup { scripts_dir: self.config.scripts_dir.clone(), api: self.config.api.clone(), cage };
        let started = Worker::start(Seat(seat), &self.config.program, &setup).await;
        if started.is_err()
            && let Some(groups) = &self.groups
        {
            groups.remove(seat).await;
        }
        started
    }

    /// A worker in a seat that was cold. In a task of its own: a caller that goes away meanwhile must not take the seat along.
    async fn warm_up(self: Arc<Self>, seat: Seat, permit: OwnedSemaphorePermit) -> Result<Taken, RunError> {
        let started = tokio::spawn(async move {
            let worker = self.start(seat).await?;
            Ok::<_, WorkerError>(Taken { inner: self, worker: Some(worker), permit: Some(permit) })
        });
        let how = match started.await {
            Ok(Ok(taken)) => return Ok(taken),
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        Err(RunError::Worker { how })
    }

    /// Ends a worker, and makes its seat warm again where there are too few.
    async fn replace(self: Arc<Self>, worker: Worker, permit: Option<OwnedSemaphorePermit>) {
        let seat = worker.end(self.groups.as_ref()).await;
        let wanted = {
            let mut seats = self.seats();
            seats.live -= 1;
            seats.live < self.config.warm && !self.closing.is_cancelled()
        };
        if !wanted {
            self.seats().cold.push_back(seat);
        } else {
            match self.start(seat).await {
                Ok(worker) => self.put(worker),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "no script's worker in the place of one that ended")
                }
            }
        }
        drop(permit);
    }
}

impl Taken {
    fn worker(&mut self) -> Result<&mut Worker, RunError> {
        self.worker.as_mut().ok_or_else(|| RunError::Worker { how: "it is gone".to_owned() })
    }

    /// Gives the seat back, with its worker if that can go on.
    fn give_back(mut self) {
        if let Some(worker) = self.worker.take() {
            if worker.runs >= RUNS_MAX || self.inner.closing.is_cancelled() {
                self.worker = Some(worker);
            } else {
                self.inner.put(worker);
            }
        }
    }

    /// Ends the worker, waits until it is gone, and says how that went.
    async fn gone(mut self) -> RunError {
        // It stays in its seat while it is waited for: the caller may go away.
        let Some(worker) = self.worker.as_mut() else { return RunError::Worker { how: "it is gone".to_owned() } };
        let how = worker.wait_end().await;
        let starved = self.inner.groups.as_ref().is_some_and(|groups| groups.ran_out_of_memory(worker.seat.0));
        let memory = worker.memory;
        // Memory that a script holds outside the engine: an allocation that fails there ends the process.
        if starved || how == seat::ABORTED { RunError::Memory { memory } } else { RunError::Worker { how } }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let (Some(worker), permit) = (self.worker.take(), self.permit.take()) else { return };
        let inner = Arc::clone(&self.inner);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(inner.replace(worker, permit));
        }
    }
}

#[async_trait]
impl Engine for Pool {
    async fn run(&self, run: Run) -> Result<Answer, RunError> {
        fits(&run.file, &run.source)?;
        if run.asked.body.len() > protocol::BODY_BYTES_MAX {
            return Err(RunError::Memory { memory: Bytes(protocol::BODY_BYTES_MAX as u64) });
        }
        let mut taken = self.take().await?;
        let ends = Instant::now() + run.bounds.wall + Duration::from_millis(GRACE_MS);
        let (wall, console) = (run.bounds.wall, Arc::clone(&run.console));
        let worker = taken.worker()?;
        worker.memory = run.bounds.memory;
        worker.runs += 1;
        let handed = timeout(run.bounds.wall, worker.hand_over(run)).await;
        match handed {
            Err(_) => return Err(RunError::Time { wall }),
            // What is too large for a frame is our own doing; anything else is its.
            Ok(Err(error)) if error.kind() == ErrorKind::InvalidData => {
                return Err(RunError::Worker { how: format!("the run could not be handed over: {error}") });
            }
            Ok(Err(_)) => return Err(taken.gone().await),
            Ok(Ok(())) => {}
        }
        let mut going = Going { taken, ends, wall, console, ended: false };
        match going.next().await? {
            Said::Head(head) => {
                let (parts, body) = mpsc::channel(PARTS_WAITING_MAX);
                tokio::spawn(going.carry(parts));
                Ok(Answer { status: head.status, headers: head.headers, body })
            }
            Said::Failed(failed) => Err(going.failed(failed)),
            // An answer without a head is none.
            _ => Err(RunError::Worker { how: "it said nothing that makes sense".to_owned() }),
        }
    }

    async fn check(&self, file: &ScriptFile, source: &str) -> Result<(), RunError> {
        fits(file, source)?;
        let mut taken = self.take().await?;
        let wall = Duration::from_millis(CHECK_MS_MAX);
        if taken.worker()?.hand_over_check(file, source).await.is_err() {
            return Err(taken.gone().await);
        }
        let (nobody, _) = mpsc::channel(1);
        let mut going = Going { taken, ends: Instant::now() + wall, wall, console: Arc::new(nobody), ended: false };
        match going.next().await? {
            Said::Done => going.rest().await,
            Said::Failed(failed) => return Err(going.failed(failed)),
            _ => {}
        }
        Ok(())
    }
}

/// Whether a script's text is one that can be handed over.
fn fits(file: &ScriptFile, source: &str) -> Result<(), RunError> {
    if source.len() <= protocol::SOURCE_BYTES_MAX {
        return Ok(());
    }
    let place = super::run::Place { file: file.clone(), line: 0, column: 0 };
    Err(RunError::Syntax { place, message: format!("it is larger than {} bytes", protocol::SOURCE_BYTES_MAX) })
}
