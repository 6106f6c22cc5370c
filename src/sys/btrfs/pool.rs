//! [`Pool`] on a real BTRFS filesystem.
//!
//! Each call opens what it needs and closes it again, so that nothing here keeps the filesystem from being unmounted.
//!
//! A disk limit must also hold for subvolumes that a tenant makes inside its own rootfs (BTRFS lets anybody who may write to a
//! folder make one, and a new one starts with no limit). So every writable subvolume `0/<id>` is the member of a group `1/<id>`
//! of its own; simple quotas make a nested subvolume a member of its parent's groups, and the limit sits on the group:
//!
//! ```text
//!   1/257  limit 1 GiB ◄── 0/257 rootfs
//!                      ◄── 0/261 rootfs/var/nested      (joined by the kernel)
//! ```
//!
//! The group is also how [`Pool::is_erased`] knows, after a crash too, which nested subvolumes went with a deleted one.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};

use super::{Access, Pool, PoolError, PoolSpace, QuotaUsage, SubvolumeId, ioctl};
use crate::domain::Bytes;

/// Trees of `linux/btrfs_tree.h`: the tree of roots and the quota tree.
const ROOT_TREE: u64 = 1;
const QUOTA_TREE: u64 = 8;
/// Types of keys.
const ROOT_ITEM: u32 = 132;
const ROOT_REF: u32 = 156;
const QGROUP_STATUS: u32 = 240;
const QGROUP_INFO: u32 = 242;
const QGROUP_LIMIT: u32 = 244;
const QGROUP_RELATION: u32 = 246;
/// `BTRFS_QGROUP_STATUS_FLAG_ON` and `…_SIMPLE_MODE`.
const STATUS_ON: u64 = 1;
const STATUS_SIMPLE: u64 = 8;
/// A quota group's level stands in the upper 16 bits of its id.
const LEVEL_SHIFT: u32 = 48;
/// Items asked for in one search; a search is repeated from behind the last one.
const SEARCH_ITEMS_MAX: u32 = 128;
/// Nested subvolumes one delete removes. A tenant that made more has its delete answered with an error and asked
/// again: each one removed is progress that stays.
const NESTED_SUBVOLUMES_MAX: usize = 16_384;
/// The cleaner, if it slept through the deletion's own poke, sleeps up to the commit interval (30 s; one of a hundred
/// deletions on an idle pool). It is poked again when so much has passed since the last time, in milliseconds: a poke writes
/// out every tenant's dirty pages.
const CLEANER_POKE_MS_MIN: u64 = 1_000;
/// Forgotten quota groups one sweep removes.
const SWEEP_GROUPS_MAX: usize = 65_536;

/// How the filesystem counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaMode {
    /// Simple quotas: what we want.
    Simple,
    /// Classic quota groups were on already. Limits are refused: their counting makes snapshots take seconds, and
    /// charges the template to the tenant. `btrfs quota disable` and a restart mend it.
    Classic,
    /// None, because the kernel has no simple ones.
    Off,
}

/// A pool on a mounted BTRFS filesystem.
#[derive(Debug, Clone)]
pub struct BtrfsPool {
    core: Arc<Core>,
}

/// The same, as blocking calls.
#[derive(Debug)]
pub(super) struct Core {
    root: PathBuf,
    quota: QuotaMode,
    /// When the cleaner was last given something to do.
    poked: Mutex<Instant>,
}

impl BtrfsPool {
    /// Takes a folder on BTRFS as the pool, switching simple quotas on where no quotas are. Blocking.
    ///
    /// # Errors
    /// The folder cannot be opened, is not on BTRFS, or the kernel refused to switch quotas on.
    pub fn open(root: &Path) -> Result<Self, PoolError> {
        let dir = open_dir(root).map_err(|e| fail("open the pool", root, e))?;
        if !is_btrfs(&dir).map_err(|e| fail("ask for the filesystem of", root, e))? {
            let source = io::Error::other("this folder is not on BTRFS");
            return Err(PoolError::Path { action: "open the pool", path: root.to_owned(), source });
        }
        let quota = enable_quota(dir.as_fd()).map_err(|e| fail("switch simple quotas on in", root, e))?;
        let poked = Mutex::new(Instant::now());
        Ok(Self { core: Arc::new(Core { root: root.to_owned(), quota, poked }) })
    }

    /// How the filesystem counts; anything but [`QuotaMode::Simple`] means that limits are refused.
    pub fn quota(&self) -> QuotaMode {
        self.core.quota
    }

