//! The firewall: one nftables table of the instance's name, two chains per running container.
//!
//! An interface without chains passes nothing, so a container's rules are applied before its link is taken up. Flows
//! that are established stay open when rules change.

mod driver;
mod folder;
mod render;
mod run;

use std::sync::Arc;

use async_trait::async_trait;

use crate::domain::Slot;
use crate::domain::policy::Policy;

pub use driver::NftFirewall;
pub use folder::{PolicyFolderError, load_policies};

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

/// The rules of one instance. Changes that come at once are merged into one transaction.
#[async_trait]
pub trait Firewall: Send + Sync + std::fmt::Debug {
    /// Loads the whole table anew, in one transaction: the base rules and these containers' chains.
    async fn load(&self, tenants: &[(Slot, Policy)]) -> Result<(), FirewallError>;
    /// Loads or replaces one container's chains; in force when this returns.
    async fn apply(&self, slot: Slot, policy: &Policy) -> Result<(), FirewallError>;
    /// Removes one container's chains; gone when this returns, which takes a grace period of the kernel's (RCU), so run
    /// it beside the other steps of a stop. Idempotent.
    async fn remove(&self, slot: Slot) -> Result<(), FirewallError>;
    /// Slots that have chains in the kernel, once the removals asked for before are done.
    async fn list(&self) -> Result<Vec<Slot>, FirewallError>;
    /// Removes the table. Idempotent.
    async fn unload(&self) -> Result<(), FirewallError>;
}
