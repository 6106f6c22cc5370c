//! What the facts mean for the containers that are wanted. Pure.

use crate::domain::Bytes;
use crate::sys::cgroup::Version;

use super::facts::{Facts, PoolPlace};
use super::{Finding, Status, Wanted};

/// Below this, a BTRFS filesystem cannot be mounted idmapped: no container can run.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// Below this, BTRFS has no simple quotas: no disk limit can be kept.
const KERNEL_QUOTA: (u32, u32) = (6, 7);

/// Room below which the first image and a few containers do not fit.
const DISK_FREE_MIN: Bytes = Bytes::gib(1);

/// Room below which a host for paying customers is nearly full.
const DISK_FREE_GOOD: Bytes = Bytes::gib(5);

/// Memory below which starts are likely to fail.
const MEMORY_MIN: Bytes = Bytes::mib(256);

/// `CAP_SYS_ADMIN` and `CAP_NET_ADMIN` (linux/capability.h): a root without them is a container's root.
const CAPABILITIES: [(&str, u32); 2] = [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];

/// Open files of the daemon: a pidfd, two logs and some proxied connections a container.
const OPEN_FILES_PER_CONTAINER: u64 = 20;

/// Open files of the daemon whatever runs.
const OPEN_FILES_BASE: u64 = 1_024;

/// The least a kernel-wide number may be.
struct Floor {
    sysctl: &'static str,
    per_container: u64,
    base: u64,
    /// Below it: fewer containers than wanted, or none at all.
    status: Status,
    why: &'static str,
}

const fn floor(sysctl: &'static str, per_container: u64, base: u64, why: &'static str) -> Floor {
    Floor { sysctl, per_container, base, status: Status::Warn, why }
}

/// Tenants' use of an id-mapped user's quota is charged to the namespace's owner as well, root; and the neighbour
/// table is one for all network namespaces. So these are sums over all containers.
const FLOORS: [Floor; 18] = [
    floor("fs.aio-max-nr", 128, 0, "databases that use asynchronous I/O fail to start"),
    floor("fs.file-max", 256, 8_192, "opening files fails everywhere"),
    floor("fs.inotify.max_user_instances", 4, 128, "file watching in tenants fails (EMFILE)"),
    floor("fs.inotify.max_user_watches", 64, 8_192, "file watching in tenants fails (ENOSPC)"),
    floor("fs.nr_open", OPEN_FILES_PER_CONTAINER, OPEN_FILES_BASE, "the daemon cannot raise its limit of open files"),
    floor("kernel.keys.root_maxkeys", 2, 200, "starts fail for want of a session keyring (EDQUOT)"),
    floor("kernel.keys.root_maxbytes", 100, 20_000, "starts fail for want of a session keyring (EDQUOT)"),
    floor("kernel.pid_max", 32, 1_024, "forking fails everywhere"),
    floor("kernel.threads-max", 32, 1_024, "forking fails everywhere"),
    floor("net.ipv4.neigh.default.gc_thresh3", 4, 256, "the neighbour table overflows and tenants lose packets"),
    floor(
        "net.netfilter.nf_conntrack_max",
        256,
        65_536,
        "a full table of flows drops every new connection, tenants' and the host's",
    ),
    floor("user.max_cgroup_namespaces", 2, 16, "starts fail for want of a namespace (ENOSPC)"),
    floor("user.max_ipc_namespaces", 2, 16, "starts fail for want of a namespace (ENOSPC)"),
    floor("user.max_mnt_namespaces", 2, 16, "starts fail for want of a namespace (ENOSPC)"),
    floor("user.max_net_namespaces", 2, 16, "starts fail for want of a namespace (ENOSPC)"),
    floor("user.max_pid_namespaces", 2, 16, "starts fail for want of a namespace (ENOSPC)"),
    Floor {
        sysctl: "user.max_user_namespaces",
        per_container: 2,
        base: 16,
        status: Status::Fail,
        why: "starts fail for want of a user namespace (ENOSPC)",
    },
    floor("user.max_uts_namespaces", 2, 16, "starts fail for want of a namespace (ENOSPC)"),
];

/// Judges every fact; the order is that of the report.
pub fn judge(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = vec![
        root(facts),
        kernel(facts.kernel.as_deref()),
        btrfs(facts),
        simple_quota(facts),
        pool(facts, wanted),
        cgroup(facts),
        swap(facts),
        firewall(facts),
        seccomp(facts),
        user_namespaces(facts),
        busybox(facts),
        disk(facts.disk_free, wanted),
        memory(facts.memory_available),
        forwarding(facts),
        source_check(facts),
        open_files(facts.open_files, wanted.containers),
    ];
    findings.extend(FLOORS.iter().map(|floor| sysctl(floor, facts, wanted.containers)));
    findings
}

