//! What a verb can be refused for, or fail of. Nothing here knows a status code; `api/error.rs` maps each variant once.

use std::num::NonZeroU16;

use super::names::NamesError;
use crate::domain::alias::TcpPorts;
use crate::domain::container::{PatchError, SettingsError};
use crate::domain::firewall::{OwnRulesError, Side};
use crate::domain::host::CustomDomain;
use crate::domain::network::NetworkError;
use crate::domain::{ContainerId, EnvError, Status, Verb};
use crate::store::StoreError;
use crate::sys::btrfs::PoolError;
use crate::sys::cgroup::CgroupError;
use crate::sys::netlink::LinkError;
use crate::sys::nft::FirewallError;
use crate::sys::runtime::RuntimeError;

/// What a request named and is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum What {
    Project,
    Container,
    Image,
    Token,
    Receipt,
    Policy,
    Alias,
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Project => "project",
            Self::Container => "container",
            Self::Image => "image",
            Self::Token => "token",
            Self::Receipt => "receipt",
            Self::Policy => "firewall policy",
            Self::Alias => "alias",
        })
    }
}

/// A verb that was refused or that failed; whatever it had made is undone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What the request names is not there.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// Its kind.
        what: What,
        /// As the request named it.
        name: String,
    },
    /// A container of that name is in the project.
    #[error("the name `{0}` is in use in this project")]
    NameInUse(String),
    /// A container with that external id is in the project.
    #[error("the external_id `{0}` is in use in this project")]
    ExternalIdInUse(String),
    /// A container has as many aliases as it may.
    #[error("the container has {max} aliases already")]
    AliasLimit {
        /// How many that are.
        max: usize,
    },
    /// Another alias, or another program of this host, has the port.
    #[error("port {0} of this host is in use")]
    ListenPortInUse(NonZeroU16),
    /// The port is none that an alias may have, or there are none.
    #[error("an alias of tcp has a port of {0} on this host")]
    NoListenPort(TcpPorts),
    /// No ports are set aside for aliases.
    #[error("no ports of this host are set aside for aliases of tcp (proxy.tcp_ports)")]
    NoListenPorts,
    /// All ports that aliases may have are in use.
    #[error("all ports of {0} are in use")]
    ListenPortsUsedUp(TcpPorts),
    /// A setting that means nothing for what the alias speaks.
    #[error("`{field}` means nothing for an alias of {program}")]
    NotOfProgram {
        /// The setting's name.
        field: &'static str,
        /// What is spoken there.
        program: &'static str,
    },
    /// It has no domain that could be verified.
    #[error("the alias has no domain")]
    NoDomain,
    /// The domain lies where this host's own names do.
    #[error("`{0}` is among this server's own names")]
    OwnDomain(CustomDomain),
    /// What the DNS says of a domain does not prove it.
    #[error(
        "the DNS does not say that `{domain}` may lead here: a TXT record of `{proof_name}` with the text `{proof}` is wanted, or a CNAME of the domain to `{host}`"
    )]
    NotProven {
        /// Which.
        domain: CustomDomain,
        /// Where a text is looked for.
        proof_name: String,
        /// The text.
        proof: String,
        /// The alias's own host.
        host: String,
    },
    /// The DNS cannot be asked.
    #[error("the DNS cannot be asked for `{domain}` now")]
    NamesUnavailable {
        /// About which.
        domain: CustomDomain,
        /// Why.
        #[source]
        source: NamesError,
    },
    /// It has no network settings to switch on or off.
    #[error("the container has no network settings to switch on or off")]
    NetworkNotSet,
    /// A project, image, token or alias of that name is there.
    #[error("the {what} name `{name}` is in use")]
    AliasInUse {
        /// Its kind.
        what: What,
        /// The name.
        name: String,
    },
    /// The project has as many containers as it may.
    #[error("the project has {max} containers, as many as it may have")]
    ProjectLimit {
        /// The limit.
        max: u32,
    },
    /// Something else is being deleted that would have to live on.
    #[error("the {what} is being deleted")]
    Deleting {
        /// Its kind.
        what: What,
    },
    /// Every slot of the subnet is taken.
    #[error("all {0} addresses of the subnet are taken")]
    NoSlot(u32),
    /// The pool has too little room left for something new.
    #[error("the pool is full: {available} are left, and that is kept free so that deletions succeed")]
    PoolFull {
        /// What is left.
        available: crate::domain::Bytes,
    },
    /// The verb makes no sense in this state.
    #[error("cannot {verb} a container that is {status}")]
    WrongState {
        /// What was asked.
        verb: Verb,
        /// What it is.
        status: Status,
    },
    /// It is not running, and would have to be.
    #[error("the container is {0}, not running")]
    NotRunning(Status),
    /// Another verb is at work on it.
    #[error("another operation is in progress on container {0}")]
    Busy(ContainerId),
    /// It was changed since the caller looked.
    #[error("the {what} is at generation {found}, not {wanted}")]
    Stale {
        /// Its kind.
        what: What,
        /// As the caller thought.
        wanted: u64,
        /// As it is.
        found: u64,
    },
    /// DELETE is refused until `deletion_protection` is lifted.
    #[error("container {0} is protected from deletion")]
    Protected(ContainerId),
    /// A container's own firewall rules would be beyond their bounds.
    #[error(transparent)]
    Rules(#[from] OwnRulesError),
    /// No own firewall rule is as the request says.
    #[error("the container has no {0} rule of its own that is as described")]
    NoSuchRule(Side),
    /// The image is what containers are made from that are there.
    #[error("the image `{0}` is in use")]
    ImageInUse(String),
    /// The source of a copy went away while it was copied.
    #[error("the source container {0} was deleted while it was being copied")]
    SourceGone(ContainerId),
    /// Init could not be started for a reason that lies in the container: no such program, …
    #[error("the container did not start: {0}")]
    StartFailed(String),
    /// A limit that this host cannot keep.
    #[error("limits.{limit} cannot be kept here: {reason}")]
    LimitUnsupported {
        /// The field.
        limit: &'static str,
        /// Why.
        reason: String,
    },
    /// A limit below what the container holds already; the old one stays in force.
    #[error("limits.{limit} is below what is in use: {reason}")]
    LimitBelowUse {
        /// The field.
        limit: &'static str,
        /// How much that is.
        reason: String,
    },
    /// A program that a command names cannot be executed inside.
    #[error("the command cannot be run: {0}")]
    NotExecutable(String),
    /// A configuration that cannot be used.
    #[error("the configuration cannot be used: {0}")]
    Config(String),
    /// A file of the daemon's own.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An image that does not fit.
    #[error("the image cannot be imported: {0}")]
    BadImage(String),
    /// An environment that does not fit.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// Another setting that does not fit.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The daemon is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The container was deleted while the verb ran.
    #[error("container {0} was deleted meanwhile")]
    DeletedMeanwhile(ContainerId),
    /// The source of a copy has no rootfs to be copied.
    #[error("cannot copy container {id}, which is {status}")]
    NotCopyable {
        /// The source.
        id: ContainerId,
        /// What it is.
        status: Status,
    },
    /// Something that was removed is still there.
    #[error("the {what} of container {id} is still there after it was removed")]
    Left {
        /// Whose.
        id: ContainerId,
        /// What.
        what: String,
    },
    /// A step failed in a driver.
    #[error("{step} of container {id} failed")]
    Step {
        /// Whose.
        id: ContainerId,
        /// Which step.
        step: String,
        /// The cause.
        #[source]
        source: Box<DriverError>,
    },
    /// A driver failed outside a plan.
    #[error("a driver failed")]
    Driver(#[source] Box<DriverError>),
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
}

/// A driver's error, whichever driver's.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "transparent")]
pub enum DriverError {
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Folder(#[from] crate::sys::folders::FolderError),
}

impl From<PatchError> for Error {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::Env(error) => error.into(),
            PatchError::Settings(error) => error.into(),
            PatchError::Network(NetworkError::Settings(error)) => error.into(),
            PatchError::Network(NetworkError::NotSet) => Self::NetworkNotSet,
        }
    }
}

