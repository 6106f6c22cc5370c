//! Links: a routed veth per running container, no bridge.
//!
//! Inside, `eth0` with the container's /32 and a default route through the link-local gateway
//! ([`crate::domain::slot::GATEWAY`]); outside, `<instance>-<slot>` with the gateway's address and a /32 route to the container.
//! No ARP and no IPv6 on either end: both know the other's hardware address for good, so a tenant cannot claim
//! another's, and the first packet needs no question.

mod message;
mod shape;
mod veth;
mod wire;

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::domain::{BytesPerSecond, Limits, Slot};

pub use veth::VethLinks;

/// Counters of one link, seen from the tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkUsage {
    /// Bytes the tenant received.
    pub rx_bytes: u64,
    /// Bytes the tenant sent.
    pub tx_bytes: u64,
    /// Packets the tenant received.
    pub rx_packets: u64,
    /// Packets the tenant sent.
    pub tx_packets: u64,
}

/// How much may pass over one link; `None`: as much as goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Towards the tenant.
    pub rx: Option<BytesPerSecond>,
    /// From the tenant.
    pub tx: Option<BytesPerSecond>,
}

impl From<&Limits> for Rates {
    fn from(limits: &Limits) -> Self {
        Self { rx: limits.net_rx_bps, tx: limits.net_tx_bps }
    }
}

/// A network operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The kernel refused a netlink request.
    #[error("cannot {action} {link}")]
    Netlink {
        /// What was tried: "make the veth pair", "add the route to", …
        action: &'static str,
        /// The host's end.
        link: String,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// A namespace or a sysctl could not be opened or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The kernel did not answer in time.
    #[error("cannot {action} {link}: no answer within {waited_ms} ms")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// The host's end.
        link: String,
        /// The bound, in milliseconds.
        waited_ms: u64,
    },
    /// The link is not there: never attached, or gone with its namespace.
    #[error("there is no link {link}")]
    Missing {
        /// The host's end.
        link: String,
    },
    /// A rate that the kernel did not take; the link is as it was, or half changed, and must be set anew.
    #[error("limits.{limit} is not kept")]
    Rate {
        /// The limit, as the API calls it.
        limit: &'static str,
        /// The cause.
        #[source]
        source: Box<LinkError>,
    },
    /// The kernel took a rate but holds another one.
    #[error("{link} was given a rate of {wanted} bytes a second, and the kernel holds {found}")]
    NotTaken {
        /// The host's end.
        link: String,
        /// What was set.
        wanted: String,
        /// What was read back.
        found: String,
    },
    /// The namespace is not that of the link's other end: its process has ended, and another took its number.
    #[error("the other end of {link} is not in {}", path.display())]
    Elsewhere {
        /// The host's end.
        link: String,
        /// The namespace that was named.
        path: PathBuf,
    },
    /// The slot has no address in the subnet.
    #[error("slot {0} lies outside the subnet")]
    NoAddress(Slot),
    /// A fault put there by a test.
    #[error("injected fault at {0}")]
    Injected(&'static str),
}

impl LinkError {
    /// Whether the kernel refuses what was asked for by what it is: the value, or a kind of queue that it was built without.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Netlink { source: rtnetlink::Error::NetlinkError(error), .. } => {
                matches!(-error.raw_code(), libc::EINVAL | libc::ERANGE | libc::EOPNOTSUPP | libc::ENOENT)
            }
            Self::NotTaken { .. } => true,
            _ => false,
        }
    }
}

/// The links of one instance.
#[async_trait]
pub trait Links: Send + Sync + std::fmt::Debug {
    /// What the host needs once: forwarding on.
    async fn prepare_host(&self) -> Result<(), LinkError>;
    /// Makes the pair, its peer directly inside the namespace pinned at `netns`, and configures both ends, rates too; the
    /// host's end stays down, so that no packet passes.
    async fn attach(&self, slot: Slot, netns: &Path, rates: Rates) -> Result<(), LinkError>;
    /// Sets both rates and reads them back; `None` lifts one. `netns` is the namespace of the container's end.
    async fn set_rates(&self, slot: Slot, netns: &Path, rates: Rates) -> Result<(), LinkError>;
    /// Takes the host's end up and routes the container's address to it. Only after its rules are in.
    async fn up(&self, slot: Slot) -> Result<(), LinkError>;
    /// Removes the pair, and with it address and route. Idempotent. (The kernel removes it too, some time after the
    /// container's last process, when it takes down the namespace.)
    async fn detach(&self, slot: Slot) -> Result<(), LinkError>;
    /// The counters; `None` where there is no such link.
    async fn usage(&self, slot: Slot) -> Result<Option<LinkUsage>, LinkError>;
    /// Slots that have a link now.
    async fn list(&self) -> Result<Vec<Slot>, LinkError>;
}
