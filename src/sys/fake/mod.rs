//! In-memory twins of the drivers, for tests of everything above them, and [`Faults`], which makes any driver fail.
//!
//! One [`FakeHost`] plays the whole machine. It is as strict as the kernel and stricter: what the real one would let pass
//! but must never happen (a link that is up without rules, init without its limits) is an error here.

mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;

pub use faults::{Faults, Faulty};

use crate::domain::firewall::{Ruleset, Side, Told};
use crate::domain::{Bytes, ContainerId, Exit, Init, Limits, Slot};
use crate::sys::btrfs::{Access, Pool, PoolError, PoolSpace, QuotaUsage, SubvolumeId};
use crate::sys::cgroup::{Alarms, CgroupError, Cgroups, Usage, Version};
use crate::sys::folders::{FolderError, Folders, Identity, LogPart};
use crate::sys::netlink::{LinkError, LinkUsage, Links, Rates};
use crate::sys::nft::{Firewall, FirewallError, Inspection, Lines};
use crate::sys::oci::BundleSpec;
use crate::sys::runtime::{Delivery, ExecOutcome, ExecRequest, Launch, Pins, Resized, Runtime, RuntimeError};

/// A machine in memory.
#[derive(Debug, Default)]
pub struct FakeHost {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    subvolumes: BTreeMap<PathBuf, (SubvolumeId, Option<Bytes>)>,
    next: u64,
    folders: BTreeMap<ContainerId, bool>,
    bundles: BTreeSet<ContainerId>,
    logs: BTreeMap<ContainerId, Vec<u8>>,
    access_logs: BTreeMap<ContainerId, Vec<u8>>,
    cgroups: BTreeMap<ContainerId, Limits>,
    alarms: BTreeMap<ContainerId, Alarms>,
    frozen: BTreeSet<ContainerId>,
    reclaimed: BTreeSet<ContainerId>,
    memory: BTreeMap<ContainerId, Bytes>,
    cpu_us: BTreeMap<ContainerId, u64>,
    disk_used: Bytes,
    links: BTreeMap<Slot, Link>,
    chains: BTreeMap<Slot, Arc<Ruleset>>,
    prepared: BTreeMap<ContainerId, Launch>,
    inits: BTreeMap<i32, Process>,
    /// What daemons that were killed wait for.
    unheard: Vec<watch::Sender<Option<Exit>>>,
}

#[derive(Debug, Default)]
struct Link {
    up: bool,
    rates: Rates,
}

#[derive(Debug)]
struct Process {
    id: ContainerId,
    started: bool,
    /// As it was last changed.
    ramdisk: Option<Option<Bytes>>,
    exit: watch::Sender<Option<Exit>>,
}

/// What is left on a machine; all zero where nothing is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each counts what it is named after")]
pub struct Left {
    pub rootfs: usize,
    pub folders: usize,
    pub cgroups: usize,
    pub links: usize,
    pub chains: usize,
    pub helpers: usize,
    pub inits: usize,
}

impl FakeHost {
    /// A machine with nothing on it.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of containers.
    pub fn left(&self) -> Left {
        let state = self.state();
        Left {
            rootfs: state.subvolumes.keys().filter(|path| path.starts_with("/pool/containers")).count(),
            folders: state.folders.len() + state.bundles.len(),
            cgroups: state.cgroups.len(),
            links: state.links.len(),
            chains: state.chains.len(),
            helpers: state.prepared.len(),
            inits: state.inits.values().filter(|process| process.exit.borrow().is_none()).count(),
        }
    }

    /// What the kernel keeps of a running container's limits: its cgroup's, its link's rates, its ramdisk's size where that was
    /// changed.
    pub fn limits_of(&self, id: ContainerId, slot: Slot) -> Option<(Limits, Rates, Option<Bytes>)> {
        let state = self.state();
        let init = state.inits.values().find(|process| process.id == id && process.exit.borrow().is_none())?;
        Some((*state.cgroups.get(&id)?, state.links.get(&slot)?.rates, init.ramdisk.flatten()))
    }