    /// The pool's folder.
    pub fn root(&self) -> &Path {
        &self.core.root
    }

    /// Removes quota groups whose subvolume is gone and whose bytes nobody uses any more; how many. A deleted template's
    /// group stays while copies still share its data, so this is called now and then, at start for one. Blocking.
    ///
    /// # Errors
    /// The quota tree cannot be read.
    pub fn sweep_quota_groups(&self) -> Result<usize, PoolError> {
        self.core.sweep_quota_groups()
    }

    async fn blocking<T, F>(&self, action: &'static str, path: &Path, call: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce(&Core, &Path) -> Result<T, PoolError> + Send + 'static,
    {
        let (core, owned) = (Arc::clone(&self.core), path.to_owned());
        match tokio::task::spawn_blocking(move || call(&core, &owned)).await {
            Ok(answer) => answer,
            Err(join) => Err(fail(action, path, io::Error::other(join))),
        }
    }
}

#[async_trait]
impl Pool for BtrfsPool {
    async fn create(&self, path: &Path) -> Result<SubvolumeId, PoolError> {
        self.blocking("make the subvolume", path, Core::create).await
    }

    async fn snapshot(&self, from: &Path, to: &Path, access: Access) -> Result<SubvolumeId, PoolError> {
        let from = from.to_owned();
        self.blocking("make the snapshot", to, move |core, to| core.snapshot(&from, to, access)).await
    }

    async fn set_access(&self, path: &Path, access: Access) -> Result<(), PoolError> {
        self.blocking("change the access of", path, move |_, path| set_access(path, access)).await
    }

    async fn delete(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
        self.blocking("delete the subvolume", path, Core::delete).await
    }

    async fn id(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
        self.blocking("look up the subvolume", path, |_, path| subvolume_at(path)).await
    }

    async fn is_erased(&self, id: SubvolumeId) -> Result<bool, PoolError> {
        self.blocking("look for what is left in", &self.core.root, move |core, _| core.is_erased(id)).await
    }

    async fn set_limit(&self, path: &Path, limit: Option<Bytes>) -> Result<(), PoolError> {
        self.blocking("limit", path, move |core, path| core.set_limit(path, limit)).await
    }

    async fn usage(&self, path: &Path) -> Result<QuotaUsage, PoolError> {
        self.blocking("read the quota of", path, Core::usage).await
    }

    async fn space(&self) -> Result<PoolSpace, PoolError> {
        self.blocking("ask for the room in", &self.core.root, |_, root| space_of(root)).await
    }
}

impl Core {
    fn dir(&self) -> Result<File, PoolError> {
        open_dir(&self.root).map_err(|e| fail("open the pool", &self.root, e))
    }

    fn create(&self, path: &Path) -> Result<SubvolumeId, PoolError> {
        let action = "make the subvolume";
        let (parent, name) = parent_of(path).map_err(|e| fail(action, path, e))?;
        ioctl::subvolume_create(parent.as_fd(), name.as_bytes()).map_err(|e| fail(action, path, e))?;
        self.made(path, Access::ReadWrite)
    }

    fn snapshot(&self, from: &Path, to: &Path, access: Access) -> Result<SubvolumeId, PoolError> {
        let source = open_dir(from).map_err(|e| fail("open the snapshot's source", from, e))?;
        let action = "make the snapshot";
        let (parent, name) = parent_of(to).map_err(|e| fail(action, to, e))?;
        let read_only = access == Access::ReadOnly;
        ioctl::snapshot_create(parent.as_fd(), name.as_bytes(), source.as_fd(), read_only)
            .map_err(|e| fail(action, to, e))?;
        self.made(to, access)
    }

    /// The id of what was just made; a writable one gets its group. Where that fails nothing is left.
    fn made(&self, path: &Path, access: Access) -> Result<SubvolumeId, PoolError> {
        let finish = || {
            let dir = open_dir(path).map_err(|e| fail("open the new subvolume", path, e))?;
            let id = ioctl::subvolume_id(dir.as_fd()).map_err(|e| fail("look up the new subvolume", path, e))?;
            if self.quota == QuotaMode::Simple && access == Access::ReadWrite {
                join_group(self.dir()?.as_fd(), id).map_err(|e| fail("make the quota group of", path, e))?;
            }
            Ok(SubvolumeId(id))
        };
        finish().inspect_err(|_| {
            if let Ok((parent, name)) = parent_of(path) {
                // The error that is already on its way says more than this one would.
                let _ = ioctl::subvolume_destroy(parent.as_fd(), name.as_bytes());
            }
        })
    }

