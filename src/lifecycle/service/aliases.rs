//! Containers' further names.

use std::sync::Arc;

use jiff::Timestamp;

use super::super::error::Error;
use super::super::requests::{AliasPatch, NewAlias};
use super::Service;
use crate::domain::alias::ProxyAlias;
use crate::domain::host::Alias;
use crate::domain::{AliasId, Container, ContainerId};

/// What a host's label names.
#[derive(Debug, Clone)]
pub enum Named {
    /// A container, by the alias it was made with.
    Own(Arc<Container>),
    /// A container, by a further one.
    Further(Arc<ProxyAlias>, Arc<Container>),
}

impl Service {
    /// Gives a container a further name.
    ///
    /// # Errors
    /// No such container, it is being deleted, the name is in use, it has as many as it may.
    pub async fn create_alias(&self, new: NewAlias) -> Result<Arc<ProxyAlias>, Error> {
        let now = Timestamp::now();
        let alias = ProxyAlias {
            id: AliasId::generate(),
            container: new.container,
            alias: new.alias.unwrap_or_else(Alias::generate),
            port: new.settings.port.flatten(),
            target_path: new.settings.target_path.flatten(),
            allow_path_override: new.settings.allow_path_override.unwrap_or(false),
            enabled: new.settings.enabled.unwrap_or(true),
            expires_at: new.settings.expires_at.flatten(),
            created_at: now,
            updated_at: now,
        };
        self.ledger().put_alias(|_| Ok(alias)).await
    }

    /// Changes a further name, or where it leads.
    ///
    /// # Errors
    /// No such alias, the new name is in use.
    pub async fn update_alias(&self, id: AliasId, patch: AliasPatch) -> Result<Arc<ProxyAlias>, Error> {
        self.ledger().put_alias(|aliases| Ok(patch.apply((*aliases.get(id)?).clone()))).await
    }

    /// Takes a further name away.
    ///
    /// # Errors
    /// No such alias.
    pub async fn delete_alias(&self, id: AliasId) -> Result<(), Error> {
        self.alias(id)?;
        self.ledger().remove_alias(id).await
    }

    /// One further name.
    ///
    /// # Errors
    /// No such alias.
    pub fn alias(&self, id: AliasId) -> Result<Arc<ProxyAlias>, Error> {
        self.ledger().aliases().get(id)
    }

    /// All further names, in the order they were made.
    pub fn aliases(&self) -> Vec<Arc<ProxyAlias>> {
        self.ledger().aliases().all()
    }

    /// A container's further names, in the order they were made.
    pub fn aliases_of(&self, container: ContainerId) -> Vec<Arc<ProxyAlias>> {
        self.ledger().aliases().of(container)
    }

    /// What the label of a host names.
    pub fn named(&self, alias: &Alias) -> Option<Named> {
        if let Some(container) = self.ledger().directory().by_alias(alias) {
            return Some(Named::Own(container));
        }
        let further = self.ledger().aliases().named(alias)?;
        let container = self.container(further.container).ok()?;
        Some(Named::Further(further, container))
    }
}

impl AliasPatch {
    fn apply(self, mut alias: ProxyAlias) -> ProxyAlias {
        let Self { alias: name, settings } = self;
        alias.alias = name.unwrap_or(alias.alias);
        alias.port = settings.port.unwrap_or(alias.port);
        alias.target_path = settings.target_path.unwrap_or(alias.target_path);
        alias.allow_path_override = settings.allow_path_override.unwrap_or(alias.allow_path_override);
        alias.enabled = settings.enabled.unwrap_or(alias.enabled);
        alias.expires_at = settings.expires_at.unwrap_or(alias.expires_at);
        alias.updated_at = Timestamp::now();
        alias
    }
}
