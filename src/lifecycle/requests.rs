//! What surfaces ask for and get, already checked.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::error::Error;
use super::execute::Timings;
use crate::domain::alias::TargetPath;
use crate::domain::container::{EnvChange, ExternalId, LimitsPatch, MadeUnder, SettingsPatch};
use crate::domain::host::{Alias, CustomDomain};
use crate::domain::policy::PolicyName;
use crate::domain::token::{Permissions, TemplateRef};
use crate::domain::{
    Bytes, Container, ContainerId, ContainerName, IdleAction, Image, Limits, OperationId, ProjectId, Secret, Token,
    TokenId, Verb,
};
use crate::sys::cgroup;
use crate::sys::netlink::LinkUsage;

/// How long a caller waits for readiness where it does not say, in seconds.
pub const WAIT_TIMEOUT_S_DEFAULT: u64 = 10;
/// The longest a caller may wait, in seconds.
pub const WAIT_TIMEOUT_S_MAX: u64 = 300;
/// Between SIGTERM and SIGKILL where the caller does not say, in seconds (as Docker's).
pub const STOP_GRACE_S_DEFAULT: u64 = 10;

/// A project to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewProject {
    /// Unique on this host.
    pub alias: String,
    /// For people.
    pub color: Option<String>,
    /// How many containers it may have.
    pub containers_max: Option<u32>,
    /// The firewall policy of its containers; `None`: the default one.
    pub firewall_policy: Option<PolicyName>,
    /// Limits of its containers, over the host's.
    pub limits: Limits,
    /// Seconds of silence before its containers are put to sleep.
    pub idle_timeout_s: Option<u32>,
    /// What putting them to sleep is.
    pub idle_action: IdleAction,
}

/// A change to a project; `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the one of the same name in Project")]
pub struct ProjectPatch {
    pub alias: Option<String>,
    pub color: Option<Option<String>>,
    pub containers_max: Option<Option<u32>>,
    pub firewall_policy: Option<Option<PolicyName>>,
    pub limits: LimitsPatch,
    pub idle_timeout_s: Option<Option<u32>>,
    pub idle_action: Option<IdleAction>,
}

/// Who makes a container, and by which request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The token.
    pub by: Option<TokenId>,
    /// The request, where it bears an idempotency key.
    pub under: Option<MadeUnder>,
}

/// A container to be made from an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewContainer {
    /// `None`: a random one.
    pub name: Option<ContainerName>,
    /// An image's name or id; `None`: `base`.
    pub image: Option<String>,
    /// The customer's id in the user's own system.
    pub external_id: Option<ExternalId>,
    /// What differs from the defaults: the project's, and beneath them the host's.
    pub settings: SettingsPatch,
    /// Who makes it.
    pub made: Provenance,
    /// Whether it is started at once.
    pub start: bool,
}

/// A container to be made from another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewCopy {
    /// `None`: the source's.
    pub project: Option<ProjectId>,
    /// `None`: a random one.
    pub name: Option<ContainerName>,
    /// The customer's id in the user's own system.
    pub external_id: Option<ExternalId>,
    /// What differs from the source. (A copy is no template unless this says so.)
    pub settings: SettingsPatch,
    /// Whether the source's firewall policy and own rules are taken along; `None`: if the source is a template.
    pub copy_firewall: Option<bool>,
    /// Whether the source's network settings are taken along; `None`: if the source is a template.
    pub copy_network: Option<bool>,
    /// Who makes it.
    pub made: Provenance,
    /// Whether it is started at once.
    pub start: bool,
}

/// A change to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerPatch {
    /// Its name.
    pub name: Option<ContainerName>,
    /// The customer's id in the user's own system.
    pub external_id: Option<Option<ExternalId>>,
    /// The rest.
    pub settings: SettingsPatch,
}

impl ContainerPatch {
    /// Makes the change to a record.
    ///
    /// # Errors
    /// An environment or labels that do not fit; the record may then be half changed and must be thrown away.
    pub fn apply(&self, container: &mut Container) -> Result<(), Error> {
        let old = container.settings.clone();
        container.settings = self.settings.clone().apply(old)?;
        if self.settings.env != EnvChange::Keep {
            container.env_revision += 1;
        }
        if let Some(name) = &self.name {
            container.name = name.clone();
        }
        if let Some(external) = &self.external_id {
            container.external_id = external.clone();
        }
        Ok(())
    }
}

/// When a verb that starts a container answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Until {
    /// At once: the verb goes on behind.
    Nothing,
    /// Init was started.
    Started,
    /// Its port accepts.
    Ready,
}

