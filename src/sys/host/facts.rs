//! Reading the host. What cannot be read is `None`, and judged as such.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use crate::domain::Bytes;
use crate::sys::cgroup::{Layout, Version};

use super::Wanted;

/// How long a program may take to answer.
const PROGRAM_MS_MAX: u64 = 5_000;

/// How often to look whether it has, in milliseconds.
const PROGRAM_POLL_MS: u64 = 5;

/// What of a program's output is kept, in bytes.
const OUTPUT_BYTES_MAX: u64 = 4_096;

/// The sysctls that are judged, by their dotted names.
pub const SYSCTLS: [&str; 20] = [
    "fs.aio-max-nr",
    "fs.file-max",
    "fs.inotify.max_user_instances",
    "fs.inotify.max_user_watches",
    "fs.nr_open",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
    "kernel.pid_max",
    "kernel.threads-max",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_forward",
    "net.ipv4.neigh.default.gc_thresh3",
    "net.netfilter.nf_conntrack_max",
    "user.max_cgroup_namespaces",
    "user.max_ipc_namespaces",
    "user.max_mnt_namespaces",
    "user.max_net_namespaces",
    "user.max_pid_namespaces",
    "user.max_user_namespaces",
    "user.max_uts_namespaces",
];

/// What lies where the pool is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolPlace {
    /// A BTRFS filesystem.
    Btrfs,
    /// Something else; a loop-mounted file will be made.
    Other,
}

/// The host as it was read.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Whether this process is root's.
    pub is_root: bool,
    /// Effective capabilities, as `CapEff` of `/proc/self/status` has them.
    pub capabilities: Option<u64>,
    /// `uname -r`.
    pub kernel: Option<String>,
    /// Whether the kernel has BTRFS, built in, loaded or as a module it can load.
    pub btrfs: bool,
    /// Whether BTRFS says that it has simple quotas; `None` where it is not loaded and so says nothing.
    pub simple_quota: Option<bool>,
    /// What is at the pool's place.
    pub pool: Option<PoolPlace>,
    /// Whether loop devices can be made.
    pub loop_control: bool,
    /// Which hierarchy has the controllers.
    pub cgroup: Option<Version>,
    /// Those of cpu, cpuset, devices, freezer, io, memory, pids that are there, by their v2 names.
    pub controllers: Vec<String>,
    /// Whether the memory controller counts swap.
    pub swap_accounted: bool,
    /// Swap space of the host.
    pub swap: Option<Bytes>,
    /// `nft --version`, where there is one.
    pub nft: Option<String>,
    /// Whether the kernel would take a table from us; the answer where it would not.
    pub nft_table: Option<Result<(), String>>,
    /// Programs found on PATH, of those that are looked for.
    pub programs: BTreeMap<&'static str, PathBuf>,
    /// Whether the kernel has user namespaces.
    pub user_namespaces: bool,
    /// The most open files this process may allow itself.
    pub open_files: Option<u64>,
    /// Numbers of [`SYSCTLS`].
    pub sysctls: BTreeMap<&'static str, u64>,
    /// Whether forwarding of IPv4 could be switched on.
    pub forwarding_can_be_set: bool,
    /// What seccomp can answer with.
    pub seccomp_actions: Vec<String>,
    /// Room where the data is kept.
    pub disk_free: Option<Bytes>,
    /// `MemAvailable`.
    pub memory_available: Option<Bytes>,
}

impl Facts {
    /// Reads them all.
    pub fn read(wanted: &Wanted) -> Self {
        let status = text("/proc/self/status").unwrap_or_default();
        let meminfo = text("/proc/meminfo").unwrap_or_default();
        let layout = Layout::detect().ok();
        let programs: BTreeMap<_, _> =
            ["nft", "mkfs.btrfs", "busybox"].into_iter().filter_map(|name| Some((name, on_path(name)?))).collect();
        Self {
            is_root: nix::unistd::geteuid().is_root(),
            capabilities: status_field(&status, "CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok()),
            kernel: text("/proc/sys/kernel/osrelease").map(|release| release.trim().to_owned()),
            btrfs: has_btrfs(),
            simple_quota: simple_quota(),
            pool: pool_place(&wanted.pool),
            loop_control: Path::new("/dev/loop-control").exists(),
            cgroup: layout.as_ref().map(Layout::version),
            controllers: layout.as_ref().map(controllers).unwrap_or_default(),
            swap_accounted: layout.as_ref().is_some_and(swap_accounted),
            swap: kibibytes(&meminfo, "SwapTotal:"),
            nft: programs.get("nft").and_then(|nft| nft_version(nft)),
            nft_table: programs.get("nft").map(|nft| nft_table(nft)),
            programs,
            user_namespaces: Path::new("/proc/self/ns/user").exists(),
            open_files: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(_, hard)| hard),
            sysctls: SYSCTLS.into_iter().filter_map(|name| Some((name, sysctl(name)?))).collect(),
            forwarding_can_be_set: File::options().write(true).open("/proc/sys/net/ipv4/ip_forward").is_ok(),
            seccomp_actions: text("/proc/sys/kernel/seccomp/actions_avail").map(|t| words(&t)).unwrap_or_default(),
            disk_free: disk_free(&wanted.data_dir),
            memory_available: kibibytes(&meminfo, "MemAvailable:"),
        }
    }
}

