//! Containers' further names.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::error::Error;
use super::super::names::Names;
use super::super::requests::{AliasPatch, AliasSettings, NewAlias};
use super::Service;
use crate::domain::alias::{Custom, ProxyAlias};
use crate::domain::host::{Alias, CustomDomain, Route};
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
        let blank = ProxyAlias {
            id: AliasId::generate(),
            container: new.container,
            alias: new.alias.unwrap_or_else(Alias::generate),
            custom: None,
            port: None,
            target_path: None,
            allow_path_override: false,
            enabled: true,
            expires_at: None,
            created_at: now,
            updated_at: now,
        };
        self.check_domain(&new.settings)?;
        let alias = AliasPatch { alias: None, settings: new.settings }.apply(blank)?;
        self.ledger().put_alias(|_| Ok(alias)).await
    }

    /// Changes a further name, or where it leads.
    ///
    /// # Errors
    /// No such alias, the new name is in use.
    pub async fn update_alias(&self, id: AliasId, patch: AliasPatch) -> Result<Arc<ProxyAlias>, Error> {
        self.check_domain(&patch.settings)?;
        self.ledger().put_alias(|aliases| patch.apply((*aliases.get(id)?).clone())).await
    }

    /// A domain within this host's names would never be asked for: those go before.
    fn check_domain(&self, settings: &AliasSettings) -> Result<(), Error> {
        match &settings.domain {
            Some(Some(domain)) if !matches!(self.host_names().parse(domain.as_str()), Ok(Route::Domain(_))) => {
                Err(Error::OwnDomain(domain.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Lets an alias's domain lead to its container, if the DNS says that its owner wants that. Once verified it stays so.
    ///
    /// # Errors
    /// No such alias, it has no domain, the DNS does not say it or nothing.
    pub async fn verify_alias(&self, id: AliasId, names: &dyn Names) -> Result<Arc<ProxyAlias>, Error> {
        let alias = self.alias(id)?;
        let custom = alias.custom.as_ref().ok_or(Error::NoDomain)?;
        if custom.verified_at.is_some() {
            return Ok(alias);
        }
        let host = self.host_names().host_of_alias(&alias.alias);
        let (domain, proof_name) = (&custom.domain, custom.domain.proof_name());
        let unavailable = |source| Error::NamesUnavailable { domain: domain.clone(), source };
        let texts = names.texts(&proof_name).await.map_err(unavailable)?;
        let is_proven = custom.is_proven_by(&texts, None, &host) || {
            let canonical = names.canonical(domain.as_str()).await.map_err(unavailable)?;
            custom.is_proven_by(&[], canonical.as_deref(), &host)
        };
        if !is_proven {
            let proof = custom.proof.as_str().to_owned();
            return Err(Error::NotProven { domain: domain.clone(), proof_name, proof, host });
        }
        self.ledger().put_alias(|aliases| proven((*aliases.get(id)?).clone(), custom)).await
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

    /// What a customer's domain leads to, once it was verified.
    pub fn at_domain(&self, domain: &CustomDomain) -> Option<(Arc<ProxyAlias>, Arc<Container>)> {
        let alias = self.ledger().aliases().at(domain)?;
        alias.custom.as_ref()?.verified_at?;
        let container = self.container(alias.container).ok()?;
        Some((alias, container))
    }

    /// Customers' domains that were verified.
    pub fn verified_domains(&self) -> BTreeSet<CustomDomain> {
        self.ledger().aliases().verified_domains().collect()
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
    fn apply(self, mut alias: ProxyAlias) -> Result<ProxyAlias, Error> {
        let Self { alias: name, settings } = self;
        if let Some(domain) = settings.domain {
            let is_same = |custom: &Custom| Some(&custom.domain) == domain.as_ref();
            let kept = alias.custom.take().filter(is_same);
            alias.custom = kept.or_else(|| domain.map(Custom::new));
        }
        if let Some(verified) = settings.verified {
            let custom = alias.custom.as_mut().ok_or(Error::NoDomain)?;
            let since = custom.verified_at.unwrap_or_else(Timestamp::now);
            custom.verified_at = verified.then_some(since);
        }
        alias.alias = name.unwrap_or(alias.alias);
        alias.port = settings.port.unwrap_or(alias.port);
        alias.target_path = settings.target_path.unwrap_or(alias.target_path);
        alias.allow_path_override = settings.allow_path_override.unwrap_or(alias.allow_path_override);
        alias.enabled = settings.enabled.unwrap_or(alias.enabled);
        alias.expires_at = settings.expires_at.unwrap_or(alias.expires_at);
        alias.updated_at = Timestamp::now();
        Ok(alias)
    }
}

/// The alias with its domain verified, if it still is the domain that was.
fn proven(mut alias: ProxyAlias, shown: &Custom) -> Result<ProxyAlias, Error> {
    let now = Timestamp::now();
    match alias.custom.as_mut().filter(|custom| custom.proof == shown.proof) {
        Some(custom) => custom.verified_at = Some(now),
        None => return Err(Error::NoDomain),
    }
    alias.updated_at = now;
    Ok(alias)
}
