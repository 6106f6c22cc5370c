//! Scripts: whether they answer, and what one run of one may use.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, size};
use crate::domain::Bytes;

/// Worker processes, at most.
const WORKERS_MAX: u16 = 16;
/// The longest that a run may take, in seconds.
const TIMEOUT_S_MAX: u32 = 300;
/// Outgoing connections of a run, at most: its worker has so many descriptors.
const CONNECTIONS_MAX: u32 = 128;
/// Of a run's values.
const MEMORY: std::ops::RangeInclusive<Bytes> = Bytes::mib(4)..=Bytes::gib(2);
/// Of an answer.
const RESPONSE_MAX: Bytes = Bytes::mib(64);

/// Scripts. Where they lie is `scripts_dir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exec {
    /// Whether scripts answer.
    pub enabled: bool,
    /// Whether they also answer at `exec.<server_name>.<domain>`.
    pub host: bool,
    /// Worker processes that are kept ready, 1–`workers`.
    pub warm: u16,
    /// Worker processes, and so runs, at once, 1–16.
    pub workers: u16,
    /// How long a run may take where its script says nothing, in seconds, 1–300.
    pub timeout_s: u32,
    /// Processor time of a run, in seconds, 1–300.
    pub cpu_s: u32,
    /// What a run's values may take.
    #[serde(with = "size")]
    pub memory: Bytes,
    /// Of an answer's body.
    #[serde(with = "size")]
    pub response: Bytes,
    /// Outgoing connections of a run at once, 0–128.
    pub connections: u32,
    /// Names and values for scripts, as `NAME = "value"`; readable by its owner alone. It need not be there.
    pub secrets_file: PathBuf,
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            enabled: true,
            host: false,
            warm: 2,
            workers: 8,
            timeout_s: 30,
            cpu_s: 5,
            memory: Bytes::mib(64),
            response: Bytes::mib(8),
            connections: 32,
            secrets_file: "/etc/tenantry/secrets.toml".into(),
        }
    }
}

impl Exec {
    /// How long a run may take where its script says nothing.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_s.into())
    }

    /// Processor time of a run.
    pub fn cpu(&self) -> Duration {
        Duration::from_secs(self.cpu_s.into())
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |key, problem: String| Err(ConfigError::Value { key, problem });
        if !(1..=WORKERS_MAX).contains(&self.workers) {
            return wrong("exec.workers", format!("{} is not between 1 and {WORKERS_MAX}", self.workers));
        }
        if !(1..=self.workers).contains(&self.warm) {
            return wrong("exec.warm", format!("{} is not between 1 and exec.workers ({})", self.warm, self.workers));
        }
        for (key, value) in [("exec.timeout_s", self.timeout_s), ("exec.cpu_s", self.cpu_s)] {
            if !(1..=TIMEOUT_S_MAX).contains(&value) {
                return wrong(key, format!("{value} is not between 1 and {TIMEOUT_S_MAX} seconds"));
            }
        }
        if !MEMORY.contains(&self.memory) {
            let (min, max) = (MEMORY.start(), MEMORY.end());
            return wrong("exec.memory", format!("{} is not between {min} and {max}", self.memory));
        }
        if self.response > RESPONSE_MAX {
            return wrong("exec.response", format!("{} is more than {RESPONSE_MAX}", self.response));
        }
        if self.connections > CONNECTIONS_MAX {
            return wrong("exec.connections", format!("{} are more than {CONNECTIONS_MAX}", self.connections));
        }
        if !self.secrets_file.is_absolute() {
            return wrong("exec.secrets_file", format!("`{}` is not an absolute path", self.secrets_file.display()));
        }
        Ok(())
    }
}
