//! Who may be awake: how many start at once, and what the awake may hold.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;
use crate::domain::Bytes;

/// The most containers that start at once.
const STARTS_AT_ONCE_MAX: usize = 64;
/// The most that may be woken a second.
const WAKES_PER_S_MAX: usize = 10_000;
/// The most that may wait for it: as many as a host can have.
const WAKE_QUEUE_MAX: usize = 65_536;

/// How many containers are started at once, and how fast requests wake them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Starts {
    /// Made or started at once, by requests and by the API, 1–64.
    pub at_once: usize,
    /// Of these by requests, 1–64: what is left is free for the API in any herd.
    pub wakes_at_once: usize,
    /// Woken by requests a second, at most, 1–10000.
    pub wakes_per_second: u32,
    /// Containers that wait to be woken, 1–65536; those of one project take half of the places at most.
    pub queue: usize,
}

/// What containers that are awake may hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Awake {
    /// Memory, such as `6GiB`, or a share of the host's, such as `80%`; beyond it the longest unused sleep first. `0`: no bound.
    pub memory: MemoryShare,
}

/// A size, or a share of the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryShare {
    /// So many bytes; 0: no bound.
    Size(Bytes),
    /// Percent of the host's, 1–100.
    Percent(u8),
}

impl MemoryShare {
    /// As bytes; `None`: no bound, or the host's memory is not known.
    pub fn of(self, total: impl FnOnce() -> Option<Bytes>) -> Option<Bytes> {
        match self {
            Self::Size(Bytes(0)) => None,
            Self::Size(bytes) => Some(bytes),
            Self::Percent(percent) => total().map(|total| Bytes(total.0 / 100 * u64::from(percent))),
        }
    }
}

impl Serialize for MemoryShare {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Size(bytes) => to.collect_str(bytes),
            Self::Percent(percent) => to.collect_str(&format_args!("{percent}%")),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryShare {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Raw {
            Number(u64),
            Text(String),
        }
        let text = match Raw::deserialize(from)? {
            Raw::Number(bytes) => return Ok(Self::Size(Bytes(bytes))),
            Raw::Text(text) => text,
        };
        match text.strip_suffix('%').map(|number| number.trim().parse()) {
            Some(Ok(percent @ 1..=100)) => Ok(Self::Percent(percent)),
            Some(_) => Err(D::Error::custom(format!("`{text}` is not 1% to 100%"))),
            None => text.parse().map(Self::Size).map_err(D::Error::custom),
        }
    }
}

impl Default for Starts {
    /// For two cores: a start is mostly work of one, and more at once only make each slower.
    fn default() -> Self {
        Self { at_once: 8, wakes_at_once: 6, wakes_per_second: 100, queue: 4_096 }
    }
}

impl Default for Awake {
    /// What is left is the kernel's, the daemon's and the page cache's: without it a herd would end in the kernel killing.
    fn default() -> Self {
        Self { memory: MemoryShare::Percent(80) }
    }
}

impl Starts {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let Self { at_once, wakes_at_once, wakes_per_second, queue } = *self;
        let within = |key, number: usize, max: usize| match (1..=max).contains(&number) {
            true => Ok(()),
            false => Err(ConfigError::Value { key, problem: format!("{number} is not 1 to {max}") }),
        };
        within("starts.at_once", at_once, STARTS_AT_ONCE_MAX)?;
        within("starts.wakes_at_once", wakes_at_once, STARTS_AT_ONCE_MAX)?;
        within("starts.wakes_per_second", wakes_per_second as usize, WAKES_PER_S_MAX)?;
        within("starts.queue", queue, WAKE_QUEUE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_awake_may_hold_a_size_or_a_share_of_what_the_host_has() {
        let memory = |text: &str| toml::from_str::<Awake>(&format!("memory = {text}")).unwrap().memory;
        let total = || Some(Bytes::gib(10));
        assert_eq!(memory("'50%'").of(total), Some(Bytes(Bytes::gib(10).0 / 100 * 50)));
        assert_eq!(memory("'6GiB'").of(total), Some(Bytes::gib(6)));
        assert_eq!((memory("0").of(total), memory("'50%'").of(|| None)), (None, None));
    }
}
