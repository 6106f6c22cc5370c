//! Failing on purpose: a wrapper around any driver, real or fake, that counts calls and fails at a chosen one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;

use crate::domain::firewall::{Ruleset, Told};
use crate::domain::{Bytes, ContainerId, Exit, Init, Limits, Slot};
use crate::sys::btrfs::{Access, Pool, PoolError, PoolSpace, QuotaUsage, SubvolumeId};
use crate::sys::cgroup::{Alarms, CgroupError, Cgroups, Usage, Version};
use crate::sys::folders::{FolderError, Folders, Identity, LogPart};
use crate::sys::netlink::{LinkError, LinkUsage, Links, Rates};
use crate::sys::nft::{Firewall, FirewallError, Inspection};
use crate::sys::oci::BundleSpec;
use crate::sys::runtime::{Delivery, ExecOutcome, ExecRequest, Launch, Pins, Resized, Runtime, RuntimeError};

/// Which call fails. Only calls that make something are counted; removals and looks never fail by it, as an unwind that
/// fails too is another test's matter.
#[derive(Debug, Default)]
pub struct Faults {
    /// Calls until the one that fails; 0: none does.
    countdown: AtomicU32,
    /// Whether the call does its work first and fails then.
    late: AtomicBool,
    hit: std::sync::Mutex<Option<&'static str>>,
}

impl Faults {
    /// The `n`th call from now on fails: before it does its work, or (`late`) after.
    pub fn fail_at(&self, n: u32, late: bool) {
        self.late.store(late, Ordering::SeqCst);
        *self.hit.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        self.countdown.store(n, Ordering::SeqCst);
    }

    /// The call that failed, if the countdown came to its end; nothing fails from here on.
    pub fn disarm(&self) -> Option<&'static str> {
        self.countdown.store(0, Ordering::SeqCst);
        self.hit.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }

    fn due(&self, call: &'static str) -> bool {
        let before = self.countdown.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        let due = before == Ok(1);
        if due {
            *self.hit.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(call);
        }
        due
    }
}

/// A driver that fails when told to.
#[derive(Debug)]
pub struct Faulty<D: ?Sized> {
    inner: Arc<D>,
    faults: Arc<Faults>,
}

impl<D: ?Sized> Faulty<D> {
    /// Wraps a driver; several wrappers may share one countdown.
    pub fn wrap(inner: Arc<D>, faults: &Arc<Faults>) -> Arc<Self> {
        Arc::new(Self { inner, faults: faults.clone() })
    }

