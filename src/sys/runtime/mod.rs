//! The runtime: containers by libcontainer, in a short-lived single-threaded helper process, never in the daemon.
//!
//! A start is one helper in three steps, so that links and rules can be made between them:
//!
//! ```text
//!  prepare ──► namespaces made (user, net), held open by the helper
//!  create  ──► init exists in its cgroup and waits before execve
//!  start   ──► execve; the helper exits, init becomes the daemon's child (subreaper)
//! ```
//!
//! A helper whose daemon goes away (end of its standard input) undoes what it made and exits.
//!
//! Nothing is pinned by a mount: the namespaces are descriptors of the helper's, and the idmapped rootfs is mounted in
//! a mount namespace of the helper's own. A killed helper therefore leaves processes, a cgroup and files under
//! `run_dir`, and no mount. Between "started" and the removal the namespaces are found as `/proc/<init>/ns/…`.
//!
//! An init does not finish dying while a process of its pid namespace waits to be reaped outside. A command whose helper
//! was killed is such a one, and the daemon, being the subreaper, reaps it.

mod client;
mod files;
pub mod helper;
pub mod process;
mod ramdisk;
mod wire;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use crate::domain::process::{Exit, Init};
use crate::domain::{Bytes, ContainerId, EnvVars};

pub use client::{HelperRuntime, become_subreaper};
pub use ramdisk::{RAMDISK, Resized};

/// Files a start needs; all absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Whose start this is.
    pub id: ContainerId,
    /// The OCI bundle: holds `config.json`, complete, as OCI tools read it.
    pub bundle: PathBuf,
    /// The rootfs on disk, owned by uid 0 based ids; idmapped by the helper.
    pub rootfs: PathBuf,
    /// First id on the host of the user namespace's 65536.
    pub first_id: u32,
    /// The container's standard output and error are appended here; standard input is /dev/null.
    pub log: PathBuf,
}

/// The namespaces of a prepared container, as paths to open: the helper's descriptors, there until it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// The user namespace.
    pub user: PathBuf,
    /// The network namespace, owned by it.
    pub net: PathBuf,
}

impl Pins {
    /// Those of a container whose helper has ended.
    pub fn of(init: Init) -> Self {
        let namespace = |name: &str| PathBuf::from(format!("/proc/{}/ns/{name}", init.pid));
        Self { user: namespace("user"), net: namespace("net") }
    }
}

/// A command to run inside a running container, as its init would run it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the container's PATH.
    pub command: Vec<String>,
    /// Added to the container's own environment.
    pub env: EnvVars,
    /// Working folder inside; the container's own where `None`.
    pub cwd: Option<PathBuf>,
    /// Standard input; closed behind it.
    pub stdin: Vec<u8>,
    /// The command is killed after this, in milliseconds.
    pub timeout_ms: u64,
    /// Output kept of each stream; what is beyond is read and thrown away.
    pub output_max: Bytes,
}

/// What a command said and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// How it ended.
    pub exit: Exit,
    /// Whether it was killed for its timeout.
    pub timed_out: bool,
    /// Standard output, at most `output_max`.
    pub stdout: Vec<u8>,
    /// Standard error, at most `output_max`.
    pub stderr: Vec<u8>,
    /// Whether one of them was longer.
    pub truncated: bool,
}

/// A runtime operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The helper could not be started or spoken to.
    #[error("cannot {action} the runtime helper of container {id}")]
    Helper {
        /// "start", "read from", …
        action: &'static str,
        /// Whose.
        id: ContainerId,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The helper reported a failed step.
    #[error("container {id}: {step} failed: {message}")]
    Step {
        /// Whose.
        id: ContainerId,
        /// "map the rootfs", "create init", …
        step: String,
        /// The whole chain of causes, as the helper saw them.
        message: String,
    },
    /// The program cannot be executed inside: the message names it.
    #[error("container {id}: {message}")]
    NotExecutable {
        /// Whose.
        id: ContainerId,
        /// "`/bin/app`: No such file or directory".
        message: String,
    },
    /// The helper took too long and was killed.
    #[error("the runtime helper of container {id} did not {step} within {waited_ms} ms")]
    Timeout {
        /// Whose.
        id: ContainerId,
        /// The step it was in.
        step: &'static str,
        /// The bound, in milliseconds.
        waited_ms: u64,
    },
    /// No such container is prepared, created or running.
    #[error("container {0} is not running")]
    NotRunning(ContainerId),
    /// A file of the runtime's own could not be handled.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A fault put there by a test.
    #[error("injected fault at {0}")]
    Injected(&'static str),
}

/// Runs containers of one instance.
#[async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Starts a helper, makes the user and network namespace.
    async fn prepare(&self, launch: &Launch) -> Result<Pins, RuntimeError>;
    /// Lets the prepared helper create init in its cgroup; init waits before execve.
    async fn create(&self, id: ContainerId) -> Result<Init, RuntimeError>;
    /// Lets init go. Returns once execve has happened or failed.
    async fn start(&self, id: ContainerId) -> Result<(), RuntimeError>;
    /// Waits for init's end, by pidfd; dropping the future forgets nothing.
    async fn wait(&self, init: Init) -> Exit;
    /// Whether that very process still lives.
    fn is_alive(&self, init: Init) -> bool;
    /// Sends a signal to init; whether it was there to get it. Signals that init, being pid 1 of its namespace,
    /// would never see (no handler, not SIGKILL) give [`Delivery::Ignored`].
    fn signal(&self, init: Init, signal: i32) -> Result<Delivery, RuntimeError>;
    /// What the netlink sockets of each of these inits' network namespaces hold unread. Of those that are gone, nothing.
    async fn unread(&self, inits: Vec<Init>) -> Vec<(Init, Bytes)>;
    /// Gives the ramdisk of a running container another size; `None`: bounded by its memory alone.
    async fn resize_ramdisk(&self, init: Init, size: Option<Bytes>) -> Result<Resized, RuntimeError>;
    /// Runs a command inside, with init's namespaces, cgroup, ids, capabilities, rlimits, no_new_privs and seccomp.
    async fn exec(&self, id: ContainerId, init: Init, request: &ExecRequest) -> Result<ExecOutcome, RuntimeError>;
    /// Ends a helper that is still there, removes the runtime's state and bundle. Init must be dead or is killed. A
    /// cgroup is left to its driver. Idempotent.
    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError>;
    /// Containers of which anything is left under the run folder.
    async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError>;
}

/// What became of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Sent to a process that has a handler for it, or that cannot refuse.
    Sent,
    /// Not sent: the kernel would throw it away (pid_namespaces(7), "the namespace init process").
    Ignored,
    /// The process is gone.
    Gone,
}
