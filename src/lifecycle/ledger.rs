//! The records: in memory and on the disk, in step.
//!
//! A change is made under one lock: the new record goes to the store, then takes the old one's place in memory, so that
//! the disk never holds an older record than was last seen. Only the flush, which takes milliseconds, happens outside
//! the lock and is shared with whoever else waits for one.

mod aliases;
mod catalogs;
mod receipts;

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use jiff::Timestamp;
use tokio::sync::{Mutex, watch};

use super::aliases::Aliases;
use super::catalog::Catalog;
use super::directory::Directory;
use super::error::Error;
use super::happenings::happenings;
use crate::domain::container::Transition;
use crate::domain::event::{EventKind, Happening};
use crate::domain::network::Network;
use crate::domain::{Container, ContainerId, Image, Project, ProjectId, ProxyAlias, Receipt, ReceiptId, Slot, Token};
use crate::store::events::{Shelf, Staged};
use crate::store::{Batch, Durability, EventLog, Records};

/// Changes of status that are kept of each container.
pub const TRANSITIONS_MAX: u64 = 200;

/// Records of everything, and the only code that writes them.
#[derive(Debug)]
pub struct Ledger {
    records: Records,
    directory: RwLock<Directory>,
    images: RwLock<Catalog<Image>>,
    tokens: RwLock<Catalog<Token>>,
    aliases: RwLock<Aliases>,
    /// Receipts by the container they are of.
    receipts: RwLock<HashMap<ContainerId, ReceiptId>>,
    events: EventLog,
    /// Writes through the API, apart from what happened: neither drives the other out.
    audit: EventLog,
    /// Held while a record is changed, never while one is flushed.
    order: Mutex<()>,
    /// The same for `audit`.
    audit_order: Mutex<()>,
    /// How often a container's way out has changed.
    ways_out: watch::Sender<u64>,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// What a container that may send has set about where it sends.
fn own_way(container: &Container) -> Option<&Network> {
    let network = container.settings.network.as_ref().filter(|network| network.enabled);
    network.filter(|_| container.phase.may_send())
}

fn transition_key(id: ContainerId, n: u64) -> String {
    format!("transition/{id}/{n:010}")
}

impl Ledger {
    /// Loads everything.
    ///
    /// # Errors
    /// The store does not read.
    pub async fn load(records: Records, last_slot: Slot) -> Result<Self, Error> {
        let mut directory = Directory::new(last_slot);
        for project in records.all::<Project>().await? {
            directory.put_project(project)?;
        }
        for container in records.all::<Container>().await? {
            directory.put(container)?;
        }
        let images = Catalog::new(records.all::<Image>().await?);
        let mut aliases = Aliases::default();
        for alias in records.all::<ProxyAlias>().await? {
            aliases.put(alias)?;
        }
        let tokens = Catalog::new(records.all::<Token>().await?);
        let events = EventLog::load(&records, Shelf::HAPPENINGS).await?;
        let audit = EventLog::load(&records, Shelf::AUDIT).await?;
        let receipts = records.all::<Receipt>().await?.iter().map(|receipt| (receipt.container, receipt.id)).collect();
        Ok(Self {
            records,
            directory: RwLock::new(directory),
            images: RwLock::new(images),
            tokens: RwLock::new(tokens),
            aliases: RwLock::new(aliases),
            receipts: RwLock::new(receipts),
            events,
            audit,
            order: Mutex::new(()),
            audit_order: Mutex::new(()),
            ways_out: watch::Sender::new(0),
        })
    }

    /// The store beneath, for what is no record of the lifecycle's.
    pub const fn records(&self) -> &Records {
        &self.records
    }

    /// Projects and containers, to be read at once and let go.
    pub fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        read(&self.directory)
    }

    /// Tells when a container's way out is no longer what it was.
    pub fn ways_out(&self) -> watch::Receiver<u64> {
        self.ways_out.subscribe()
    }

