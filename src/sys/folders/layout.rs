//! Which path is whose.

use std::path::PathBuf;

use crate::domain::{ContainerId, ImageId};

/// Paths of one instance; pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The pool's folder.
    pub pool: PathBuf,
    /// What outlives a reboot, outside the pool.
    pub data: PathBuf,
}

impl Layout {
    /// `<pool>/containers`.
    pub fn containers(&self) -> PathBuf {
        self.pool.join("containers")
    }

    /// A container's folder.
    pub fn container(&self, id: ContainerId) -> PathBuf {
        self.containers().join(id.to_string())
    }

    /// Its rootfs, a subvolume.
    pub fn rootfs(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("rootfs")
    }

    /// Its record, again.
    pub fn manifest(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("manifest.json")
    }

    /// Its logs.
    pub fn logs(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("logs")
    }

    /// What its init writes to standard output and error.
    pub fn log(&self, id: ContainerId) -> PathBuf {
        self.logs(id).join("console.log")
    }

    /// `<data>/bundles`.
    pub fn bundles(&self) -> PathBuf {
        self.data.join("bundles")
    }

    /// Its OCI bundle.
    pub fn bundle(&self, id: ContainerId) -> PathBuf {
        self.bundles().join(id.to_string())
    }

    /// `<pool>/images`.
    pub fn images(&self) -> PathBuf {
        self.pool.join("images")
    }

    /// An image's folder.
    pub fn image(&self, id: ImageId) -> PathBuf {
        self.images().join(id.to_string())
    }

    /// An image's rootfs, a read-only subvolume.
    pub fn image_rootfs(&self, id: ImageId) -> PathBuf {
        self.image(id).join("rootfs")
    }

    /// Where uploads lie while they are read.
    pub fn uploads(&self) -> PathBuf {
        self.pool.join("uploads")
    }
}