    /// What a container's limits have led to from now on.
    pub fn alarm(&self, id: ContainerId, alarms: Alarms) {
        self.state().alarms.insert(id, alarms);
    }

    /// What a container holds in memory from now on, for as long as it runs.
    pub fn hold_memory(&self, id: ContainerId, held: Bytes) {
        self.state().memory.insert(id, held);
    }

    /// What a container has used of the processor by now, in microseconds.
    pub fn use_cpu(&self, id: ContainerId, cpu_us: u64) {
        self.state().cpu_us.insert(id, cpu_us);
    }

    /// Whether a container has a process that is not frozen.
    pub fn goes(&self, id: ContainerId) -> bool {
        let state = self.state();
        let alive = state.inits.values().any(|process| process.id == id && process.exit.borrow().is_none());
        alive && !state.frozen.contains(&id)
    }

    /// Whether a container's cache was asked back.
    pub fn is_reclaimed(&self, id: ContainerId) -> bool {
        self.state().reclaimed.contains(&id)
    }

    /// What every rootfs holds from now on.
    pub fn fill_disks(&self, used: Bytes) {
        self.state().disk_used = used;
    }

    /// Puts a subvolume there, as an import would.
    pub fn seed(&self, path: &Path) {
        let mut state = self.state();
        state.next += 1;
        let id = SubvolumeId(state.next);
        state.subvolumes.insert(path.to_owned(), (id, None));
    }

    /// Writes to a container's log, as its init would.
    pub fn write_log(&self, id: ContainerId, text: &[u8]) {
        self.state().logs.entry(id).or_default().extend_from_slice(text);
    }

    /// The rules in force for a slot.
    pub fn rules(&self, slot: Slot) -> Option<Arc<Ruleset>> {
        self.state().chains.get(&slot).cloned()
    }

    /// The daemon was killed: what is left of it in a test's process hears of no exit any more, and does nothing about it.
    pub fn kill_daemon(&self) {
        let State { inits, unheard, .. } = &mut *self.state();
        for process in inits.values_mut() {
            let heard = watch::Sender::new(*process.exit.borrow());
            unheard.push(std::mem::replace(&mut process.exit, heard));
        }
    }

    /// Ends a container's init, as if it had exited by itself.
    pub fn exit(&self, id: ContainerId, exit: Exit) {
        self.state().end(id, exit);
    }
}

impl State {
    fn end(&mut self, id: ContainerId, exit: Exit) {
        for process in self.inits.values().filter(|process| process.id == id) {
            process.exit.send_if_modified(|now| {
                now.is_none() && {
                    *now = Some(exit);
                    true
                }
            });
        }
    }
}

fn missing(action: &'static str, path: &Path) -> PoolError {
    PoolError::Path { action, path: path.to_owned(), source: std::io::ErrorKind::NotFound.into() }
}

#[async_trait]
impl Pool for FakeHost {
    async fn create(&self, path: &Path) -> Result<SubvolumeId, PoolError> {
        self.seed(path);
        self.id(path).await?.ok_or_else(|| missing("make the subvolume", path))
    }

    async fn snapshot(&self, from: &Path, to: &Path, _access: Access) -> Result<SubvolumeId, PoolError> {
        if !self.state().subvolumes.contains_key(from) {
            return Err(missing("snapshot", from));
        }
        Pool::create(self, to).await
    }

    async fn set_access(&self, path: &Path, _access: Access) -> Result<(), PoolError> {
        self.id(path).await?.map(drop).ok_or_else(|| missing("protect", path))
    }

    async fn delete(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
        Ok(self.state().subvolumes.remove(path).map(|(id, _)| id))
    }

    async fn id(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
        Ok(self.state().subvolumes.get(path).map(|(id, _)| *id))
    }

    async fn is_erased(&self, id: SubvolumeId) -> Result<bool, PoolError> {
        Ok(!self.state().subvolumes.values().any(|(other, _)| *other == id))
    }

    async fn set_limit(&self, path: &Path, limit: Option<Bytes>) -> Result<(), PoolError> {
        let mut state = self.state();
        let entry = state.subvolumes.get_mut(path).ok_or_else(|| missing("limit", path))?;
        entry.1 = limit;
        Ok(())
    }

