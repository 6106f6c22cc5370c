//! The real cgroups: control files of the hierarchies that are mounted.
//!
//! Every verb runs on a blocking thread and to its end, even where its future is dropped: a limit is not left half
//! written, nor a container half frozen.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::{Bytes, ContainerId, Instance, Limits};

use super::files::{busy, gone, make_folder, need_number, poll, read, read_key, read_number, write};
use super::layout::{Hierarchy, Layout};
use super::plan::{self, DeviceNumber, Write};
use super::{Alarms, CgroupError, Cgroups, Usage, Version, removal};

/// How long a container may take to freeze or thaw; a task that waits for a disk freezes when the disk answers.
const FREEZE_MS_MAX: u64 = 5_000;

/// Controllers of the unified hierarchy that containers' limits need.
const CONTROLLERS_V2: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// Files without which a v1 cpuset group takes no task; a new group has them empty.
const CPUSET_FILES: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// The cgroups of one instance, on this host's hierarchies.
#[derive(Debug, Clone)]
pub struct KernelCgroups {
    groups: Arc<Groups>,
}

impl KernelCgroups {
    /// On the hierarchies that are mounted. `device` is the block device under the pool, which disk rates are for.
    pub fn detect(instance: Instance, device: Option<DeviceNumber>) -> Result<Self, CgroupError> {
        Ok(Self::with_layout(instance, Layout::detect()?, device))
    }

    /// On the hierarchies of `layout`.
    pub fn with_layout(instance: Instance, layout: Layout, device: Option<DeviceNumber>) -> Self {
        Self { groups: Arc::new(Groups { instance, layout, device, page_size: page_size() }) }
    }

    /// Runs a verb on a blocking thread.
    async fn run<T, F>(&self, verb: F) -> Result<T, CgroupError>
    where
        T: Send + 'static,
        F: FnOnce(&Groups) -> Result<T, CgroupError> + Send + 'static,
    {
        let groups = Arc::clone(&self.groups);
        match tokio::task::spawn_blocking(move || verb(&groups)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down and did not begin the verb.
                Err(error) => {
                    Err(CgroupError::Io { action: "begin work on", path: PathBuf::new(), source: error.into() })
                }
            },
        }
    }
}

#[async_trait]
impl Cgroups for KernelCgroups {
    fn version(&self) -> Version {
        self.groups.layout.version()
    }

    async fn prepare(&self) -> Result<(), CgroupError> {
        self.run(Groups::prepare).await
    }

    fn expect_move(&self) {
        // On v1 helpers move without that wait (see `sys/runtime/helper/visit.rs`), and this would be in their way.
        if self.version() == Version::V1 {
            return;
        }
        let groups = Arc::clone(&self.groups);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = groups.stay() {
                tracing::debug!(%error, "the kernel is not made ready for a move");
            }
        });
    }

    fn path(&self, id: ContainerId) -> String {
        format!("/{}/{id}", self.groups.instance)
    }

    async fn set_limits(&self, id: ContainerId, limits: &Limits) -> Result<(), CgroupError> {
        let limits = *limits;
        self.run(move |groups| groups.set_limits(id, &limits)).await
    }

    async fn usage(&self, id: ContainerId) -> Result<Option<Usage>, CgroupError> {
        self.run(move |groups| groups.usage(id)).await
    }

    async fn alarms(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Alarms)>, CgroupError> {
        self.run(move |groups| {
            let look = |id| groups.alarms(id).transpose().map(|alarms| alarms.map(|alarms| (id, alarms)));
            ids.into_iter().filter_map(look).collect()
        })
        .await
    }

    async fn memory(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Bytes)>, CgroupError> {
        self.run(move |groups| {
            let look = |id| groups.memory(id).transpose().map(|memory| memory.map(|memory| (id, memory)));
            ids.into_iter().filter_map(look).collect()
        })
        .await
    }

    async fn reclaim(&self, id: ContainerId) -> Result<(), CgroupError> {
        self.run(move |groups| groups.reclaim(id)).await
    }

    async fn freeze(&self, id: ContainerId, frozen: bool) -> Result<(), CgroupError> {
        self.run(move |groups| groups.freeze(id, frozen)).await
    }

    async fn remove(&self, id: ContainerId) -> Result<(), CgroupError> {
        self.run(move |groups| removal::remove(groups, id)).await
    }

    async fn list(&self) -> Result<Vec<ContainerId>, CgroupError> {
        self.run(|groups| groups.list()).await
    }

    async fn remove_parent(&self) -> Result<(), CgroupError> {
        self.run(removal::remove_parent).await
    }
}

