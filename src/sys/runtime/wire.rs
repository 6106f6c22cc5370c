//! What the daemon and its helper say to each other: one JSON value a line, on the helper's standard input and output.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Exit, Init, Launch};
use crate::domain::{ContainerId, Secret};

/// A line is refused beyond this: 256 variables of 64 KiB and as much again.
pub const LINE_BYTES_MAX: u64 = 32 << 20;

/// Where a container's runtime files lie, all under `<run_dir>/containers/<id>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    /// The folder itself; traversable, since the container's root has to pass through to its rootfs.
    pub dir: PathBuf,
    /// Cache of compiled seccomp programs, common to all containers.
    pub seccomp_cache: PathBuf,
}

impl Places {
    /// The private bundle that libcontainer is given.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Where the idmapped rootfs is mounted, in the helper's mount namespace only.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// Where the control groups that a container sees on v1 are put together, in the helper's mount namespace only.
    pub fn groups(&self) -> PathBuf {
        self.dir.join("groups")
    }

    /// libcontainer's state root.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The seccomp program that init runs under; empty for none.
    pub fn filter(&self) -> PathBuf {
        self.dir.join("filter.bpf")
    }

    /// Pid and start time of init.
    pub fn init(&self) -> PathBuf {
        self.dir.join("init.json")
    }
}

/// The daemon's side of a start.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StartRequest {
    /// Make the namespaces. Always the first.
    Prepare {
        /// What is to be started.
        launch: Launch,
        /// Where its files go.
        places: Places,
    },
    /// Make init.
    Create,
    /// Let init execute its program.
    Start,
}

/// The helper's side of a start.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum StartReport {
    /// The namespaces are there, under these paths while the helper lives.
    Prepared {
        /// The user namespace.
        user: PathBuf,
        /// The network namespace.
        net: PathBuf,
    },
    /// Init is there and waits.
    Created(Init),
    /// Init has executed its program.
    Started,
    /// A step failed; everything is undone.
    Failed(Failure),
}

/// Why a helper gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Failure {
    /// A step failed.
    #[error("{step}: {message}")]
    Step {
        /// Which.
        step: String,
        /// The whole chain of causes.
        message: String,
    },
    /// The program cannot be executed.
    #[error("{message}")]
    NotExecutable {
        /// Names it.
        message: String,
    },
    /// Init is not there (any more).
    #[error("not running")]
    NotRunning,
}

/// A command to run inside; `stdin_bytes` bytes of its standard input follow the line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecCommand {
    /// Whose container.
    pub id: ContainerId,
    /// Its files.
    pub places: Places,
    /// Its init.
    pub init: Init,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Added to the environment.
    pub env: Vec<(String, Secret)>,
    /// Working folder, where not the container's own.
    pub cwd: Option<PathBuf>,
    /// Length of the standard input.
    pub stdin_bytes: u64,
    /// Killed after this.
    pub timeout_ms: u64,
    /// Output kept of each stream.
    pub output_bytes_max: u64,
}

/// The helper's answer to a command.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecReport {
    /// The command has been forked: whom to end if the helper is lost.
    Running(Init),
    /// It ended. `stdout_bytes` and then `stderr_bytes` bytes of output follow the line.
    Ended {
        /// How.
        exit: Exit,
        /// Whether by its timeout.
        timed_out: bool,
        /// Length of its standard output.
        stdout_bytes: u64,
        /// Length of its standard error.
        stderr_bytes: u64,
        /// Whether one of them was longer.
        truncated: bool,
    },
    /// It never ran.
    Failed(Failure),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_with_an_unknown_field_is_refused() {
        assert_eq!(
            serde_json::from_str::<StartReport>(r#"{"created":{"pid":7,"start_ticks":9}}"#).unwrap(),
            StartReport::Created(Init { pid: 7, start_ticks: 9 })
        );
        assert!(serde_json::from_str::<StartReport>(r#"{"prepared":{"user":"/a","net":"/b","more":1}}"#).is_err());
        assert!(serde_json::from_str::<StartRequest>(r#""stop""#).is_err());
    }

    #[test]
    fn an_environment_is_not_printed_with_its_command() {
        let command = ExecCommand {
            id: "68a0c1d2aabbccddeeff0011".parse().unwrap(),
            places: Places { dir: "/run/x".into(), seccomp_cache: "/run/y".into() },
            init: Init { pid: 1, start_ticks: 1 },
            command: vec!["env".into()],
            env: vec![("KEY".into(), Secret::new("sk_live"))],
            cwd: None,
            stdin_bytes: 0,
            timeout_ms: 1,
            output_bytes_max: 1,
        };
        assert!(!format!("{command:?}").contains("sk_live"));
        assert!(serde_json::to_string(&command).unwrap().contains("sk_live"));
    }
}