    async fn usage(&self, path: &Path) -> Result<QuotaUsage, PoolError> {
        let state = self.state();
        let (_, limit) = state.subvolumes.get(path).ok_or_else(|| missing("read the quota of", path))?;
        Ok(QuotaUsage { used: state.disk_used, limit: *limit })
    }

    async fn space(&self) -> Result<PoolSpace, PoolError> {
        Ok(PoolSpace { total: Bytes::gib(20), available: Bytes::gib(10) })
    }
}

#[async_trait]
impl Folders for FakeHost {
    async fn make(&self, id: ContainerId) -> Result<(), FolderError> {
        self.state().folders.entry(id).or_default();
        Ok(())
    }

    async fn personalise(&self, _id: ContainerId, _identity: &Identity) -> Result<(), FolderError> {
        Ok(())
    }

    async fn write_manifest(&self, id: ContainerId, _json: &[u8]) -> Result<(), FolderError> {
        self.state().folders.insert(id, true);
        Ok(())
    }

    async fn has_manifest(&self, id: ContainerId) -> Result<bool, FolderError> {
        Ok(self.state().folders.get(&id).copied().unwrap_or(false))
    }

    async fn write_bundle(&self, id: ContainerId, _spec: &BundleSpec<'_>) -> Result<(), FolderError> {
        self.state().bundles.insert(id);
        Ok(())
    }

    async fn log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError> {
        let log = self.state().logs.get(&id).cloned().unwrap_or_default();
        Ok(log[log.len().saturating_sub(max.0 as usize)..].to_vec())
    }

    async fn log_after(&self, id: ContainerId, position: u64, max: Bytes) -> Result<LogPart, FolderError> {
        let log = self.state().logs.get(&id).cloned().unwrap_or_default();
        let start = usize::try_from(position).unwrap_or(usize::MAX).min(log.len());
        let text = log[start..].iter().copied().take(max.0 as usize).collect();
        Ok(LogPart { start: start as u64, text, end: log.len() as u64 })
    }

    async fn append_access_logs(&self, logs: BTreeMap<ContainerId, Vec<u8>>) -> Result<(), FolderError> {
        let mut state = self.state();
        for (id, lines) in logs.into_iter().filter(|(id, _)| state.folders.contains_key(id)).collect::<Vec<_>>() {
            state.access_logs.entry(id).or_default().extend(lines);
        }
        Ok(())
    }

    async fn access_log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError> {
        let log = self.state().access_logs.get(&id).cloned().unwrap_or_default();
        Ok(log[log.len().saturating_sub(max.0 as usize)..].to_vec())
    }

    async fn trim_log(&self, _id: ContainerId) -> Result<(), FolderError> {
        Ok(())
    }