/// What of a limit's failure is the limit's: the rest, such as a group that went away meanwhile, is a fault like any other.
fn refused_by_cgroup(limit: &'static str, source: &CgroupError) -> Option<Error> {
    let reason = match source {
        CgroupError::MemoryInUse { .. } => return Some(Error::LimitBelowUse { limit, reason: source.to_string() }),
        CgroupError::Io { source, .. } if is_refusal(source.raw_os_error()?) => {
            format!("the kernel does not take it ({source})")
        }
        CgroupError::NoController { .. } | CgroupError::NoDevice | CgroupError::NotTaken { .. } => source.to_string(),
        _ => return None,
    };
    Some(Error::LimitUnsupported { limit, reason })
}

fn refused_by_link(limit: &'static str, source: &LinkError) -> Option<Error> {
    let reason = match source {
        LinkError::Netlink { source: cause, .. } => format!("{source}: {cause}"),
        source => source.to_string(),
    };
    source.is_refusal().then_some(Error::LimitUnsupported { limit, reason })
}

/// Answers to a write that are about the value or the device.
const fn is_refusal(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::ERANGE | libc::EOPNOTSUPP | libc::ENODEV | libc::EOVERFLOW)
}

impl Error {
    /// A driver's failure outside a plan, as what it means to the caller where that is known.
    pub fn driver(source: impl Into<DriverError>) -> Self {
        let source = source.into();
        Self::known(&source).unwrap_or_else(|| Self::Driver(Box::new(source)))
    }

    /// A failed step, as what it means to the caller where that is known.
    pub fn step(id: ContainerId, step: &str, source: DriverError) -> Self {
        Self::known(&source).unwrap_or_else(|| Self::Step { id, step: step.to_owned(), source: Box::new(source) })
    }

    fn known(source: &DriverError) -> Option<Self> {
        match source {
            DriverError::Runtime(RuntimeError::NotExecutable { message, .. }) => {
                Some(Self::StartFailed(message.clone()))
            }
            DriverError::Pool(PoolError::Full { .. }) => Some(Self::PoolFull { available: crate::domain::Bytes(0) }),
            DriverError::Pool(error @ PoolError::NoQuota) => {
                Some(Self::LimitUnsupported { limit: "disk", reason: error.to_string() })
            }
            DriverError::Cgroup(CgroupError::Limit { limit, source }) => refused_by_cgroup(limit, source),
            DriverError::Link(LinkError::Rate { limit, source }) => refused_by_link(limit, source),
            _ => None,
        }
    }

    /// For something that is not there.
    pub fn not_found(what: What, name: impl std::fmt::Display) -> Self {
        Self::NotFound { what, name: name.to_string() }
    }
}
