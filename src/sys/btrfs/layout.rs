//! Where things lie in a pool.
//!
//! ```text
//!   <pool>/images/<id>/rootfs             read-only subvolume
//!   <pool>/containers/<id>/rootfs         subvolume
//!   <pool>/containers/<id>/manifest.json  the record, again
//!   <pool>/containers/<id>/snapshots/<n>  read-only subvolumes
//!   <pool>/containers/<id>/logs/
//! ```
//!
//! Every folder above a rootfs is root's alone. On the disk a rootfs is owned by ids from 0 up, so a file that its tenant has
//! made setuid root is that on the host too: whoever may pass these folders, and guesses an id, would be root by it. A container's init
//! need not pass: it gets its rootfs as a mount elsewhere (`sys/runtime/helper/rootfs.rs`).

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::domain::{ContainerId, ImageId};

/// Mode of every folder of a pool.
pub const PRIVATE_MODE: u32 = 0o700;

/// The paths of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLayout {
    root: PathBuf,
}

impl PoolLayout {
    /// The layout of the pool at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The pool's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Holds a folder for each image.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Holds a folder for each container.
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// An image's folder.
    pub fn image(&self, id: ImageId) -> PathBuf {
        self.images().join(id.to_string())
    }

    /// An image's subvolume.
    pub fn image_rootfs(&self, id: ImageId) -> PathBuf {
        self.image(id).join("rootfs")
    }

    /// A container's folder.
    pub fn container(&self, id: ContainerId) -> PathBuf {
        self.containers().join(id.to_string())
    }

    /// A container's subvolume.
    pub fn rootfs(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("rootfs")
    }

    /// A container's record, kept beside its data.
    pub fn manifest(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("manifest.json")
    }

    /// Holds a container's snapshots.
    pub fn snapshots(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("snapshots")
    }

    /// One of a container's snapshots, by its number.
    pub fn snapshot(&self, id: ContainerId, number: u64) -> PathBuf {
        self.snapshots(id).join(number.to_string())
    }

    /// A container's logs.
    pub fn logs(&self, id: ContainerId) -> PathBuf {
        self.container(id).join("logs")
    }

    /// Makes the two folders that every pool has. Idempotent.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn make_pool_folders(&self) -> io::Result<()> {
        make_dir(&self.images(), PRIVATE_MODE)?;
        make_dir(&self.containers(), PRIVATE_MODE)
    }

    /// Makes an image's folder. Idempotent.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn make_image_folder(&self, id: ImageId) -> io::Result<()> {
        make_dir(&self.image(id), PRIVATE_MODE)
    }

    /// Makes a container's folder with those in it, but not its rootfs. Idempotent.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn make_container_folders(&self, id: ContainerId) -> io::Result<()> {
        make_dir(&self.container(id), PRIVATE_MODE)?;
        make_dir(&self.snapshots(id), PRIVATE_MODE)?;
        make_dir(&self.logs(id), PRIVATE_MODE)
    }

    /// Containers of which there is a folder. Folders with other names are nobody's and are left out.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn list_containers(&self) -> io::Result<Vec<ContainerId>> {
        list(&self.containers())
    }

    /// Images of which there is a folder.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn list_images(&self) -> io::Result<Vec<ImageId>> {
        list(&self.images())
    }
}

fn list<T: std::str::FromStr>(folder: &Path) -> io::Result<Vec<T>> {
    let names = std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name()));
    let ids = names.filter_map(|name| name.map(|name| name.to_str()?.parse().ok()).transpose());
    ids.collect()
}

/// Makes a folder with exactly this mode, whatever the umask; one that is there gets the mode too.
pub(super) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_above_a_rootfs_are_roots_alone() {
        let folder = tempfile::tempdir().unwrap();
        let layout = PoolLayout::new(folder.path());
        let (container, image) = (ContainerId::generate(), ImageId::generate());
        for _ in 0..2 {
            layout.make_pool_folders().unwrap();
            layout.make_container_folders(container).unwrap();
            layout.make_image_folder(image).unwrap();
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for path in [layout.images(), layout.containers(), layout.container(container), layout.image(image)] {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
        }
        assert_eq!(mode(&layout.logs(container)), 0o700);
        assert_eq!(mode(&layout.snapshots(container)), 0o700);
        std::fs::create_dir(layout.containers().join("lost+found")).unwrap();
        assert_eq!(layout.list_containers().unwrap(), [container]);
        assert_eq!(layout.list_images().unwrap(), [image]);
    }
}
