//! Whose an address is, for what serves tenants on their gateway.

use std::net::Ipv4Addr;

use crate::egress::{Tenant, Tenants};
use crate::lifecycle::Service;

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
        Some(Tenant { container: container.id, network })
    }
}
