//! What there is, in memory: records by id, and the indexes and reservations that follow from them.
//!
//! Pure but for its lock: nothing here waits, reads or writes anything else. Uniqueness of names, external ids, aliases and
//! slots is decided here, at once, before anything is made. The disk's copy is kept in step by [`super::ledger`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::error::{Error, What};
use crate::domain::container::ExternalId;
use crate::domain::host::Alias;
use crate::domain::{Container, ContainerId, ContainerName, Project, ProjectId, Slot};

/// Slots that are taken, and where the next search begins, so that a slot is reused as late as can be.
#[derive(Debug)]
struct Slots {
    taken: BTreeSet<Slot>,
    next: Slot,
    last: Slot,
}

impl Slots {
    fn new(last: Slot) -> Self {
        Self { taken: BTreeSet::new(), next: Slot(1), last }
    }

    fn reserve(&mut self) -> Option<Slot> {
        if self.taken.len() >= usize::from(self.last.0) {
            return None;
        }
        let free =
            (self.next.0..=self.last.0).chain(1..self.next.0).map(Slot).find(|slot| !self.taken.contains(slot))?;
        self.take(free);
        Some(free)
    }

    fn take(&mut self, slot: Slot) {
        self.taken.insert(slot);
        self.next = if slot >= self.last { Slot(1) } else { Slot(slot.0 + 1) };
    }
}

/// Projects and containers.
#[derive(Debug)]
pub struct Directory {
    projects: BTreeMap<ProjectId, Arc<Project>>,
    containers: BTreeMap<ContainerId, Arc<Container>>,
    names: HashMap<(ProjectId, ContainerName), ContainerId>,
    external_ids: HashMap<(ProjectId, ExternalId), ContainerId>,
    aliases: HashMap<Alias, ContainerId>,
    by_slot: HashMap<Slot, ContainerId>,
    slots: Slots,
}

impl Directory {
    /// An empty one, with slots up to `last`.
    pub fn new(last: Slot) -> Self {
        Self {
            projects: BTreeMap::new(),
            containers: BTreeMap::new(),
            names: HashMap::new(),
            external_ids: HashMap::new(),
            aliases: HashMap::new(),
            by_slot: HashMap::new(),
            slots: Slots::new(last),
        }
    }

    /// A free slot, reserved until a container with it is removed or [`Directory::release`] is called.
    ///
    /// # Errors
    /// All are taken.
    pub fn reserve_slot(&mut self) -> Result<Slot, Error> {
        self.slots.reserve().ok_or(Error::NoSlot(self.slots.last.0.into()))
    }

    /// Gives a reserved slot back.
    pub fn release(&mut self, slot: Slot) {
        self.slots.taken.remove(&slot);
    }

    /// Whether a container of these names may be added to the project.
    ///
    /// # Errors
    /// No such project, its limit, a name that is in use.
    pub fn check_new(
        &self,
        project: ProjectId,
        name: &ContainerName,
        external: Option<&ExternalId>,
    ) -> Result<(), Error> {
        let record = self.project(project)?;
        if record.deleting {
            return Err(Error::Deleting { what: What::Project });
        }
        if let Some(max) = record.containers_max {
            let there = self.containers.values().filter(|one| one.project == project).count();
            if there >= max as usize {
                return Err(Error::ProjectLimit { max });
            }
        }
        self.check_names(None, project, name, external)
    }

    fn check_names(
        &self,
        own: Option<ContainerId>,
        project: ProjectId,
        name: &ContainerName,
        external: Option<&ExternalId>,
    ) -> Result<(), Error> {
        let other = |found: Option<&ContainerId>| found.is_some_and(|found| Some(*found) != own);
        if other(self.names.get(&(project, name.clone()))) {
            return Err(Error::NameInUse(name.to_string()));
        }
        if let Some(external) = external
            && other(self.external_ids.get(&(project, external.clone())))
        {
            return Err(Error::ExternalIdInUse(external.as_str().to_owned()));
        }
        Ok(())
    }

    /// Adds a container, or puts a changed record in its place.
    ///
    /// # Errors
    /// A name that another one has; nothing is changed then.
    pub fn put(&mut self, container: Container) -> Result<Arc<Container>, Error> {
        self.check_names(Some(container.id), container.project, &container.name, container.external_id.as_ref())?;
        match self.containers.remove(&container.id) {
            Some(old) => {
                self.unindex(&old);
                self.slots.taken.insert(container.slot);
            }
            None => self.slots.take(container.slot),
        }
        self.names.insert((container.project, container.name.clone()), container.id);
        if let Some(external) = &container.external_id {
            self.external_ids.insert((container.project, external.clone()), container.id);
        }
        self.aliases.insert(container.alias.clone(), container.id);
        self.by_slot.insert(container.slot, container.id);
        let container = Arc::new(container);
        self.containers.insert(container.id, container.clone());
        Ok(container)
    }

    fn unindex(&mut self, old: &Container) {
        self.names.remove(&(old.project, old.name.clone()));
        if let Some(external) = &old.external_id {
            self.external_ids.remove(&(old.project, external.clone()));
        }
        self.aliases.remove(&old.alias);
        self.by_slot.remove(&old.slot);
        self.slots.taken.remove(&old.slot);
    }

    /// Forgets a container; its names and slot are free again.
    pub fn remove(&mut self, id: ContainerId) -> Option<Arc<Container>> {
        let old = self.containers.remove(&id)?;
        self.unindex(&old);
        Some(old)
    }

    /// One container.
    ///
    /// # Errors
    /// No such container.
    pub fn container(&self, id: ContainerId) -> Result<Arc<Container>, Error> {
        self.containers.get(&id).cloned().ok_or_else(|| Error::not_found(What::Container, id))
    }

