//! What the daemon gives up before it does anything: a hole in it should open less than root.
//!
//! It stays powerful, since it makes containers; what it drops is what it never uses: loading modules, raw I/O, the clock, the
//! audit log, the kernel's log, reboots. Dropped from the bounding set, these are gone for whatever it starts as well, except inside
//! a user namespace, where none of them means anything to the host.
//!
//! Capabilities and `no_new_privs` belong to a thread, so this happens before there is a second one.

use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// What the daemon keeps, and what for.
const KEPT: [Capability; 19] = [
    // Links, addresses, routes, rules; BPF programs on sockets of its own are not among what it does.
    Capability::CAP_NET_ADMIN,
    // Ports of the API and the proxy below 1024.
    Capability::CAP_NET_BIND_SERVICE,
    // Sockets that speak for a tenant's address.
    Capability::CAP_NET_RAW,
    // Mounts, namespaces, BTRFS, control groups.
    Capability::CAP_SYS_ADMIN,
    // `pivot_root` and `chroot` of the helper.
    Capability::CAP_SYS_CHROOT,
    // Namespaces and limits of processes that other users own.
    Capability::CAP_SYS_PTRACE,
    // Limits above its own, quotas, negative OOM scores.
    Capability::CAP_SYS_RESOURCE,
    // The helper lowers what its children may have.
    Capability::CAP_SETPCAP,
    // Maps of user namespaces, and becoming their owner.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    Capability::CAP_SETFCAP,
    // Root filesystems: owners, modes, times, setuid bits of files that belong to any id.
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    // Loop devices and the nodes of a container's `/dev`.
    Capability::CAP_MKNOD,
    // Signals to tenants' processes.
    Capability::CAP_KILL,
    // Nice values of a container that its image asks for.
    Capability::CAP_SYS_NICE,
];
/// core(5): at this limit, and at no other, the kernel neither writes a core dump nor starts a program with one. The daemon's memory
/// holds every tenant's environment.
const CORE_BYTES: u64 = 1;
/// Tenants' processes go first when memory runs out, and the daemon, which cleans up after them, among the last.
const OOM_SCORE: &str = "-900";

/// Drops what is not needed, for this thread and all that it starts. Each step that the host refuses (inside a container, say) is
/// in the answer: the daemon is no worse for it than it was.
pub fn drop_unneeded() -> Vec<(&'static str, io::Error)> {
    let steps = [
        ("set no_new_privs", prctl::set_no_new_privs().map_err(io::Error::from)),
        ("become undumpable", prctl::set_dumpable(false).map_err(io::Error::from)),
        ("forbid core dumps", setrlimit(Resource::RLIMIT_CORE, CORE_BYTES, CORE_BYTES).map_err(io::Error::from)),
        ("lower its OOM score", std::fs::write("/proc/self/oom_score_adj", OOM_SCORE)),
        ("drop capabilities", drop_capabilities().map_err(io::Error::other)),
    ];
    steps.into_iter().filter_map(|(step, done)| Some((step, done.err()?))).collect()
}

fn drop_capabilities() -> Result<(), caps::errors::CapsError> {
    for capability in unneeded(&caps::read(None, CapSet::Bounding)?) {
        caps::drop(None, CapSet::Bounding, capability)?;
    }
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        let kept = caps::read(None, set)?.intersection(&KEPT.into()).copied().collect();
        caps::set(None, set, &kept)?;
    }
    Ok(())
}

fn unneeded(held: &CapsHashSet) -> CapsHashSet {
    held.difference(&KEPT.into()).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_that_we_ship_keeps_the_same() {
        let unit = include_str!("../../examples/systemd/tenantry.service");
        let lines = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let words: Result<CapsHashSet, _> = lines.flat_map(str::split_whitespace).map(str::parse).collect();
        assert_eq!(words.unwrap(), KEPT.into());
    }

    #[test]
    fn what_reaches_the_machine_itself_is_not_kept() {
        let dropped = unneeded(&caps::all());
        for capability in [
            Capability::CAP_SYS_MODULE,
            Capability::CAP_SYS_RAWIO,
            Capability::CAP_SYS_BOOT,
            Capability::CAP_SYS_TIME,
            Capability::CAP_SYSLOG,
            Capability::CAP_AUDIT_CONTROL,
            Capability::CAP_MAC_ADMIN,
        ] {
            assert!(dropped.contains(&capability), "{capability}");
        }
        assert!(!dropped.contains(&Capability::CAP_SYS_ADMIN));
        assert_eq!(dropped.len() + KEPT.len(), caps::all().len(), "one is named twice");
    }
}
