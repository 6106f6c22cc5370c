//! The record of a container: everything that outlives its processes.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::access::{Access, AccessChange};
use super::confinement::Confinement;
use super::env::{EnvError, EnvKey, EnvVars};
use super::firewall::OwnRules;
use super::host::Alias;
use super::id::{ContainerId, ImageId, ProjectId, ReceiptId, TokenId};
use super::idle::{ActivityPatch, ActivitySources, IdleAction};
use super::limits::Limits;
use super::name::ContainerName;
use super::network::{Network, NetworkChange, NetworkError};
use super::phase::{Desired, Phase, Status};
use super::policy::PolicyName;
use super::quantity::{Bytes, BytesPerSecond, CpuMillis, Pids};
use super::secret::Secret;
use super::slot::Slot;

/// The port a tenant's HTTP server is expected on where nothing says otherwise.
pub const PORT_DEFAULT: NonZeroU16 = NonZeroU16::new(8080).unwrap();
/// Characters of a comment, at most.
pub const COMMENT_CHARS_MAX: usize = 16_000;
/// Labels of one container, at most; a key has 1–63 characters, a value up to 255.
pub const LABELS_MAX: usize = 64;
/// Words of a command, at most.
pub const COMMAND_WORDS_MAX: usize = 1_024;
/// Bytes of a command altogether, at most: what one `execve(2)` surely takes.
pub const COMMAND_BYTES_MAX: usize = 65_536;
/// Characters of an external id, at most.
pub const EXTERNAL_ID_CHARS_MAX: usize = 255;

/// A text that cannot be a part of a container's settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {wanted}")]
pub struct SettingsError {
    /// The field, as the API calls it.
    pub field: &'static str,
    /// What is wanted.
    pub wanted: &'static str,
}

/// A customer's id in the user's own system: 1–255 printable characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExternalId(String);

impl ExternalId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExternalId {
    type Err = SettingsError;
    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let fits = (1..=EXTERNAL_ID_CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(SettingsError { field: "external_id", wanted: "1 to 255 printable characters are wanted" })
        }
    }
}

impl TryFrom<String> for ExternalId {
    type Error = SettingsError;
    fn try_from(text: String) -> Result<Self, SettingsError> {
        text.parse()
    }
}

impl From<ExternalId> for String {
    fn from(id: ExternalId) -> String {
        id.0
    }
}

/// What a user chooses about a container, and what a copy takes over from its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// For people, at most 16 000 characters.
    pub comment: Option<String>,
    /// `#rrggbb`, for people.
    pub color: Option<String>,
    /// Replaces the image's entrypoint and command; empty: the image's own.
    pub command: Vec<String>,
    /// Where the tenant's HTTP server listens.
    pub port: NonZeroU16,
    /// Environment variables; in force at the next start.
    pub env: EnvVars,
    /// The kernel's limits.
    pub limits: Limits,
    /// The firewall policy's name.
    pub firewall_policy: PolicyName,
    /// Its own firewall rules, which come before the policy's.
    #[serde(default, skip_serializing_if = "OwnRules::is_empty")]
    pub firewall_rules: OwnRules,
    /// How its outbound traffic leaves, where not just as the firewall allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Who may open its URL; `None`: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Box<Access>>,
    /// Seconds of silence before it is put to sleep; `None`: never.
    pub idle_timeout_s: Option<u32>,
    /// What putting it to sleep is.
    #[serde(default)]
    pub idle_action: IdleAction,
    /// What counts as use of it.
    #[serde(default, skip_serializing_if = "ActivitySources::is_default")]
    pub activity: ActivitySources,
    /// Whether a request to its URL starts it.
    #[serde(default = "yes")]
    pub wake_on_request: bool,
    /// Whether copies take its rules along by default.
    pub template: bool,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Refuses DELETE.
    pub deletion_protection: bool,
    /// Started again after a reboot.
    pub autostart: bool,
    /// A tmpfs at `/ramdisk`.
    pub ramdisk: bool,
    /// Put into root's `authorized_keys`.
    pub ssh_public_key: Option<String>,
    /// How closely it is confined; in force at the next start. Records that are older than this say nothing of it.
    #[serde(default)]
    pub confinement: Confinement,
}

const fn yes() -> bool {
    true
}

