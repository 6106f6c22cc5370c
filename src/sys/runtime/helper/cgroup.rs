//! The control groups of a running init, for one more process to join: one file on v2, one a hierarchy on v1. And where a
//! container sees v1's.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use nix::unistd::Pid;

/// `cgroup.procs` files, opened while we are still on the host.
#[derive(Debug)]
pub struct Membership(Vec<File>);

impl Membership {
    /// The groups of `pid` that we are not in already.
    pub fn of(pid: i32) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let open = |path: PathBuf| {
            let name = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
            File::options().write(true).open(&path).map_err(name)
        };
        files(&mounts, &own, &theirs).into_iter().map(open).collect::<io::Result<_>>().map(Self)
    }

    /// Moves a process in.
    pub fn admit(&mut self, pid: Pid) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|file| write!(file, "{pid}"))
    }
}

/// Which files to write, from the texts of mountinfo and of the two processes' cgroup files (cgroups(7)).
fn files(mountinfo: &str, own: &str, theirs: &str) -> Vec<PathBuf> {
    let foreign = theirs.lines().filter(|line| !own.lines().any(|known| known == *line));
    foreign
        .filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let mount = mountinfo.lines().find_map(|mount| mount_point(mount, controllers))?;
            Some(PathBuf::from(format!("{mount}{}/cgroup.procs", path.trim_end_matches('/'))))
        })
        .collect()
}

/// Where a hierarchy is mounted, if this line of mountinfo is its.
fn mount_point<'a>(line: &'a str, controllers: &str) -> Option<&'a str> {
    let (head, tail) = line.split_once(" - ")?;
    let (mut head, mut tail) = (head.split(' ').skip(3), tail.split(' '));
    let (root, point) = (head.next()?, head.next()?);
    let (kind, options) = (tail.next()?, tail.nth(1)?);
    let ours = match controllers {
        "" => kind == "cgroup2",
        list => kind == "cgroup" && list.split(',').all(|wanted| options.split(',').any(|option| option == wanted)),
    };
    (ours && root == "/").then_some(point)
}

/// Where libcontainer mounts v1 hierarchies inside, and last the folder they are in; nothing on v2, where it is one mount.
pub fn hierarchies_inside() -> io::Result<Vec<String>> {
    Ok(inside(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// It mounts each under its folder's name, if that is where Linux has them.
fn inside(mountinfo: &str) -> Vec<String> {
    const ROOT: &str = "/sys/fs/cgroup";
    let mut found: Vec<String> = mountinfo
        .lines()
        .filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let point = head.split(' ').nth(4)?;
            (tail.starts_with("cgroup ") && point.starts_with(ROOT)).then(|| point.rsplit('/').next())?
        })
        .map(|name| format!("{ROOT}/{name}"))
        .collect();
    found.sort();
    found.dedup();
    if !found.is_empty() {
        found.push(ROOT.to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:25 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
32 30 0:27 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,name=systemd
33 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
34 30 0:29 /other /mnt/part rw - cgroup cgroup rw,memory
35 30 0:29 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
";

    #[test]
    fn on_v1_each_hierarchy_that_differs_is_joined() {
        let own = "4:memory:/\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let theirs = "4:memory:/t/1\n3:cpu,cpuacct:/t/1\n1:name=systemd:/\n0::/\n";
        let wanted: Vec<PathBuf> =
            vec!["/sys/fs/cgroup/memory/t/1/cgroup.procs".into(), "/sys/fs/cgroup/cpu,cpuacct/t/1/cgroup.procs".into()];
        assert_eq!(files(HYBRID, own, theirs), wanted);
    }

    #[test]
    fn on_v1_every_hierarchy_inside_is_named_and_the_folder_comes_last() {
        let root = "/sys/fs/cgroup";
        let wanted = ["/cpu,cpuacct", "/memory", "/systemd", ""].map(|name| format!("{root}{name}"));
        assert_eq!(inside(HYBRID), wanted, "the one elsewhere is not mounted inside");
    }

    #[test]
    fn on_v2_there_is_one_file() {
        let mounts = "29 25 0:24 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = files(mounts, "0::/system.slice/tenantry.service\n", "0::/tenantry/1\n");
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/tenantry/1/cgroup.procs")]);
        assert!(inside(mounts).is_empty());
    }
}
