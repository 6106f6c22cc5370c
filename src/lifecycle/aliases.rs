//! Containers' further names, in memory: by id, by name, by container. Pure but for what its owner wraps it in.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU16;
use std::sync::Arc;

use super::error::{Error, What};
use crate::domain::alias::{ALIASES_MAX, ProxyAlias};
use crate::domain::host::{Alias, CustomDomain};
use crate::domain::{AliasId, ContainerId};

/// All of them.
#[derive(Debug, Default)]
pub struct Aliases {
    by_id: BTreeMap<AliasId, Arc<ProxyAlias>>,
    by_name: HashMap<Alias, AliasId>,
    by_domain: HashMap<CustomDomain, AliasId>,
    by_listen_port: BTreeMap<NonZeroU16, AliasId>,
    by_container: HashMap<ContainerId, Vec<AliasId>>,
}

impl Aliases {
    /// Adds one, or puts a changed one in its place. An alias stays with its container.
    ///
    /// # Errors
    /// The name, the domain or the port is another's, or the container has as many as it may; nothing is changed then.
    pub fn put(&mut self, new: ProxyAlias) -> Result<Arc<ProxyAlias>, Error> {
        if self.by_name.get(&new.alias).is_some_and(|other| *other != new.id) {
            return Err(Error::AliasInUse { what: What::Alias, name: new.alias.to_string() });
        }
        let domain = new.custom.as_ref().map(|custom| &custom.domain);
        if let Some(taken) = domain.filter(|domain| self.by_domain.get(domain).is_some_and(|other| *other != new.id)) {
            return Err(Error::AliasInUse { what: What::Alias, name: taken.to_string() });
        }
        let port = new.listen_port();
        if let Some(port) = port.filter(|port| self.by_listen_port.get(port).is_some_and(|other| *other != new.id)) {
            return Err(Error::ListenPortInUse(port));
        }
        match self.by_id.get(&new.id).cloned() {
            Some(old) => self.forget_names(&old),
            None => {
                let theirs = self.by_container.entry(new.container).or_default();
                if theirs.len() >= ALIASES_MAX {
                    return Err(Error::AliasLimit { max: ALIASES_MAX });
                }
                theirs.push(new.id);
            }
        }
        let new = Arc::new(new);
        self.by_name.insert(new.alias.clone(), new.id);
        if let Some(custom) = &new.custom {
            self.by_domain.insert(custom.domain.clone(), new.id);
        }
        if let Some(port) = new.listen_port() {
            self.by_listen_port.insert(port, new.id);
        }
        self.by_id.insert(new.id, new.clone());
        Ok(new)
    }

    /// Forgets one.
    pub fn remove(&mut self, id: AliasId) {
        let Some(old) = self.by_id.remove(&id) else { return };
        self.forget_names(&old);
        if let Some(theirs) = self.by_container.get_mut(&old.container) {
            theirs.retain(|other| *other != id);
            if theirs.is_empty() {
                self.by_container.remove(&old.container);
            }
        }
    }

    fn forget_names(&mut self, old: &ProxyAlias) {
        self.by_name.remove(&old.alias);
        if let Some(custom) = &old.custom {
            self.by_domain.remove(&custom.domain);
        }
        if let Some(port) = old.listen_port() {
            self.by_listen_port.remove(&port);
        }
    }

    /// One.
    ///
    /// # Errors
    /// No such alias.
    pub fn get(&self, id: AliasId) -> Result<Arc<ProxyAlias>, Error> {
        self.by_id.get(&id).cloned().ok_or_else(|| Error::not_found(What::Alias, id))
    }

    /// The one of this name.
    pub fn named(&self, name: &Alias) -> Option<Arc<ProxyAlias>> {
        self.by_id.get(self.by_name.get(name)?).cloned()
    }

    /// The one that is reached at this port of the host.
    pub fn at_port(&self, port: NonZeroU16) -> Option<Arc<ProxyAlias>> {
        self.by_id.get(self.by_listen_port.get(&port)?).cloned()
    }

    /// Those that are reached at ports of their own, in the order of those.
    pub fn at_ports(&self) -> impl Iterator<Item = &Arc<ProxyAlias>> {
        self.by_listen_port.values().filter_map(|id| self.by_id.get(id))
    }

    /// The one with this domain, verified or not.
    pub fn at(&self, domain: &CustomDomain) -> Option<Arc<ProxyAlias>> {
        self.by_id.get(self.by_domain.get(domain)?).cloned()
    }