impl Settings {
    /// How long nobody has to use it before it is put to sleep; `None`: it stays awake.
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout_s.map(|seconds| Duration::from_secs(seconds.into()))
    }
}

/// A request with an idempotency key, by digests. It is in the record of what the request made because the answer can be kept only
/// when that is there: a daemon that is killed in between finds by it what a repeated request is to be told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeUnder {
    /// The token's id and its key.
    pub key: String,
    /// Method, path and body.
    pub request: String,
}

/// A container's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// Unique in the project.
    pub name: ContainerName,
    /// The customer's id in the user's own system; unique in the project, not copied.
    pub external_id: Option<ExternalId>,
    /// What address, uid range and link derive from.
    pub slot: Slot,
    /// Host part of its URL.
    pub alias: Alias,
    /// The image its rootfs began as.
    pub image: ImageId,
    /// That image's name when it was used.
    pub image_name: String,
    /// What it was copied from.
    pub source: Option<ContainerId>,
    /// The token it was made with. Records that are older than this say nothing of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<TokenId>,
    /// The request that made it, where that bore an idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_under: Option<MadeUnder>,
    /// What the user chose.
    pub settings: Settings,
    /// What it is doing.
    pub phase: Phase,
    /// What the user wants it to do.
    pub desired: Desired,
    /// The tombstone: set by DELETE, never taken back.
    pub receipt: Option<ReceiptId>,
    /// Goes up with every change of the record; the ETag.
    pub generation: u64,
    /// Goes up with every change of the environment.
    pub env_revision: u64,
    /// The environment's revision init was started with.
    pub env_revision_applied: u64,
    /// When the record was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When init was last started.
    pub started_at: Option<Timestamp>,
    /// What it was last started by: `create`, `start`, `restart`, `request`; `None`: never yet.
    #[serde(default)]
    pub started_by: Option<String>,
    /// When its port was last seen accepting after a start.
    pub ready_at: Option<Timestamp>,
    /// How many changes of status there have been; the last ones are kept.
    pub transitions: u64,
}

impl Container {
    /// The status the API shows.
    pub const fn status(&self) -> Status {
        if self.receipt.is_some() { Status::Deleting } else { self.phase.status() }
    }

    /// Whether the environment has changed since init was started with it.
    pub const fn env_pending(&self) -> bool {
        self.phase.init().is_some() && self.env_revision != self.env_revision_applied
    }
}

/// One change of status, for the status log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Before; `None` for the first.
    pub from: Option<Status>,
    /// After.
    pub to: Status,
    /// When.
    pub at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The verb, "exit", "recovery".
    pub triggered_by: String,
    /// Why, for people.
    pub reason: Option<String>,
}

/// A change to settings: `None` leaves a field as it is. For a field that may be empty, `Some(None)` empties it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the one of the same name in Settings")]
pub struct SettingsPatch {
    pub comment: Option<Option<String>>,
    pub color: Option<Option<String>>,
    pub command: Option<Vec<String>>,
    pub port: Option<NonZeroU16>,
    pub env: EnvChange,
    pub limits: LimitsPatch,
    pub firewall_policy: Option<PolicyName>,
    pub network: NetworkChange,
    pub access: AccessChange,
    pub idle_timeout_s: Option<Option<u32>>,
    pub idle_action: Option<IdleAction>,
    pub activity: ActivityPatch,
    pub wake_on_request: Option<bool>,
    pub template: Option<bool>,
    pub labels: LabelChange,
    pub deletion_protection: Option<bool>,
    pub autostart: Option<bool>,
    pub ramdisk: Option<bool>,
    pub ssh_public_key: Option<Option<String>>,
    pub confinement: Option<Confinement>,
}

/// A change to an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum EnvChange {
    /// As it is.
    #[default]
    Keep,
    /// Set these, remove those that are `None` (JSON merge patch, RFC 7396).
    Merge(BTreeMap<EnvKey, Option<Secret>>),
    /// Exactly these.
    Replace(EnvVars),
}

/// A change to labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LabelChange {
    /// As they are.
    #[default]
    Keep,
    /// Set these, remove those that are `None` (JSON merge patch, RFC 7396).
    Merge(BTreeMap<String, Option<String>>),
    /// Exactly these.
    Replace(BTreeMap<String, String>),
}

