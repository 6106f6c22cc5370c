//! Where the cgroup hierarchies are mounted, and which controllers each has.

use std::path::{Path, PathBuf};

use super::{CgroupError, Version};

/// The mounts of this process, in the order they were made (proc(5)).
const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Controllers without which no container can be limited; where v1 has one of them, v1 is in use.
const DECISIVE: [&str; 3] = ["cpu", "memory", "pids"];

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its root.
    pub mount: PathBuf,
    /// Whether it is the unified one.
    pub unified: bool,
    /// Its v1 controllers; a named hierarchy has `name=…` here, the unified one nothing.
    pub controllers: Vec<String>,
}

/// The hierarchies of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    version: Version,
    hierarchies: Vec<Hierarchy>,
}

impl Layout {
    /// Reads this process's mountinfo.
    pub fn detect() -> Result<Self, CgroupError> {
        let text = std::fs::read_to_string(MOUNTINFO).map_err(|source| CgroupError::Io {
            action: "read",
            path: MOUNTINFO.into(),
            source,
        })?;
        Self::parse(&text).ok_or(CgroupError::NotMounted)
    }

    /// The layout a mountinfo text describes; `None` where it has no cgroup mount. Of two mounts of the same
    /// hierarchy the first counts, as for libcontainer.
    pub fn parse(mountinfo: &str) -> Option<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for hierarchy in mountinfo.lines().filter_map(parse_line) {
            let known = hierarchies
                .iter()
                .any(|other| other.unified == hierarchy.unified && other.controllers == hierarchy.controllers);
            if !known {
                hierarchies.push(hierarchy);
            }
        }
        let v1 = hierarchies.iter().any(|h| h.controllers.iter().any(|c| DECISIVE.contains(&c.as_str())));
        let v2 = hierarchies.iter().any(|h| h.unified);
        let version = if v1 { Version::V1 } else { Version::V2 };
        (v1 || v2).then_some(Self { version, hierarchies })
    }

    /// A unified hierarchy mounted at `mount`.
    pub fn unified(mount: impl Into<PathBuf>) -> Self {
        let only = Hierarchy { mount: mount.into(), unified: true, controllers: Vec::new() };
        Self { version: Version::V2, hierarchies: vec![only] }
    }

    /// Which version has the controllers.
    pub fn version(&self) -> Version {
        self.version
    }

    /// All hierarchies, those without controllers too.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// The mount on which a controller would be, if it is there: on v2 its files say whether it is enabled.
    pub fn mount_of(&self, controller: &str) -> Option<&Path> {
        let found = match self.version {
            Version::V1 => self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == v1_name(controller))),
            Version::V2 => self.hierarchies.iter().find(|h| h.unified),
        };
        found.map(|h| h.mount.as_path())
    }

    /// The folder of the group that a `/proc/<pid>/cgroup` text speaks of (cgroups(7)), in the hierarchy that has the pids
    /// controller: `8:pids:/a`, `0::/a`. `None` where it is not to be seen from here.
    pub fn group_of(&self, text: &str) -> Option<PathBuf> {
        let mount = self.mount_of("pids")?;
        let wanted = match self.version {
            Version::V1 => "pids",
            Version::V2 => "",
        };
        let path = text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|controller| controller == wanted).then_some(path)
        })?;
        // A group outside this cgroup namespace is written with dots.
        (!path.contains("..")).then(|| mount.join(path.trim_start_matches('/')))
    }
}

/// v1 calls the `io` controller `blkio`; every other has one name.
fn v1_name(controller: &str) -> &str {
    if controller == "io" { "blkio" } else { controller }
}

/// `36 35 0:33 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory`
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let unified = match filesystem.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    let options = filesystem.nth(1).unwrap_or_default();
    let controllers =
        if unified { Vec::new() } else { options.split(',').filter(|o| is_controller(o)).map(str::to_owned).collect() };
    Some(Hierarchy { mount: unescape(mount.split(' ').nth(4)?), unified, controllers })
}

/// Mount options of a v1 hierarchy that are not controllers (cgroups(7), "Cgroups version 1").
fn is_controller(option: &str) -> bool {
    let plain = ["rw", "ro", "xattr", "noprefix", "clone_children", "none", "cpuset_v2_mode", "favordynmods"];
    !option.is_empty() && !plain.contains(&option) && !option.starts_with("release_agent=")
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    plain.iter().fold(text.to_owned(), |text, (code, character)| text.replace(code, character)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
39 31 0:36 / /mnt/second\\040memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_process_is_found_in_its_group() {
        let unified = Layout::unified("/sys/fs/cgroup");
        let found = unified.group_of("0::/system.slice/tenantry.service\n");
        assert_eq!(found, Some("/sys/fs/cgroup/system.slice/tenantry.service".into()));
        assert_eq!(unified.group_of("0::/../x\n"), None);
        let mounts =
            "30 25 0:26 / /cg/pids rw - cgroup cgroup rw,pids\n31 25 0:27 / /cg/cpu rw - cgroup cgroup rw,cpu\n";
        let v1 = Layout::parse(mounts).unwrap();
        assert_eq!(v1.group_of("9:name=systemd:/s\n8:pids:/a/b\n1:cpu:/\n0::/\n"), Some("/cg/pids/a/b".into()));
        assert_eq!(v1.group_of("1:cpu:/\n"), None);
    }

    #[test]
    fn a_hybrid_host_has_its_controllers_on_v1() {
        let layout = Layout::parse(HYBRID).unwrap();
        assert_eq!(layout.version(), Version::V1);
        assert_eq!(layout.mount_of("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        assert_eq!(layout.mount_of("memory"), Some(Path::new("/sys/fs/cgroup/memory")), "the first mount counts");
        assert_eq!(layout.mount_of("io"), Some(Path::new("/sys/fs/cgroup/blkio")));
        assert_eq!(layout.mount_of("freezer"), None);
        assert_eq!(layout.hierarchies().len(), 5);
        assert_eq!(layout.hierarchies()[3].controllers, ["name=systemd"]);
    }

    #[test]
    fn a_unified_host_has_everything_on_one_mount() {
        let text =
            "25 23 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot";
        let layout = Layout::parse(text).unwrap();
        assert_eq!(layout, Layout::unified("/sys/fs/cgroup"));
        assert_eq!(layout.mount_of("io"), Some(Path::new("/sys/fs/cgroup")));
    }

    #[test]
    fn a_named_v1_hierarchy_alone_does_not_make_a_host_v1() {
        let text = "\
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        assert_eq!(Layout::parse(text).unwrap().version(), Version::V2);
    }

    #[test]
    fn a_host_without_cgroups_has_no_layout() {
        assert_eq!(Layout::parse("1 0 0:1 / / rw - ext4 /dev/vda rw\nnonsense\n"), None);
    }

    #[test]
    fn an_escaped_mount_point_reads_as_its_path() {
        assert_eq!(unescape("/mnt/second\\040memory"), PathBuf::from("/mnt/second memory"));
    }
}