/// What the verbs need; no state that the kernel has.
#[derive(Debug)]
pub(super) struct Groups {
    instance: Instance,
    layout: Layout,
    device: Option<DeviceNumber>,
    page_size: u64,
}

impl Groups {
    /// Moves this process to the group that it is in: nothing changes, but the kernel leaves the mode in which a move waits
    /// for a grace period, for about as long as one lasts (`cgroup_threadgroup_rwsem`, kernel/cgroup/cgroup.c).
    fn stay(&self) -> std::io::Result<()> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let Some(group) = self.layout.group_of(&own) else { return Ok(()) };
        // `0` is whoever writes (cgroups(7)).
        std::fs::write(group.join("cgroup.procs"), "0")
    }

    /// The instance's parent group in each hierarchy.
    pub(super) fn parents(&self) -> impl Iterator<Item = PathBuf> + '_ {
        self.layout.hierarchies().iter().map(|h| h.mount.join(self.instance.as_str()))
    }

    /// A container's group in each hierarchy.
    pub(super) fn folders(&self, id: ContainerId) -> Vec<PathBuf> {
        self.parents().map(|parent| parent.join(id.to_string())).collect()
    }

    /// A container's group in the hierarchy of one controller.
    fn folder(&self, id: ContainerId, controller: &'static str) -> Result<PathBuf, CgroupError> {
        let mount = self.layout.mount_of(controller).ok_or(CgroupError::NoController { controller })?;
        Ok(mount.join(self.instance.as_str()).join(id.to_string()))
    }

    fn prepare(&self) -> Result<(), CgroupError> {
        for hierarchy in self.layout.hierarchies() {
            let parent = hierarchy.mount.join(self.instance.as_str());
            match self.layout.version() {
                Version::V1 if !needs_groups(hierarchy) => continue,
                Version::V1 => make_folder(&parent)?,
                Version::V2 => {
                    hand_down_controllers(&hierarchy.mount)?;
                    make_folder(&parent)?;
                    hand_down_controllers(&parent)?;
                }
            }
            if hierarchy.controllers.iter().any(|c| c == "cpuset") {
                copy_cpuset(&hierarchy.mount, &parent)?;
            }
        }
        Ok(())
    }

    fn set_limits(&self, id: ContainerId, limits: &Limits) -> Result<(), CgroupError> {
        let memory = self.folder(id, "memory").ok();
        let memsw_now = match (self.layout.version(), &memory) {
            (Version::V1, Some(folder)) => read_number(&folder.join("memory.memsw.limit_in_bytes"))?,
            _ => None,
        };
        let writes = plan::writes(self.layout.version(), limits, self.device, memsw_now)?;
        if let (Version::V2, Some(folder), Some(limit)) = (self.layout.version(), &memory, limits.memory) {
            self.make_room(id, folder, limit).map_err(of_limit("memory"))?;
        }
        writes.iter().try_for_each(|write| self.apply(id, write).map_err(of_limit(write.limit())))
    }

    /// Before a v2 memory limit is lowered: lets the kernel reclaim down to the new one, and refuses it where that is
    /// not enough. Written at once, `memory.max` would kill the tenant's processes instead; v1 refuses by itself.
    fn make_room(&self, id: ContainerId, folder: &Path, limit: Bytes) -> Result<(), CgroupError> {
        let current = folder.join("memory.current");
        let Some(used) = read_number(&current)? else { return Ok(()) };
        if used <= limit.0 {
            return Ok(());
        }
        let high = folder.join("memory.high");
        write(&high, &limit.0.to_string())?;
        let used = read_number(&current)?.unwrap_or(0);
        if used <= limit.0 {
            return Ok(());
        }
        write(&high, "max")?;
        Err(CgroupError::MemoryInUse { id, wanted: limit, used: Bytes(used) })
    }

    /// Writes one control file and reads it back.
    fn apply(&self, id: ContainerId, step: &Write) -> Result<(), CgroupError> {
        let folder = match self.folder(id, step.controller) {
            Err(CgroupError::NoController { .. }) if !step.required => return Ok(()),
            folder => folder?,
        };
        let path = folder.join(step.file);
        match write(&path, &step.value) {
            Ok(()) => {}
            Err(CgroupError::Io { source, .. }) if source.kind() == ErrorKind::NotFound && folder.exists() => {
                let missing = CgroupError::NoController { controller: step.controller };
                return if step.required { Err(missing) } else { Ok(()) };
            }
            Err(CgroupError::Io { source, .. }) if busy(&source) && step.file == "memory.limit_in_bytes" => {
                let used = read_number(&folder.join("memory.usage_in_bytes"))?.unwrap_or(0);
                let wanted = Bytes(step.value.parse().unwrap_or(0));
                return Err(CgroupError::MemoryInUse { id, wanted, used: Bytes(used) });
            }
            // Its sockets hold more already, as the kernel lets them for a moment: what held before holds until they do not.
            Err(CgroupError::Io { source, .. }) if busy(&source) && step.file == plan::SOCKETS_V1 => return Ok(()),
            Err(error) => return Err(error),
        }
        let found = read(&path)?;
        if step.expect.holds(&found, self.page_size) {
            return Ok(());
        }
        let (wanted, found) = (step.value.clone(), found.trim().to_owned());
        Err(CgroupError::NotTaken { id, file: step.file, wanted, found })
    }

    fn usage(&self, id: ContainerId) -> Result<Option<Usage>, CgroupError> {
        let cpu = match self.layout.version() {
            Version::V1 => self.folder(id, "cpuacct")?,
            Version::V2 => self.folder(id, "cpu")?,
        };
        let usage = match self.layout.version() {
            Version::V1 => self.usage_v1(id, &cpu),
            Version::V2 => self.usage_v2(id, &cpu),
        };
        match usage {
            // It never was, or went while it was read.
            Err(CgroupError::Io { source, .. }) if gone(&source) && !cpu.exists() => Ok(None),
            Err(CgroupError::Io { source, path, .. }) if gone(&source) && path.parent().is_some_and(Path::exists) => {
                Err(CgroupError::NoController { controller: controller_of(&path) })
            }
            usage => usage.map(Some),
        }
    }

    fn usage_v1(&self, id: ContainerId, cpu: &Path) -> Result<Usage, CgroupError> {
        let memory = self.folder(id, "memory")?;
        let limit = read(&memory.join("memory.limit_in_bytes"))?;
        let inactive = read_key(&memory.join("memory.stat"), "total_inactive_file")?;
        Ok(Usage {
            cpu_us: need_number(&cpu.join("cpuacct.usage"))? / 1_000,
            memory: Bytes(need_number(&memory.join("memory.usage_in_bytes"))?.saturating_sub(inactive)),
            memory_limit: plan::parse_memory(limit.trim(), self.page_size).flatten().map(Bytes),
            pids: need_number(&self.folder(id, "pids")?.join("pids.current"))?,
            oom_kills: read_key(&memory.join("memory.oom_control"), "oom_kill")?,
        })
    }

    fn usage_v2(&self, id: ContainerId, folder: &Path) -> Result<Usage, CgroupError> {
        let limit = read(&folder.join("memory.max"))?;
        let inactive = read_key(&folder.join("memory.stat"), "inactive_file")?;
        Ok(Usage {
            cpu_us: read_key(&folder.join("cpu.stat"), "usage_usec")?,
            memory: Bytes(need_number(&folder.join("memory.current"))?.saturating_sub(inactive)),
            memory_limit: plan::parse_memory(limit.trim(), self.page_size).flatten().map(Bytes),
            pids: need_number(&self.folder(id, "pids")?.join("pids.current"))?,
            oom_kills: read_key(&folder.join("memory.events"), "oom_kill")?,
        })
    }

    fn memory(&self, id: ContainerId) -> Result<Option<Bytes>, CgroupError> {
        let folder = self.folder(id, "memory")?;
        let (held, inactive) = match self.layout.version() {
            Version::V1 => ("memory.usage_in_bytes", "total_inactive_file"),
            Version::V2 => ("memory.current", "inactive_file"),
        };
        let held = need_number(&folder.join(held));
        match held.and_then(|held| Ok((held, read_key(&folder.join("memory.stat"), inactive)?))) {
            Ok((held, inactive)) => Ok(Some(Bytes(held.saturating_sub(inactive)))),
            Err(CgroupError::Io { source, .. }) if gone(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The kernel goes on for as long as it makes progress, and says `EAGAIN` where it took less than was asked: that is no error
    /// here. `force_empty` (cgroup-v1/memory.rst) does the same to a group that has tasks.
    fn reclaim(&self, id: ContainerId) -> Result<(), CgroupError> {
        let folder = self.folder(id, "memory")?;
        let done = match self.layout.version() {
            Version::V1 => write(&folder.join("memory.force_empty"), "0"),
            Version::V2 => {
                let held = need_number(&folder.join("memory.current"))?;
                write(&folder.join("memory.reclaim"), &held.to_string())
            }
        };
        match done {
            Err(CgroupError::Io { source, .. }) if source.raw_os_error() == Some(libc::EAGAIN) => Ok(()),
            done => done,
        }
    }

    fn alarms(&self, id: ContainerId) -> Result<Option<Alarms>, CgroupError> {
        let file = match self.layout.version() {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        let count = |controller, file: &str, key| match read_key(&self.folder(id, controller)?.join(file), key) {
            // It is going away, or its controller is off: nothing was counted.
            Err(CgroupError::Io { source, .. }) if gone(&source) => Ok(None),
            count => count.map(Some),
        };
        let (oom, pids) = (count("memory", file, "oom_kill")?, count("pids", "pids.events", "max")?);
        let alarms = || Alarms { oom_kills: oom.unwrap_or(0), pids_refused: pids.unwrap_or(0) };
        Ok(oom.or(pids).is_some().then(alarms))
    }

    /// A freeze that does not come about is taken back: a container is running or paused, never between.
    fn freeze(&self, id: ContainerId, frozen: bool) -> Result<(), CgroupError> {
        let switch = self.freezer(id)?;
        switch.write(frozen)?;
        if poll(Duration::from_millis(FREEZE_MS_MAX), || Ok(switch.is(frozen)?.then_some(())))?.is_some() {
            return Ok(());
        }
        if frozen {
            switch.write(false)?;
        }
        let what = if frozen { "freeze" } else { "thaw" };
        Err(CgroupError::Timeout { id, what, waited_ms: FREEZE_MS_MAX })
    }

    /// The switch of a container's freezer.
    pub(super) fn freezer(&self, id: ContainerId) -> Result<Freezer, CgroupError> {
        Ok(Freezer { version: self.layout.version(), folder: self.folder(id, "freezer")? })
    }

    fn list(&self) -> Result<Vec<ContainerId>, CgroupError> {
        let mut ids = Vec::new();
        for parent in self.parents() {
            let folders = removal::children(&parent)?;
            ids.extend(folders.iter().filter_map(|f| f.file_name()?.to_str()?.parse::<ContainerId>().ok()));
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

/// The freezer of one container, by the files of either version.
#[derive(Debug)]
pub(super) struct Freezer {
    version: Version,
    folder: PathBuf,
}

impl Freezer {
    pub(super) fn write(&self, frozen: bool) -> Result<(), CgroupError> {
        match (self.version, frozen) {
            (Version::V1, true) => write(&self.folder.join("freezer.state"), "FROZEN"),
            (Version::V1, false) => write(&self.folder.join("freezer.state"), "THAWED"),
            (Version::V2, frozen) => write(&self.folder.join("cgroup.freeze"), if frozen { "1" } else { "0" }),
        }
    }

    /// Whether the kernel has carried it out for every task.
    fn is(&self, frozen: bool) -> Result<bool, CgroupError> {
        match self.version {
            Version::V1 => {
                let path = self.folder.join("freezer.state");
                let state = read(&path)?;
                if frozen && state.trim() == "FREEZING" {
                    // A task that was forked meanwhile is only frozen by a further write.
                    self.write(true)?;
                }
                Ok(state.trim() == if frozen { "FROZEN" } else { "THAWED" })
            }
            Version::V2 => Ok(read_key(&self.folder.join("cgroup.events"), "frozen")? == u64::from(frozen)),
        }
    }
}

/// Whether the runtime makes groups in a v1 hierarchy: it does where there is a controller, not in the named ones and
/// not in a unified hierarchy that only tracks processes.
fn needs_groups(hierarchy: &Hierarchy) -> bool {
    hierarchy.controllers.iter().any(|c| !c.starts_with("name="))
}

/// A controller that cannot be handed down is found missing when a limit needs it.
fn hand_down_controllers(folder: &Path) -> Result<(), CgroupError> {
    let available = read(&folder.join("cgroup.controllers"))?;
    let control = folder.join("cgroup.subtree_control");
    let enabled = read(&control)?;
    let has = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
    for name in CONTROLLERS_V2.into_iter().filter(|name| has(&available, name) && !has(&enabled, name)) {
        if let Err(error) = write(&control, &format!("+{name}")) {
            tracing::warn!(controller = name, folder = %folder.display(), ?error, "a cgroup controller stays off");
        }
    }
    Ok(())
}

fn copy_cpuset(from: &Path, to: &Path) -> Result<(), CgroupError> {
    for file in CPUSET_FILES {
        if read(&to.join(file))?.trim().is_empty() {
            write(&to.join(file), read(&from.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn of_limit(limit: &'static str) -> impl Fn(CgroupError) -> CgroupError {
    move |source| CgroupError::Limit { limit, source: Box::new(source) }
}

/// A control file's controller, by the start of its name.
fn controller_of(path: &Path) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name.split('.').next() {
        Some("memory") => "memory",
        Some("pids") => "pids",
        _ => "cpu",
    }
}

fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    // The smallest page of any Linux: too small a page only makes the comparison stricter.
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4_096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{BytesPerSecond, CpuMillis, Pids};
    use std::fs;

    /// A folder that looks like a unified hierarchy with one container's group; a plain filesystem keeps what is
    /// written, as a willing kernel does.
    struct Tree {
        root: tempfile::TempDir,
        id: ContainerId,
    }

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            let tree = Self { root: tempfile::tempdir().unwrap(), id: ContainerId::generate() };
            fs::create_dir_all(tree.group()).unwrap();
            for (name, text) in files {
                fs::write(tree.group().join(name), text).unwrap();
            }
            tree
        }

        fn group(&self) -> PathBuf {
            self.root.path().join("fake").join(self.id.to_string())
        }

        fn file(&self, name: &str) -> String {
            fs::read_to_string(self.group().join(name)).unwrap()
        }

        fn cgroups(&self) -> KernelCgroups {
            let device = DeviceNumber { major: 7, minor: 3 };
            KernelCgroups::with_layout("fake".parse().unwrap(), Layout::unified(self.root.path()), Some(device))
        }
    }

    fn cause_of(limit: &str, error: CgroupError) -> CgroupError {
        match error {
            CgroupError::Limit { limit: found, source } if found == limit => *source,
            other => panic!("not about {limit}: {other}"),
        }
    }

    const FILES: [(&str, &str); 10] = [
        ("memory.max", "max\n"),
        ("memory.high", "max\n"),
        ("memory.swap.max", "max\n"),
        ("memory.current", "5000000\n"),
        ("memory.stat", "anon 1\ninactive_file 1000000\n"),
        ("memory.events", "oom 2\noom_kill 2\n"),
        ("cpu.max", "max 100000\n"),
        ("cpu.stat", "usage_usec 1234\n"),
        ("pids.max", "max\n"),
        ("pids.current", "3\n"),
    ];

    #[tokio::test]
    async fn what_a_group_holds_is_told_for_all_at_once_and_asked_back_whole() {
        let tree = Tree::new(&[&FILES[..], &[("memory.reclaim", "")]].concat());
        let held = tree.cgroups().memory(vec![ContainerId::NIL, tree.id]).await.unwrap();
        assert_eq!(held, [(tree.id, Bytes(4_000_000))], "without inactive page cache, and of those that are there");
        tree.cgroups().reclaim(tree.id).await.unwrap();
        assert_eq!(tree.file("memory.reclaim"), "5000000");
    }

    #[tokio::test]
    async fn limits_are_written_and_lifted() {
        let tree = Tree::new(&FILES);
        let limits = Limits {
            cpu: Some(CpuMillis(500)),
            memory: Some(Bytes::mib(64)),
            pids: Some(Pids(10)),
            ..Limits::default()
        };
        tree.cgroups().set_limits(tree.id, &limits).await.unwrap();
        assert_eq!(tree.file("memory.max"), "67108864");
        assert_eq!(tree.file("memory.swap.max"), "0");
        assert_eq!(tree.file("cpu.max"), "50000 100000");
        assert_eq!(tree.file("pids.max"), "10");
        tree.cgroups().set_limits(tree.id, &Limits::default()).await.unwrap();
        assert_eq!(tree.file("memory.max"), "max");
        assert_eq!(tree.file("cpu.max"), "max 100000");
        assert_eq!(tree.file("pids.max"), "max");
    }

    #[tokio::test]
    async fn a_limit_whose_controller_is_off_is_refused_by_its_name() {
        let tree = Tree::new(&FILES);
        let limits = Limits { disk_read_bps: Some(BytesPerSecond(1)), ..Limits::default() };
        let error = tree.cgroups().set_limits(tree.id, &limits).await.unwrap_err();
        let cause = cause_of("disk_read_bps", error);
        assert_eq!(cause.to_string(), "the host has no `io` controller, which this limit needs");
    }

    #[tokio::test]
    async fn a_limit_the_kernel_does_not_keep_is_an_error() {
        let tree = Tree::new(&FILES);
        let pids = tree.group().join("pids.max");
        fs::remove_file(&pids).unwrap();
        std::os::unix::fs::symlink("/dev/null", &pids).unwrap();
        let limits = Limits { pids: Some(Pids(10)), ..Limits::default() };
        let error = tree.cgroups().set_limits(tree.id, &limits).await.unwrap_err();
        let cause = cause_of("pids", error);
        assert!(matches!(cause, CgroupError::NotTaken { file: "pids.max", .. }), "{cause}");
    }

    #[tokio::test]
    async fn a_memory_limit_below_what_is_held_is_refused_and_the_old_one_stays() {
        let tree = Tree::new(&FILES);
        let limits = Limits { memory: Some(Bytes::mib(1)), ..Limits::default() };
        let error = tree.cgroups().set_limits(tree.id, &limits).await.unwrap_err();
        let cause = cause_of("memory", error);
        assert!(matches!(cause, CgroupError::MemoryInUse { used: Bytes(5_000_000), .. }), "{cause}");
        assert_eq!(tree.file("memory.max"), "max\n");
        assert_eq!(tree.file("memory.high"), "max");
    }

    #[tokio::test]
    async fn counters_are_read_without_the_inactive_cache() {
        let tree = Tree::new(&FILES);
        let usage = tree.cgroups().usage(tree.id).await.unwrap().unwrap();
        let wanted = Usage { cpu_us: 1_234, memory: Bytes(4_000_000), memory_limit: None, pids: 3, oom_kills: 2 };
        assert_eq!(usage, wanted);
        assert_eq!(tree.cgroups().usage(ContainerId::generate()).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_limits_led_to_is_counted_for_all_that_are_there() {
        let tree = Tree::new(&FILES);
        let wanted = Alarms { oom_kills: 2, pids_refused: 0 };
        let ids = vec![tree.id, ContainerId::generate()];
        assert_eq!(tree.cgroups().alarms(ids.clone()).await.unwrap(), [(tree.id, wanted)]);
        fs::write(tree.group().join("pids.events"), "max 7\n").unwrap();
        assert_eq!(tree.cgroups().alarms(ids).await.unwrap(), [(tree.id, Alarms { pids_refused: 7, ..wanted })]);
    }

    #[tokio::test]
    async fn counters_of_a_controller_that_is_off_are_an_error_and_not_zero() {
        let tree = Tree::new(&FILES);
        fs::remove_file(tree.group().join("pids.current")).unwrap();
        let error = tree.cgroups().usage(tree.id).await.unwrap_err();
        assert!(matches!(error, CgroupError::NoController { controller: "pids" }), "{error}");
    }

    #[tokio::test]
    async fn only_ids_are_listed() {
        let tree = Tree::new(&[]);
        fs::create_dir(tree.root.path().join("fake/not-an-id")).unwrap();
        assert_eq!(tree.cgroups().list().await.unwrap(), [tree.id]);
    }
}
