//! The daemon's side: starts helpers, speaks to them, and takes inits' statuses.
//!
//! Every wait for a helper has a bound; one that runs out kills the helper, and with it everything that is not yet a
//! running init. `remove` needs no helper: it kills, waits and deletes, and finds what a killed helper or an earlier
//! daemon left from the files under the run folder.

mod orphans;
mod session;
mod spares;
mod statuses;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex as AsyncMutex;

use super::wire::{Failure, Places, StartReport, StartRequest};
use super::{
    Delivery, ExecOutcome, ExecRequest, Exit, Init, Launch, Pins, Resized, Runtime, RuntimeError, files, process,
    ramdisk,
};
use crate::domain::{Bytes, Confinement, ContainerId};
use crate::sys::oci::seccomp;
use session::Session;
use spares::Spares;
use statuses::Statuses;

/// Starts under way at once; more are refused, since each holds a process and three pipes.
const SESSIONS_MAX: usize = 1_024;
/// Bounds of one step of a helper, in milliseconds. A start takes some ten; these are for a machine in trouble.
const PREPARE_WAIT_MS_MAX: u64 = 15_000;
const CREATE_WAIT_MS_MAX: u64 = 30_000;
const START_WAIT_MS_MAX: u64 = 15_000;
/// How long a helper may take to end after its last word.
const EXIT_WAIT_MS_MAX: u64 = 10_000;
/// How long a killed init may take to be gone.
const KILL_WAIT_MS_MAX: u64 = 10_000;
/// How long a helper that lost its daemon may take to undo its start.
const UNDO_WAIT_MS_MAX: u64 = 10_000;
const UNDO_POLL_MS: u64 = 5;
/// After this it is looked for what keeps it.
const KILL_SWEEP_MS: u64 = 200;

/// Makes the calling process the reaper of its descendants: inits become its children when their helpers end.
///
/// # Errors
/// What the kernel says against it.
pub fn become_subreaper() -> io::Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(true)?)
}

/// Runs containers through helpers, re-executions of this binary.
#[derive(Debug)]
pub struct HelperRuntime {
    run_dir: PathBuf,
    helper: PathBuf,
    /// Starts under way. A session stays here until its helper has been waited for, so that a start whose caller goes
    /// away in the middle is ended by `remove` like any other.
    sessions: Arc<Mutex<Sessions>>,
    spares: Arc<Spares>,
    statuses: Statuses,
}

type Sessions = HashMap<ContainerId, Arc<AsyncMutex<Session>>>;