    fn delete(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
        let Some(id) = subvolume_at(path)? else { return Ok(None) };
        let action = "delete the subvolume";
        let pool = self.dir()?;
        delete_nested(pool.as_fd(), id.0).map_err(|e| fail("delete the subvolumes nested in", path, e))?;
        let (parent, name) = parent_of(path).map_err(|e| fail(action, path, e))?;
        match ioctl::subvolume_destroy(parent.as_fd(), name.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(action, path, error)),
            _ => {}
        }
        ioctl::commit(pool.as_fd()).map_err(|e| fail("commit the deletion of", path, e))?;
        *self.poked() = Instant::now();
        Ok(Some(id))
    }

    fn is_erased(&self, id: SubvolumeId) -> Result<bool, PoolError> {
        let pool = self.dir()?;
        let read = |e| fail("look for what is left in", &self.root, e);
        let group = group_of(id.0);
        let mut ids: Vec<u64> = group_members(pool.as_fd(), group).map_err(read)?;
        ids.push(id.0);
        for id in &ids {
            if root_exists(pool.as_fd(), *id).map_err(read)? {
                self.poke_cleaner(pool.as_fd()).map_err(|e| fail("wake the cleaner of", &self.root, e))?;
                return Ok(false);
            }
        }
        // What was just seen may lie in an open transaction; a power cut would bring the data back.
        ioctl::commit(pool.as_fd()).map_err(|e| fail("commit the erasure in", &self.root, e))?;
        for group in ids.into_iter().chain([group]) {
            // Refused while a snapshot shares the data; `sweep_quota_groups` comes by later.
            let _ = ioctl::qgroup_create(pool.as_fd(), group, false);
        }
        Ok(true)
    }

    fn poked(&self) -> MutexGuard<'_, Instant> {
        self.poked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poke_cleaner(&self, pool: BorrowedFd<'_>) -> io::Result<()> {
        {
            let mut poked = self.poked();
            if poked.elapsed() < Duration::from_millis(CLEANER_POKE_MS_MIN) {
                return Ok(());
            }
            *poked = Instant::now();
        }
        ioctl::sync(pool)
    }

    fn set_limit(&self, path: &Path, limit: Option<Bytes>) -> Result<(), PoolError> {
        match (self.quota, limit) {
            (QuotaMode::Simple, _) => {}
            (_, None) => return Ok(()),
            (QuotaMode::Off, Some(_)) => return Err(PoolError::NoQuota),
            (QuotaMode::Classic, Some(_)) => return Err(PoolError::ClassicQuota(self.root.clone())),
        }
        let id = expect_subvolume(path)?;
        let pool = self.dir()?;
        join_group(pool.as_fd(), id.0).map_err(|e| fail("make the quota group of", path, e))?;
        let group = group_of(id.0);
        ioctl::qgroup_limit(pool.as_fd(), group, limit.map(|b| b.0)).map_err(|e| fail("limit", path, e))?;
        let found = limit_of(pool.as_fd(), group).map_err(|e| fail("read the limit of", path, e))?;
        if found == limit {
            return Ok(());
        }
        let source = io::Error::other(format!("the kernel holds {found:?} where {limit:?} was set"));
        Err(fail("limit", path, source))
    }

    fn usage(&self, path: &Path) -> Result<QuotaUsage, PoolError> {
        match self.quota {
            QuotaMode::Simple => {}
            QuotaMode::Off => return Err(PoolError::NoQuota),
            QuotaMode::Classic => return Err(PoolError::ClassicQuota(self.root.clone())),
        }
        let id = expect_subvolume(path)?;
        let pool = self.dir()?;
        let read = |e| fail("read the quota of", path, e);
        for group in [group_of(id.0), id.0] {
            if let Some(used) = used_by(pool.as_fd(), group).map_err(read)? {
                let limit = limit_of(pool.as_fd(), group).map_err(read)?;
                return Ok(QuotaUsage { used, limit });
            }
        }
        // Made before quotas were switched on: nothing is counted.
        Ok(QuotaUsage { used: Bytes(0), limit: None })
    }

