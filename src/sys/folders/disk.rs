//! The folders on the disk.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::{FolderError, Folders, Identity, Layout, LogPart, access, log};
use crate::domain::{Bytes, ContainerId};
use crate::sys::btrfs::{PRIVATE_MODE, Pool, PoolError};
use crate::sys::image::{reset_identity, write_inside, write_names};
use crate::sys::oci::{self, BundleSpec};

/// How often a folder is removed that fills while it is being emptied.
const REMOVE_TRIES_MAX: u32 = 4;

/// What a container's log may hold on the disk until it is cut. With a look every other second a program may write some 30 MiB a
/// second while what it wrote is in memory alone; what has reached the disk counts until the filesystem's next commit (30 s). What
/// it writes beyond is refused with EDQUOT.
pub const LOG_DISK_MAX: Bytes = Bytes::mib(64);

/// The folders of one instance.
#[derive(Debug, Clone)]
pub struct DiskFolders {
    layout: Arc<Layout>,
    pool: Arc<dyn Pool>,
}

impl DiskFolders {
    /// Makes the folders that all containers share.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open(layout: Layout, pool: Arc<dyn Pool>) -> Result<Self, FolderError> {
        for folder in [layout.bundles(), layout.uploads(), layout.cache()] {
            make_private(&folder).map_err(failed("make the folder", &folder))?;
        }
        let root = layout.pool.root().to_owned();
        layout.pool.make_pool_folders().map_err(failed("make the folders of", &root))?;
        Ok(Self { layout: Arc::new(layout), pool })
    }

    /// Makes the subvolume of a container's log and limits it. Where the kernel keeps no limits the log is only cut.
    async fn make_log_volume(&self, id: ContainerId) -> Result<(), PoolError> {
        let volume = self.layout.log_volume(id);
        if self.pool.id(&volume).await?.is_none() {
            self.pool.create(&volume).await?;
        }
        match self.pool.set_limit(&volume, Some(LOG_DISK_MAX)).await {
            Err(PoolError::NoQuota | PoolError::ClassicQuota(_)) => Ok(()),
            done => done,
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, FolderError> {
        let layout = self.layout.clone();
        let done = tokio::task::spawn_blocking(move || work(&layout)).await;
        done.unwrap_or_else(|join| {
            Err(FolderError::Io { action: "work on", path: PathBuf::new(), source: io::Error::other(join) })
        })
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io { action, path, source }
}

/// Also one that an earlier daemon made with another mode.
fn make_private(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(PRIVATE_MODE).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(PRIVATE_MODE))
}

/// Whole or not at all; only root may read it.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    std::fs::rename(&fresh, path)
}

