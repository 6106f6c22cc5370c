//! The one way in for surfaces: checks what a request needs, reserves, hands the work to the container's worker, waits.

mod access;
mod accesses;
mod aliases;
mod containers;
mod images;
mod inspect;
mod presence;
mod projects;
mod tokens;
mod uses;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::error::Error;
use super::execute::{Drivers, Executor};
use super::ledger::Ledger;
use super::recover::{self, Report};
use super::supervisor::{Bounds, Shared};
use crate::config::Config;
use crate::domain::alias::Standing;
use crate::domain::firewall::Told;
use crate::domain::host::HostNames;
use crate::domain::policy::Policies;
use crate::domain::{Container, ContainerId, Limits, Receipt, ReceiptId};
use crate::store::Records;
use crate::store::journal::RunJournal;
use crate::sys::folders::Layout;
use crate::sys::host::memory_total;
use crate::sys::nft::FirewallError;

pub use aliases::Named;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    names: HostNames,
    server_name: String,
    defaults: Limits,
    allow_local_proxies: bool,
    uploads: PathBuf,
    cpu: inspect::CpuSamples,
    ready: AtomicBool,
    uses: uses::Uses,
    /// Where the admin token's secret is kept.
    admin_file: OnceLock<PathBuf>,
}

impl Service {
    /// Loads the records; nothing is touched yet.
    ///
    /// # Errors
    /// The store or the journal does not read.
    pub async fn open(
        config: &Config,
        layout: Layout,
        drivers: Drivers,
        records: Records,
        policies: Policies,
    ) -> Result<Self, Error> {
        let journal = RunJournal::open(config.run_dir.join("journal"))?;
        let ledger = Ledger::load(records.clone(), config.last_slot()).await?;
        let names = config.host_names().map_err(|error| Error::Config(error.to_string()))?;
        let uploads = layout.uploads();
        let uses = uses::Uses::load(&records).await?;
        let executor = Executor::new(drivers, records, journal, layout, config.users.uid_base);
        let inner = Inner {
            shared: Shared::new(ledger, executor, policies, bounds(config)),
            names,
            server_name: config.server_name.clone(),
            defaults: config.limits.limits(),
            allow_local_proxies: config.relay.allow_local_proxies,
            uploads,
            cpu: inspect::CpuSamples::default(),
            ready: AtomicBool::new(false),
            uses,
            admin_file: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes over what an earlier daemon left; before this has returned no other call may be made.
    ///
    /// # Errors
    /// The store, the journal or the firewall fail.
    pub async fn recover(&self) -> Result<Report, Error> {
        let report = recover::recover(&self.inner.shared).await?;
        self.inner.ready.store(true, Ordering::Release);
        for project in self.projects().into_iter().filter(|project| project.deleting) {
            let service = self.clone();
            tokio::spawn(async move {
                if let Err(error) = service.delete_project(project.id).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(project = %project.id, error, "its deletion cannot be finished");
                }
            });
        }
        Ok(report)
    }

    /// Whether recovery has finished.
    pub fn is_ready(&self) -> bool {
        self.inner.ready.load(Ordering::Acquire)
    }

    /// Refuses new verbs and waits for those at work, at most so long. Containers go on running.
    pub async fn close(&self, patience: Duration) {
        self.inner.ready.store(false, Ordering::Release);
        self.inner.shared.close(patience).await;
    }

    /// After [`Service::close`]: takes away what the host has of this instance where no container runs; whether that is so.
    /// While one runs its rules and cgroup have to stay.
    ///
    /// # Errors
    /// The firewall's table or the cgroups' parent cannot be removed.
    pub async fn leave_host(&self) -> Result<bool, Error> {
        if self.containers().iter().any(|container| container.phase.init().is_some()) {
            return Ok(false);
        }
        self.drivers().firewall.unload().await.map_err(Error::driver)?;
        self.drivers().cgroups.remove_parent().await.map_err(Error::driver)?;
        Ok(true)
    }

    /// What is beneath, for tests that do what only the daemon's own tasks do.
    #[cfg(test)]
    pub(in crate::lifecycle) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    fn ledger(&self) -> &Ledger {
        &self.inner.shared.ledger
    }

    fn drivers(&self) -> &Drivers {
        self.inner.shared.executor.drivers()
    }

    fn layout(&self) -> &Layout {
        self.inner.shared.executor.layout()
    }

    /// The store beneath, for what surfaces keep in it.
    pub fn records(&self) -> &Records {
        self.ledger().records()
    }

    /// A container's address.
    pub fn address(&self, container: &Container) -> Option<Ipv4Addr> {
        self.inner.shared.address(container)
    }

    /// A container's URLs: by its own alias first, then by its ids, then by further aliases that lead somewhere.
    pub fn urls(&self, container: &Container) -> Vec<String> {
        let names = &self.inner.names;
        let canonical = names.url_for_container(container.project, container.id, container.settings.port);
        let now = Timestamp::now();
        let further = self.aliases_of(container.id);
        let further = further.iter().filter(|alias| alias.standing(now) == Standing::Good);
        let further = further.map(|alias| alias.url(names));
        [names.url_for_alias(&container.alias), canonical].into_iter().chain(further).collect()
    }

    /// Host names and how URLs are made of them.
    pub fn host_names(&self) -> &HostNames {
        &self.inner.names
    }

    /// This host's name in URLs and records.
    pub fn server_name(&self) -> &str {
        &self.inner.server_name
    }

    /// The container that runs, or begins to, with this address: a process may send before its start is written down.
    pub fn by_address(&self, address: Ipv4Addr) -> Option<Arc<Container>> {
        let slot = self.inner.shared.subnet.slot(address)?;
        self.ledger().directory().by_slot(slot).filter(|container| container.phase.may_send())
    }

    /// Lets the firewall know what the container at an address is about to be told of a host.
    ///
    /// # Errors
    /// Its rules name the host, and it cannot be opened to it.
    pub async fn tell_firewall(&self, address: Ipv4Addr, told: Told) -> Result<(), FirewallError> {
        match self.inner.shared.subnet.slot(address) {
            Some(slot) => self.drivers().firewall.tell(slot, told).await,
            None => Ok(()),
        }
    }

    /// Tells when what a container sends may have to go another way than before, or when one that had a way of its own has stopped.
    pub fn ways_out(&self) -> watch::Receiver<u64> {
        self.ledger().ways_out()
    }

    /// Where uploads are put while they are read.
    pub fn upload_dir(&self) -> &Path {
        &self.inner.uploads
    }

    /// One receipt.
    ///
    /// # Errors
    /// No such receipt.
    pub async fn receipt(&self, id: ReceiptId) -> Result<Receipt, Error> {
        self.ledger().receipt(id).await
    }

    /// The receipt of a container that was deleted.
    pub fn receipt_of(&self, id: ContainerId) -> Option<ReceiptId> {
        self.ledger().receipt_of(id)
    }
}

fn bounds(config: &Config) -> Bounds {
    let awake_memory_max = config.awake.memory.of(memory_total);
    if let Some(max) = awake_memory_max {
        tracing::info!(%max, "the awake may hold so much memory together");
    }
    Bounds { subnet: config.net.subnet, starts: config.starts, awake_memory_max }
}

/// A worker that went away with a caller's reply: only when the daemon ends.
fn gone<E>(_closed: E) -> Error {
    Error::ShuttingDown
}
