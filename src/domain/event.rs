//! Events: what happened to whom, for whoever runs a product on top of this.
//!
//! An event holds ids, words of ours and numbers, never a text of a tenant's: it outlives the container it speaks of, and must not
//! keep what a deletion has promised to forget.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::{ContainerId, ProjectId, TokenId};

/// An event's place among all: later ones have greater ids. Not dense.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub u64);

impl EventId {
    /// The id of an event that happens now, after `last`.
    ///
    /// Microseconds since 1970, or one more than the last where the clock stands still or goes back: so an id is not given
    /// twice, not even where a power cut took the last events out of the store.
    pub fn after(last: Self, now: Timestamp) -> Self {
        let micros = u64::try_from(now.as_microsecond()).unwrap_or(0);
        Self(micros.max(last.0 + 1))
    }
}

impl fmt::Display for EventId {
    /// Sorts as the number does.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}", self.0)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        /// What happened.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum EventKind {
            $($(#[$doc])* #[serde(rename = $word)] $name,)*
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word in the API.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

kinds! {
    /// A container is there: its rootfs is made.
    Created = "container.created";
    /// Its init was started.
    Started = "container.started";
    /// Its init has ended, or a start did not succeed.
    Stopped = "container.stopped";
    /// Its processes were frozen.
    Paused = "container.paused";
    /// Its processes go on.
    Resumed = "container.resumed";
    /// A request woke it: init was started, or goes on.
    Woken = "container.woken";
    /// It was put to sleep.
    Slept = "container.slept";
    /// Its settings were changed.
    Updated = "container.updated";
    /// Its rootfs could not be made, or is gone.
    Failed = "container.failed";
    /// It was deleted, and everything it had is removed.
    Deleted = "container.deleted";
    /// The kernel killed one of its processes for want of memory.
    Oom = "container.oom";
    /// Its disk limit is reached.
    DiskFull = "container.disk_full";
    /// The kernel refused it a process or thread.
    PidsLimit = "container.pids_limit";
    /// A firewall rule of its own was added.
    RuleAdded = "firewall.rule.added";
    /// Firewall rules of its own were removed.
    RuleRemoved = "firewall.rule.removed";
    /// Firewall rules of its own were switched on or off.
    RuleSwitched = "firewall.rule.switched";
    /// All firewall rules of its own were removed.
    RulesReset = "firewall.rule.reset";
    /// Who may open its URL was changed.
    PermissionsChanged = "proxy.permissions.changed";
    /// Somebody wrote, or tried to and may not, through the API.
    AuditWrite = "audit.write";
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kinds of events: one, or all whose word begins the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventPattern {
    /// This one.
    One(EventKind),
    /// `container.*`: those whose word begins so, up to and with the dot.
    Under(&'static str),
}

/// A text that stands for no kind of event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of event")]
pub struct EventKindError(String);

impl FromStr for EventPattern {
    type Err = EventKindError;

    fn from_str(text: &str) -> Result<Self, EventKindError> {
        let unknown = || EventKindError(text.chars().take(64).collect());
        if let Some(kind) = EventKind::ALL.iter().find(|kind| kind.as_str() == text) {
            return Ok(Self::One(*kind));
        }
        let stem = text.strip_suffix('*').filter(|stem| stem.ends_with('.')).ok_or_else(unknown)?;
        let known = EventKind::ALL.iter().find_map(|kind| kind.as_str().get(..stem.len()).filter(|own| *own == stem));
        known.map(Self::Under).ok_or_else(unknown)
    }
}

impl EventPattern {
    /// Whether a kind is among them.
    pub fn has(self, kind: EventKind) -> bool {
        match self {
            Self::One(one) => one == kind,
            Self::Under(stem) => kind.as_str().starts_with(stem),
        }
    }
}

/// What is known of an event before it has a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Happening {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// In which project; [`ProjectId::NIL`] for a write that is no project's.
    pub project: ProjectId,
    /// To which container; `None`: to the project itself.
    pub container: Option<ContainerId>,
    /// Why, in our own words.
    pub reason: Option<String>,
    /// Numbers that belong to it, by what they count, with the unit last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, u64>,
    /// Of [`EventKind::AuditWrite`]: who did what, from where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Box<Audit>>,
}

/// A write through the API. What was sent is not in it, nor any secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// The token.
    pub token: TokenId,
    /// Its alias then.
    pub alias: String,
    /// The script and its run, where it was one.
    pub run: Option<AuditRun>,
    /// `POST`, `PUT`, `PATCH`, `DELETE`.
    pub method: String,
    /// The route, with `{id}` where an id stood.
    pub route: String,
    /// The id that stood there, else of what was made.
    pub object: Option<String>,
    /// The answer's; `None`: the client had left before there was one, and what it asked for may have been done.
    pub status: Option<u16>,
    /// The client's address; `None`: over the socket for scripts.
    pub client: Option<IpAddr>,
}

/// A run of a script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRun {
    /// The script's file.
    pub script: String,
    /// The run's id.
    pub run: String,
}

impl Happening {
    /// A write through the API: to the project, or to nothing of one.
    pub fn written(project: Option<ProjectId>, container: Option<ContainerId>, audit: Audit) -> Self {
        let (project, audit) = (project.unwrap_or(ProjectId::NIL), Some(Box::new(audit)));
        Self { kind: EventKind::AuditWrite, project, container, reason: None, numbers: BTreeMap::new(), audit }
    }

    /// Something that happened to a container.
    pub fn to_container(kind: EventKind, project: ProjectId, container: ContainerId) -> Self {
        Self { kind, project, container: Some(container), reason: None, numbers: BTreeMap::new(), audit: None }
    }

    /// With a reason: a sentence of ours, no text of a tenant's.
    pub fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// With a number.
    pub fn with(mut self, name: &str, number: u64) -> Self {
        self.numbers.insert(name.to_owned(), number);
        self
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place.
    pub id: EventId,
    /// When.
    pub at: Timestamp,
    /// What.
    #[serde(flatten)]
    pub what: Happening,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_kind_is_named_by_its_word_or_by_what_words_begin_with() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(EventPattern::One(*kind)));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert!(
                "container.*".parse::<EventPattern>().unwrap().has(*kind) == kind.as_str().starts_with("container.")
            );
        }
        for bad in
            ["", "*", "container", "container.", "container*", "container.started.*", "cont.*", "CONTAINER.*", "é.*"]
        {
            assert!(bad.parse::<EventPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_event_reads_back_from_the_store() {
        let what =
            Happening::to_container(EventKind::Oom, ProjectId::NIL, ContainerId::NIL).because("x").with("kills", 3);
        let event = Event { id: EventId(7), at: Timestamp::UNIX_EPOCH, what };
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.contains(r#""type":"container.oom""#), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }

    proptest! {
        #[test]
        fn ids_go_up_whatever_the_clock_does(last in 0u64..1 << 60, micros in -1_000_000i64..1 << 50) {
            let last = EventId(last);
            let next = EventId::after(last, Timestamp::from_microsecond(micros).unwrap());
            prop_assert!(next > last);
            prop_assert_eq!(next.to_string() > last.to_string(), true);
        }
    }
}