    /// Domains that were verified.
    pub fn verified_domains(&self) -> impl Iterator<Item = CustomDomain> {
        let verified = |id: &AliasId| self.by_id.get(id)?.custom.as_ref().filter(|custom| custom.verified_at.is_some());
        self.by_domain.values().filter_map(verified).map(|custom| custom.domain.clone())
    }

    /// A container's, in the order they were made.
    pub fn of(&self, container: ContainerId) -> Vec<Arc<ProxyAlias>> {
        let ids = self.by_container.get(&container).into_iter().flatten();
        ids.filter_map(|id| self.by_id.get(id).cloned()).collect()
    }

    /// All, in the order they were made.
    pub fn all(&self) -> Vec<Arc<ProxyAlias>> {
        self.by_id.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::domain::alias::{Custom, Program};

    fn alias(container: ContainerId, name: &str) -> ProxyAlias {
        ProxyAlias {
            id: AliasId::generate(),
            container,
            alias: name.parse().unwrap(),
            custom: None,
            program: Program::Http,
            port: None,
            target_path: None,
            allow_path_override: false,
            enabled: true,
            expires_at: None,
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_name_has_one_owner_and_is_free_again_when_it_is_given_up() {
        let (mut aliases, container) = (Aliases::default(), ContainerId::generate());
        let shop = aliases.put(alias(container, "shop")).unwrap();
        assert!(matches!(aliases.put(alias(container, "shop")), Err(Error::AliasInUse { what: What::Alias, .. })));
        aliases.put(ProxyAlias { alias: "store".parse().unwrap(), ..(*shop).clone() }).unwrap();
        assert!(aliases.named(&"shop".parse().unwrap()).is_none());
        let other = aliases.put(alias(ContainerId::generate(), "shop")).unwrap();
        aliases.remove(shop.id);
        assert_eq!(aliases.all(), [other]);
        assert!(aliases.of(container).is_empty() && aliases.get(shop.id).is_err());
    }

    #[test]
    fn a_domain_has_one_alias_and_is_free_again_when_it_is_given_up() {
        let (mut aliases, container) = (Aliases::default(), ContainerId::generate());
        let with = |name, domain: &str| ProxyAlias {
            custom: Some(Custom::new(domain.parse().unwrap())),
            ..alias(container, name)
        };
        let first = aliases.put(with("one", "shop.example.com")).unwrap();
        assert!(matches!(aliases.put(with("two", "shop.example.com")), Err(Error::AliasInUse { .. })));
        let moved = ProxyAlias { custom: Some(Custom::new("www.example.com".parse().unwrap())), ..(*first).clone() };
        aliases.put(moved).unwrap();
        assert!(aliases.at(&"shop.example.com".parse().unwrap()).is_none());
        aliases.put(with("two", "shop.example.com")).unwrap();
        aliases.remove(first.id);
        assert!(aliases.at(&"www.example.com".parse().unwrap()).is_none());
    }

    #[test]
    fn a_port_of_the_host_leads_to_one_container_and_is_free_again_when_it_is_given_up() {
        let (mut aliases, container) = (Aliases::default(), ContainerId::generate());
        let with = |name, port: u16| ProxyAlias {
            program: Program::Tcp { listen_port: port.try_into().unwrap(), wakes: true },
            ..alias(container, name)
        };
        let late = aliases.put(with("late", 20_001)).unwrap();
        let first = aliases.put(with("first", 20_000)).unwrap();
        assert!(
            matches!(aliases.put(with("other", 20_000)), Err(Error::ListenPortInUse(port)) if port.get() == 20_000)
        );
        assert_eq!(aliases.at_ports().collect::<Vec<_>>(), [&first, &late]);
        assert_eq!(aliases.at_port(20_001.try_into().unwrap()), Some(late));
        aliases.remove(first.id);
        aliases.put(with("other", 20_000)).unwrap();
    }

    #[test]
    fn a_container_has_no_more_than_it_may() {
        let (mut aliases, container) = (Aliases::default(), ContainerId::generate());
        let first = aliases.put(alias(container, "name-0")).unwrap();
        for n in 1..ALIASES_MAX {
            aliases.put(alias(container, &format!("name-{n}"))).unwrap();
        }
        assert!(matches!(aliases.put(alias(container, "one-more")), Err(Error::AliasLimit { max: ALIASES_MAX })));
        aliases.put((*first).clone()).unwrap();
        aliases.put(alias(ContainerId::generate(), "one-more")).unwrap();
    }
}
