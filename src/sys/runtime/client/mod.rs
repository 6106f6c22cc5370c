//! The daemon's side: starts helpers, speaks to them, and takes inits' statuses.
//!
//! Every wait for a helper has a bound; one that runs out kills the helper, and with it everything that is not yet a
//! running init. `remove` needs no helper: it kills, waits and deletes, and finds what a killed helper or an earlier
//! daemon left from the files under the run folder.

mod orphans;
mod session;
mod statuses;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::wire::{Failure, Places, StartReport, StartRequest};
use super::{Delivery, ExecOutcome, ExecRequest, Exit, Init, Launch, Pins, Runtime, RuntimeError, files, process};
use crate::domain::ContainerId;
use crate::sys::oci::seccomp;
use session::Session;
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
    sessions: Mutex<HashMap<ContainerId, Session>>,
    statuses: Statuses,
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
            sessions: Mutex::default(),
            statuses: Statuses::default(),
        };
        for (path, mode) in [(runtime.containers(), 0o711), (runtime.seccomp_cache(), 0o700)] {
            let made = fs::DirBuilder::new().recursive(true).mode(mode).create(&path);
            made.map_err(|source| RuntimeError::Io { action: "create", path, source })?;
        }
        // Compiled now, so that no start pays for it.
        let compiled = seccomp::profile().and_then(|profile| seccomp::cached(&runtime.seccomp_cache(), &profile));
        compiled.map_err(|error| RuntimeError::Io {
            action: "compile the seccomp profile into",
            path: runtime.seccomp_cache(),
            source: io::Error::other(error),
        })?;
        Ok(runtime)
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

    fn sessions(&self) -> MutexGuard<'_, HashMap<ContainerId, Session>> {
        // A map of whole values: a panic elsewhere cannot have left it half changed.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a start under way out of the map; whoever does not put it back has ended it.
    fn take(&self, id: ContainerId) -> Result<Session, RuntimeError> {
        self.sessions().remove(&id).ok_or(RuntimeError::NotRunning(id))
    }

    fn admit(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let sessions = self.sessions();
        let refused = if sessions.contains_key(&id) {
            "it is being started already"
        } else if sessions.len() >= SESSIONS_MAX {
            "too many starts are under way"
        } else {
            return Ok(());
        };
        Err(RuntimeError::Helper { action: "start", id, source: io::Error::other(refused) })
    }

    /// Init as the files say: of a start in an earlier life of the daemon, too.
    fn noted_init(&self, id: ContainerId) -> Option<Init> {
        serde_json::from_slice(&fs::read(self.places(id).init()).ok()?).ok()
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
        let id = launch.id;
        self.admit(id)?;
        let mut session = Session::spawn(id, &self.helper, "start")?;
        let request = StartRequest::Prepare { launch: launch.clone(), places: self.places(id) };
        match session.ask(&request, "prepare", PREPARE_WAIT_MS_MAX).await? {
            StartReport::Prepared { user, net } => {
                self.sessions().insert(id, session);
                Ok(Pins { user, net })
            }
            StartReport::Failed(failure) => Err(session.lost(failed(id, failure)).await),
            other => Err(session.lost(unexpected(id, &other)).await),
        }
    }

    async fn create(&self, id: ContainerId) -> Result<Init, RuntimeError> {
        let mut session = self.take(id)?;
        match session.ask(&StartRequest::Create, "create", CREATE_WAIT_MS_MAX).await? {
            StartReport::Created(init) => {
                session.set_init(init);
                self.sessions().insert(id, session);
                Ok(init)
            }
            StartReport::Failed(failure) => Err(session.lost(failed(id, failure)).await),
            other => Err(session.lost(unexpected(id, &other)).await),
        }
    }

    async fn start(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let mut session = self.take(id)?;
        match session.ask(&StartRequest::Start, "start", START_WAIT_MS_MAX).await? {
            // Only when the helper has ended is init our child, and its status ours to take.
            StartReport::Started => session.finish("end", EXIT_WAIT_MS_MAX).await,
            StartReport::Failed(failure) => Err(session.lost(failed(id, failure)).await),
            other => Err(session.lost(unexpected(id, &other)).await),
        }
    }

    async fn wait(&self, init: Init) -> Exit {
        self.statuses.wait(init).await
    }

    fn is_alive(&self, init: Init) -> bool {
        process::is_alive(init)
    }

    fn signal(&self, init: Init, signal: i32) -> Result<Delivery, RuntimeError> {
        process::signal_init(init, signal).map_err(|source| RuntimeError::Io {
            action: "signal",
            path: PathBuf::from(format!("/proc/{}", init.pid)),
            source,
        })
    }

    async fn exec(&self, id: ContainerId, init: Init, request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
        session::exec(id, &self.helper, self.places(id), init, request).await
    }

    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let session = self.sessions().remove(&id);
        let begun = session.is_some();
        let init = session.as_ref().and_then(Session::init).or_else(|| self.noted_init(id));
        if let Some(session) = session {
            session.kill().await;
        }
        // An init that never got to execve has nobody who would take its status; the others have been waited for.
        if let Some(init) = init {
            self.kill_init(id, init).await?;
        }
        if begun || init.is_none() {
            orphans::end().await;
        }
        let dir = self.places(id).dir;
        files::remove(&dir).map_err(|source| RuntimeError::Io { action: "remove", path: dir, source })
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