/// How long a caller waits, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Await {
    /// For what.
    pub until: Until,
    /// How long at most.
    pub timeout: Duration,
}

/// A container as a verb left it.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its record.
    pub container: Arc<Container>,
    /// What the caller should know, though nothing failed.
    pub warnings: Vec<String>,
    /// How long each step took, in the order they ended.
    pub timings: Timings,
}

/// A verb as it was carried out.
#[derive(Debug, Clone)]
pub struct Done {
    /// The operation's id, as logs have it.
    pub operation: OperationId,
    /// The verb.
    pub verb: Verb,
    /// The container afterwards.
    pub container: Arc<Container>,
    /// What the caller should know, though nothing failed.
    pub warnings: Vec<String>,
    /// How long each step took, in the order they ended.
    pub timings: Timings,
}

/// What a container uses now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stats {
    /// Processor, memory, tasks; `None` where it has no cgroup.
    pub cgroup: Option<cgroup::Usage>,
    /// Processor use over the moment before, in percent of one core; `None` where it is not running.
    pub cpu_percent: Option<f64>,
    /// Bytes of the rootfs that are its own, and the limit; `None` where the kernel does not count.
    pub disk: Option<DiskUse>,
    /// Its link's counters; `None` where it is not running.
    pub link: Option<LinkUsage>,
}

/// What a container holds on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Its own writes.
    pub used: Bytes,
    /// The limit.
    pub limit: Option<Bytes>,
}

/// An image to be imported.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// What containers will name it by.
    pub name: String,
    /// An archive (rootfs tar, OCI layout, docker archive) or an OCI layout's folder.
    pub source: PathBuf,
}

/// An image as an import left it.
#[derive(Debug, Clone)]
pub struct Imported {
    /// Its record.
    pub image: Arc<Image>,
    /// What of the archive was left out.
    pub warnings: Vec<String>,
}

/// How far an import has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportProgress {
    /// What is being done.
    pub step: String,
    /// Bytes read.
    pub done: Bytes,
    /// Bytes to read, where known.
    pub total: Option<Bytes>,
}

/// A token to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// Unique.
    pub alias: String,
    /// What it may do.
    pub permissions: Permissions,
    /// The only project it may know of.
    pub project: Option<ProjectId>,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// What a provisioner may copy; empty: whatever is a template.
    pub templates: Vec<TemplateRef>,
    /// Whether it may manage scripts.
    pub scripts: bool,
}

impl NewToken {
    /// For all projects and for ever, and with nothing beside.
    pub fn new(alias: impl Into<String>, permissions: Permissions) -> Self {
        let (project, expires_at, templates) = (None, None, Vec::new());
        Self { alias: alias.into(), permissions, project, expires_at, templates, scripts: false }
    }
}

/// A token and, this once, its secret.
#[derive(Debug, Clone)]
pub struct MadeToken {
    /// The record.
    pub token: Token,
    /// What the client presents.
    pub secret: Secret,
}

/// Why a presented secret is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No token has it.
    Unknown,
    /// Its token has expired.
    Expired,
}

/// A further name of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAlias {
    /// Whose.
    pub container: ContainerId,
    /// The name; `None`: one nobody can guess.
    pub alias: Option<Alias>,
    /// What is spoken there.
    pub program: NewProgram,
    /// Where it leads.
    pub settings: AliasSettings,
}

/// What is to be spoken at a new alias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NewProgram {
    /// HTTP.
    #[default]
    Http,
    /// Anything over TCP.
    Tcp {
        /// The port of this host; `None`: any that is free.
        listen_port: Option<NonZeroU16>,
    },
}

/// A change to a further name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AliasPatch {
    /// The new name.
    pub alias: Option<Alias>,
    /// Where it leads.
    pub settings: AliasSettings,
}

/// Where an alias leads; `None` leaves a field as it is, and `Some(None)` empties it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the one of the same name in ProxyAlias")]
pub struct AliasSettings {
    pub domain: Option<Option<CustomDomain>>,
    /// Whether the domain is taken for proven, whatever the DNS says.
    pub verified: Option<bool>,
    /// Whether a connection wakes the container.
    pub wake: Option<bool>,
    pub port: Option<Option<NonZeroU16>>,
    pub target_path: Option<Option<TargetPath>>,
    pub allow_path_override: Option<bool>,
    pub enabled: Option<bool>,
    pub expires_at: Option<Option<Timestamp>>,
}

/// Labels that a listing filters by: each must be there with this value.
pub type LabelFilter = BTreeMap<String, String>;
