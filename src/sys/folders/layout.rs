//! Which path is whose: those of the pool, and those beside it.

use std::path::PathBuf;

use crate::domain::ContainerId;
use crate::sys::btrfs::PoolLayout;

/// Paths of one instance; pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Those in the pool.
    pub pool: PoolLayout,
    /// What outlives a reboot, outside the pool.
    pub data: PathBuf,
}

impl Layout {
    /// A subvolume with a limit of its own, so that the log in it cannot grow beyond that whoever is late to cut it.
    pub fn log_volume(&self, id: ContainerId) -> PathBuf {
        self.pool.logs(id).join("console")
    }

    /// What a container's init writes to standard output and error.
    pub fn log(&self, id: ContainerId) -> PathBuf {
        self.log_volume(id).join("console.log")
    }

    /// The part of the log that was cut off last.
    pub fn old_log(&self, id: ContainerId) -> PathBuf {
        self.pool.logs(id).join("console.log.1")
    }

    /// How much was cut off the log so far.
    pub fn log_base(&self, id: ContainerId) -> PathBuf {
        self.pool.logs(id).join("console.log.base")
    }

    /// What was asked of a container's URL.
    pub fn access_log(&self, id: ContainerId) -> PathBuf {
        self.pool.logs(id).join("access.log")
    }

    /// What was asked before that.
    pub fn old_access_log(&self, id: ContainerId) -> PathBuf {
        self.pool.logs(id).join("access.log.1")
    }

    /// Holds a folder for each container's OCI bundle.
    pub fn bundles(&self) -> PathBuf {
        self.data.join("bundles")
    }

    /// A container's OCI bundle.
    pub fn bundle(&self, id: ContainerId) -> PathBuf {
        self.bundles().join(id.to_string())
    }

    /// Where uploads lie while they are read.
    pub fn uploads(&self) -> PathBuf {
        self.data.join("uploads")
    }

    /// What was compiled once and is kept.
    pub fn cache(&self) -> PathBuf {
        self.data.join("cache")
    }
}
