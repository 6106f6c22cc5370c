//! The firewall: one nftables table of the instance's name, two chains per running container.
//!
//! An interface without chains passes nothing, so a container's rules are applied before its link is taken up. When rules
//! change, flows that they still allow go on, and the others are cut. A table that another program has changed is mended.

mod conntrack;
mod driver;
mod elements;
mod flows;
mod folder;
mod kernel;
mod netfilter;
mod openings;
mod orders;
mod render;
mod run;

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::domain::Slot;
use crate::domain::firewall::{Ruleset, Told};

pub use folder::{PolicyFolderError, load_policies};
pub use orders::NftFirewall;

/// A firewall operation that failed.
///
/// It can be cloned, since one refused transaction may be the answer to several callers.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FirewallError {
    /// `nft` refused a transaction; nothing of it is in force.
    #[error("the firewall refused the transaction that would {action} in table inet {table}")]
    Refused {
        /// What was tried: "load the base table", "load the chains of slot 7", …
        action: String,
        /// The instance's table.
        table: String,
        /// What nft said.
        #[source]
        source: Arc<nftables::helper::NftablesError>,
    },
    /// `nft` did not end in time and was killed; the transaction may be in force or not.
    #[error("no answer of the firewall within {waited_ms} ms to {action} in table inet {table}")]
    Timeout {
        /// What was tried.
        action: String,
        /// The instance's table.
        table: String,
        /// The bound, in milliseconds.
        waited_ms: u64,
    },
    /// The rules are in force, but flows that they do not allow could not be cut, or not all.
    #[error("the flows that the firewall's rules do not allow cannot be cut")]
    Flows {
        /// What the kernel said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// What a host's name leads to could not be opened; nothing of it is.
    #[error("what a host's name leads to cannot be opened for slot {slot}")]
    Open {
        /// Whose.
        slot: Slot,
        /// What the kernel said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The kernel does not tell what is in force.
    #[error("the firewall's state cannot be read")]
    Look {
        /// What the kernel said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The slot has no address in the subnet.
    #[error("slot {0} lies outside the subnet")]
    NoAddress(Slot),
    /// The firewall's task has ended; the daemon is shutting down.
    #[error("the firewall is shutting down")]
    Closed,
    /// A fault put there by a test.
    #[error("injected fault at {0}")]
    Injected(&'static str),
}

/// One chain's rules, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// As they should be.
    pub desired: Vec<String>,
    /// As the kernel has them.
    pub kernel: Vec<String>,
}

/// How often the table had to be mended since the daemon started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repairs {
    /// How often.
    pub count: u64,
    /// When the last time.
    pub last: Option<Timestamp>,
}

/// What should be in force for a container, and what is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What is sent to it.
    pub ingress: Lines,
    /// What it sends.
    pub egress: Lines,
    /// Whether the base rules and all tenants' chains are there, by their count.
    pub table: bool,
    /// How often they were not.
    pub repairs: Repairs,
}

impl Inspection {
    /// Whether what is in force is what should be.
    pub fn agrees(&self) -> bool {
        self.table && [&self.ingress, &self.egress].into_iter().all(|side| side.desired == side.kernel)
    }
}

/// The rules of one instance. Changes that come at once are merged into one transaction.
#[async_trait]
pub trait Firewall: Send + Sync + std::fmt::Debug {
    /// Loads the whole table anew, in one transaction: the base rules and these containers' chains. Flows of tenants that they do
    /// not allow are cut.
    async fn load(&self, tenants: &[(Slot, Arc<Ruleset>)]) -> Result<(), FirewallError>;
    /// Loads or replaces one container's chains; in force when this returns. Flows that they do not allow are cut; a slot that had no
    /// chains has none, since [`Firewall::remove`] has cut them.
    async fn apply(&self, slot: Slot, rules: &Arc<Ruleset>) -> Result<(), FirewallError>;
    /// Removes one container's chains and flows; gone when this returns, which takes a grace period of the kernel's (RCU), so run
    /// it beside the other steps of a stop. Idempotent.
    async fn remove(&self, slot: Slot) -> Result<(), FirewallError>;
    /// Lets a container's rules know what it is about to be told of a host: where they name it, its addresses are open when this returns,
    /// and for as long as it holds. Costs next to nothing where they do not.
    async fn tell(&self, slot: Slot, told: Told) -> Result<(), FirewallError>;
    /// Slots that have chains in the kernel, once the removals asked for before are done.
    async fn list(&self) -> Result<Vec<Slot>, FirewallError>;
    /// One container's rules, as they should be and as they are. Runs nft.
    async fn inspect(&self, slot: Slot) -> Result<Inspection, FirewallError>;
    /// Removes the table. Idempotent.
    async fn unload(&self) -> Result<(), FirewallError>;
}
