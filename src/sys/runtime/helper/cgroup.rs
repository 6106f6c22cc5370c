//! The control groups of a running init, for one more process to join: one file on v2, one a hierarchy on v1.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// Where Linux has v1's hierarchies. libcontainer looks nowhere else.
pub const ROOT: &str = "/sys/fs/cgroup";

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

/// Mount points of v1 hierarchies with one of these controllers, where libcontainer looks for them, in the order of their mounts.
pub fn hierarchies(mountinfo: &str, controllers: &[&str]) -> Vec<PathBuf> {
    let point = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let (root, point) = (head.split(' ').nth(3)?, head.split(' ').nth(4)?);
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next()?, tail.nth(1)?);
        let holds_any = options.split(',').any(|option| controllers.contains(&option));
        let in_place = root == "/" && Path::new(point).parent() == Some(Path::new(ROOT));
        (kind == "cgroup" && in_place && holds_any).then(|| PathBuf::from(point))
    };
    mountinfo.lines().filter_map(point).collect()
}

/// The group in the hierarchy at `point` of a process whose cgroup file this is.
pub fn group_in(mountinfo: &str, own: &str, point: &Path) -> Option<PathBuf> {
    own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let mount =
            mountinfo.lines().find_map(|mount| mount_point(mount, controllers).filter(|at| Path::new(at) == point));
        mount.map(|mount| Path::new(mount).join(path.trim_start_matches('/')))
    })
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
    fn hierarchies_are_found_by_what_they_hold_and_groups_by_their_hierarchy() {
        let found = hierarchies(HYBRID, &["cpuacct", "memory"]);
        assert_eq!(found, ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"].map(PathBuf::from));
        let own = "4:memory:/system/x\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n";
        let group = |point: &str| group_in(HYBRID, own, Path::new(point));
        assert_eq!(group("/sys/fs/cgroup/memory"), Some("/sys/fs/cgroup/memory/system/x".into()));
        assert_eq!(group("/sys/fs/cgroup/cpu,cpuacct"), Some("/sys/fs/cgroup/cpu,cpuacct/".into()));
        assert_eq!(group("/sys/fs/cgroup/pids"), None);
    }

    #[test]
    fn on_v2_there_is_one_file() {
        let mounts = "29 25 0:24 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = files(mounts, "0::/system.slice/tenantry.service\n", "0::/tenantry/1\n");
        assert_eq!(found, [PathBuf::from("/sys/fs/cgroup/tenantry/1/cgroup.procs")]);
        assert!(hierarchies(mounts, &["memory"]).is_empty());
    }
}