/// A change that cannot be made to settings as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "transparent")]
pub enum PatchError {
    #[error(transparent)]
    Env(#[from] EnvError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// A change to limits; `Some(None)` lifts one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the one of the same name in Limits")]
pub struct LimitsPatch {
    pub cpu: Option<Option<CpuMillis>>,
    pub memory: Option<Option<Bytes>>,
    pub disk: Option<Option<Bytes>>,
    pub ramdisk: Option<Option<Bytes>>,
    pub pids: Option<Option<Pids>>,
    pub disk_read_bps: Option<Option<BytesPerSecond>>,
    pub disk_write_bps: Option<Option<BytesPerSecond>>,
    pub net_rx_bps: Option<Option<BytesPerSecond>>,
    pub net_tx_bps: Option<Option<BytesPerSecond>>,
}

fn set<T>(field: &mut T, change: Option<T>) {
    if let Some(value) = change {
        *field = value;
    }
}

impl LimitsPatch {
    /// Lifts every limit.
    pub const NONE_LEFT: Self = Self {
        cpu: Some(None),
        memory: Some(None),
        disk: Some(None),
        ramdisk: Some(None),
        pids: Some(None),
        disk_read_bps: Some(None),
        disk_write_bps: Some(None),
        net_rx_bps: Some(None),
        net_tx_bps: Some(None),
    };

    /// These limits with the change made.
    pub fn apply(self, mut limits: Limits) -> Limits {
        set(&mut limits.cpu, self.cpu);
        set(&mut limits.memory, self.memory);
        set(&mut limits.disk, self.disk);
        set(&mut limits.ramdisk, self.ramdisk);
        set(&mut limits.pids, self.pids);
        set(&mut limits.disk_read_bps, self.disk_read_bps);
        set(&mut limits.disk_write_bps, self.disk_write_bps);
        set(&mut limits.net_rx_bps, self.net_rx_bps);
        set(&mut limits.net_tx_bps, self.net_tx_bps);
        limits
    }
}

impl EnvChange {
    /// Makes the change.
    ///
    /// # Errors
    /// A value too long or one variable too many.
    pub fn apply(self, env: &mut EnvVars) -> Result<(), EnvError> {
        match self {
            Self::Keep => {}
            Self::Replace(all) => *env = all,
            Self::Merge(changes) => {
                for (key, value) in changes {
                    match value {
                        Some(value) => env.set(key, value)?,
                        None => drop(env.remove(&key)),
                    }
                }
            }
        }
        Ok(())
    }
}

impl LabelChange {
    /// Makes the change.
    ///
    /// # Errors
    /// One label too many.
    pub fn apply(self, labels: &mut BTreeMap<String, String>) -> Result<(), SettingsError> {
        match self {
            Self::Keep => return Ok(()),
            Self::Replace(all) => *labels = all,
            Self::Merge(changes) => {
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(labels.insert(key, value)),
                        None => drop(labels.remove(&key)),
                    }
                }
            }
        }
        if labels.len() > LABELS_MAX {
            return Err(SettingsError { field: "labels", wanted: "at most 64 are wanted" });
        }
        Ok(())
    }
}

