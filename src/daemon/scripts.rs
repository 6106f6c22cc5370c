//! Scripts on this host: where they lie, what they may use, and how they come to the API.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::{DaemonError, PRIVATE_MODE, SCRIPTS_MODE, listen, make_folder};
use crate::config::Config;
use crate::domain::ProjectId;
use crate::exec::keys::{KeyError, Keys, RunKey};
use crate::exec::pool::{Confine, Pool, PoolConfig};
use crate::exec::run::{Bounds, Engine, ScriptFile};
use crate::exec::runs::{self, RUNS_MAX, Runs};
use crate::exec::{Scripts, ScriptsConfig};
use crate::lifecycle::Service;
use crate::sys::worker::Api;

/// How long a run waits for a worker, in milliseconds.
const WORKER_WAIT_MS_MAX: u64 = 10_000;

/// Scripts that answer: their workers, and the host of their own where they have one.
#[derive(Debug)]
pub struct Hosting {
    /// What stands in front of the workers.
    pub scripts: Scripts,
    /// The processes that evaluate them.
    pub workers: Pool,
    /// Where the proxy leads what comes to their own host.
    pub host: Option<(TcpListener, SocketAddr)>,
}

impl Hosting {
    /// Starts the workers and reads what was kept.
    ///
    /// # Errors
    /// What cannot work.
    pub async fn open(config: &Config, service: &Service, runs: Runs) -> Result<Self, DaemonError> {
        let host = if config.exec.host { Some(host()?) } else { None };
        let workers = workers(config).await?;
        let scripts = open(config, service, runs, Arc::new(workers.clone())).await?;
        Ok(Self { scripts, workers, host })
    }

    /// Where their own host is led to.
    pub fn address(&self) -> Option<SocketAddr> {
        self.host.as_ref().map(|(_, address)| *address)
    }
}

/// What one run may use where its script says nothing.
fn bounds(config: &crate::config::Exec) -> Bounds {
    Bounds {
        wall: config.timeout(),
        cpu: config.cpu(),
        memory: config.memory,
        response: config.response,
        connections: config.connections,
    }
}

/// The processes that evaluate scripts. Their folder is made first: they see it and nothing else.
///
/// # Errors
/// The first of them does not come up.
async fn workers(config: &Config) -> Result<Pool, DaemonError> {
    // One that is there is the operator's, with the mode it has.
    if !config.scripts_dir.exists() {
        make_folder(&config.scripts_dir, SCRIPTS_MODE)?;
    }
    let pool = PoolConfig {
        program: PathBuf::from("/proc/self/exe"),
        scripts_dir: config.scripts_dir.clone(),
        api: Api::Socket(config.scripts_socket()),
        confine: Confine::Full { instance: Some(config.instance.clone()), first_id: config.users.uid_base },
        warm: config.exec.warm,
        workers_max: config.exec.workers,
        memory_max: config.exec.memory,
        wait_max: Duration::from_millis(WORKER_WAIT_MS_MAX),
    };
    Ok(Pool::start(pool).await?)
}

/// The scripts in front of an engine; their runs' keys are kept in `runs`.
///
/// # Errors
/// Their folders cannot be made, or what was kept of them cannot be read.
async fn open(config: &Config, service: &Service, runs: Runs, engine: Arc<dyn Engine>) -> Result<Scripts, DaemonError> {
    let logs = config.data_dir.join("exec-logs");
    make_folder(&logs, PRIVATE_MODE)?;
    let places = ScriptsConfig {
        folder: config.scripts_dir.clone(),
        secrets_file: config.exec.secrets_file.clone(),
        logs,
        bounds: bounds(&config.exec),
        concurrent: NonZeroU32::new(u32::from(config.exec.workers.saturating_sub(1))).unwrap_or(NonZeroU32::MIN),
    };
    let keys = Arc::new(RunKeys { service: service.clone(), runs });
    Ok(Scripts::open(places, engine, keys, service.records().clone()).await?)
}

/// Where the proxy leads what comes to scripts' own host: on the loopback, at any port that is free.
///
/// # Errors
/// There is none.
fn host() -> Result<(TcpListener, SocketAddr), DaemonError> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = listen("scripts' own host", any)?;
    let address = listener.local_addr().map_err(|source| DaemonError::System("cannot tell a socket's port", source))?;
    Ok((listener, address))
}

/// Keys for the socket of scripts.
#[derive(Debug)]
struct RunKeys {
    service: Service,
    runs: Runs,
}

impl RunKey for runs::RunKey {
    fn secret(&self) -> crate::domain::Secret {
        Self::secret(self).clone()
    }

    fn told_of(&self) -> runs::ToldOf {
        Self::told_of(self).clone()
    }
}

impl Keys for RunKeys {
    fn project(&self, name: &str) -> Result<ProjectId, KeyError> {
        let is_named = |id: ProjectId, alias: &str| alias == name || id.to_string() == name;
        let projects = self.service.projects();
        let found = projects.iter().find(|project| is_named(project.id, &project.alias));
        found.map(|project| project.id).ok_or_else(|| KeyError::NoProject(name.to_owned()))
    }

    fn open(
        &self,
        script: &ScriptFile,
        run: &str,
        scope: Option<ProjectId>,
    ) -> Result<Option<Box<dyn RunKey>>, KeyError> {
        let key = self.runs.open(&script.0, run, scope).map_err(|_| KeyError::TooMany(RUNS_MAX))?;
        Ok(Some(Box::new(key)))
    }
}
