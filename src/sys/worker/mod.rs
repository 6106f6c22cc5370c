//! The cage of a script's worker: this binary once more, as two processes.
//!
//! ```text
//! daemon ══ socket ══╦═ keeper (root; waits) ── worker (pid 1 of its namespace; evaluates)
//!                    ╚══════════════════════════╝
//! ```
//!
//! The keeper makes the cage, forks the worker into it and does nothing but wait: when the daemon lets go of its end of the socket it
//! kills the worker, and it ends as the worker ended. So a worker is ended by dropping a socket, and a daemon that is killed leaves none.
//! (A death signal alone would not do: the kernel ties it to the thread that forked.)
//!
//! The worker has no privilege, user or file of anybody's: see [`cage`] for what it is left with. [`group`] bounds what it takes.
//!
//! Invariants: the worker has one thread until the cage is closed; nothing but the socket is open in it; its environment is empty.

pub mod cage;
mod filter;
pub mod group;
mod kernel;
pub mod process;
mod root;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use kernel::{lowest_free, thread_cpu, wait_writable};

/// The hidden verb of this binary.
pub const VERB: &str = "script-worker";
/// Descriptors a worker may have: the bound of its connections that nothing in it can get around.
pub const FILES_MAX: u64 = 256;
/// Tasks in a worker's group: the keeper, the worker, and threads that look names up.
pub const TASKS_MAX: u32 = 64;
/// What the process takes beside the values of a script, in MiB: its own data, request and answer, TLS.
pub const OVERHEAD_MIB: u64 = 128;

/// Where the scripts folder is, seen from the worker in its own root.
pub const SCRIPTS_INSIDE: &str = "/scripts";
/// Where the API's socket is, seen from there.
pub const SOCKET_INSIDE: &str = "/api.sock";

/// What a worker is told before it is caged: the first thing on its socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The scripts folder on the host; in a full cage all that is seen of it.
    pub scripts_dir: PathBuf,
    /// How a script reaches the API.
    pub api: Api,
    /// How much is taken away.
    pub cage: Cage,
}

/// How a script reaches the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Api {
    /// Not at all.
    Nowhere,
    /// By a unix socket.
    Socket(PathBuf),
    /// By its URL, as a developer's client does.
    Url(String),
}

/// How much is taken away from a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cage {
    /// Everything; wants root.
    Full {
        /// The uid and gid it gets: nobody else's.
        id: u32,
        /// `cgroup.procs` files of its group.
        group: Vec<PathBuf>,
    },
    /// What a process can give up without a privilege: system calls, new privileges, resources.
    Partial,
}

/// A worker that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} for a script's worker")]
pub struct WorkerError {
    /// "make a socket", "start a process", "make a group", …
    pub action: &'static str,
    /// The kernel's answer.
    #[source]
    pub source: std::io::Error,
}