    fn sweep_quota_groups(&self) -> Result<usize, PoolError> {
        if self.quota != QuotaMode::Simple {
            return Ok(0);
        }
        let pool = self.dir()?;
        let read = |e| fail("read the quota groups of", &self.root, e);
        let every = ioctl::SearchKey { max_offset: u64::MAX, ..key(QUOTA_TREE, 0, QGROUP_INFO) };
        let mut removed = 0;
        // Subvolumes' own groups come first in the order of the keys, then the groups they were members of.
        for item in search_all(pool.as_fd(), every, SWEEP_GROUPS_MAX).map_err(read)? {
            let id = item.offset & ((1 << LEVEL_SHIFT) - 1);
            let ours = matches!(item.offset >> LEVEL_SHIFT, 0 | 1) && id >= ioctl::FIRST_FREE_OBJECTID;
            if ours && !root_exists(pool.as_fd(), id).map_err(read)? {
                removed += usize::from(ioctl::qgroup_create(pool.as_fd(), item.offset, false).is_ok());
            }
        }
        Ok(removed)
    }
}

/// The error of a failed operation: no room is told apart from everything else.
pub(super) fn fail(action: &'static str, path: &Path, source: io::Error) -> PoolError {
    match source.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => PoolError::Full { action, path: path.to_owned() },
        _ => PoolError::Path { action, path: path.to_owned(), source },
    }
}

