//! Projects: the customer base of one product.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::ProjectId;
use super::idle::IdleAction;
use super::limits::Limits;
use super::policy::PolicyName;

/// Characters of a project's alias, at most.
pub const PROJECT_ALIAS_CHARS_MAX: usize = 100;

/// A project's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Unique on this host.
    pub alias: String,
    /// `#rrggbb`, for people.
    pub color: Option<String>,
    /// How many containers it may have; `None`: as many as the host can.
    pub containers_max: Option<u32>,
    /// The firewall policy of containers that are made in it; `None`: the default one.
    #[serde(default)]
    pub firewall_policy: Option<PolicyName>,
    /// Limits of containers that are made in it; here `None` means: the host's.
    #[serde(default)]
    pub limits: Limits,
    /// Seconds of silence before containers that are made in it are put to sleep; `None`: never.
    #[serde(default)]
    pub idle_timeout_s: Option<u32>,
    /// What putting them to sleep is.
    #[serde(default)]
    pub idle_action: IdleAction,
    /// Whether it is being removed: nothing new can be made in it.
    pub deleting: bool,
    /// Goes up with every change.
    pub generation: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}