    /// Images.
    pub fn images(&self) -> RwLockReadGuard<'_, Catalog<Image>> {
        read(&self.images)
    }

    /// Tokens.
    pub fn tokens(&self) -> RwLockReadGuard<'_, Catalog<Token>> {
        read(&self.tokens)
    }

    /// Containers' further names.
    pub fn aliases(&self) -> RwLockReadGuard<'_, Aliases> {
        read(&self.aliases)
    }

    /// The receipt of a container that was deleted.
    pub fn receipt_of(&self, id: ContainerId) -> Option<ReceiptId> {
        read(&self.receipts).get(&id).copied()
    }

    /// What happened.
    pub const fn events(&self) -> &EventLog {
        &self.events
    }

    /// Who wrote what through the API.
    pub const fn audit(&self) -> &EventLog {
        &self.audit
    }

    /// Notes a write through the API. Not flushed.
    ///
    /// # Errors
    /// The store's.
    pub async fn note_write(&self, what: Happening) -> Result<(), Error> {
        let _order = self.audit_order.lock().await;
        let (batch, staged) = self.audit.stage(Batch::default(), [what], Timestamp::now())?;
        self.commit(batch).await?;
        self.audit.publish(staged);
        Ok(())
    }

    /// Notes something that happened and is no change of a record's. Not flushed.
    ///
    /// # Errors
    /// The store's.
    pub async fn emit(&self, what: Happening) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let staged = self.events.stage(Batch::default(), [what], Timestamp::now())?;
        self.commit_staged(staged).await
    }

    /// Under `order`: commits a batch and shows the events in it.
    async fn commit_staged(&self, (batch, staged): (Batch, Staged)) -> Result<(), Error> {
        self.commit(batch).await?;
        self.events.publish(staged);
        Ok(())
    }

    async fn commit(&self, batch: Batch) -> Result<(), Error> {
        Ok(self.records.commit(batch, Durability::Lazy).await?)
    }

    async fn settle(&self, durability: Durability) -> Result<(), Error> {
        match durability {
            Durability::Flushed => Ok(self.records.flush().await?),
            Durability::Lazy => Ok(()),
        }
    }

    /// Adds a container: a slot is reserved and the record made from it. The plan that makes it flushes the record.
    ///
    /// # Errors
    /// A name in use, the project's limit, no slot; nothing is left then.
    pub async fn add(&self, make: impl FnOnce(Slot) -> Container + Send) -> Result<Arc<Container>, Error> {
        let _order = self.order.lock().await;
        let container = {
            let mut directory = write(&self.directory);
            let slot = directory.reserve_slot()?;
            let container = make(slot);
            let fits = directory.check_new(container.project, &container.name, container.external_id.as_ref());
            match fits.and_then(|()| directory.put(container)) {
                Ok(container) => container,
                Err(error) => {
                    directory.release(slot);
                    return Err(error);
                }
            }
        };
        if let Err(error) = self.commit(Batch::default().put(&*container)?).await {
            write(&self.directory).remove(container.id);
            return Err(error);
        }
        Ok(container)
    }

    /// Changes a container's record; its generation goes up, and a change of status is logged.
    ///
    /// # Errors
    /// No such container, what `change` refuses, a name in use; nothing is changed then.
    pub async fn change(
        &self,
        id: ContainerId,
        how: Change<'_>,
        change: impl FnOnce(&mut Container) -> Result<(), Error> + Send,
    ) -> Result<Arc<Container>, Error> {
        let changed = {
            let _order = self.order.lock().await;
            let old = self.directory().container(id)?;
            let mut new = (*old).clone();
            change(&mut new)?;
            new.generation += 1;
            new.updated_at = Timestamp::now();
            let mut batch = Batch::default();
            if new.status() != old.status() {
                batch = log_transition(batch, &old, &mut new, how)?;
            }
            // Memory refuses a name in use, so it goes first; the store's refusal puts the old record back.
            let changed = write(&self.directory).put(new)?;
            let staged = self.events.stage(batch.put(&*changed)?, happenings(&old, &changed), changed.updated_at)?;
            if let Err(error) = self.commit_staged(staged).await {
                write(&self.directory).put((*old).clone())?;
                return Err(error);
            }
            if own_way(&old) != own_way(&changed) {
                self.ways_out.send_modify(|count| *count += 1);
            }
            changed
        };
        self.settle(how.durability).await?;
        Ok(changed)
    }

    /// The changes of status that are kept, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn transitions(&self, id: ContainerId) -> Result<Vec<Transition>, Error> {
        let pairs = self.records.all_at::<Transition>(&format!("transition/{id}/")).await?;
        Ok(pairs.into_iter().map(|(_, transition)| transition).collect())
    }

    /// Takes a container that could not be made out again, as if it had never been.
    ///
    /// # Errors
    /// The store's.
    pub async fn forget(&self, id: ContainerId) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let batch = self.without(id).await?;
        self.commit(batch).await?;
        self.drop_container(id);
        Ok(())
    }

    /// Puts a container's receipt in its place: everything the store knows of it goes. Not flushed: the tombstone is, and
    /// after a power cut the next daemon does this again.
    ///
    /// # Errors
    /// The store's.
    pub async fn bury(&self, id: ContainerId, receipt: &Receipt) -> Result<(), Error> {
        let _order = self.order.lock().await;
        let batch = self.without(id).await?.put(receipt)?;
        let deleted = Happening::to_container(EventKind::Deleted, receipt.project, id);
        self.commit_staged(self.events.stage(batch, [deleted], Timestamp::now())?).await?;
        self.drop_container(id);
        Ok(())
    }

    async fn without(&self, id: ContainerId) -> Result<Batch, Error> {
        let mut batch = Batch::default().remove::<Container>(&id);
        for alias in self.aliases().of(id) {
            batch = batch.remove::<ProxyAlias>(&alias.id);
        }
        for (key, _) in self.records.all_at::<Transition>(&format!("transition/{id}/")).await? {
            batch = batch.remove_at(key);
        }
        Ok(batch)
    }

    /// Takes a container and its names out of memory.
    fn drop_container(&self, id: ContainerId) {
        write(&self.directory).remove(id);
        let mut aliases = write(&self.aliases);
        for alias in aliases.of(id) {
            aliases.remove(alias.id);
        }
    }

    /// Adds or changes a project. Flushed.
    ///
    /// # Errors
    /// What `make` refuses, or an alias in use.
    pub async fn put_project(
        &self,
        make: impl FnOnce(&Directory) -> Result<Project, Error> + Send,
    ) -> Result<Arc<Project>, Error> {
        let project = {
            let _order = self.order.lock().await;
            let new = make(&self.directory())?;
            let old = self.directory().project(new.id).ok();
            let project = write(&self.directory).put_project(new)?;
            if let Err(error) = self.commit(Batch::default().put(&*project)?).await {
                let mut directory = write(&self.directory);
                match old {
                    Some(old) => drop(directory.put_project((*old).clone())),
                    None => directory.remove_project(project.id),
                }
                return Err(error);
            }
            project
        };
        self.settle(Durability::Flushed).await?;
        Ok(project)
    }

    /// Forgets a project, whose containers must be gone. Flushed.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_project(&self, id: ProjectId) -> Result<(), Error> {
        {
            let _order = self.order.lock().await;
            self.commit(Batch::default().remove::<Project>(&id)).await?;
            write(&self.directory).remove_project(id);
        }
        self.settle(Durability::Flushed).await
    }
}

