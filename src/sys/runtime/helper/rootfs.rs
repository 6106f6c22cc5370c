//! The rootfs as the container sees it: the same files, their owners shifted by an idmapped mount.
//!
//! On disk everything is owned by ids from 0 up, so a copy of a container needs no chown. The mount is made in a mount
//! namespace of the helper's own: the host never sees it, and it goes when the helper and the container have gone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{Step, kernel};
use crate::sys::runtime::wire::Failure;

/// Leaves the host's mount namespace and mounts `rootfs` at `target` with its ids mapped. Device files in it are
/// dead, which a v1 cgroup's device list would also see to, but nobody on v2.
pub fn map(rootfs: &Path, target: &Path, user_namespace: &OwnedFd) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).step("make a mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .step("make the mount namespace private")?;
    let tree = kernel::open_tree(rootfs).step("open the rootfs")?;
    kernel::set_attributes(&tree, libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID, Some(user_namespace))
        .step("map the ids of the rootfs")?;
    check_passable(target).step("reach the rootfs as the container's root")?;
    kernel::move_mount(&tree, target).step("mount the rootfs")
}

/// The container's root is nobody special outside: every folder on the way to its rootfs must let others pass.
fn check_passable(target: &Path) -> io::Result<()> {
    const PASS_OTHERS: u32 = 0o001;
    for folder in target.ancestors() {
        let mode = fs::metadata(folder)?.permissions().mode();
        if mode & PASS_OTHERS == 0 {
            let text = format!("{} has mode {:03o}: others may not pass (o+x)", folder.display(), mode & 0o777);
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_folder_on_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("rootfs");
        fs::create_dir(&target).unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let error = check_passable(&target).unwrap_err();
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        check_passable(&target).unwrap();
    }
}
