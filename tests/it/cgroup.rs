//! The cgroup driver on this host's own hierarchies: v1 or hybrid on some machines, v2 on others, the same sentences
//! on both.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tenantry::domain::{Bytes, BytesPerSecond, ContainerId, CpuMillis, Instance, Limits, Pids};
use tenantry::sys::cgroup::{CgroupError, Cgroups, DeviceNumber, KernelCgroups, Layout, Usage, Version};

use crate::skips::root_or_skipped;

/// How long a test waits for what a process was told to do.
const WAIT: Duration = Duration::from_secs(20);

/// One container's group of an instance of its own, made as the runtime makes it; gone when dropped, also when the
/// test failed.
struct Group {
    instance: Instance,
    id: ContainerId,
    layout: Layout,
    cgroups: KernelCgroups,
    children: Vec<Child>,
}

/// `None`, and a report, where this process may not.
async fn group(test: &str) -> Option<Group> {
    group_with(test, None).await
}

async fn group_with(test: &str, device: Option<DeviceNumber>) -> Option<Group> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !root_or_skipped(test) {
        return None;
    }
    // Eight characters at most; the process id keeps parallel runs apart.
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let instance: Instance = format!("t{:x}{number:x}", std::process::id() % 0xfffff).parse().unwrap();
    let layout = Layout::detect().unwrap();
    let cgroups = KernelCgroups::with_layout(instance.clone(), layout.clone(), device);
    let group = Group { instance, id: ContainerId::generate(), layout, cgroups, children: Vec::new() };
    group.cgroups.prepare().await.unwrap();
    for folder in group.folders().into_iter().filter(|folder| folder.parent().unwrap().exists()) {
        fs::create_dir(&folder).unwrap();
        let (cpus, parent) = (folder.join("cpuset.cpus"), folder.parent().unwrap());
        if cpus.exists() && group.layout.version() == Version::V1 {
            fs::write(cpus, fs::read(parent.join("cpuset.cpus")).unwrap()).unwrap();
            fs::write(folder.join("cpuset.mems"), fs::read(parent.join("cpuset.mems")).unwrap()).unwrap();
        }
    }
    Some(group)
}

impl Group {
    fn folders(&self) -> Vec<PathBuf> {
        let parents = self.layout.hierarchies().iter().map(|h| h.mount.join(self.instance.as_str()));
        parents.map(|parent| parent.join(self.id.to_string())).collect()
    }

    fn file(&self, controller: &str, v1: &str, v2: &str) -> String {
        let name = if self.layout.version() == Version::V1 { v1 } else { v2 };
        let folder = self.layout.mount_of(controller).unwrap().join(self.instance.as_str()).join(self.id.to_string());
        fs::read_to_string(folder.join(name)).unwrap().trim().to_owned()
    }

    /// Runs a shell command in the group: it is moved there before it begins.
    fn spawn(&mut self, script: &str) -> u32 {
        let gated = format!("read gate; {script}");
        let mut child = Command::new("sh")
            .args(["-c", &gated])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for folder in self.folders().iter().filter(|folder| folder.exists()) {
            fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let pid = child.id();
        self.children.push(child);
        pid
    }

    async fn usage(&self) -> Usage {
        self.cgroups.usage(self.id).await.unwrap().unwrap()
    }

    async fn usage_when(&self, what: &str, wanted: impl Fn(&Usage) -> bool) -> Usage {
        let begin = Instant::now();
        loop {
            let usage = self.usage().await;
            if wanted(&usage) {
                return usage;
            }
            assert!(begin.elapsed() < WAIT, "no {what} within {WAIT:?}: {usage:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn is_gone(&self) -> bool {
        self.folders().iter().all(|folder| !folder.exists())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let (cgroups, id) = (self.cgroups.clone(), self.id);
        let clean = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async { cgroups.remove(id).await.and(cgroups.remove_parent().await) })
        });
        let result = clean.join().unwrap();
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !std::thread::panicking() {
            result.unwrap();
        }
    }
}

