//! The pool: a BTRFS filesystem in which every rootfs is a subvolume.
//!
//! [`Pool`] is the contract, [`BtrfsPool`] does it by ioctl, [`open_pool`] finds or makes the filesystem, and [`PoolLayout`] says
//! where things lie in it.

mod ioctl;
mod layout;
mod loopback;
mod mounts;
mod pool;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use layout::{PRIVATE_MODE, PoolLayout};
pub use loopback::{Backing, LOOP_FILE_MIN, OpenedPool, POOL_HEADROOM, PoolOptions, open_pool, space_at};
pub use pool::{BtrfsPool, QuotaMode};

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::domain::Bytes;

/// A subvolume's id in its filesystem's root tree; never used twice in the life of a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SubvolumeId(pub u64);

/// Whether a snapshot can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Like any folder.
    ReadWrite,
    /// Refuses every write, root's too.
    ReadOnly,
}

/// What a subvolume's simple quota says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaUsage {
    /// Bytes written by this subvolume since it was made.
    pub used: Bytes,
    /// The limit the kernel holds it to.
    pub limit: Option<Bytes>,
}

/// Room in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpace {
    /// Size of the filesystem.
    pub total: Bytes,
    /// What `statfs(2)` calls available.
    pub available: Bytes,
}

/// A pool operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// The kernel refused an operation on one path.
    #[error("cannot {action} {}", path.display())]
    Path {
        /// What was tried: "make the subvolume", …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The filesystem has no room left.
    #[error("the pool is full: no room to {action} {}", path.display())]
    Full {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
    },
    /// The kernel has no simple quotas (older than 6.7), so that a disk limit cannot be kept.
    #[error("this kernel keeps no disk limits: BTRFS simple quotas need Linux 6.7")]
    NoQuota,
    /// Classic quota groups were on in the pool's filesystem before us.
    #[error(
        "disk limits need simple quotas, but {} has classic quota groups on: `btrfs quota disable` switches them off",
        .0.display()
    )]
    ClassicQuota(PathBuf),
    /// A fault put there by a test.
    #[error("injected fault at {0}")]
    Injected(&'static str),
}

/// Subvolumes of one pool. Paths are absolute and lie in the pool.
#[async_trait]
pub trait Pool: Send + Sync + std::fmt::Debug {
    /// Makes an empty subvolume; its parent folder must exist.
    async fn create(&self, path: &Path) -> Result<SubvolumeId, PoolError>;
    /// Makes a snapshot of `from` at `to`: milliseconds, whatever its size.
    async fn snapshot(&self, from: &Path, to: &Path, access: Access) -> Result<SubvolumeId, PoolError>;
    /// Changes whether a subvolume can be written to.
    async fn set_access(&self, path: &Path, access: Access) -> Result<(), PoolError>;
    /// Removes a subvolume, commits that, and gives its id: the data is gone when [`Pool::is_erased`] says so.
    /// `None` where there is none. Subvolumes nested in it go too.
    async fn delete(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError>;
    /// The id of the subvolume at `path`; `None` where there is none.
    async fn id(&self, path: &Path) -> Result<Option<SubvolumeId>, PoolError>;
    /// Whether BTRFS's cleaner has dropped a deleted subvolume's data.
    async fn is_erased(&self, id: SubvolumeId) -> Result<bool, PoolError>;
    /// Sets or lifts a subvolume's limit, and reads it back.
    async fn set_limit(&self, path: &Path, limit: Option<Bytes>) -> Result<(), PoolError>;
    /// What a subvolume uses and may use.
    async fn usage(&self, path: &Path) -> Result<QuotaUsage, PoolError>;
    /// Room in the whole pool.
    async fn space(&self) -> Result<PoolSpace, PoolError>;
}
