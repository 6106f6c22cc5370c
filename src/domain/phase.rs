//! What a container is doing, and what may be asked of it then.
//!
//! ```text
//!             copy/create                 start                pause
//!  (nothing) ───────────► creating ─► stopped ─► starting ─► running ◄──► paused
//!                            │           ▲           │          │
//!                            ▼           └─ exit / stop / idle ──┘
//!                          failed                     any state ─► deleting ─► (tombstone + receipt)
//! ```
//!
//! Deleting is no phase but a mark on the record (`receipt`): whatever the phase is when DELETE comes, the mark says that
//! it will never run again, and the phase goes on to say what is still there to be removed.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::process::{Exit, Init};

/// A container's phase, with what is known only in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// The record is there, the rootfs is being made.
    Creating,
    /// A rootfs and a record; no process, no cgroup, no namespace, no link.
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// Kernel objects are being made.
    Starting,
    /// Init runs.
    Running {
        /// Its process.
        init: Init,
    },
    /// Init runs, frozen.
    Paused {
        /// Its process.
        init: Init,
        /// Why.
        #[serde(default)]
        reason: PauseReason,
    },
    /// Kernel objects are being removed.
    Stopping {
        /// The process that is to end.
        init: Init,
    },
    /// The rootfs could not be made, or is gone; only DELETE helps.
    Failed {
        /// What went wrong, for people.
        reason: String,
    },
}

/// Why a container is frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseReason {
    /// Asked to: only who may call the API lets it go on.
    #[default]
    Requested,
    /// Nobody used it for its `idle_timeout`: asleep, until a request comes.
    Idle,
}

/// Why a container is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum StopReason {
    /// Never started yet.
    Created,
    /// Asked to.
    Requested,
    /// Nobody used it for its `idle_timeout`: asleep.
    Idle,
    /// It slept, or nobody used it, and the memory was wanted for others: asleep.
    MadeRoom,
    /// Init ended by itself.
    Exited {
        /// How.
        exit: Exit,
        /// Whether the kernel had killed in its cgroup for want of memory.
        oom: bool,
    },
    /// A start did not succeed.
    StartFailed {
        /// What went wrong, for people.
        message: String,
    },
    /// The machine or the daemon went down under it.
    Lost,
}

impl StopReason {
    /// Whether it sleeps, and was not stopped otherwise.
    pub const fn is_sleep(&self) -> bool {
        matches!(self, Self::Idle | Self::MadeRoom)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("never started"),
            Self::Requested => f.write_str("stopped on request"),
            Self::Idle => f.write_str("asleep: nobody used it"),
            Self::MadeRoom => f.write_str("asleep: it made room in memory for others"),
            Self::Exited { exit, oom: true } => write!(f, "out of memory: init {exit}"),
            Self::Exited { exit, oom: false } => write!(f, "init {exit}"),
            Self::StartFailed { message } => write!(f, "the last start failed: {message}"),
            Self::Lost => f.write_str("ended while the daemon was down"),
        }
    }
}

/// The status the API shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Being made, or being started for the first time.
    Creating,
    /// Init runs.
    Running,
    /// Frozen.
    Paused,
    /// No process.
    Stopped,
    /// Only DELETE helps.
    Failed,
    /// Being removed.
    Deleting,
}

impl Status {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Creating, Self::Running, Self::Paused, Self::Stopped, Self::Failed, Self::Deleting];

    /// The word in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the user wants a container to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    /// With a process.
    Running,
    /// Without.
    Stopped,
}

/// What can be asked of a container that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Give it a process.
    Start,
    /// SIGTERM, a grace period, SIGKILL.
    Stop,
    /// SIGKILL.
    ForceStop,
    /// Stop, then start.
    Restart,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::ForceStop => "force-stop",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Resume => "resume",
        })
    }
}

impl Phase {
    /// The status the API shows for this phase.
    pub const fn status(&self) -> Status {
        match self {
            Self::Creating => Status::Creating,
            Self::Stopped { .. } | Self::Starting => Status::Stopped,
            Self::Running { .. } | Self::Stopping { .. } => Status::Running,
            Self::Paused { .. } => Status::Paused,
            Self::Failed { .. } => Status::Failed,
        }
    }

    /// Init, where there is one.
    pub const fn init(&self) -> Option<Init> {
        match self {
            Self::Running { init } | Self::Paused { init, .. } | Self::Stopping { init } => Some(*init),
            _ => None,
        }
    }

    /// Whether a process of its may run, also one whose start is not written down yet.
    pub const fn may_send(&self) -> bool {
        !matches!(self, Self::Stopped { .. } | Self::Failed { .. })
    }

    /// Whether a verb makes sense now.
    pub const fn allows(&self, verb: Verb) -> bool {
        match verb {
            Verb::Start => matches!(self, Self::Stopped { .. }),
            Verb::Stop | Verb::ForceStop | Verb::Restart => matches!(self, Self::Running { .. } | Self::Paused { .. }),
            // To pause what sleeps frozen is to keep requests from waking it.
            Verb::Pause => matches!(self, Self::Running { .. } | Self::Paused { reason: PauseReason::Idle, .. }),
            Verb::Resume => matches!(self, Self::Paused { .. }),
        }
    }

    /// Why it is as it is, for people; empty where the status says it all.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Stopped { reason } => Some(reason.to_string()),
            Self::Failed { reason } => Some(reason.clone()),
            Self::Paused { reason: PauseReason::Idle, .. } => Some("asleep: nobody used it; frozen".to_owned()),
            Self::Starting => Some("starting".to_owned()),
            Self::Stopping { .. } => Some("stopping".to_owned()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT: Init = Init { pid: 7, start_ticks: 9 };

    #[test]
    fn every_verb_is_legal_in_the_phases_of_the_diagram_and_in_no_other() {
        let phases = [
            Phase::Creating,
            Phase::Stopped { reason: StopReason::Created },
            Phase::Starting,
            Phase::Running { init: INIT },
            Phase::Paused { init: INIT, reason: PauseReason::Requested },
            Phase::Stopping { init: INIT },
            Phase::Failed { reason: String::new() },
            Phase::Paused { init: INIT, reason: PauseReason::Idle },
        ];
        let legal = |verb: Verb| -> Vec<usize> { (0..phases.len()).filter(|n| phases[*n].allows(verb)).collect() };
        assert_eq!(legal(Verb::Start), [1]);
        assert_eq!(legal(Verb::Stop), [3, 4, 7]);
        assert_eq!(legal(Verb::ForceStop), [3, 4, 7]);
        assert_eq!(legal(Verb::Restart), [3, 4, 7]);
        assert_eq!(legal(Verb::Pause), [3, 7]);
        assert_eq!(legal(Verb::Resume), [4, 7]);
    }

    #[test]
    fn a_record_from_before_there_was_idle_pausing_was_paused_by_request() {
        let old = r#"{"phase":"paused","init":{"pid":7,"start_ticks":9}}"#;
        let phase = Phase::Paused { init: INIT, reason: PauseReason::Requested };
        assert_eq!(serde_json::from_str::<Phase>(old).unwrap(), phase);
    }
}