fn root(facts: &Facts) -> Finding {
    let held = facts.capabilities.unwrap_or(0);
    let missing: Vec<_> = CAPABILITIES.iter().filter(|(_, bit)| held >> bit & 1 == 0).map(|(name, _)| *name).collect();
    if !facts.is_root {
        Finding::fail("root", "this process is not root's", "run it as root")
    } else if missing.is_empty() {
        Finding::ok("root", "root with all capabilities needed")
    } else {
        let found = format!("root without {}", missing.join(", "));
        Finding::fail("root", found, "run it on the host itself, or in a privileged container")
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: Option<&str>) -> Finding {
    let mend = "install a newer kernel: Debian 13 and Ubuntu 24.04 have one";
    let found = format!("Linux {}", release.unwrap_or("of unknown version"));
    match release.and_then(version) {
        None => Finding::warn("kernel", found, mend),
        Some(version) if version < KERNEL_MIN => {
            let found = format!("{found}, below {}.{}: no idmapped BTRFS mounts", KERNEL_MIN.0, KERNEL_MIN.1);
            Finding::fail("kernel", found, mend)
        }
        Some(_) => Finding::ok("kernel", found),
    }
}

fn btrfs(facts: &Facts) -> Finding {
    if facts.btrfs {
        Finding::ok("btrfs", "the kernel has BTRFS")
    } else {
        Finding::fail("btrfs", "the kernel has no BTRFS", "install a kernel with it: every distribution's own has it")
    }
}

fn simple_quota(facts: &Facts) -> Finding {
    let by_version = || facts.kernel.as_deref().and_then(version).is_some_and(|version| version >= KERNEL_QUOTA);
    if facts.simple_quota.unwrap_or_else(by_version) {
        Finding::ok("simple quotas", "disk limits are kept")
    } else {
        let found = "this kernel's BTRFS has no simple quotas: disk limits are refused";
        Finding::warn("simple quotas", found, "install Linux 6.7 or newer: Debian 13 and Ubuntu 24.04 have one")
    }
}

fn pool(facts: &Facts, wanted: &Wanted) -> Finding {
    let place = wanted.pool.display();
    match facts.pool {
        Some(PoolPlace::Btrfs) => Finding::ok("pool", format!("{place} is on BTRFS")),
        _ if !facts.loop_control => {
            let found = format!("{place} is not BTRFS, and there are no loop devices to make one in a file");
            Finding::fail("pool", found, "modprobe loop, or set pool.path to a folder on BTRFS")
        }
        _ if !facts.programs.contains_key("mkfs.btrfs") => {
            let found = format!("{place} is not BTRFS, and there is no mkfs.btrfs to make one in a file");
            Finding::fail("pool", found, "apt-get install btrfs-progs, or set pool.path to a folder on BTRFS")
        }
        _ => Finding::ok("pool", format!("{place} is not BTRFS: `serve` makes a loop-mounted file beside it")),
    }
}

fn cgroup(facts: &Facts) -> Finding {
    let has = |name: &str| facts.controllers.iter().any(|held| held == name);
    let missing = |names: &[&str]| names.iter().filter(|name| !has(name)).copied().collect::<Vec<_>>().join(", ");
    let held = facts.controllers.join(", ");
    match facts.cgroup {
        None => Finding::fail("cgroup", "no cgroup hierarchy is mounted", "mount -t cgroup2 none /sys/fs/cgroup"),
        Some(Version::V1) => {
            let missing = missing(&["cpu", "cpuset", "devices", "freezer", "memory", "pids"]);
            let mend = "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
            if missing.is_empty() {
                let found = format!("v1 with {held}; disk write rates hold for direct writes only");
                Finding::warn("cgroup", found, mend)
            } else {
                Finding::fail("cgroup", format!("v1 without {missing}"), mend)
            }
        }
        Some(Version::V2) => {
            let (missing, without_io) = (missing(&["cpu", "memory", "pids"]), !has("io"));
            if !missing.is_empty() {
                let mend = "take cgroup_disable= off the kernel's command line, or have the controllers delegated";
                Finding::fail("cgroup", format!("v2 without {missing}"), mend)
            } else if without_io {
                let mend = "use a kernel with CONFIG_BLK_CGROUP";
                Finding::warn("cgroup", "v2 without io: disk rates are refused", mend)
            } else {
                Finding::ok("cgroup", format!("v2 with {held}"))
            }
        }
    }
}

fn swap(facts: &Facts) -> Finding {
    match facts.swap {
        Some(swap) if swap.0 > 0 && !facts.swap_accounted && facts.cgroup == Some(Version::V1) => {
            let found = format!("{swap} of swap, which the memory controller does not count");
            Finding::warn("swap", found, "boot with swapaccount=1 on the kernel's command line, or swapoff -a")
        }
        Some(swap) if swap.0 > 0 => Finding::ok("swap", format!("{swap}, closed to tenants")),
        _ => Finding::ok("swap", "none"),
    }
}

fn firewall(facts: &Facts) -> Finding {
    match (&facts.nft, &facts.nft_table) {
        (Some(nft), Some(Ok(()))) => Finding::ok("nftables", nft.clone()),
        (Some(nft), Some(Err(answer))) => {
            let answer = answer.lines().next().unwrap_or("no reason given");
            let found = format!("{nft} cannot make a table: {answer}");
            Finding::fail("nftables", found, "run as root, on a kernel with CONFIG_NF_TABLES_INET")
        }
        _ => Finding::fail("nftables", "no working nft program", "apt-get install nftables"),
    }
}

fn seccomp(facts: &Facts) -> Finding {
    let needed = ["allow", "errno", "kill_process"];
    if needed.iter().all(|action| facts.seccomp_actions.iter().any(|held| held == action)) {
        Finding::ok("seccomp", "filters with all actions needed")
    } else {
        let held = facts.seccomp_actions.join(", ");
        Finding::fail("seccomp", format!("actions: {held}"), "use a kernel with CONFIG_SECCOMP_FILTER")
    }
}

fn user_namespaces(facts: &Facts) -> Finding {
    if facts.user_namespaces {
        Finding::ok("user namespaces", "the kernel has them")
    } else {
        Finding::fail("user namespaces", "the kernel has none", "use a kernel with CONFIG_USER_NS")
    }
}

fn busybox(facts: &Facts) -> Finding {
    match facts.programs.get("busybox") {
        Some(path) => Finding::ok("busybox", path.display().to_string()),
        None => {
            let found = "none: the built-in image `base` cannot be made";
            Finding::warn("busybox", found, "apt-get install busybox-static")
        }
    }
}

fn disk(free: Option<Bytes>, wanted: &Wanted) -> Finding {
    let place = wanted.data_dir.display();
    let mend = format!("free some room there, or set data_dir to another place than {place}");
    match free {
        None => Finding::warn("disk", format!("the room at {place} cannot be read"), mend),
        Some(free) if free < DISK_FREE_MIN => Finding::fail("disk", format!("{} free at {place}", short(free)), mend),
        Some(free) if free < DISK_FREE_GOOD => Finding::warn("disk", format!("{} free at {place}", short(free)), mend),
        Some(free) => Finding::ok("disk", format!("{} free at {place}", short(free))),
    }
}

fn memory(available: Option<Bytes>) -> Finding {
    match available {
        Some(available) if available < MEMORY_MIN => {
            Finding::warn("memory", format!("{} available", short(available)), "stop something, or add memory")
        }
        Some(available) => Finding::ok("memory", format!("{} available", short(available))),
        None => Finding::warn("memory", "cannot be read", "mount /proc"),
    }
}

/// For people: whole MiB, rounded down.
fn short(bytes: Bytes) -> String {
    if bytes >= Bytes::gib(10) { format!("{} GiB", bytes.0 >> 30) } else { format!("{} MiB", bytes.0 >> 20) }
}

fn forwarding(facts: &Facts) -> Finding {
    match facts.sysctls.get("net.ipv4.ip_forward") {
        Some(0) if facts.forwarding_can_be_set => Finding::ok("net.ipv4.ip_forward", "off: `serve` turns it on"),
        Some(0) => {
            let found = "off, and cannot be switched on here: tenants would reach nothing";
            Finding::fail(
                "net.ipv4.ip_forward",
                found,
                "sysctl -w net.ipv4.ip_forward=1, where /proc/sys can be written",
            )
        }
        Some(_) => Finding::ok("net.ipv4.ip_forward", "on"),
        None => Finding::fail("net.ipv4.ip_forward", "cannot be read", "use a kernel with IPv4"),
    }
}

/// The kernel goes by the higher one of `all` and the link's own, which is 1: a 2 here makes the links' check of sources loose.
fn source_check(facts: &Facts) -> Finding {
    const CHECK: &str = "net.ipv4.conf.all.rp_filter";
    match facts.sysctls.get(CHECK) {
        Some(2) => {
            let found = "2: the links let a tenant's forged sources through to the firewall, which alone drops them";
            Finding::warn(
                CHECK,
                found,
                format!("sysctl -w {CHECK}=1, or 0, and the same line in /etc/sysctl.d/tenantry.conf"),
            )
        }
        Some(value) => Finding::ok(CHECK, format!("{value}: the links check their own sources")),
        None => Finding::fail(CHECK, "cannot be read", "use a kernel with IPv4"),
    }
}

fn open_files(limit: Option<u64>, containers: u32) -> Finding {
    let need = OPEN_FILES_BASE + OPEN_FILES_PER_CONTAINER * u64::from(containers);
    match limit {
        Some(limit) if limit >= need => Finding::ok("open files", format!("at most {limit}")),
        limit => {
            let found = format!("at most {}, {need} wanted for {containers} containers", limit.unwrap_or(0));
            Finding::warn("open files", found, "LimitNOFILE=1048576 in the service, or ulimit -Hn 1048576")
        }
    }
}

fn sysctl(floor: &Floor, facts: &Facts, containers: u32) -> Finding {
    let need = floor.base + floor.per_container * u64::from(containers);
    match facts.sysctls.get(floor.sysctl) {
        Some(value) if *value >= need => Finding::ok(floor.sysctl, value.to_string()),
        // A kernel without the feature has no limit of it either; what needs the feature fails elsewhere.
        None => Finding::ok(floor.sysctl, "not there"),
        Some(value) => Finding {
            check: floor.sysctl,
            status: floor.status,
            found: format!("{value}, {need} wanted for {containers} containers: {}", floor.why),
            mend: Some(format!("sysctl -w {}={need}, and the same line in /etc/sysctl.d/tenantry.conf", floor.sysctl)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::host::SYSCTLS;

    fn wanted() -> Wanted {
        Wanted { containers: 500, data_dir: "/var/lib/tenantry".into(), pool: "/var/lib/tenantry/pool".into() }
    }

    fn good() -> Facts {
        Facts {
            is_root: true,
            capabilities: Some(0x1ff_ffff_ffff),
            kernel: Some("6.12.117+deb13-cloud-amd64".to_owned()),
            btrfs: true,
            simple_quota: Some(true),
            pool: Some(PoolPlace::Other),
            loop_control: true,
            cgroup: Some(Version::V2),
            controllers: ["cpu", "io", "memory", "pids"].map(str::to_owned).to_vec(),
            swap_accounted: true,
            swap: Some(Bytes(0)),
            nft: Some("nftables v1.1.3".to_owned()),
            nft_table: Some(Ok(())),
            programs: ["nft", "busybox", "mkfs.btrfs"].map(|name| (name, name.into())).into_iter().collect(),
            user_namespaces: true,
            open_files: Some(1 << 20),
            sysctls: SYSCTLS.into_iter().map(|name| (name, 1 << 40)).collect(),
            forwarding_can_be_set: true,
            seccomp_actions: ["kill_process", "errno", "allow"].map(str::to_owned).to_vec(),
            disk_free: Some(Bytes::gib(100)),
            memory_available: Some(Bytes::gib(8)),
        }
    }

    type Change = fn(&mut Facts);

    fn set(facts: &mut Facts, sysctl: &'static str, value: u64) {
        facts.sysctls.insert(sysctl, value);
    }

    /// The one finding that a change of a good host makes.
    fn only(change: impl FnOnce(&mut Facts)) -> Finding {
        let mut facts = good();
        change(&mut facts);
        let mut bad: Vec<_> = judge(&facts, &wanted()).into_iter().filter(|f| f.status != Status::Ok).collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        bad.remove(0)
    }

    #[test]
    fn a_good_host_has_nothing_to_mend() {
        let findings = judge(&good(), &wanted());
        assert!(findings.iter().all(|f| f.status == Status::Ok && f.mend.is_none()), "{findings:?}");
        let mut checks: Vec<_> = findings.iter().map(|f| f.check).collect();
        checks.sort_unstable();
        checks.dedup();
        assert_eq!(checks.len(), findings.len(), "a check is named twice");
    }

    #[test]
    fn every_floor_is_a_sysctl_that_is_read() {
        for floor in &FLOORS {
            assert!(SYSCTLS.contains(&floor.sysctl), "{} is never read", floor.sysctl);
        }
    }

    #[test]
    fn what_no_container_can_do_without_is_a_failure() {
        let changes: [(&str, Change); 13] = [
            ("root", |f| f.is_root = false),
            ("root", |f| f.capabilities = Some(1 << 12)),
            ("kernel", |f| f.kernel = Some("5.10.0-28-amd64".to_owned())),
            ("btrfs", |f| f.btrfs = false),
            ("pool", |f| f.loop_control = false),
            ("pool", |f| drop(f.programs.remove("mkfs.btrfs"))),
            ("cgroup", |f| f.cgroup = None),
            ("cgroup", |f| f.controllers.retain(|name| name != "memory")),
            ("nftables", |f| f.nft = None),
            ("nftables", |f| f.nft_table = Some(Err("Operation not permitted".to_owned()))),
            ("seccomp", |f| f.seccomp_actions.clear()),
            ("net.ipv4.ip_forward", |f| {
                set(f, "net.ipv4.ip_forward", 0);
                f.forwarding_can_be_set = false;
            }),
            ("user.max_user_namespaces", |f| set(f, "user.max_user_namespaces", 0)),
        ];
        for (check, change) in changes {
            let finding = only(change);
            assert_eq!((finding.check, finding.status), (check, Status::Fail), "{finding:?}");
            assert!(finding.mend.is_some(), "{check} has no way to mend it");
        }
    }

    #[test]
    fn what_only_some_promises_need_is_a_warning() {
        let changes: [(&str, Change); 9] = [
            ("simple quotas", |f| f.simple_quota = Some(false)),
            ("cgroup", |f| f.controllers.retain(|name| name != "io")),
            ("busybox", |f| drop(f.programs.remove("busybox"))),
            ("disk", |f| f.disk_free = Some(Bytes::gib(3))),
            ("memory", |f| f.memory_available = Some(Bytes::mib(100))),
            ("open files", |f| f.open_files = Some(4_096)),
            ("net.ipv4.conf.all.rp_filter", |f| set(f, "net.ipv4.conf.all.rp_filter", 2)),
            ("net.netfilter.nf_conntrack_max", |f| set(f, "net.netfilter.nf_conntrack_max", 65_536)),
            ("kernel.pid_max", |f| set(f, "kernel.pid_max", 4_096)),
        ];
        for (check, change) in changes {
            let finding = only(change);
            assert_eq!((finding.check, finding.status), (check, Status::Warn), "{finding:?}");
        }
    }

    #[test]
    fn a_pool_on_btrfs_needs_neither_loop_nor_mkfs() {
        let mut facts = Facts { pool: Some(PoolPlace::Btrfs), loop_control: false, ..good() };
        facts.programs.remove("mkfs.btrfs");
        assert!(judge(&facts, &wanted()).iter().all(|f| f.status == Status::Ok));
    }

    #[test]
    fn uncounted_swap_is_told_on_v1() {
        let mut facts = Facts { cgroup: Some(Version::V1), swap: Some(Bytes::gib(1)), swap_accounted: false, ..good() };
        facts.controllers.extend(["cpuset", "devices", "freezer"].map(str::to_owned));
        let findings = judge(&facts, &wanted());
        let warned: Vec<_> = findings.iter().filter(|f| f.status == Status::Warn).map(|f| f.check).collect();
        assert_eq!(warned, ["cgroup", "swap"]);
    }

    #[test]
    fn quotas_of_a_kernel_that_has_not_loaded_btrfs_go_by_its_version() {
        let status = |release: &str| {
            let facts = Facts { simple_quota: None, kernel: Some(release.to_owned()), ..good() };
            simple_quota(&facts).status
        };
        assert_eq!(status("6.7.0"), Status::Ok);
        assert_eq!(status("6.6.99-rc1"), Status::Warn);
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("six"), None);
    }

    #[test]
    fn a_sysctl_that_is_too_low_says_what_to_write_for_how_many_containers() {
        let finding = only(|f| set(f, "net.ipv4.neigh.default.gc_thresh3", 1_024));
        assert_eq!(
            finding.mend.unwrap(),
            "sysctl -w net.ipv4.neigh.default.gc_thresh3=2256, and the same line in /etc/sysctl.d/tenantry.conf"
        );
        assert!(finding.found.starts_with("1024, 2256 wanted for 500 containers"), "{}", finding.found);
    }
}
