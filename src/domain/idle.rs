//! When a container counts as used, and what is done to one that is not.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::quantity::CpuMillis;

/// What is done to a container that nobody has used for its `idle_timeout`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdleAction {
    /// It is stopped: nothing of it is left in memory.
    #[default]
    Stop,
    /// It is frozen: it keeps its memory and goes on in milliseconds.
    Pause,
}

impl IdleAction {
    /// The word in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Pause => "pause",
        }
    }
}

impl fmt::Display for IdleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no such action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`stop` or `pause` is wanted")]
pub struct IdleActionError;

impl FromStr for IdleAction {
    type Err = IdleActionError;
    fn from_str(text: &str) -> Result<Self, IdleActionError> {
        [Self::Stop, Self::Pause].into_iter().find(|action| action.as_str() == text).ok_or(IdleActionError)
    }
}

/// What counts as use of a container.
///
/// A request that is open is never cut off, also where requests do not count: then it only does not begin the silence anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActivitySources {
    /// Requests to its URLs.
    pub requests: bool,
    /// Upgraded connections, such as WebSockets, for as long as they are open.
    pub connections: bool,
    /// A connection without a byte either way for so many seconds counts no longer; `None`: for as long as it is open.
    pub connection_idle_s: Option<u32>,
    /// Commands that run in it by the API.
    pub exec: bool,
    /// Calls from inside that ask for it.
    pub keepalive: bool,
    /// More processor time than this counts; `None`: however much it is, it does not.
    pub cpu: Option<CpuMillis>,
}

impl Default for ActivitySources {
    fn default() -> Self {
        Self { requests: true, connections: true, connection_idle_s: None, exec: true, keepalive: true, cpu: None }
    }
}

impl ActivitySources {
    /// Whether these are the default ones.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// How long a connection without a byte counts; `None`: for as long as it is open.
    pub fn connection_idle(&self) -> Option<Duration> {
        self.connection_idle_s.map(|seconds| Duration::from_secs(seconds.into()))
    }
}

/// A change to what counts as use: `None` leaves a field as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the one of the same name in ActivitySources")]
pub struct ActivityPatch {
    pub requests: Option<bool>,
    pub connections: Option<bool>,
    pub connection_idle_s: Option<Option<u32>>,
    pub exec: Option<bool>,
    pub keepalive: Option<bool>,
    pub cpu: Option<Option<CpuMillis>>,
}

impl ActivityPatch {
    /// Makes every field the default one.
    pub const DEFAULTS: Self = Self {
        requests: Some(true),
        connections: Some(true),
        connection_idle_s: Some(None),
        exec: Some(true),
        keepalive: Some(true),
        cpu: Some(None),
    };

    /// The sources with the change made.
    pub fn apply(self, to: ActivitySources) -> ActivitySources {
        ActivitySources {
            requests: self.requests.unwrap_or(to.requests),
            connections: self.connections.unwrap_or(to.connections),
            connection_idle_s: self.connection_idle_s.unwrap_or(to.connection_idle_s),
            exec: self.exec.unwrap_or(to.exec),
            keepalive: self.keepalive.unwrap_or(to.keepalive),
            cpu: self.cpu.unwrap_or(to.cpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        let changed = ActivityPatch { exec: Some(false), cpu: Some(Some(CpuMillis(50))), ..Default::default() };
        let sources = changed.apply(ActivitySources::default());
        assert_eq!((sources.exec, sources.requests, sources.cpu), (false, true, Some(CpuMillis(50))));
        assert!(ActivityPatch::DEFAULTS.apply(sources).is_default());
    }

    #[test]
    fn a_record_from_before_there_were_sources_has_the_default_ones() {
        assert_eq!(serde_json::from_str::<ActivitySources>("{}").unwrap(), ActivitySources::default());
    }
}