    async fn at<T, E>(
        &self,
        call: &'static str,
        injected: fn(&'static str) -> E,
        work: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        if !self.faults.due(call) {
            return work.await;
        }
        if self.faults.late.load(Ordering::SeqCst) {
            work.await?;
        }
        Err(injected(call))
    }
}

#[async_trait]
impl Pool for Faulty<dyn Pool> {
    async fn create(&self, path: &Path) -> Result<SubvolumeId, PoolError> {
        self.at("pool.create", PoolError::Injected, self.inner.create(path)).await
    }
    async fn snapshot(&self, from: &Path, to: &Path, access: Access) -> Result<SubvolumeId, PoolError> {
        self.at("pool.snapshot", PoolError::Injected, self.inner.snapshot(from, to, access)).await
    }
    async fn set_access(&self, path: &Path, access: Access) -> Result<(), PoolError> {
        self.at("pool.set_access", PoolError::Injected, self.inner.set_access(path, access)).await
    }
    async fn delete(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
        self.inner.delete(path).await
    }
    async fn id(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
        self.inner.id(path).await
    }
    async fn is_erased(&self, id: SubvolumeId) -> Result<bool, PoolError> {
        self.inner.is_erased(id).await
    }
    async fn set_limit(&self, path: &Path, limit: Option<Bytes>) -> Result<(), PoolError> {
        self.at("pool.set_limit", PoolError::Injected, self.inner.set_limit(path, limit)).await
    }
    async fn usage(&self, path: &Path) -> Result<QuotaUsage, PoolError> {
        self.inner.usage(path).await
    }
    async fn space(&self) -> Result<PoolSpace, PoolError> {
        self.inner.space().await
    }
}

#[async_trait]
impl Folders for Faulty<dyn Folders> {
    async fn make(&self, id: ContainerId) -> Result<(), FolderError> {
        self.at("folders.make", FolderError::Injected, self.inner.make(id)).await
    }
    async fn personalise(&self, id: ContainerId, identity: &Identity) -> Result<(), FolderError> {
        self.at("folders.personalise", FolderError::Injected, self.inner.personalise(id, identity)).await
    }
    async fn write_manifest(&self, id: ContainerId, json: &[u8]) -> Result<(), FolderError> {
        self.at("folders.write_manifest", FolderError::Injected, self.inner.write_manifest(id, json)).await
    }
    async fn has_manifest(&self, id: ContainerId) -> Result<bool, FolderError> {
        self.inner.has_manifest(id).await
    }
    async fn write_bundle(&self, id: ContainerId, spec: &BundleSpec<'_>) -> Result<(), FolderError> {
        self.at("folders.write_bundle", FolderError::Injected, self.inner.write_bundle(id, spec)).await
    }
    async fn log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError> {
        self.inner.log_tail(id, max).await
    }
    async fn log_after(&self, id: ContainerId, position: u64, max: Bytes) -> Result<LogPart, FolderError> {
        self.inner.log_after(id, position, max).await
    }
    async fn trim_log(&self, id: ContainerId) -> Result<(), FolderError> {
        self.inner.trim_log(id).await
    }
    async fn append_access_logs(&self, logs: BTreeMap<ContainerId, Vec<u8>>) -> Result<(), FolderError> {
        self.inner.append_access_logs(logs).await
    }
    async fn access_log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError> {
        self.inner.access_log_tail(id, max).await
    }
    async fn remove(&self, id: ContainerId) -> Result<(), FolderError> {
        self.inner.remove(id).await
    }
    async fn list(&self) -> Result<Vec<ContainerId>, FolderError> {
        self.inner.list().await
    }
}

#[async_trait]
impl Cgroups for Faulty<dyn Cgroups> {
    fn version(&self) -> Version {
        self.inner.version()
    }
    fn path(&self, id: ContainerId) -> String {
        self.inner.path(id)
    }
    fn expect_move(&self) {
        self.inner.expect_move();
    }
    async fn prepare(&self) -> Result<(), CgroupError> {
        self.inner.prepare().await
    }
    async fn remove_parent(&self) -> Result<(), CgroupError> {
        self.inner.remove_parent().await
    }
    async fn set_limits(&self, id: ContainerId, limits: &Limits) -> Result<(), CgroupError> {
        self.at("cgroups.set_limits", CgroupError::Injected, self.inner.set_limits(id, limits)).await
    }
    async fn usage(&self, id: ContainerId) -> Result<Option<Usage>, CgroupError> {
        self.inner.usage(id).await
    }
    async fn alarms(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Alarms)>, CgroupError> {
        self.inner.alarms(ids).await
    }
    async fn memory(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Bytes)>, CgroupError> {
        self.inner.memory(ids).await
    }
    async fn reclaim(&self, id: ContainerId) -> Result<(), CgroupError> {
        self.inner.reclaim(id).await
    }
    async fn freeze(&self, id: ContainerId, frozen: bool) -> Result<(), CgroupError> {
        self.at("cgroups.freeze", CgroupError::Injected, self.inner.freeze(id, frozen)).await
    }
    async fn remove(&self, id: ContainerId) -> Result<(), CgroupError> {
        self.inner.remove(id).await
    }
    async fn list(&self) -> Result<Vec<ContainerId>, CgroupError> {
        self.inner.list().await
    }
}

#[async_trait]
impl Links for Faulty<dyn Links> {
    async fn prepare_host(&self) -> Result<(), LinkError> {
        self.inner.prepare_host().await
    }
    async fn attach(&self, slot: Slot, netns: &Path, rates: Rates) -> Result<(), LinkError> {
        self.at("links.attach", LinkError::Injected, self.inner.attach(slot, netns, rates)).await
    }
    async fn set_rates(&self, slot: Slot, netns: &Path, rates: Rates) -> Result<(), LinkError> {
        self.at("links.set_rates", LinkError::Injected, self.inner.set_rates(slot, netns, rates)).await
    }
    async fn up(&self, slot: Slot) -> Result<(), LinkError> {
        self.at("links.up", LinkError::Injected, self.inner.up(slot)).await
    }
    async fn detach(&self, slot: Slot) -> Result<(), LinkError> {
        self.inner.detach(slot).await
    }
    async fn usage(&self, slot: Slot) -> Result<Option<LinkUsage>, LinkError> {
        self.inner.usage(slot).await
    }
    async fn list(&self) -> Result<Vec<Slot>, LinkError> {
        self.inner.list().await
    }
}

#[async_trait]
impl Firewall for Faulty<dyn Firewall> {
    async fn load(&self, tenants: &[(Slot, Arc<Ruleset>)]) -> Result<(), FirewallError> {
        self.inner.load(tenants).await
    }
    async fn apply(&self, slot: Slot, rules: &Arc<Ruleset>) -> Result<(), FirewallError> {
        self.at("firewall.apply", FirewallError::Injected, self.inner.apply(slot, rules)).await
    }
    async fn remove(&self, slot: Slot) -> Result<(), FirewallError> {
        self.inner.remove(slot).await
    }
    async fn tell(&self, slot: Slot, told: Told) -> Result<(), FirewallError> {
        self.at("firewall.tell", FirewallError::Injected, self.inner.tell(slot, told)).await
    }
    async fn list(&self) -> Result<Vec<Slot>, FirewallError> {
        self.inner.list().await
    }
    async fn inspect(&self, slot: Slot) -> Result<Inspection, FirewallError> {
        self.inner.inspect(slot).await
    }
    async fn unload(&self) -> Result<(), FirewallError> {
        self.inner.unload().await
    }
}

#[async_trait]
impl Runtime for Faulty<dyn Runtime> {
    async fn prepare(&self, launch: &Launch) -> Result<Pins, RuntimeError> {
        self.at("runtime.prepare", RuntimeError::Injected, self.inner.prepare(launch)).await
    }
    async fn create(&self, id: ContainerId) -> Result<Init, RuntimeError> {
        self.at("runtime.create", RuntimeError::Injected, self.inner.create(id)).await
    }
    async fn start(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.at("runtime.start", RuntimeError::Injected, self.inner.start(id)).await
    }
    async fn wait(&self, init: Init) -> Exit {
        self.inner.wait(init).await
    }
    fn is_alive(&self, init: Init) -> bool {
        self.inner.is_alive(init)
    }
    async fn unread(&self, inits: Vec<Init>) -> Vec<(Init, Bytes)> {
        self.inner.unread(inits).await
    }
    fn signal(&self, init: Init, signal: i32) -> Result<Delivery, RuntimeError> {
        self.inner.signal(init, signal)
    }
    async fn resize_ramdisk(&self, init: Init, size: Option<Bytes>) -> Result<Resized, RuntimeError> {
        self.at("runtime.resize_ramdisk", RuntimeError::Injected, self.inner.resize_ramdisk(init, size)).await
    }
    async fn exec(&self, id: ContainerId, init: Init, request: &ExecRequest) -> Result<ExecOutcome, RuntimeError> {
        self.inner.exec(id, init, request).await
    }
    async fn remove(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.inner.remove(id).await
    }
    async fn list(&self) -> Result<Vec<ContainerId>, RuntimeError> {
        self.inner.list().await
    }
}
