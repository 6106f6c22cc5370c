//! Whose an address is, and what it may reach, for what serves tenants on their gateway.

use std::net::Ipv4Addr;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::ContainerId;
use crate::domain::firewall::Told;
use crate::egress::{Gate, Keeper, Kept, Tenant, Tenants};
use crate::lifecycle::Service;
use crate::sys::nft::FirewallError;

/// The records, as the resolver sees them.
#[derive(Debug)]
pub struct Table {
    service: Service,
}

impl Table {
    /// Over this service.
    pub const fn new(service: Service) -> Self {
        Self { service }
    }
}

impl Tenants for Table {
    fn at(&self, address: Ipv4Addr) -> Option<Tenant> {
        let container = self.service.by_address(address)?;
        let network = container.settings.network.clone().filter(|network| network.enabled);
        Some(Tenant { container: container.id, address, network })
    }
}

#[async_trait]
impl Gate for Table {
    async fn open(&self, tenant: Ipv4Addr, told: Told) -> Result<(), FirewallError> {
        self.service.tell_firewall(tenant, told).await
    }
}

impl Keeper for Table {
    fn keep(&self, id: ContainerId, time: Duration) -> Kept {
        match self.service.container(id) {
            Ok(container) if !container.settings.activity.keepalive => Kept::SwitchedOff,
            Ok(_) if self.service.keep_awake(id, time) => Kept::Awake,
            _ => Kept::TooLate,
        }
    }
}
