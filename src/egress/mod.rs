//! What a tenant's outbound traffic meets on the host.
//!
//! ```text
//! tenant ──► 169.254.1.1:53 ──(firewall)──► dns ───► name servers
//!        ──► 169.254.1.1:80 ──(firewall)──► keepalive
//!        ──► anywhere, TCP ───(firewall)──► relay ─► dial ─► the tenant's proxy     where its `network` names one
//! ```
//!
//! The firewall's table leads tenants here and nowhere else ([`crate::sys::nft`]); that a packet's source address is the tenant's own
//! is held there too, so here the address says who asks ([`Tenants`]).
//!
//! Invariants
//! - What one tenant asks, or how often, changes no answer that another gets: nothing is cached here, and bounds are counted for each
//!   of them.
//! - What is to go through a proxy goes through it or nowhere: names too.
//! - Nothing that a tenant sends, and nothing that it is sent, is trusted to be well formed.
//! - Every wait, buffer and count is bounded by a named constant or a key of the configuration.
//! - No name that a tenant looks up is logged, nor where it connects to.

mod dial;
pub mod dns;
mod keepalive;
mod places;
mod rates;
mod relay;

use std::fmt::Debug;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::ContainerId;
use crate::domain::firewall::Told;
use crate::domain::network::Network;
use crate::sys::nft::FirewallError;
use places::Place;

pub use dial::Dialer;
pub use keepalive::{Keepalive, Keeper, Kept};
pub use relay::{Relay, RelayConfig};

/// Pause after an error of a socket itself, so that its loop does not spin, in milliseconds.
const PAUSE_MS: u64 = 50;

/// Who sends from an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The container.
    pub container: ContainerId,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its network settings, where they are in force.
    pub network: Option<Network>,
}

/// Who knows whose address it is: the floor below, or a table in a test.
pub trait Tenants: Debug + Send + Sync + 'static {
    /// The container that runs, or begins to, with this address; `None` where none does. Called for every packet: must not wait.
    fn at(&self, address: Ipv4Addr) -> Option<Tenant>;
}

/// Who opens the firewall to what a tenant is told: the floor below, or nobody in a test.
#[async_trait]
pub trait Gate: Debug + Send + Sync + 'static {
    /// Where the rules of the tenant at this address name the host, its addresses are open to it when this returns.
    async fn open(&self, tenant: Ipv4Addr, told: Told) -> Result<(), FirewallError>;
}

fn address_of(from: SocketAddr) -> Option<Ipv4Addr> {
    match from {
        SocketAddr::V4(from) => Some(*from.ip()),
        SocketAddr::V6(_) => None,
    }
}

async fn pause_after(error: &io::Error) {
    // An answer to a tenant whose port was closed comes back as an error of the socket; that is no news.
    tracing::debug!(%error, "a socket on the gateway's address");
    if error.kind() != io::ErrorKind::ConnectionRefused {
        tokio::time::sleep(Duration::from_millis(PAUSE_MS)).await;
    }
}
