//! What the tests on the real kernel share. Everything made here is gone when its guard is dropped.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A text that no other test of this run uses: for names of kernel objects.
pub fn unique() -> String {
    format!("t{}", hex::encode(rand::random::<[u8; 4]>()))
}

/// Ids that belong to one instance of a test, so that its processes are known by them: as many as [`SUBNET`] has slots.
pub const IDS: u32 = 1 << 25;
/// A subnet of 510 slots.
pub const SUBNET: &str = "10.201.0.0/23";

/// The first of ids that no other test of this process has, above those of people, services and user namespaces of the host.
pub fn first_of_ids() -> u32 {
    const RANGES: u32 = 100;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Another process's tests begin elsewhere.
    let range = std::process::id().wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % RANGES;
    500_000_000 + range * IDS
}

/// A temporary folder that containers' roots may pass through.
#[derive(Debug)]
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self::new_in(std::env::temp_dir())
    }

    /// As [`Folder::new`], where it shall lie.
    pub fn new_in(parent: impl AsRef<Path>) -> Self {
        let dir = tempfile::tempdir_in(parent).unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o711)).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A rootfs with busybox in it, owned by root as an unpacked image is.
pub fn busybox_rootfs(rootfs: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "ramdisk", "root", "srv", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    fs::set_permissions(rootfs, PermissionsExt::from_mode(0o755)).unwrap();
    fs::set_permissions(rootfs.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static is needed");
    for applet in ["sh", "cat", "sleep", "env", "id", "ls", "head", "kill", "mount", "yes", "true", "touch", "wc", "dd"]
    {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
}

/// A parent cgroup of this test's own, in every hierarchy; killed and removed at the end.
#[derive(Debug)]
pub struct CgroupGuard(String);

impl CgroupGuard {
    pub fn new() -> Self {
        Self(format!("/tenantry-test-{}", unique()))
    }

    /// The path of one container's group.
    pub fn child(&self, name: impl std::fmt::Display) -> String {
        format!("{}/{name}", self.0)
    }

    /// The folders of one container's group that exist.
    pub fn folders(&self, name: impl std::fmt::Display) -> Vec<PathBuf> {
        let child = self.child(name);
        hierarchies()
            .into_iter()
            .map(|root| root.join(child.trim_start_matches('/')))
            .filter(|dir| dir.exists())
            .collect()
    }

    /// Kills and removes one container's group, as the cgroup driver does.
    pub fn remove(&self, name: impl std::fmt::Display) {
        self.folders(name).iter().for_each(|dir| remove_group(dir));
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        for root in hierarchies() {
            let parent = root.join(self.0.trim_start_matches('/'));
            let children = fs::read_dir(&parent).into_iter().flatten().flatten().map(|entry| entry.path());
            children.filter(|path| path.is_dir()).for_each(|dir| remove_group(&dir));
            let _ = fs::remove_dir(&parent);
        }
    }
}

/// Where the cgroup hierarchies are mounted.
pub fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let is_cgroup = |line: &&str| line.contains(" - cgroup ") || line.contains(" - cgroup2 ");
    mounts.lines().filter(is_cgroup).filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).collect()
}

/// Kills what is in a group without groups of its own, also where it is frozen, and removes it.
pub fn remove_group(dir: &Path) {
    // On v1 a frozen process gets no signal.
    if dir.join("freezer.state").exists() {
        let _ = fs::write(dir.join("freezer.state"), "THAWED");
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while fs::remove_dir(dir).is_err() && dir.exists() && Instant::now() < deadline {
        for pid in fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
            let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
