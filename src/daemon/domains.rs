//! Which names are to have certificates, for what orders them.

use std::collections::BTreeSet;

use crate::acme::Wanted;
use crate::domain::host::CustomDomain;
use crate::lifecycle::Service;

/// The configured ones, and those that the records have.
#[derive(Debug)]
pub struct Table {
    service: Service,
    configured: Vec<CustomDomain>,
}

impl Table {
    /// Over this service.
    pub const fn new(service: Service, configured: Vec<CustomDomain>) -> Self {
        Self { service, configured }
    }
}

impl Wanted for Table {
    fn names(&self) -> BTreeSet<CustomDomain> {
        let mut names = self.service.verified_domains();
        names.extend(self.configured.iter().cloned());
        names
    }
}