/// The host's memory; `None` where it does not say.
pub fn memory_total() -> Option<Bytes> {
    kibibytes(&text("/proc/meminfo")?, "MemTotal:")
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn sysctl(name: &str) -> Option<u64> {
    text(Path::new("/proc/sys").join(name.replace('.', "/")))?.split_whitespace().next()?.parse().ok()
}

fn status_field<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

fn kibibytes(meminfo: &str, key: &str) -> Option<Bytes> {
    let number: u64 = status_field(meminfo, key)?.strip_suffix(" kB")?.trim().parse().ok()?;
    Some(Bytes(number.saturating_mul(1_024)))
}

fn has_btrfs() -> bool {
    let loaded = text("/proc/filesystems").is_some_and(|t| t.lines().any(|line| line.trim_start() == "btrfs"));
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim()).join("modules.dep");
    loaded || text(modules).is_some_and(|t| t.lines().any(|line| line.contains("/btrfs.ko")))
}

fn simple_quota() -> Option<bool> {
    let features = Path::new("/sys/fs/btrfs/features");
    features.exists().then(|| features.join("simple_quota").exists())
}

/// The nearest folder on the way to `path` that is there.
fn nearest(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.exists())
}

fn pool_place(path: &Path) -> Option<PoolPlace> {
    let place = statfs(nearest(path)?).ok()?.filesystem_type();
    Some(if place == BTRFS_SUPER_MAGIC { PoolPlace::Btrfs } else { PoolPlace::Other })
}

fn disk_free(path: &Path) -> Option<Bytes> {
    let room = statvfs(nearest(path)?).ok()?;
    Some(Bytes(room.blocks_available().saturating_mul(room.fragment_size())))
}

fn controllers(layout: &Layout) -> Vec<String> {
    let all = ["cpu", "cpuset", "devices", "freezer", "io", "memory", "pids"];
    match layout.version() {
        Version::V1 => all.into_iter().filter(|name| layout.mount_of(name).is_some()).map(str::to_owned).collect(),
        Version::V2 => {
            let root = layout.mount_of("cgroup").map(|mount| mount.join("cgroup.controllers"));
            root.and_then(text).map(|t| words(&t)).unwrap_or_default()
        }
    }
}

/// On v2 the root group has no swap files; a kernel that counts swap has them in each child.
fn swap_accounted(layout: &Layout) -> bool {
    let Some(mount) = layout.mount_of("memory") else { return false };
    match layout.version() {
        Version::V1 => mount.join("memory.memsw.limit_in_bytes").exists(),
        Version::V2 => std::fs::read_dir(mount)
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists())),
    }
}

/// The places a daemon's PATH may lack: systemd's default has them, a login shell's on Debian has not.
fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn nft_version(nft: &Path) -> Option<String> {
    run(Command::new(nft).arg("--version"), "").ok()
}

/// Asks the kernel to check a table without making it.
fn nft_table(nft: &Path) -> Result<(), String> {
    let table = format!("add table inet tenantry-check-{}\n", std::process::id());
    run(Command::new(nft).args(["--check", "--file", "-"]), &table).map(|_| ())
}

/// A program's output, or what it said when it failed; it is killed where it takes too long.
fn run(command: &mut Command, input: &str) -> Result<String, String> {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| error.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says why by its status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let status = match wait(&mut child) {
        Some(status) => status,
        None => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no answer within {PROGRAM_MS_MAX} ms"));
        }
    };
    let (output, errors) = (drain(child.stdout.take()), drain(child.stderr.take()));
    if status.success() { Ok(output.trim().to_owned()) } else { Err(errors.trim().to_owned()) }
}

fn wait(child: &mut Child) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + Duration::from_millis(PROGRAM_MS_MAX);
    while Instant::now() < deadline {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(PROGRAM_POLL_MS));
    }
    None
}

fn drain(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What could be read before an error is still the best there is to show.
        let _ = stream.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_memory() {
        assert!(memory_total().is_some_and(|total| total > Bytes::mib(64)));
    }

    #[test]
    fn this_host_can_be_read() {
        let place = PathBuf::from("/var/lib/tenantry-not-there");
        let wanted = Wanted { containers: 500, data_dir: place.clone(), pool: place.join("pool") };
        let facts = Facts::read(&wanted);
        assert!(facts.kernel.is_some() && facts.cgroup.is_some() && facts.disk_free.is_some());
        assert!(facts.memory_available.is_some() && facts.capabilities.is_some() && facts.pool.is_some());
        assert!(facts.sysctls.contains_key("kernel.pid_max"));
    }

    #[test]
    fn a_program_that_fails_says_why() {
        let failed = run(Command::new("sh").args(["-c", "cat >&2; exit 1"]), "no such thing");
        assert_eq!(failed, Err("no such thing".to_owned()));
        assert_eq!(run(Command::new("sh").args(["-c", "cat"]), "text\n"), Ok("text".to_owned()));
    }

    #[test]
    fn numbers_are_found_in_proc_files() {
        assert_eq!(kibibytes("MemFree: 1 kB\nMemAvailable:    2048 kB\n", "MemAvailable:"), Some(Bytes::mib(2)));
        assert_eq!(kibibytes("", "MemAvailable:"), None);
        assert_eq!(status_field("CapPrm:\t00ff\nCapEff:\t000001ffffffffff\n", "CapEff:"), Some("000001ffffffffff"));
    }
}
