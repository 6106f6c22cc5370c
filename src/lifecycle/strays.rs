//! Objects that belong to no container that could have them: what a crash left, or a fault of ours.
//!
//! Looked for by the drivers' own lists, not by the journal: a stray is what the journal did not know.

use std::collections::BTreeSet;
use std::fmt;

use super::error::{DriverError, Error};
use super::supervisor::Shared;
use crate::domain::{Container, ContainerId, Phase, Slot};

/// Something of ours that nobody owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// A cgroup.
    Cgroup(ContainerId),
    /// A veth pair.
    Link(Slot),
    /// The runtime's state.
    Runtime(ContainerId),
    /// Firewall chains.
    Rules(Slot),
    /// A rootfs that was never finished, and its folders.
    Folders(ContainerId),
    /// Finished data without a record: the store may be older than the pool, so it is the operator's to decide.
    Orphan(ContainerId),
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(id) => write!(f, "cgroup of container {id}"),
            Self::Link(slot) => write!(f, "link of slot {slot}"),
            Self::Runtime(id) => write!(f, "runtime state of container {id}"),
            Self::Rules(slot) => write!(f, "firewall chains of slot {slot}"),
            Self::Folders(id) => write!(f, "unfinished rootfs of container {id}"),
            Self::Orphan(id) => write!(f, "data of container {id}, which has no record"),
        }
    }
}

/// Whether a container may have objects in the kernel now.
const fn may_have_objects(container: &Container) -> bool {
    container.receipt.is_some() || !matches!(container.phase, Phase::Stopped { .. } | Phase::Failed { .. })
}

/// What a container of this instance may have, as the drivers see it.
struct Seen {
    cgroups: Vec<ContainerId>,
    links: Vec<Slot>,
    runtime: Vec<ContainerId>,
    rules: Vec<Slot>,
    folders: Vec<ContainerId>,
}

async fn look(shared: &Shared) -> Result<Seen, Error> {
    let drivers = shared.executor.drivers();
    Ok(Seen {
        cgroups: drivers.cgroups.list().await.map_err(Error::driver)?,
        links: drivers.links.list().await.map_err(Error::driver)?,
        runtime: drivers.runtime.list().await.map_err(Error::driver)?,
        rules: drivers.firewall.list().await.map_err(Error::driver)?,
        folders: drivers.folders.list().await.map_err(Error::driver)?,
    })
}

/// Looks for strays, twice: what the first look found and a worker removed meanwhile is none.
///
/// # Errors
/// A driver cannot list what there is.
pub async fn find(shared: &Shared) -> Result<Vec<Stray>, Error> {
    let first = unowned(shared).await?;
    if first.is_empty() {
        return Ok(first);
    }
    let again = unowned(shared).await?;
    Ok(first.into_iter().filter(|stray| again.contains(stray)).collect())
}

async fn unowned(shared: &Shared) -> Result<Vec<Stray>, Error> {
    // What there is comes before who may have it: what is made after the look is in nobody's list.
    let seen = look(shared).await?;
    let containers = shared.ledger.directory().containers();
    let known: BTreeSet<ContainerId> = containers.iter().map(|one| one.id).collect();
    let active = || containers.iter().filter(|one| may_have_objects(one) || shared.has_worker(one.id));
    let ids: BTreeSet<ContainerId> = active().map(|one| one.id).collect();
    let slots: BTreeSet<Slot> = active().map(|one| one.slot).collect();

    let mut strays = Vec::new();
    strays.extend(seen.cgroups.into_iter().filter(|id| !ids.contains(id)).map(Stray::Cgroup));
    strays.extend(seen.links.into_iter().filter(|slot| !slots.contains(slot)).map(Stray::Link));
    strays.extend(seen.runtime.into_iter().filter(|id| !ids.contains(id)).map(Stray::Runtime));
    strays.extend(seen.rules.into_iter().filter(|slot| !slots.contains(slot)).map(Stray::Rules));
    for id in seen.folders.into_iter().filter(|id| !known.contains(id)) {
        let finished = shared.executor.drivers().folders.has_manifest(id).await.map_err(Error::driver)?;
        strays.push(if finished { Stray::Orphan(id) } else { Stray::Folders(id) });
    }
    Ok(strays)
}

/// Removes a stray; an orphan is left alone.
///
/// # Errors
/// It cannot be removed.
pub async fn remove(shared: &Shared, stray: Stray) -> Result<(), DriverError> {
    let drivers = shared.executor.drivers();
    match stray {
        Stray::Cgroup(id) => drivers.cgroups.remove(id).await?,
        Stray::Link(slot) => drivers.links.detach(slot).await?,
        Stray::Runtime(id) => drivers.runtime.remove(id).await?,
        Stray::Rules(slot) => drivers.firewall.remove(slot).await?,
        Stray::Folders(id) => {
            drivers.pool.delete(&shared.executor.layout().pool.rootfs(id)).await?;
            drivers.folders.remove(id).await?;
        }
        Stray::Orphan(_) => {}
    }
    Ok(())
}