/// Removes a folder with all that is in it. A log's last line may come to be in there meanwhile, once: its writer finds no folder then.
fn remove_all(path: &Path) -> io::Result<()> {
    let mut tries = 1..REMOVE_TRIES_MAX;
    loop {
        match gone_is_fine(std::fs::remove_dir_all(path)) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries.next().is_some() => {}
            done => return done,
        }
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn personalise(rootfs: &Path, identity: &Identity) -> Result<(), FolderError> {
    reset_identity(rootfs, &identity.hostname)
        .map_err(|(path, source)| failed("give an identity to", &rootfs.join(path))(source))?;
    write_names(rootfs, &identity.hostname, identity.is_copy)
        .map_err(|(path, source)| failed("write", &rootfs.join(path))(source))?;
    if let Some(key) = &identity.ssh_public_key {
        let path = Path::new("root/.ssh/authorized_keys");
        let text = format!("{key}\n");
        write_inside(rootfs, path, text.as_bytes(), 0o600).map_err(failed("write", &rootfs.join(path)))?;
    }
    Ok(())
}

#[async_trait]
impl Folders for DiskFolders {
    async fn make(&self, id: ContainerId) -> Result<(), FolderError> {
        self.blocking(move |layout| {
            let path = layout.pool.container(id);
            layout.pool.make_container_folders(id).map_err(failed("make the folders in", &path))?;
            let bundle = layout.bundle(id);
            make_private(&bundle).map_err(failed("make the folder", &bundle))
        })
        .await?;
        self.make_log_volume(id).await.map_err(|error| FolderError::LogVolume(id, Box::new(error)))
    }

    async fn personalise(&self, id: ContainerId, identity: &Identity) -> Result<(), FolderError> {
        let identity = identity.clone();
        self.blocking(move |layout| {
            let rootfs = layout.pool.rootfs(id);
            personalise(&rootfs, &identity)
        })
        .await
    }

    async fn write_manifest(&self, id: ContainerId, json: &[u8]) -> Result<(), FolderError> {
        let json = json.to_owned();
        self.blocking(move |layout| {
            let path = layout.pool.manifest(id);
            write_whole(&path, &json).map_err(failed("write", &path))?;
            // Its presence says that the rootfs is whole, and that has to outlive a power cut as what was answered does. BTRFS makes a
            // new file's name durable with the file.
            std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(failed("flush", &path))
        })
        .await
    }

    async fn has_manifest(&self, id: ContainerId) -> Result<bool, FolderError> {
        let path = self.layout.pool.manifest(id);
        tokio::fs::try_exists(&path).await.map_err(failed("look for", &path))
    }

    async fn write_bundle(&self, id: ContainerId, spec: &BundleSpec<'_>) -> Result<(), FolderError> {
        let bundle = self.layout.bundle(id);
        // A few kilobytes on a local disk: not worth a thread of its own.
        make_private(&bundle).map_err(failed("make the folder", &bundle))?;
        oci::write_bundle(&bundle, spec).map_err(|error| FolderError::Bundle(Box::new(error)))?;
        Ok(())
    }

    async fn log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError> {
        self.blocking(move |layout| log::tail(layout, id, max).map_err(failed("read", &layout.log(id)))).await
    }

    async fn log_after(&self, id: ContainerId, position: u64, max: Bytes) -> Result<LogPart, FolderError> {
        self.blocking(move |layout| log::after(layout, id, position, max).map_err(failed("read", &layout.log(id))))
            .await
    }

    async fn trim_log(&self, id: ContainerId) -> Result<(), FolderError> {
        self.blocking(move |layout| log::trim(layout, id).map_err(failed("cut", &layout.log(id)))).await
    }

    async fn append_access_logs(&self, logs: BTreeMap<ContainerId, Vec<u8>>) -> Result<(), FolderError> {
        self.blocking(move |layout| {
            let mut first = Ok(());
            for (id, lines) in logs {
                let done = access::append(layout, id, &lines).map_err(failed("append to", &layout.access_log(id)));
                first = first.and(done);
            }
            first
        })
        .await
    }

    async fn access_log_tail(&self, id: ContainerId, max: Bytes) -> Result<Vec<u8>, FolderError> {
        self.blocking(move |layout| access::tail(layout, id, max).map_err(failed("read", &layout.access_log(id)))).await
    }

    async fn remove(&self, id: ContainerId) -> Result<(), FolderError> {
        // A subvolume that is empty is removed like a folder (rmdir(2), since Linux 4.18).
        self.blocking(move |layout| {
            for path in [layout.bundle(id), layout.pool.container(id)] {
                remove_all(&path).map_err(failed("remove", &path))?;
            }
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Vec<ContainerId>, FolderError> {
        self.blocking(|layout| {
            let root = layout.pool.containers();
            let mut ids = layout.pool.list_containers().map_err(failed("list", &root))?;
            let bundles = layout.bundles();
            for entry in std::fs::read_dir(&bundles).map_err(failed("list", &bundles))? {
                let name = entry.map_err(failed("list", &bundles))?.file_name();
                ids.extend(name.to_str().and_then(|name| name.parse::<ContainerId>().ok()));
            }
            ids.sort_unstable();
            ids.dedup();
            Ok(ids)
        })
        .await
    }
}
