//! Seccomp: from the profile in the bundle to the BPF program that the kernel runs.
//!
//! Compiling is the largest cost of a start in other runtimes. Here it happens once per profile: the program is kept
//! in a file named by the profile's digest, and the helper loads those bytes with seccomp(2).
//!
//! The OCI form cannot say all that we want, so a hand-written head ([`head`]) stands before the compiled program.
//!
//! Only x86_64 is known; a call by another ABI ends the process.

mod head;

use std::fs;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator, LinuxSyscall,
};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::OciError;
use crate::domain::Confinement;

/// The profile of every container, as far as nothing more is opened.
const PROFILE: &str = include_str!("../../../bundles/seccomp.json");
/// What the other profiles open, and where that is written.
const OPENINGS: [(Confinement, &str, &str); 2] = [
    (Confinement::Nested, "bundles/confinement/nested.json", include_str!("../../../bundles/confinement/nested.json")),
    (
        Confinement::IoUring,
        "bundles/confinement/io-uring.json",
        include_str!("../../../bundles/confinement/io-uring.json"),
    ),
];
/// Part of the digest: goes up whenever the head below or the way of compiling changes.
const COMPILER_REVISION: &str = "tenantry-seccomp-2";
/// The kernel refuses longer programs (BPF_MAXINSNS).
const PROGRAM_INSTRUCTIONS_MAX: usize = 4096;
/// Bytes of one BPF instruction.
const INSTRUCTION_BYTES: usize = 8;

/// Names that Debian's libseccomp is too old for.
const NEWER: [(&str, i32); 12] = [
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("file_getattr", 468),
];

/// What a profile opens beyond the standard one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Opening {
    /// For people: what for, and what it costs.
    #[serde(rename = "description")]
    _description: String,
    /// Rules; each takes the place of all that the standard profile says of the calls it names.
    syscalls: Vec<LinuxSyscall>,
}

/// A profile we ship.
///
/// # Errors
/// A profile that does not parse; a test holds that all do.
pub fn profile(confinement: Confinement) -> Result<LinuxSeccomp, OciError> {
    let standard: LinuxSeccomp =
        serde_json::from_str(PROFILE).map_err(|e| OciError::Shipped("bundles/seccomp.json", e))?;
    match OPENINGS.iter().find(|(opened, ..)| *opened == confinement) {
        None => Ok(standard),
        Some((_, path, text)) => {
            let opening = serde_json::from_str(text).map_err(|e| OciError::Shipped(path, e))?;
            Ok(open(standard, opening))
        }
    }
}

fn open(mut profile: LinuxSeccomp, opening: Opening) -> LinuxSeccomp {
    let opened: Vec<&String> = opening.syscalls.iter().flat_map(LinuxSyscall::names).collect();
    let standard = profile.syscalls().iter().flatten().cloned().filter_map(|mut rule| {
        let kept: Vec<String> = rule.names().iter().filter(|name| !opened.contains(name)).cloned().collect();
        let any = !kept.is_empty();
        rule.set_names(kept);
        any.then_some(rule)
    });
    let rules = standard.chain(opening.syscalls.iter().cloned()).collect();
    profile.set_syscalls(Some(rules));
    profile
}

/// The compiled program of a profile, from the cache if it is there.
///
/// # Errors
/// A profile that libseccomp does not take, or a cache folder that cannot be written.
pub fn cached(cache: &Path, profile: &LinuxSeccomp) -> Result<Vec<u8>, OciError> {
    let path = cache.join(format!("{}.bpf", digest(profile)));
    match fs::read(&path) {
        Ok(program) if sound(&program) => return Ok(program),
        _ => {}
    }
    let program = compile(profile)?;
    store(cache, &path, &program)?;
    Ok(program)
}

/// Compiles a profile to the bytes of an array of `sock_filter`.
///
/// # Errors
/// A profile that libseccomp does not take.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<u8>, OciError> {
    let refused = |e: libseccomp::error::SeccompError| OciError::Seccomp(e.to_string());
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).map_err(refused)?;
    if !filter.is_arch_present(ScmpArch::X8664).map_err(refused)? {
        return Err(OciError::Seccomp("only x86_64 is supported".to_owned()));
    }
    // A binary tree: logarithmic where the plain form compares with three hundred numbers in turn.
    filter.set_ctl_optimize(2).map_err(refused)?;
    for rule in profile.syscalls().iter().flatten() {
        let verdict = action(rule.action(), rule.errno_ret())?;
        if verdict == default {
            continue;
        }
        let conditions = rule.args().iter().flatten().map(condition).collect::<Vec<_>>();
        for call in rule.names().iter().filter_map(|name| resolve(name)) {
            filter.add_rule_conditional(verdict, call, &conditions).map_err(refused)?;
        }
    }
    filter.set_act_badarch(ScmpAction::KillProcess).map_err(refused)?;
    let mut program = head::program();
    program.extend(export(&filter)?);
    if sound(&program) { Ok(program) } else { Err(OciError::Seccomp("the program is too long".to_owned())) }
}