/// How a record is changed.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// When the change counts as done.
    pub durability: Durability,
    /// What the status log says it was triggered by.
    pub by: &'a str,
    /// When what led to the change began.
    pub began: Option<std::time::Instant>,
}

impl<'a> Change<'a> {
    /// A change that can be observed anew after a crash.
    pub const fn lazy(by: &'a str) -> Self {
        Self { durability: Durability::Lazy, by, began: None }
    }

    /// A change that must outlive a power cut.
    pub const fn flushed(by: &'a str) -> Self {
        Self { durability: Durability::Flushed, by, began: None }
    }

    /// The same, begun then.
    pub const fn since(self, began: std::time::Instant) -> Self {
        Self { began: Some(began), ..self }
    }
}

fn log_transition(batch: Batch, old: &Container, new: &mut Container, how: Change<'_>) -> Result<Batch, Error> {
    let transition = Transition {
        from: Some(old.status()),
        to: new.status(),
        at: Timestamp::now(),
        duration_ms: how.began.map_or(0, |began| began.elapsed().as_millis() as u64),
        triggered_by: how.by.to_owned(),
        reason: new.phase.reason(),
    };
    let n = new.transitions;
    new.transitions += 1;
    let mut batch = batch.put_at(transition_key(new.id, n), &transition)?;
    if let Some(oldest) = n.checked_sub(TRANSITIONS_MAX) {
        batch = batch.remove_at(transition_key(new.id, oldest));
    }
    Ok(batch)
}