/// Opens a folder, never through a symlink in the last place.
pub(super) fn open_dir(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// The folder a path lies in, opened, and the path's last part.
fn parent_of(path: &Path) -> io::Result<(File, std::ffi::OsString)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((open_dir(parent)?, name.to_owned())),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

pub(super) fn is_btrfs(dir: &impl AsFd) -> io::Result<bool> {
    Ok(fstatfs(dir)?.filesystem_type() == BTRFS_SUPER_MAGIC)
}

fn subvolume_at(path: &Path) -> Result<Option<SubvolumeId>, PoolError> {
    let look = |e| fail("look up the subvolume", path, e);
    let dir = match open_dir(path) {
        Ok(dir) => dir,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => return Ok(None),
        Err(e) => return Err(look(e)),
    };
    let is_root_folder = dir.metadata().map_err(look)?.ino() == ioctl::FIRST_FREE_OBJECTID;
    if !is_root_folder || !is_btrfs(&dir).map_err(look)? {
        return Ok(None);
    }
    ioctl::subvolume_id(dir.as_fd()).map(|id| Some(SubvolumeId(id))).map_err(look)
}

fn expect_subvolume(path: &Path) -> Result<SubvolumeId, PoolError> {
    let missing = || fail("find the subvolume", path, io::Error::from_raw_os_error(libc::ENOENT));
    subvolume_at(path)?.ok_or_else(missing)
}

fn set_access(path: &Path, access: Access) -> Result<(), PoolError> {
    let change = |e| fail("change the access of", path, e);
    let dir = open_dir(path).map_err(change)?;
    ioctl::set_read_only(dir.as_fd(), access == Access::ReadOnly).map_err(change)
}

/// Room in the filesystem at a path.
pub(super) fn space_of(path: &Path) -> Result<PoolSpace, PoolError> {
    let ask = |e| fail("ask for the room in", path, e);
    let stat = fstatfs(open_dir(path).map_err(ask)?).map_err(|e| ask(e.into()))?;
    let block = u64::try_from(stat.block_size()).unwrap_or(0);
    let bytes = |blocks: u64| Bytes(blocks.saturating_mul(block));
    Ok(PoolSpace { total: bytes(stat.blocks()), available: bytes(stat.blocks_available()) })
}

fn key(tree_id: u64, objectid: u64, kind: u32) -> ioctl::SearchKey {
    ioctl::SearchKey {
        tree_id,
        min_objectid: objectid,
        max_objectid: objectid,
        min_type: kind,
        max_type: kind,
        nr_items: SEARCH_ITEMS_MAX,
        ..ioctl::SearchKey::default()
    }
}

/// One item of one exact key. A tree that does not exist has none.
fn item(pool: BorrowedFd<'_>, tree: u64, objectid: u64, kind: u32, offset: u64) -> io::Result<Option<ioctl::Item>> {
    let exact = ioctl::SearchKey { min_offset: offset, max_offset: offset, ..key(tree, objectid, kind) };
    match ioctl::tree_search(pool, exact) {
        Ok(items) => Ok(items.into_iter().next()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Every item of one object and type, up to `items_max`.
fn search_all(pool: BorrowedFd<'_>, mut key: ioctl::SearchKey, items_max: usize) -> io::Result<Vec<ioctl::Item>> {
    let mut all = Vec::new();
    key.max_offset = u64::MAX;
    while all.len() < items_max {
        let found = match ioctl::tree_search(pool, key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            found => found?,
        };
        match found.last().and_then(|last| last.offset.checked_add(1)) {
            Some(next) => key.min_offset = next,
            None => break,
        }
        all.extend(found);
    }
    Ok(all)
}

fn root_exists(pool: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    let any = ioctl::SearchKey { max_offset: u64::MAX, ..key(ROOT_TREE, id, ROOT_ITEM) };
    Ok(!ioctl::tree_search(pool, any)?.is_empty())
}

/// The quota group that holds a subvolume and what is nested in it.
fn group_of(subvolume: u64) -> u64 {
    (1 << LEVEL_SHIFT) | subvolume
}

fn join_group(pool: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let group = group_of(id);
    if item(pool, QUOTA_TREE, id, QGROUP_RELATION, group)?.is_some() {
        return Ok(());
    }
    for made in [ioctl::qgroup_create(pool, group, true), ioctl::qgroup_assign(pool, id, group)] {
        match made {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Subvolumes that are members of a group.
fn group_members(pool: BorrowedFd<'_>, group: u64) -> io::Result<Vec<u64>> {
    let relations = search_all(pool, key(QUOTA_TREE, group, QGROUP_RELATION), NESTED_SUBVOLUMES_MAX)?;
    Ok(relations.into_iter().map(|relation| relation.offset).collect())
}

fn used_by(pool: BorrowedFd<'_>, group: u64) -> io::Result<Option<Bytes>> {
    // `struct btrfs_qgroup_info_item`: generation, then the referenced bytes.
    let info = item(pool, QUOTA_TREE, 0, QGROUP_INFO, group)?;
    Ok(info.map(|info| Bytes(ioctl::u64_at(&info.data, 8))))
}

fn limit_of(pool: BorrowedFd<'_>, group: u64) -> io::Result<Option<Bytes>> {
    // `struct btrfs_qgroup_limit_item`: flags, then the limit on referenced bytes.
    let limit = item(pool, QUOTA_TREE, 0, QGROUP_LIMIT, group)?;
    let set = limit.filter(|limit| ioctl::u64_at(&limit.data, 0) & ioctl::LIMIT_MAX_RFER != 0);
    Ok(set.map(|limit| Bytes(ioctl::u64_at(&limit.data, 8))))
}

/// Switches simple quotas on where no quotas are.
fn enable_quota(pool: BorrowedFd<'_>) -> io::Result<QuotaMode> {
    // `struct btrfs_qgroup_status_item`: version, generation, flags.
    let status = item(pool, QUOTA_TREE, 0, QGROUP_STATUS, 0)?;
    match status.map_or(0, |status| ioctl::u64_at(&status.data, 16)) {
        flags if flags & STATUS_ON != 0 && flags & STATUS_SIMPLE != 0 => return Ok(QuotaMode::Simple),
        flags if flags & STATUS_ON != 0 => return Ok(QuotaMode::Classic),
        _ => {}
    }
    match ioctl::quota_enable_simple(pool) {
        Ok(()) => Ok(QuotaMode::Simple),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(QuotaMode::Off),
        Err(error) => Err(error),
    }
}

/// Removes all subvolumes nested in one, deepest first, by id: no path that the tenant made is walked.
fn delete_nested(pool: BorrowedFd<'_>, top: u64) -> io::Result<()> {
    let mut stack = vec![top];
    let mut opened = BTreeSet::new();
    let mut removed = 0;
    while let Some(&id) = stack.last() {
        let children = search_all(pool, key(ROOT_TREE, id, ROOT_REF), SEARCH_ITEMS_MAX as usize)?;
        if children.is_empty() {
            stack.pop();
            if id != top {
                ioctl::subvolume_destroy_by_id(pool, id)?;
                removed += 1;
            }
            continue;
        }
        // A read-only parent would refuse that its children go.
        if opened.insert(id) {
            ioctl::set_read_only(ioctl::open_by_id(pool, id)?.as_fd(), false)?;
        }
        if removed + stack.len() > NESTED_SUBVOLUMES_MAX {
            return Err(io::Error::other(format!("more than {NESTED_SUBVOLUMES_MAX} of them; ask again")));
        }
        stack.extend(children.into_iter().map(|child| child.offset));
    }
    Ok(())
}