fn sound(program: &[u8]) -> bool {
    let count = program.len() / INSTRUCTION_BYTES;
    program.len().is_multiple_of(INSTRUCTION_BYTES) && (1..=PROGRAM_INSTRUCTIONS_MAX).contains(&count)
}

fn digest(profile: &LinuxSeccomp) -> String {
    // The profile has no maps, so its JSON is the same at each run.
    let text = serde_json::to_vec(profile).unwrap_or_default();
    hex::encode(Sha256::new().chain_update(COMPILER_REVISION).chain_update(text).finalize())
}

/// Puts a program into the cache, whole or not at all: several helpers may do this at once.
fn store(cache: &Path, path: &Path, program: &[u8]) -> Result<(), OciError> {
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let io = |action, path: &Path| {
        let path: PathBuf = path.to_owned();
        move |source| OciError::Io { action, path, source }
    };
    fs::create_dir_all(cache).map_err(io("create", cache))?;
    fs::write(&draft, program).map_err(io("write", &draft))?;
    fs::rename(&draft, path).map_err(io("replace", path))
}

/// A name that neither libseccomp nor we know cannot be called on this machine by that name: it stays refused.
fn resolve(name: &str) -> Option<ScmpSyscall> {
    let newer = || NEWER.iter().find(|(known, _)| *known == name).map(|(_, number)| ScmpSyscall::from(*number));
    ScmpSyscall::from_name_by_arch(name, ScmpArch::X8664).ok().filter(|call| i32::from(*call) >= 0).or_else(newer)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, OciError> {
    let errno = i32::try_from(errno.unwrap_or(libc::EPERM as u32)).unwrap_or(libc::EPERM);
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        LinuxSeccompAction::ScmpActErrno => Ok(ScmpAction::Errno(errno)),
        LinuxSeccompAction::ScmpActKillProcess => Ok(ScmpAction::KillProcess),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => Ok(ScmpAction::KillThread),
        other => Err(OciError::Seccomp(format!("action {other} is not supported"))),
    }
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // In the OCI form `value` is the mask and `valueTwo` what must be left of the argument.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or_default())
        }
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, OciError> {
    let io = |source| OciError::Io { action: "write", path: PathBuf::from("memfd:seccomp"), source };
    let memory = memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC).map_err(|e| io(e.into()))?;
    filter.export_bpf(&memory).map_err(|e| OciError::Seccomp(e.to_string()))?;
    let mut file = fs::File::from(memory);
    file.flush().and_then(|()| file.rewind()).map_err(io)?;
    let mut program = Vec::new();
    file.read_to_end(&mut program).map_err(io)?;
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::head::opcodes::{AND, JUMP, JUMP_EQUAL, JUMP_NOT_BELOW};
    use super::head::{AUDIT_ARCH_X86_64, LOAD_WORD, RETURN, RETURN_ERRNO, SYSCALL_UNKNOWN_MIN, X32_BIT};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = RETURN_ERRNO | 1;
    const EINVAL: u32 = RETURN_ERRNO | 22;
    const ENOSYS: u32 = RETURN_ERRNO | 38;
    /// `SECCOMP_RET_ERRNO` without an error: the call is not made.
    const NOTHING: u32 = RETURN_ERRNO;

    /// Runs a program as the kernel would, over `struct seccomp_data`.
    fn verdict(program: &[u8], arch: u32, number: i64, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend((number as u32).to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let code: Vec<&[u8]> = program.chunks(INSTRUCTION_BYTES).collect();
        let (mut at, mut acc) = (0usize, 0u32);
        loop {
            let i = code[at];
            let k = u32::from_ne_bytes(i[4..8].try_into().unwrap());
            at += 1;
            let mut branch = |yes: bool| at += usize::from(if yes { i[2] } else { i[3] });
            match u16::from_ne_bytes([i[0], i[1]]) {
                LOAD_WORD => acc = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
                JUMP => at += k as usize,
                JUMP_EQUAL => branch(acc == k),
                JUMP_NOT_BELOW => branch(acc >= k),
                0x25 => branch(acc > k),
                0x45 => branch(acc & k != 0),
                AND => acc &= k,
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn answers(number: i64, args: [u64; 6]) -> u32 {
        answers_of(Confinement::Standard, number, args)
    }

    fn answers_of(confinement: Confinement, number: i64, args: [u64; 6]) -> u32 {
        verdict(&compile(&profile(confinement).unwrap()).unwrap(), AUDIT_ARCH_X86_64, number, args)
    }

    #[test]
    fn ordinary_calls_pass_and_dangerous_ones_do_not() {
        for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_futex, libc::SYS_fchmodat2, libc::SYS_epoll_wait] {
            assert_eq!(answers(number, [0; 6]), ALLOW, "call {number}");
        }
        let refused = [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_quotactl,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_acct,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_mount_setattr,
            libc::SYS_syslog,
        ];
        for number in refused {
            assert_eq!(answers(number, [0; 6]), EPERM, "call {number}");
        }
    }

    #[test]
    fn threads_and_forks_pass_but_new_namespaces_do_not() {
        let flags = |flags: i32| answers(libc::SYS_clone, [flags as u32 as u64, 0, 0, 0, 0, 0]);
        assert_eq!(flags(libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND), ALLOW);
        assert_eq!(flags(libc::SIGCHLD), ALLOW);
        for namespace in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWCGROUP] {
            assert_eq!(flags(namespace | libc::SIGCHLD), EPERM);
        }
        assert_eq!(answers(libc::SYS_clone3, [0; 6]), ENOSYS, "its flags lie in memory, out of a filter's sight");
        assert_eq!(answers(libc::SYS_io_setup, [0; 6]), ENOSYS, "its contexts have one bound for the whole host");
    }

    #[test]
    fn calls_newer_than_the_profile_seem_not_to_exist() {
        assert_eq!(answers(i64::from(SYSCALL_UNKNOWN_MIN), [0; 6]), ENOSYS);
        assert_eq!(answers(100_000, [0; 6]), ENOSYS);
        assert_eq!(answers(i64::from(SYSCALL_UNKNOWN_MIN) - 1, [0; 6]), EPERM, "file_setattr is known and refused");
    }

    /// A value of an `int` argument, and the same with a bit above that the kernel does not look at.
    fn both(value: u64) -> [u64; 2] {
        [value, value | 1 << 32]
    }

    #[test]
    fn refused_ioctls_cannot_be_reached_by_their_upper_half() {
        let ioctl = |request: u64| answers(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
        let (tcgets, clone_file, clone_range, dedupe) = (0x5401, 0x4004_9409, 0x4020_940d, 0xc018_9436);
        for request in [tcgets, clone_file, clone_range, dedupe] {
            assert_eq!(ioctl(request), ALLOW, "{request:#x}");
        }
        let terminals = [0x5412, 0x541c, 0x5423];
        let modules = [0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1];
        // SUBVOL_CREATE, its second form, SNAP_CREATE, SNAP_DESTROY, SUBVOL_SETFLAGS, SET_RECEIVED_SUBVOL, QUOTA_CTL, DEFRAG,
        // SPACE_INFO, TREE_SEARCH, SEND.
        let btrfs: [u64; 11] = [
            0x5000_940e,
            0x5000_9418,
            0x5000_9401,
            0x5000_940f,
            0x4008_941a,
            0xc0c8_9425,
            0xc010_9428,
            0x5000_9402,
            0xc010_9414,
            0xd000_9411,
            0x4048_9426,
        ];
        for request in terminals.into_iter().chain(modules).chain(btrfs).flat_map(both) {
            assert_eq!(ioctl(request), EPERM, "{request:#x}");
        }
    }

    #[test]
    fn programs_on_sockets_are_refused_and_other_options_pass() {
        let set = |level: u64, option: u64| answers(libc::SYS_setsockopt, [0, level, option, 0, 0, 0]);
        for option in [26, 50, 51, 52] {
            for (level, option) in both(1).into_iter().flat_map(|level| both(option).map(|option| (level, option))) {
                assert_eq!(set(level, option), EPERM, "{level:#x} {option:#x}");
            }
            assert_eq!(set(6, option), ALLOW, "the same number means another thing to TCP");
        }
        assert_eq!(set(1, 2), ALLOW);
    }

    #[test]
    fn the_limit_of_core_dumps_stays_as_it_is() {
        let core = u64::from(libc::RLIMIT_CORE);
        for resource in both(core) {
            assert_eq!(answers(libc::SYS_setrlimit, [resource, 1, 0, 0, 0, 0]), NOTHING);
            for new in [8, 8 << 32] {
                assert_eq!(answers(libc::SYS_prlimit64, [0, resource, new, 0, 0, 0]), NOTHING, "{new:#x}");
            }
            assert_eq!(answers(libc::SYS_prlimit64, [0, resource, 0, 8, 0, 0]), ALLOW, "it may be read");
        }
        assert_eq!(answers(libc::SYS_prlimit64, [0, 7, 8, 0, 0, 0]), ALLOW);
        assert_eq!(answers(libc::SYS_setrlimit, [7, 8, 0, 0, 0, 0]), ALLOW);
    }

    #[test]
    fn only_everyday_sockets_pass() {
        let socket =
            |family: i32, protocol: i32| answers(libc::SYS_socket, [family as u64, 1, protocol as u64, 0, 0, 0]);
        for (family, protocols) in [
            (libc::AF_UNIX, &[0][..]),
            (libc::AF_INET, &[0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMP, libc::IPPROTO_MPTCP]),
            (libc::AF_INET6, &[0, libc::IPPROTO_TCP, libc::IPPROTO_UDP, libc::IPPROTO_ICMPV6]),
            (libc::AF_NETLINK, &[libc::NETLINK_ROUTE, libc::NETLINK_KOBJECT_UEVENT]),
        ] {
            for protocol in protocols {
                assert_eq!(socket(family, *protocol), ALLOW, "{family} {protocol}");
            }
        }
        for family in [libc::AF_PACKET, libc::AF_ALG, libc::AF_VSOCK, libc::AF_RDS, libc::AF_KEY, libc::AF_TIPC] {
            assert_eq!(socket(family, 0), EPERM);
        }
        for (family, protocol) in [
            (libc::AF_INET, libc::IPPROTO_SCTP),
            (libc::AF_INET6, libc::IPPROTO_SCTP),
            (libc::AF_INET, libc::IPPROTO_DCCP),
            (libc::AF_NETLINK, libc::NETLINK_NETFILTER),
            (libc::AF_NETLINK, libc::NETLINK_XFRM),
            (libc::AF_NETLINK, libc::NETLINK_CRYPTO),
        ] {
            assert_eq!(socket(family, protocol), EPERM, "{family} {protocol}");
        }
        assert_eq!(socket(libc::AF_NETLINK, libc::NETLINK_AUDIT), EINVAL, "what logins take for a kernel without");
        let pair = |family: i32| answers(libc::SYS_socketpair, [family as u64, 1, 0, 0, 0, 0]);
        assert_eq!((pair(libc::AF_UNIX), pair(libc::AF_TIPC)), (ALLOW, EPERM));
    }

    #[test]
    fn other_abis_are_never_allowed() {
        let program = compile(&profile(Confinement::Standard).unwrap()).unwrap();
        let i386 = 0x4000_0003;
        assert_eq!(verdict(&program, i386, 0, [0; 6]), 0x8000_0000, "SECCOMP_RET_KILL_PROCESS");
        assert_ne!(verdict(&program, AUDIT_ARCH_X86_64, i64::from(X32_BIT), [0; 6]), ALLOW);
    }

    #[test]
    fn every_name_in_a_profile_has_a_number() {
        for profile in Confinement::ALL.map(|one| profile(one).unwrap()) {
            let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
            let unknown: Vec<_> = names.filter(|name| resolve(name).is_none()).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }

    #[test]
    fn a_profile_that_opens_more_opens_that_alone() {
        let namespace = [(libc::CLONE_NEWUSER | libc::SIGCHLD) as u64, 0, 0, 0, 0, 0];
        let changed = |confinement| {
            let of = |one, call| answers_of(one, call, namespace);
            (0..470).filter(|call| of(confinement, *call) != of(Confinement::Standard, *call)).collect::<Vec<i64>>()
        };
        assert_eq!(
            changed(Confinement::IoUring),
            [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register]
        );
        let nested = changed(Confinement::Nested);
        for call in [libc::SYS_clone, libc::SYS_unshare, libc::SYS_setns, libc::SYS_mount, libc::SYS_pivot_root] {
            assert!(nested.contains(&call), "{call}");
        }
        for call in [libc::SYS_clone3, libc::SYS_bpf, libc::SYS_io_uring_setup, libc::SYS_open_by_handle_at] {
            assert!(!nested.contains(&call), "{call}");
        }
        assert_eq!(nested.len(), 15);
    }

    #[test]
    fn a_torn_cache_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profile(Confinement::Standard).unwrap();
        let fresh = cached(dir.path(), &profile).unwrap();
        let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        fs::write(&file, &fresh[..13]).unwrap();
        assert_eq!(cached(dir.path(), &profile).unwrap(), fresh);
        assert_eq!(fs::read(&file).unwrap(), fresh);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a draft was left");
    }
}
