//! Processes as records remember them.

use serde::{Deserialize, Serialize};

/// A container's init process: a pid alone may be another process's tomorrow, with its start time it cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Init {
    /// Process id on the host.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat` (proc(5)): clock ticks since boot.
    pub start_ticks: u64,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Not ours to wait for: it was started by an earlier daemon.
    Unknown,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with status {code}"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::Unknown => f.write_str("ended while no daemon was watching"),
        }
    }
}
