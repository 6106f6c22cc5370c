//! What a container sees of version 1's control groups: its own group in the hierarchies that programs read to find their limits
//! (how many threads, how large a heap), read-only.
//!
//! libcontainer mounts every hierarchy anew, writable, and each would have to be closed as a path behind it: some thirty mounts a
//! container. Here one small read-only folder is put together in the helper's own mount namespace, and the runtime's bundle
//! names it as a bind mount. The container's bundle still says `cgroup`, and any runtime does that in its own way. On v2 it is one
//! mount anyway.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{Mount, MountBuilder, Spec};
use nix::mount::{MsFlags, mount};

use super::{Step, cgroup, kernel};
use crate::sys::runtime::wire::Failure;

/// Controllers with something in them that programs look for.
const SHOWN: [&str; 5] = ["cpu", "cpuacct", "cpuset", "memory", "pids"];
/// The folder holds a folder or link a controller and nothing else.
const FOLDER: &str = "mode=755,size=4k,nr_inodes=32";
/// The mounts' own attributes; nobody inside may change them.
const CLOSED: u64 =
    libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;

/// Has the bundle show what is put together at `place`, where it asks for control groups and the host has version 1. The helper
/// must have left the host's mount namespace. Groups that are made for it are gone again if this fails.
pub fn show_groups(spec: &mut Spec, place: &Path) -> Result<(), Failure> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").step("find the cgroup hierarchies")?;
    let hierarchies = cgroup::hierarchies(&mounts, &SHOWN);
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
    let mut wanted = spec.mounts().clone().unwrap_or_default();
    let asks = wanted.iter_mut().find(|mount| mount.typ().as_deref() == Some("cgroup"));
    let (Some(asks), false) = (asks, hierarchies.is_empty()) else { return Ok(()) };
    let groups: Vec<PathBuf> =
        hierarchies.iter().map(|point| point.join(path.strip_prefix("/").unwrap_or(&path))).collect();
    let built = put_together(place, &hierarchies, &groups).step("show the control groups");
    if built.is_err() {
        // What is in use already is not removed by this.
        groups.iter().for_each(|group| drop(fs::remove_dir(group)));
    }
    built?;
    *asks = bind(asks, place).step("show the control groups")?;
    spec.set_mounts(Some(wanted));
    Ok(())
}

fn put_together(place: &Path, hierarchies: &[PathBuf], groups: &[PathBuf]) -> io::Result<()> {
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // In the host's tree it stays empty, and nobody's but root's.
    fs::DirBuilder::new().mode(0o700).create(place)?;
    mount(Some("tmpfs"), place, Some("tmpfs"), harmless, Some(FOLDER))?;
    for (hierarchy, group) in hierarchies.iter().zip(groups) {
        // libcontainer would make it a moment later, and finds it.
        fs::create_dir_all(group)?;
        let name = hierarchy.file_name().unwrap_or_default();
        let folder = place.join(name);
        fs::create_dir(&folder)?;
        let tree = kernel::open_tree(group)?;
        kernel::set_attributes(&tree, CLOSED, None)?;
        kernel::move_mount(&tree, &folder)?;
        // Of controllers that share a hierarchy each is found by its own name as well.
        for alias in name.to_string_lossy().split(',').filter(|alias| *alias != name) {
            symlink(name, place.join(alias))?;
        }
    }
    let flags = harmless | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    Ok(mount(None::<&str>, place, None::<&str>, flags, None::<&str>)?)
}

/// The mount that stands where the bundle asks for control groups.
fn bind(asks: &Mount, place: &Path) -> Result<Mount, libcontainer::oci_spec::OciSpecError> {
    let options = ["rbind", "ro", "nosuid", "nodev", "noexec"].map(str::to_owned);
    MountBuilder::default().destination(asks.destination()).typ("bind").source(place).options(options.to_vec()).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_for_the_groups_is_read_only_and_in_their_place() {
        let asks = MountBuilder::default().destination(cgroup::ROOT).typ("cgroup").source("cgroup").build().unwrap();
        let bound = bind(&asks, Path::new("/run/x/groups")).unwrap();
        assert_eq!(bound.destination(), Path::new(cgroup::ROOT));
        assert_eq!(bound.source().as_deref(), Some(Path::new("/run/x/groups")));
        assert!(bound.options().as_ref().unwrap().iter().any(|option| option == "ro"));
    }
}