impl SettingsPatch {
    /// The settings with the change made.
    ///
    /// # Errors
    /// An environment or labels that do not fit.
    pub fn apply(self, mut to: Settings) -> Result<Settings, PatchError> {
        set(&mut to.comment, self.comment);
        set(&mut to.color, self.color);
        set(&mut to.command, self.command);
        set(&mut to.port, self.port);
        self.env.apply(&mut to.env)?;
        to.limits = self.limits.apply(to.limits);
        set(&mut to.firewall_policy, self.firewall_policy);
        self.network.apply(&mut to.network)?;
        self.access.apply(&mut to.access)?;
        set(&mut to.idle_timeout_s, self.idle_timeout_s);
        set(&mut to.idle_action, self.idle_action);
        to.activity = self.activity.apply(to.activity);
        set(&mut to.wake_on_request, self.wake_on_request);
        set(&mut to.template, self.template);
        self.labels.apply(&mut to.labels)?;
        set(&mut to.deletion_protection, self.deletion_protection);
        set(&mut to.autostart, self.autostart);
        set(&mut to.ramdisk, self.ramdisk);
        set(&mut to.confinement, self.confinement);
        set(&mut to.ssh_public_key, self.ssh_public_key);
        Ok(to)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::phase::StopReason;
    use super::*;

    pub fn container(project: ProjectId, name: &str) -> Container {
        Container {
            id: ContainerId::generate(),
            project,
            name: name.parse().unwrap(),
            external_id: None,
            slot: Slot(1),
            alias: Alias::generate(),
            image: ImageId::NIL,
            image_name: "base".into(),
            source: None,
            made_by: None,
            made_under: None,
            settings: settings(),
            phase: Phase::Stopped { reason: StopReason::Created },
            desired: Desired::Stopped,
            receipt: None,
            generation: 1,
            env_revision: 1,
            env_revision_applied: 0,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            started_by: None,
            ready_at: None,
            transitions: 0,
        }
    }

    fn settings() -> Settings {
        Settings {
            comment: None,
            color: None,
            command: vec![],
            port: PORT_DEFAULT,
            env: EnvVars::parse([("A".into(), "1".to_owned()), ("B".into(), "2".to_owned())]).unwrap(),
            limits: Limits { pids: Some(Pids(100)), ..Limits::default() },
            firewall_policy: "web".parse().unwrap(),
            firewall_rules: OwnRules::default(),
            network: None,
            access: None,
            idle_timeout_s: Some(60),
            idle_action: IdleAction::Stop,
            activity: ActivitySources::default(),
            wake_on_request: true,
            template: false,
            labels: BTreeMap::new(),
            deletion_protection: false,
            autostart: true,
            ramdisk: true,
            ssh_public_key: None,
            confinement: Confinement::Standard,
        }
    }

    #[test]
    fn a_record_that_is_older_than_access_groups_is_open_to_everybody() {
        let text = serde_json::to_string(&settings()).unwrap();
        assert!(!text.contains("access"), "{text}");
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap().access, None);
    }

    #[test]
    fn an_empty_patch_changes_nothing() {
        assert_eq!(SettingsPatch::default().apply(settings()), Ok(settings()));
    }

    #[test]
    fn a_merge_sets_and_removes_variables_and_keeps_the_others() {
        let merge = BTreeMap::from([("A".parse().unwrap(), None), ("C".parse().unwrap(), Some(Secret::new("3")))]);
        let patch = SettingsPatch { env: EnvChange::Merge(merge), idle_timeout_s: Some(None), ..Default::default() };
        let after = patch.apply(settings()).unwrap();
        let keys: Vec<_> = after.env.iter().map(|(key, value)| (key.as_str(), value.reveal())).collect();
        assert_eq!(keys, [("B", "2"), ("C", "3")]);
        assert_eq!(after.idle_timeout_s, None);
    }

    #[test]
    fn labels_are_merged_or_replaced_and_stay_within_their_bound() {
        let mut labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let merge = BTreeMap::from([("a".to_owned(), None), ("c".to_owned(), Some("3".to_owned()))]);
        LabelChange::Merge(merge).apply(&mut labels).unwrap();
        assert_eq!(labels, BTreeMap::from([("b".to_owned(), "2".to_owned()), ("c".to_owned(), "3".to_owned())]));
        LabelChange::Keep.apply(&mut labels).unwrap();
        assert_eq!(labels.len(), 2);
        let many = |count| LabelChange::Merge((0..count).map(|n| (n.to_string(), Some(String::new()))).collect());
        assert_eq!(many(LABELS_MAX - 1).apply(&mut labels.clone()).unwrap_err().field, "labels");
        many(LABELS_MAX - 2).apply(&mut labels).unwrap();
        LabelChange::Replace(BTreeMap::new()).apply(&mut labels).unwrap();
        assert!(labels.is_empty());
    }

    #[test]
    fn limits_change_one_by_one_and_can_be_lifted() {
        let patch = LimitsPatch { pids: Some(None), memory: Some(Some(Bytes::mib(64))), ..Default::default() };
        let after = patch.apply(settings().limits);
        assert_eq!((after.pids, after.memory), (None, Some(Bytes::mib(64))));
        assert_eq!(LimitsPatch::NONE_LEFT.apply(settings().limits), Limits::default());
    }
}
