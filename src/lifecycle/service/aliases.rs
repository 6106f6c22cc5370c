//! Containers' further names.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU16;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::aliases::Aliases;
use super::super::error::Error;
use super::super::names::Names;
use super::super::ports::HostPorts;
use super::super::requests::{AliasPatch, AliasSettings, NewAlias, NewProgram};
use super::Service;
use crate::domain::alias::{Custom, Program, ProxyAlias, Standing};
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
    /// Gives a container a further name, or a port of this host's.
    ///
    /// # Errors
    /// No such container, it is being deleted, the name or the port is in use, there is no port, it has as many as it may.
    pub async fn create_alias(&self, new: NewAlias, ports: &dyn HostPorts) -> Result<Arc<ProxyAlias>, Error> {
        let NewAlias { container, alias, program, settings } = new;
        self.check_domain(&settings)?;
        let mut claimed = None;
        let make = |aliases: &Aliases| {
            let program = program.placed(aliases, ports)?;
            let blank = blank(container, alias.unwrap_or_else(Alias::generate), program);
            claimed = blank.listen_port();
            AliasPatch { alias: None, settings }.apply(blank)
        };
        let made = self.ledger().put_alias(make).await;
        match claimed {
            Some(port) if made.is_err() => ports.release(port),
            Some(_) => ports.look(),
            None => {}
        }
        made
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

    /// What a port of this host leads to.
    pub fn at_port(&self, port: NonZeroU16) -> Option<(Arc<ProxyAlias>, Arc<Container>)> {
        let alias = self.ledger().aliases().at_port(port)?;
        let container = self.container(alias.container).ok()?;
        Some((alias, container))
    }

    /// Ports of this host that lead somewhere now.
    pub fn open_ports(&self) -> BTreeSet<NonZeroU16> {
        let now = Timestamp::now();
        let aliases = self.ledger().aliases();
        let good = aliases.at_ports().filter(|alias| alias.standing(now) == Standing::Good);
        good.filter_map(|alias| alias.listen_port()).collect()
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

fn blank(container: ContainerId, alias: Alias, program: Program) -> ProxyAlias {
    let now = Timestamp::now();
    ProxyAlias {
        id: AliasId::generate(),
        container,
        alias,
        custom: None,
        program,
        port: None,
        target_path: None,
        allow_path_override: false,
        enabled: true,
        expires_at: None,
        created_at: now,
        updated_at: now,
    }
}

impl NewProgram {
    /// With a port of this host, where it needs one: the one that is wanted, or the first that nobody has.
    fn placed(self, aliases: &Aliases, ports: &dyn HostPorts) -> Result<Program, Error> {
        let Self::Tcp { listen_port } = self else { return Ok(Program::Http) };
        let range = ports.range().ok_or(Error::NoListenPorts)?;
        let is_free = |port: &NonZeroU16| {
            let claimed = aliases.at_port(*port).is_none().then(|| ports.claim(*port));
            if let Some(Err(error)) = &claimed
                && error.kind() != io::ErrorKind::AddrInUse
            {
                tracing::error!(%port, %error, "a port for an alias cannot be listened on");
            }
            matches!(claimed, Some(Ok(())))
        };
        let listen_port = match listen_port {
            Some(port) if !range.has(port.get()) => return Err(Error::NoListenPort(range)),
            Some(port) => is_free(&port).then_some(port).ok_or(Error::ListenPortInUse(port))?,
            None => range.ports().find(is_free).ok_or(Error::ListenPortsUsedUp(range))?,
        };
        Ok(Program::Tcp { listen_port, wakes: true })
    }
}

impl AliasSettings {
    /// What is set and means nothing for a program.
    fn check(&self, program: Program) -> Result<(), Error> {
        let of_http = [
            ("domain", self.domain.is_some()),
            ("verified", self.verified.is_some()),
            ("target_path", self.target_path.is_some()),
            ("allow_path_override", self.allow_path_override.is_some()),
        ];
        let (fields, program) = match program {
            Program::Http => (&[("wake", self.wake.is_some())][..], "http"),
            Program::Tcp { .. } => (&of_http[..], "tcp"),
        };
        match fields.iter().find(|(_, is_set)| *is_set) {
            Some((field, _)) => Err(Error::NotOfProgram { field, program }),
            None => Ok(()),
        }
    }
}

impl AliasPatch {
    fn apply(self, mut alias: ProxyAlias) -> Result<ProxyAlias, Error> {
        let Self { alias: name, settings } = self;
        settings.check(alias.program)?;
        if let (Program::Tcp { wakes, .. }, Some(wake)) = (&mut alias.program, settings.wake) {
            *wakes = wake;
        }
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