    /// All of them, in the order they were made.
    pub fn containers(&self) -> Vec<Arc<Container>> {
        self.containers.values().cloned().collect()
    }

    /// The container whose URL has this alias.
    pub fn by_alias(&self, alias: &Alias) -> Option<Arc<Container>> {
        let id = self.aliases.get(alias)?;
        self.containers.get(id).cloned()
    }

    /// The container that has this slot.
    pub fn by_slot(&self, slot: Slot) -> Option<Arc<Container>> {
        let id = self.by_slot.get(&slot)?;
        self.containers.get(id).cloned()
    }

    /// One project.
    ///
    /// # Errors
    /// No such project.
    pub fn project(&self, id: ProjectId) -> Result<Arc<Project>, Error> {
        self.projects.get(&id).cloned().ok_or_else(|| Error::not_found(What::Project, id))
    }

    /// All of them, in the order they were made.
    pub fn projects(&self) -> Vec<Arc<Project>> {
        self.projects.values().cloned().collect()
    }

    /// Adds a project, or puts a changed record in its place.
    ///
    /// # Errors
    /// An alias that another one has.
    pub fn put_project(&mut self, project: Project) -> Result<Arc<Project>, Error> {
        let taken = self.projects.values().any(|one| one.alias == project.alias && one.id != project.id);
        if taken {
            return Err(Error::AliasInUse { what: What::Project, name: project.alias });
        }
        let project = Arc::new(project);
        self.projects.insert(project.id, project.clone());
        Ok(project)
    }

    /// Forgets a project.
    pub fn remove_project(&mut self, id: ProjectId) {
        self.projects.remove(&id);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::container::tests::container as a_container;
    use crate::domain::{Confinement, EnvVars, ImageId, Limits, Settings};

    pub fn settings() -> Settings {
        Settings {
            comment: None,
            color: None,
            command: vec![],
            port: crate::domain::container::PORT_DEFAULT,
            env: EnvVars::default(),
            limits: Limits::default(),
            firewall_policy: "web".parse().unwrap(),
            firewall_rules: Default::default(),
            network: None,
            access: None,
            idle_timeout_s: None,
            idle_action: Default::default(),
            activity: Default::default(),
            wake_on_request: true,
            template: false,
            labels: BTreeMap::new(),
            deletion_protection: false,
            autostart: true,
            ramdisk: false,
            ssh_public_key: None,
            confinement: Confinement::Standard,
        }
    }

    pub fn project(max: Option<u32>) -> Project {
        Project {
            id: ProjectId::generate(),
            alias: "acme".into(),
            color: None,
            containers_max: max,
            firewall_policy: None,
            limits: Limits::default(),
            idle_timeout_s: None,
            idle_action: Default::default(),
            deleting: false,
            generation: 1,
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
        }
    }

    pub fn container(project: ProjectId, name: &str, slot: Slot) -> Container {
        Container {
            slot,
            image: ImageId::generate(),
            settings: settings(),
            created_at: Timestamp::now(),
            updated_at: Timestamp::now(),
            ..a_container(project, name)
        }
    }

    fn directory(max: Option<u32>) -> (Directory, ProjectId) {
        let mut directory = Directory::new(Slot(3));
        let id = directory.put_project(project(max)).unwrap().id;
        (directory, id)
    }

    #[test]
    fn a_name_is_free_again_when_its_container_is_gone_or_renamed() {
        let (mut directory, project) = directory(None);
        let mut first = container(project, "one", Slot(1));
        directory.put(first.clone()).unwrap();
        let second = container(project, "one", Slot(2));
        assert!(matches!(directory.put(second.clone()), Err(Error::NameInUse(_))));
        first.name = "other".parse().unwrap();
        directory.put(first).unwrap();
        directory.put(second.clone()).unwrap();
        directory.remove(second.id);
        directory.put(container(project, "one", Slot(2))).unwrap();
    }

    #[test]
    fn a_project_at_its_limit_takes_no_more() {
        let (mut directory, project) = directory(Some(1));
        let name = "one".parse().unwrap();
        directory.check_new(project, &name, None).unwrap();
        directory.put(container(project, "one", Slot(1))).unwrap();
        let refused = directory.check_new(project, &"two".parse().unwrap(), None);
        assert!(matches!(refused, Err(Error::ProjectLimit { max: 1 })));
    }

    #[test]
    fn a_slot_is_reused_as_late_as_can_be_and_never_given_twice() {
        let mut slots = Slots::new(Slot(3));
        assert_eq!(slots.reserve(), Some(Slot(1)));
        slots.taken.remove(&Slot(1));
        assert_eq!([slots.reserve(), slots.reserve(), slots.reserve()], [Some(Slot(2)), Some(Slot(3)), Some(Slot(1))]);
        assert_eq!(slots.reserve(), None);
    }

    proptest! {
        #[test]
        fn slots_that_are_held_are_distinct(ops in proptest::collection::vec(any::<Option<u8>>(), 1..200)) {
            let mut slots = Slots::new(Slot(20));
            let mut held: Vec<Slot> = Vec::new();
            for op in ops {
                match op {
                    None => if let Some(slot) = slots.reserve() {
                        prop_assert!(!held.contains(&slot) && (1..=20).contains(&slot.0));
                        held.push(slot);
                    } else {
                        prop_assert_eq!(held.len(), 20);
                    },
                    Some(n) if !held.is_empty() => {
                        let slot = held.swap_remove(usize::from(n) % held.len());
                        slots.taken.remove(&slot);
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
