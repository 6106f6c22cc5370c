//! How a container's first process gets into its groups on version 1 of control groups.
//!
//! A write of a process id to `cgroup.procs` waits for a grace period of the kernel's, 8 to 40 ms: as long as everything else of a
//! start. Who writes `0` to `tasks` moves its own single thread, and for that the kernel waits for nobody (since 5.5). So the
//! helper, which has one thread, goes into the groups itself, libcontainer forks init from it there, and the helper goes back:
//!
//! ```text
//!  enter ──► helper, and what it forks, are in the groups ──► init is made ──► leave: init stays
//! ```
//!
//! libcontainer still sets the limits; its own moves, in the helper's mount namespace, go to /dev/null. What fails here is undone, and
//! libcontainer moves its processes then, which takes longer and is no less right.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::cgroup;

/// The controllers that libcontainer moves processes in.
const MOVED: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];
/// What a new group of `cpuset` lacks, and nobody may enter without.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];
/// Processes in the groups while init is made: the helper, libcontainer's own, and init. Fewer are allowed only afterwards, by who
/// holds the container to its limits.
pub const PIDS_MIN: i64 = 3;

/// The helper's stay in a container's groups.
#[derive(Debug, Default)]
pub struct Visit {
    groups: Vec<PathBuf>,
    /// `tasks` of the groups that the helper came from.
    home: Vec<File>,
}

impl Visit {
    /// Goes into the groups of a bundle; nowhere on v2, and where this host does not let us.
    pub fn enter(spec: &Spec) -> Self {
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone()).unwrap_or_default();
        let mut visit = Self::default();
        match visit.try_enter(&path) {
            Ok(()) => visit,
            Err(_) => {
                visit.show_procs();
                visit.leave();
                Self { groups: visit.groups, home: Vec::new() }
            }
        }
    }

    fn try_enter(&mut self, path: &Path) -> io::Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        for point in cgroup::hierarchies(&mounts, &MOVED) {
            let home = cgroup::group_in(&mounts, &own, &point).ok_or(io::ErrorKind::NotFound)?;
            self.home.push(File::options().write(true).open(home.join("tasks"))?);
            let group = point.join(path.strip_prefix("/").unwrap_or(path));
            fs::create_dir_all(&group)?;
            fill_cpuset(&point, &group)?;
            self.groups.push(group);
        }
        for group in &self.groups {
            fs::write(group.join("tasks"), "0")?;
        }
        for group in &self.groups {
            let flags = MsFlags::MS_BIND;
            mount(Some("/dev/null"), &group.join("cgroup.procs"), None::<&str>, flags, None::<&str>)?;
        }
        Ok(())
    }

    /// Goes back to where the helper came from.
    pub fn leave(&mut self) {
        for tasks in &mut self.home {
            // It was there before: nothing keeps it from coming back, short of the group's removal by an administrator.
            let _ = tasks.write_all(b"0");
        }
        self.home.clear();
    }

    /// Leaves, and removes the groups: init could not be made.
    pub fn abandon(&mut self) {
        self.show_procs();
        self.leave();
        // Those that libcontainer has removed by now are not there.
        self.groups.iter().for_each(|group| drop(fs::remove_dir(group)));
    }

    fn show_procs(&self) {
        for group in &self.groups {
            let _ = umount2(&group.join("cgroup.procs"), MntFlags::MNT_DETACH);
        }
    }
}

/// Gives each group on the way what its parent has, where it has nothing. Of other hierarchies there is nothing to give.
fn fill_cpuset(point: &Path, group: &Path) -> io::Result<()> {
    let below = group.strip_prefix(point).unwrap_or(group);
    for name in CPUSET_FILES.into_iter().filter(|name| point.join(name).exists()) {
        let mut folder = point.to_owned();
        for part in below {
            let of_parent = fs::read_to_string(folder.join(name))?;
            folder.push(part);
            if fs::read_to_string(folder.join(name))?.trim().is_empty() {
                fs::write(folder.join(name), of_parent.trim())?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_cpuset_gets_what_its_parents_have_and_keeps_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("instance/one");
        fs::create_dir_all(&group).unwrap();
        for (folder, cpus) in [(dir.path(), "0-3\n"), (&dir.path().join("instance"), "\n"), (&group, "2\n")] {
            fs::write(folder.join("cpuset.cpus"), cpus).unwrap();
        }
        fill_cpuset(dir.path(), &group).unwrap();
        let cpus = |folder: &Path| fs::read_to_string(folder.join("cpuset.cpus")).unwrap();
        assert_eq!((cpus(&dir.path().join("instance")).as_str(), cpus(&group).as_str()), ("0-3", "2\n"));
    }
}