    async fn remove(&self, id: ContainerId) -> Result<(), FolderError> {
        let mut state = self.state();
        state.folders.remove(&id);
        state.bundles.remove(&id);
        state.logs.remove(&id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerId>, FolderError> {
        let state = self.state();
        let ids: BTreeSet<_> = state.folders.keys().chain(&state.bundles).copied().collect();
        Ok(ids.into_iter().collect())
    }
}

fn no_cgroup(id: ContainerId) -> CgroupError {
    let path = PathBuf::from(format!("/fake/{id}"));
    CgroupError::Io { action: "write", path, source: std::io::ErrorKind::NotFound.into() }
}

#[async_trait]
impl Cgroups for FakeHost {
    fn version(&self) -> Version {
        Version::V2
    }

    fn path(&self, id: ContainerId) -> String {
        format!("/fake/{id}")
    }

    async fn set_limits(&self, id: ContainerId, limits: &Limits) -> Result<(), CgroupError> {
        let mut state = self.state();
        let entry = state.cgroups.get_mut(&id).ok_or_else(|| no_cgroup(id))?;
        *entry = *limits;
        Ok(())
    }

    async fn usage(&self, id: ContainerId) -> Result<Option<Usage>, CgroupError> {
        let state = self.state();
        let oom_kills = state.alarms.get(&id).map_or(0, |alarms| alarms.oom_kills);
        let cpu_us = state.cpu_us.get(&id).copied().unwrap_or(0);
        let usage = |limits: &Limits| Usage { cpu_us, memory_limit: limits.memory, oom_kills, ..Usage::default() };
        Ok(state.cgroups.get(&id).map(usage))
    }

    async fn alarms(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Alarms)>, CgroupError> {
        let state = self.state();
        let of = |id: &ContainerId| state.alarms.get(id).copied().unwrap_or_default();
        Ok(ids.iter().filter(|id| state.cgroups.contains_key(id)).map(|id| (*id, of(id))).collect())
    }

    async fn memory(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Bytes)>, CgroupError> {
        let state = self.state();
        let of = |id: &ContainerId| state.memory.get(id).copied().unwrap_or(Bytes(0));
        Ok(ids.iter().filter(|id| state.cgroups.contains_key(id)).map(|id| (*id, of(id))).collect())
    }

    async fn reclaim(&self, id: ContainerId) -> Result<(), CgroupError> {
        let mut state = self.state();
        state.cgroups.get(&id).map(drop).ok_or_else(|| no_cgroup(id))?;
        state.reclaimed.insert(id);
        Ok(())
    }

    async fn freeze(&self, id: ContainerId, frozen: bool) -> Result<(), CgroupError> {
        let mut state = self.state();
        state.cgroups.get(&id).map(drop).ok_or_else(|| no_cgroup(id))?;
        if frozen {
            state.frozen.insert(id);
        } else {
            state.frozen.remove(&id);
        }
        Ok(())
    }

    async fn remove(&self, id: ContainerId) -> Result<(), CgroupError> {
        let mut state = self.state();
        state.end(id, Exit::Signal(libc::SIGKILL));
        state.cgroups.remove(&id);
        state.alarms.remove(&id);
        state.frozen.remove(&id);
        state.reclaimed.remove(&id);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerId>, CgroupError> {
        Ok(self.state().cgroups.keys().copied().collect())
    }
}

#[async_trait]
impl Links for FakeHost {
    async fn prepare_host(&self) -> Result<(), LinkError> {
        Ok(())
    }

    async fn attach(&self, slot: Slot, _netns: &Path, rates: Rates) -> Result<(), LinkError> {
        self.state().links.insert(slot, Link { up: false, rates });
        Ok(())
    }

    async fn set_rates(&self, slot: Slot, _netns: &Path, rates: Rates) -> Result<(), LinkError> {
        let mut state = self.state();
        let link = state.links.get_mut(&slot).ok_or(LinkError::Injected("there is no such link"))?;
        link.rates = rates;
        Ok(())
    }

    async fn up(&self, slot: Slot) -> Result<(), LinkError> {
        let mut state = self.state();
        if !state.chains.contains_key(&slot) {
            return Err(LinkError::Injected("a link without rules may not be taken up"));
        }
        let link = state.links.get_mut(&slot).ok_or(LinkError::Injected("there is no such link"))?;
        link.up = true;
        Ok(())
    }

    async fn detach(&self, slot: Slot) -> Result<(), LinkError> {
        self.state().links.remove(&slot);
        Ok(())
    }

    async fn usage(&self, slot: Slot) -> Result<Option<LinkUsage>, LinkError> {
        Ok(self.state().links.get(&slot).map(|_| LinkUsage::default()))
    }

    async fn list(&self) -> Result<Vec<Slot>, LinkError> {
        Ok(self.state().links.keys().copied().collect())
    }
}

#[async_trait]
impl Firewall for FakeHost {
    async fn load(&self, tenants: &[(Slot, Arc<Ruleset>)]) -> Result<(), FirewallError> {
        self.state().chains = tenants.iter().cloned().collect();
        Ok(())
    }

    async fn apply(&self, slot: Slot, rules: &Arc<Ruleset>) -> Result<(), FirewallError> {
        self.state().chains.insert(slot, rules.clone());
        Ok(())
    }

    async fn remove(&self, slot: Slot) -> Result<(), FirewallError> {
        self.state().chains.remove(&slot);
        Ok(())
    }

    async fn tell(&self, _: Slot, _: Told) -> Result<(), FirewallError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Slot>, FirewallError> {
        Ok(self.state().chains.keys().copied().collect())
    }

    async fn inspect(&self, slot: Slot) -> Result<Inspection, FirewallError> {
        let rules = self.rules(slot);
        let lines = |side| {
            let rules: Vec<_> =
                rules.iter().flat_map(|all| &all.side(side).rules).map(|rule| format!("{rule:?}")).collect();
            Lines { desired: rules.clone(), kernel: rules }
        };
        let (ingress, egress) = (lines(Side::Ingress), lines(Side::Egress));
        Ok(Inspection { ingress, egress, table: true, ..Inspection::default() })
    }

    async fn unload(&self) -> Result<(), FirewallError> {
        self.state().chains.clear();
        Ok(())
    }
}

#[async_trait]
impl Runtime for FakeHost {
    async fn prepare(&self, launch: &Launch) -> Result<Pins, RuntimeError> {
        self.state().prepared.insert(launch.id, launch.clone());
        let pin = |name: &str| PathBuf::from(format!("/fake/{}/{name}", launch.id));
        Ok(Pins { user: pin("user"), net: pin("net") })
    }

    async fn create(&self, id: ContainerId) -> Result<Init, RuntimeError> {
        let mut state = self.state();
        let launch = state.prepared.get(&id).cloned().ok_or(RuntimeError::NotRunning(id))?;
        if !state.subvolumes.contains_key(&launch.rootfs) || !state.bundles.contains(&id) {
            let step = "map the rootfs".to_owned();
            return Err(RuntimeError::Step { id, step, message: "no rootfs or no bundle".to_owned() });
        }
        if state.inits.values().any(|process| process.id == id && process.exit.borrow().is_none()) {
            let message = "it has a process already".to_owned();
            return Err(RuntimeError::Step { id, step: "create init".to_owned(), message });
        }
        state.next += 1;
        let pid = state.next as i32;
        state.cgroups.insert(id, Limits::default());
        state.inits.insert(pid, Process { id, started: false, ramdisk: None, exit: watch::channel(None).0 });
        Ok(Init { pid, start_ticks: 1 })
    }

    async fn start(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.state();
        state.prepared.remove(&id);
        let process = state.inits.values_mut().find(|process| process.id == id && process.exit.borrow().is_none());
        process.ok_or(RuntimeError::NotRunning(id))?.started = true;
        Ok(())
    }

    async fn wait(&self, init: Init) -> Exit {
        let exit = self.state().inits.get(&init.pid).map(|process| process.exit.subscribe());
        let Some(mut exit) = exit else { return Exit::Unknown };
        let end = exit.wait_for(Option::is_some).await.map(|end| *end);
        end.ok().flatten().unwrap_or(Exit::Unknown)
    }

    async fn unread(&self, inits: Vec<Init>) -> Vec<(Init, Bytes)> {
        inits.into_iter().map(|init| (init, Bytes(0))).collect()
    }

    fn is_alive(&self, init: Init) -> bool {
        self.state().inits.get(&init.pid).is_some_and(|process| process.started && process.exit.borrow().is_none())
    }

    fn signal(&self, init: Init, signal: i32) -> Result<Delivery, RuntimeError> {
        let mut state = self.state();
        let Some(id) = state.inits.get(&init.pid).map(|process| process.id) else { return Ok(Delivery::Gone) };
        state.end(id, Exit::Signal(signal));
        Ok(Delivery::Sent)
    }

    async fn resize_ramdisk(&self, init: Init, size: Option<Bytes>) -> Result<Resized, RuntimeError> {
        let mut state = self.state();
        match state.inits.get_mut(&init.pid) {
            Some(process) => process.ramdisk = Some(size),
            None => return Ok(Resized::NotThere),
        }
        Ok(Resized::Done)
    }

    async fn exec(&self, id: ContainerId, _init: Init, _request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
        Err(RuntimeError::NotRunning(id))
    }

    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.state();
        state.prepared.remove(&id);
        state.end(id, Exit::Signal(libc::SIGKILL));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError> {
        Ok(self.state().prepared.keys().copied().collect())
    }
}