fn lock(sessions: &Mutex<Sessions>) -> MutexGuard<'_, Sessions> {
    // A map of whole values: a panic elsewhere cannot have left it half changed.
    sessions.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HelperRuntime {
    /// A runtime with its state under `run_dir` (on a tmpfs, traversable by all), re-executing this very binary.
    ///
    /// # Errors
    /// A folder that cannot be made, or a seccomp profile that cannot be compiled.
    pub fn new(run_dir: &Path) -> Result<Self, RuntimeError> {
        Self::with_helper(run_dir, Path::new("/proc/self/exe"))
    }

    /// The same with another binary as the helper.
    ///
    /// # Errors
    /// As [`HelperRuntime::new`].
    pub fn with_helper(run_dir: &Path, helper: &Path) -> Result<Self, RuntimeError> {
        let runtime = Self {
            run_dir: run_dir.to_owned(),
            helper: helper.to_owned(),
            sessions: Arc::default(),
            spares: Arc::new(Spares::new(helper)),
            statuses: Statuses::default(),
        };
        for (path, mode) in [(runtime.containers(), 0o711), (runtime.seccomp_cache(), 0o700)] {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(&path);
            let made = made.and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
            made.map_err(|source| RuntimeError::Io { action: "create", path, source })?;
        }
        // Compiled now, so that no start pays for it.
        let compiled = seccomp::profile(Confinement::Standard)
            .and_then(|profile| seccomp::cached(&runtime.seccomp_cache(), &profile));
        compiled.map_err(|error| RuntimeError::Io {
            action: "compile the seccomp profile into",
            path: runtime.seccomp_cache(),
            source: io::Error::other(error),
        })?;
        Ok(runtime)
    }

    /// Has helpers ready for the first starts.
    pub fn warm(&self) {
        self.spares.refill();
    }

    fn containers(&self) -> PathBuf {
        self.run_dir.join("containers")
    }

    fn seccomp_cache(&self) -> PathBuf {
        self.run_dir.join("seccomp")
    }

    fn places(&self, id: ContainerId) -> Places {
        Places { dir: self.containers().join(id.to_string()), seccomp_cache: self.seccomp_cache() }
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        lock(&self.sessions)
    }

    fn session(&self, id: ContainerId) -> Option<Arc<AsyncMutex<Session>>> {
        self.sessions().get(&id).cloned()
    }

    /// Starts a helper, unless there is one for this container or there are too many.
    fn open_session(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let refused = |text| Err(RuntimeError::Helper { action: "start", id, source: io::Error::other(text) });
        // Held over the spawn, so that of two starts of one container the second is refused.
        let mut sessions = self.sessions();
        if sessions.contains_key(&id) {
            return refused("it is being started already");
        }
        if sessions.len() >= SESSIONS_MAX {
            return refused("too many starts are under way");
        }
        let session = Session::of(id, self.spares.take(id)?);
        sessions.insert(id, Arc::new(AsyncMutex::new(session)));
        Ok(())
    }

    /// One step of a start. A session that has failed, or is done, is closed.
    async fn step<T>(
        &self,
        id: ContainerId,
        request: &StartRequest,
        (step, wait_ms_max): (&'static str, u64),
        wanted: impl FnOnce(&mut Session, StartReport) -> Result<T, StartReport> + Send,
    ) -> Result<T, RuntimeError> {
        let session = self.session(id).ok_or(RuntimeError::NotRunning(id))?;
        let mut session = session.lock().await;
        let answer = match session.ask(request, step, wait_ms_max).await {
            Ok(StartReport::Failed(failure)) => Err(session.lost(failed(id, failure)).await),
            Ok(report) => match wanted(&mut session, report) {
                Ok(value) => Ok(value),
                Err(other) => {
                    session.kill().await;
                    Err(unexpected(id, &other))
                }
            },
            // Killed and waited for already.
            Err(error) => Err(error),
        };
        if answer.is_err() {
            self.sessions().remove(&id);
        }
        answer
    }

    /// Waits for the end of a helper whose init runs, beside what the daemon does next: taking its memory and its mounts apart
    /// takes the kernel longer than init takes to listen. Until then init is the helper's child, which [`Statuses`] knows, and the
    /// session stays, so that a `remove` ends it first.
    fn see_off(&self, id: ContainerId) {
        let Some(session) = self.session(id) else { return };
        let (sessions, spares) = (Arc::clone(&self.sessions), Arc::clone(&self.spares));
        tokio::spawn(async move {
            // A helper that does not end is killed by this, which init, once it runs, survives.
            if let Err(error) = session.lock().await.finish("end", EXIT_WAIT_MS_MAX).await {
                tracing::warn!(container = %id, error = &error as &dyn std::error::Error, "a runtime helper did not end");
            }
            let mut open = lock(&sessions);
            // It may have been removed, and another start of the same container be under way.
            if open.get(&id).is_some_and(|now| Arc::ptr_eq(now, &session)) {
                open.remove(&id);
            }
            drop(open);
            spares.refill();
        });
    }

    /// Init as the files say: of a start in an earlier life of the daemon, too.
    fn noted_init(&self, id: ContainerId) -> Option<Init> {
        serde_json::from_slice(&fs::read(self.places(id).init()).ok()?).ok()
    }

    /// Removes a container's files, once no helper of an earlier daemon works on them any more.
    async fn remove_files(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let dir = self.places(id).dir;
        for _ in 0..UNDO_WAIT_MS_MAX / UNDO_POLL_MS {
            let removed = match files::claim(&dir) {
                Ok(None) => {
                    tokio::time::sleep(Duration::from_millis(UNDO_POLL_MS)).await;
                    continue;
                }
                Ok(Some(_claim)) => files::remove(&dir),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
            return removed.map_err(|source| RuntimeError::Io { action: "remove", path: dir, source });
        }
        Err(RuntimeError::Timeout { id, step: "undo", waited_ms: UNDO_WAIT_MS_MAX })
    }

    async fn kill_init(&self, id: ContainerId, init: Init) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::Helper { action: "kill init after", id, source };
        let Some(handle) = process::open(init).map_err(failed)? else { return Ok(()) };
        process::send(&handle, libc::SIGKILL).map_err(failed)?;
        for _ in 0..KILL_WAIT_MS_MAX / KILL_SWEEP_MS {
            let ended = self.statuses.wait(init);
            if tokio::time::timeout(Duration::from_millis(KILL_SWEEP_MS), ended).await.is_ok() {
                return Ok(());
            }
            // Something of a lost helper's may keep it from dying.
            orphans::end().await;
        }
        Err(RuntimeError::Timeout { id, step: "let init die", waited_ms: KILL_WAIT_MS_MAX })
    }
}

/// What a helper's failure is to the daemon.
fn failed(id: ContainerId, failure: Failure) -> RuntimeError {
    match failure {
        Failure::Step { step, message } => RuntimeError::Step { id, step, message },
        Failure::NotExecutable { message } => RuntimeError::NotExecutable { id, message },
        Failure::NotRunning => RuntimeError::NotRunning(id),
    }
}

fn unexpected(id: ContainerId, report: &StartReport) -> RuntimeError {
    let source = io::Error::new(io::ErrorKind::InvalidData, format!("{report:?} is not the answer to that"));
    RuntimeError::Helper { action: "understand", id, source }
}

#[async_trait]
impl Runtime for HelperRuntime {
    async fn prepare(&self, launch: &Launch) -> Result<Pins, RuntimeError> {
        self.open_session(launch.id)?;
        let request = StartRequest::Prepare { launch: launch.clone(), places: self.places(launch.id) };
        self.step(launch.id, &request, ("prepare", PREPARE_WAIT_MS_MAX), |_, report| match report {
            StartReport::Prepared { user, net } => Ok(Pins { user, net }),
            other => Err(other),
        })
        .await
    }

    async fn create(&self, id: ContainerId) -> Result<Init, RuntimeError> {
        self.step(id, &StartRequest::Create, ("create", CREATE_WAIT_MS_MAX), |session, report| match report {
            StartReport::Created(init) => {
                session.set_init(init);
                Ok(init)
            }
            other => Err(other),
        })
        .await
    }

    async fn start(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.step(id, &StartRequest::Start, ("start", START_WAIT_MS_MAX), |_, report| match report {
            StartReport::Started => Ok(()),
            other => Err(other),
        })
        .await?;
        self.see_off(id);
        Ok(())
    }

    async fn wait(&self, init: Init) -> Exit {
        self.statuses.wait(init).await
    }

    fn is_alive(&self, init: Init) -> bool {
        process::is_alive(init)
    }

    async fn unread(&self, inits: Vec<Init>) -> Vec<(Init, Bytes)> {
        let look = || inits.into_iter().filter_map(|init| Some((init, process::unread(init).ok()?))).collect();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    fn signal(&self, init: Init, signal: i32) -> Result<Delivery, RuntimeError> {
        process::signal_init(init, signal).map_err(|source| RuntimeError::Io {
            action: "signal",
            path: PathBuf::from(format!("/proc/{}", init.pid)),
            source,
        })
    }

    async fn resize_ramdisk(&self, init: Init, size: Option<Bytes>) -> Result<Resized, RuntimeError> {
        let done = tokio::task::spawn_blocking(move || ramdisk::resize(init, size)).await;
        let done = done.unwrap_or_else(|join| Err(io::Error::other(join)));
        let path = PathBuf::from(format!("/proc/{}/root{}", init.pid, super::RAMDISK));
        done.map_err(|source| RuntimeError::Io { action: "give another size to", path, source })
    }

    async fn exec(&self, id: ContainerId, init: Init, request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
        session::exec(id, &self.helper, self.places(id), init, request).await
    }

    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let session = self.session(id);
        let begun = session.is_some();
        let mut init = self.noted_init(id);
        if let Some(session) = session {
            let mut session = session.lock().await;
            init = session.init().or(init);
            session.kill().await;
        }
        // An init that never got to execve has nobody who would take its status; the others have been waited for.
        if let Some(init) = init {
            self.kill_init(id, init).await?;
        }
        if begun || init.is_none() {
            orphans::end().await;
        }
        self.sessions().remove(&id);
        self.remove_files(id).await
    }

    async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError> {
        let path = self.containers();
        let io = |source| RuntimeError::Io { action: "list", path: path.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<ContainerId>().ok()));
        }
        Ok(found)
    }
}