#[tokio::test]
async fn limits_are_read_back_from_the_kernel_changed_and_lifted() {
    let Some(group) = group("limits_are_read_back_from_the_kernel_changed_and_lifted").await else { return };
    let all = |memory| Limits {
        cpu: Some(CpuMillis(1_500)),
        memory: Some(memory),
        pids: Some(Pids(50)),
        ..Limits::default()
    };
    // Not whole pages; then up, then down: each way another order of the files is the one the kernel takes.
    for (memory, kept) in [(Bytes(33_000_001), 32_997_376), (Bytes::mib(96), 96 << 20), (Bytes::mib(16), 16 << 20)] {
        group.cgroups.set_limits(group.id, &all(memory)).await.unwrap();
        assert_eq!(group.usage().await.memory_limit, Some(Bytes(kept)));
    }
    assert_eq!(group.file("pids", "pids.max", "pids.max"), "50");
    let quota = group.file("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert_eq!(quota.split(' ').next(), Some("150000"));
    let swap = group.layout.mount_of("memory").unwrap().join(group.instance.as_str()).join(group.id.to_string());
    for (file, wanted) in [("memory.memsw.limit_in_bytes", "16777216"), ("memory.swap.max", "0")] {
        if let Ok(found) = fs::read_to_string(swap.join(file)) {
            assert_eq!(found.trim(), wanted, "{file}");
        }
    }

    group.cgroups.set_limits(group.id, &Limits::default()).await.unwrap();
    assert_eq!(group.usage().await.memory_limit, None);
    assert_eq!(group.file("pids", "pids.max", "pids.max"), "max");
    assert!(["-1", "max 100000"].contains(&group.file("cpu", "cpu.cfs_quota_us", "cpu.max").as_str()));
}

#[tokio::test]
async fn usage_counts_tasks_memory_and_processor_time() {
    let Some(mut group) = group("usage_counts_tasks_memory_and_processor_time").await else { return };
    assert_eq!(group.usage().await.pids, 0);
    group.spawn("sleep 1000 & sleep 1000 & while :; do :; done");
    let begin = group.usage_when("three tasks", |usage| usage.pids == 3).await;
    assert!(begin.memory.0 > 0);
    group.usage_when("processor time", |usage| usage.cpu_us > begin.cpu_us + 50_000).await;
    assert_eq!(group.cgroups.usage(ContainerId::generate()).await.unwrap(), None);
}

#[tokio::test]
async fn a_frozen_container_uses_no_processor_time() {
    let Some(mut group) = group("a_frozen_container_uses_no_processor_time").await else { return };
    group.spawn("while :; do :; done");
    group.usage_when("processor time", |usage| usage.cpu_us > 10_000).await;
    group.cgroups.freeze(group.id, true).await.unwrap();
    let frozen = group.usage().await.cpu_us;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(group.usage().await.cpu_us, frozen);
    group.cgroups.freeze(group.id, false).await.unwrap();
    group.usage_when("processor time", |usage| usage.cpu_us > frozen + 10_000).await;
}

#[tokio::test]
async fn a_process_limit_is_kept() {
    let Some(mut group) = group("a_process_limit_is_kept").await else { return };
    let limits = Limits { pids: Some(Pids(5)), ..Limits::default() };
    group.cgroups.set_limits(group.id, &limits).await.unwrap();
    group.spawn("for i in 1 2 3 4; do sleep 1000 & done; for i in 5 6 7; do sleep 1000 & done; sleep 1000");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(group.usage().await.pids <= 5);
}

#[tokio::test]
async fn too_much_memory_is_killed_and_counted() {
    let Some(mut group) = group("too_much_memory_is_killed_and_counted").await else { return };
    let limits = Limits { memory: Some(Bytes::mib(16)), ..Limits::default() };
    group.cgroups.set_limits(group.id, &limits).await.unwrap();
    group.spawn(&holder(64));
    group.usage_when("kill for want of memory", |usage| usage.oom_kills > 0).await;
}

#[tokio::test]
async fn a_memory_limit_below_what_a_container_holds_is_refused_and_kills_nothing() {
    let name = "a_memory_limit_below_what_a_container_holds_is_refused_and_kills_nothing";
    let Some(mut group) = group(name).await else { return };
    let limits = |mib| Limits { memory: Some(Bytes::mib(mib)), ..Limits::default() };
    group.cgroups.set_limits(group.id, &limits(256)).await.unwrap();
    group.spawn(&holder(64));
    // The kernel counts in batches, and who filled it takes a little along when it ends.
    let held = Bytes::mib(60);
    group.usage_when("memory", |usage| usage.memory >= held).await;
    let error = group.cgroups.set_limits(group.id, &limits(16)).await.unwrap_err();
    let CgroupError::Limit { limit: "memory", source } = error else { panic!("{error}") };
    assert!(matches!(*source, CgroupError::MemoryInUse { .. }), "{source}");
    // Who holds it still does. Tasks are not counted: the one that filled it ends by itself.
    let usage = group.usage().await;
    assert!(usage.memory >= held, "{usage:?}");
    assert_eq!((usage.oom_kills, usage.memory_limit), (0, Some(Bytes::mib(256))));
    group.cgroups.set_limits(group.id, &limits(128)).await.unwrap();
}

/// A shell command that holds so many MiB: `tail` keeps what it may have to print.
fn holder(mib: u32) -> String {
    format!("head -c {mib}m /dev/zero | {{ tail -c {mib}m; sleep 1000; }} | sleep 1000", mib = mib)
}

#[tokio::test]
async fn a_disk_rate_is_kept() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let device = DeviceNumber::from_dev(fs::metadata(folder.path()).unwrap().dev());
    let Some(mut group) = group_with("a_disk_rate_is_kept", Some(device)).await else { return };
    let limits = Limits {
        disk_read_bps: Some(BytesPerSecond(2 << 20)),
        disk_write_bps: Some(BytesPerSecond(1 << 20)),
        ..Limits::default()
    };
    group.cgroups.set_limits(group.id, &limits).await.unwrap();
    let (begin, done) = (Instant::now(), folder.path().join("done"));
    let file = folder.path().join("file");
    group.spawn(&format!(
        "dd if=/dev/zero of={} bs=256k count=8 oflag=direct && echo done > {}",
        file.display(),
        done.display()
    ));
    while !done.exists() {
        assert!(begin.elapsed() < WAIT, "dd did not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Two MiB at one MiB a second, less what the kernel lets pass at first.
    assert!(begin.elapsed() > Duration::from_millis(1_200), "{:?}", begin.elapsed());
    group.cgroups.set_limits(group.id, &Limits::default()).await.unwrap();
    assert_eq!(group.file("io", "blkio.throttle.write_bps_device", "io.max"), "");
}

#[tokio::test]
async fn removal_kills_everything_also_what_is_nested_frozen_or_forks() {
    let name = "removal_kills_everything_also_what_is_nested_frozen_or_forks";
    let Some(mut group) = group(name).await else { return };
    // The bound keeps a forking loop from being this machine's trouble.
    let limits = Limits { pids: Some(Pids(40)), ..Limits::default() };
    group.cgroups.set_limits(group.id, &limits).await.unwrap();
    group.spawn("trap '' TERM INT; while :; do sleep 0.01 & done");
    let sleeper = group.spawn("exec sleep 1000");
    let nested = group.layout.mount_of("freezer").unwrap().join(group.instance.as_str()).join(group.id.to_string());
    fs::create_dir_all(nested.join("inner/most")).unwrap();
    fs::write(nested.join("inner/most/cgroup.procs"), sleeper.to_string()).unwrap();
    group.cgroups.freeze(group.id, true).await.unwrap();
    assert_eq!(group.cgroups.list().await.unwrap(), [group.id]);

    group.cgroups.remove(group.id).await.unwrap();
    assert!(group.is_gone());
    let dead = fs::read_to_string(format!("/proc/{sleeper}/stat")).map_or(true, |stat| stat.contains(") Z "));
    assert!(dead, "the nested process lives");
    assert!(group.cgroups.list().await.unwrap().is_empty());
    group.cgroups.remove(group.id).await.unwrap();
}

#[tokio::test]
async fn removal_takes_a_group_that_was_only_half_made() {
    let Some(group) = group("removal_takes_a_group_that_was_only_half_made").await else { return };
    let first = group.folders().into_iter().find(|folder| folder.exists()).unwrap();
    if group.layout.version() == Version::V1 {
        fs::remove_dir(first).unwrap();
    }
    group.cgroups.remove(group.id).await.unwrap();
    assert!(group.is_gone());
}

#[tokio::test]
async fn a_parent_with_a_container_in_it_stays() {
    let Some(group) = group("a_parent_with_a_container_in_it_stays").await else { return };
    group.cgroups.remove_parent().await.unwrap_err();
    assert_eq!(group.cgroups.list().await.unwrap(), [group.id]);
    group.cgroups.remove(group.id).await.unwrap();
    group.cgroups.remove_parent().await.unwrap();
    group.cgroups.remove_parent().await.unwrap();
    let parents = group.layout.hierarchies().iter().map(|h| h.mount.join(group.instance.as_str()));
    assert!(parents.into_iter().all(|parent| !Path::new(&parent).exists()));
}

#[tokio::test]
async fn controllers_reach_the_containers_group() {
    let Some(group) = group("controllers_reach_the_containers_group").await else { return };
    for controller in ["cpu", "memory", "pids", "io"] {
        assert!(group.layout.mount_of(controller).is_some(), "{controller}");
    }
    if group.layout.version() == Version::V2 {
        let found = group.file("cpu", "", "cgroup.controllers");
        for controller in ["cpu", "memory", "pids", "io"] {
            assert!(found.split(' ').any(|word| word == controller), "{controller} is not in `{found}`");
        }
    }
}
