//! Seccomp: from the profile in the bundle to the BPF program that the kernel runs.
//!
//! Compiling is the largest cost of a start in other runtimes. Here it happens once per profile: the program is kept
//! in a file named by the profile's digest, and the helper loads those bytes with seccomp(2).
//!
//! The OCI form cannot say two things that we want, so a short hand-written head stands before the compiled program:
//!
//! * System calls newer than the profile give `ENOSYS`, so that libraries fall back as on an old kernel; `EPERM`,
//!   the answer to what is known and refused, breaks them.
//! * A few `ioctl`s are refused by number. libseccomp has no "all but these" for an argument, and an argument is
//!   64 bits wide in BPF while the kernel takes 32 of an ioctl's: the head looks at those 32.
//!
//! Only x86_64 is known; a call by another ABI ends the process.

use std::fs;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};
use sha2::{Digest, Sha256};

use super::OciError;

/// The profile of every container.
const PROFILE: &str = include_str!("../../../bundles/seccomp.json");
/// Part of the digest: goes up whenever the head below or the way of compiling changes.
const COMPILER_REVISION: &str = "tenantry-seccomp-1";
/// The first system call that the profile knows nothing of (468 and 469 are `file_getattr` and `file_setattr`).
const SYSCALL_UNKNOWN_MIN: u32 = 470;
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

/// `ioctl`s that no tenant may call. BTRFS: a nested subvolume is in no snapshot and in no other's quota, and a rootfs
/// that its tenant turned read-only or marked as received can be neither started nor copied.
const IOCTLS_DENIED: [u32; 12] = [
    0x5412,      // TIOCSTI: types into a terminal
    0x541c,      // TIOCLINUX: the same for consoles
    0x5000_940e, // BTRFS_IOC_SUBVOL_CREATE
    0x5000_9418, // BTRFS_IOC_SUBVOL_CREATE_V2
    0x5000_9401, // BTRFS_IOC_SNAP_CREATE
    0x5000_9417, // BTRFS_IOC_SNAP_CREATE_V2
    0x5000_940f, // BTRFS_IOC_SNAP_DESTROY
    0x5000_943f, // BTRFS_IOC_SNAP_DESTROY_V2
    0x4008_941a, // BTRFS_IOC_SUBVOL_SETFLAGS
    0xc0c8_9425, // BTRFS_IOC_SET_RECEIVED_SUBVOL
    0xc010_9428, // BTRFS_IOC_QUOTA_CTL
    0x8030_942b, // BTRFS_IOC_QGROUP_LIMIT
];

/// The profile we ship.
///
/// # Errors
/// A profile that does not parse; a test holds that it does.
pub fn profile() -> Result<LinuxSeccomp, OciError> {
    serde_json::from_str(PROFILE).map_err(|e| OciError::Shipped("bundles/seccomp.json", e))
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
    let mut program = head();
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

/// One classic BPF instruction (`struct sock_filter`).
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_NOT_BELOW: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const RETURN_ERRNO: u32 = 0x0005_0000; // SECCOMP_RET_ERRNO
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`: the number, the ABI, the low half of the second argument.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARG1_LOW: u32 = 24;

/// What stands before the compiled program; see the module's description. Every path that does not return ends
/// right behind the last instruction, which is the first of the compiled program.
fn head() -> Vec<u8> {
    let denied = IOCTLS_DENIED.len() as u8;
    // Distances to what stands at the end: [jump past][ENOSYS][EPERM].
    let (from_arch, from_x32, from_unknown, from_ioctl) = (denied + 8, denied + 6, denied + 3, denied + 4);
    let op = |code, jump_true, jump_false, k| Instruction { code, jump_true, jump_false, k };
    let mut program = vec![
        op(LOAD_WORD, 0, 0, OFFSET_ARCH),
        op(JUMP_EQUAL, 0, from_arch, AUDIT_ARCH_X86_64),
        op(LOAD_WORD, 0, 0, OFFSET_NUMBER),
        op(JUMP_NOT_BELOW, from_x32, 0, X32_BIT),
        op(JUMP_NOT_BELOW, from_unknown, 0, SYSCALL_UNKNOWN_MIN),
        op(JUMP_EQUAL, 0, from_ioctl, libc::SYS_ioctl as u32),
        op(LOAD_WORD, 0, 0, OFFSET_ARG1_LOW),
    ];
    program.extend(
        IOCTLS_DENIED.iter().zip((0..denied).rev()).map(|(request, left)| op(JUMP_EQUAL, left + 2, 0, *request)),
    );
    program.push(op(JUMP, 0, 0, 2));
    program.push(op(RETURN, 0, 0, RETURN_ERRNO | libc::ENOSYS as u32));
    program.push(op(RETURN, 0, 0, RETURN_ERRNO | libc::EPERM as u32));
    program.iter().flat_map(|i| encode(*i)).collect()
}

fn encode(instruction: Instruction) -> [u8; INSTRUCTION_BYTES] {
    let (code, k) = (instruction.code.to_ne_bytes(), instruction.k.to_ne_bytes());
    [code[0], code[1], instruction.jump_true, instruction.jump_false, k[0], k[1], k[2], k[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = RETURN_ERRNO | 1;
    const ENOSYS: u32 = RETURN_ERRNO | 38;

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
                0x54 => acc &= k,
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn answers(number: i64, args: [u64; 6]) -> u32 {
        verdict(&compile(&profile().unwrap()).unwrap(), AUDIT_ARCH_X86_64, number, args)
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
    }

    #[test]
    fn calls_newer_than_the_profile_seem_not_to_exist() {
        assert_eq!(answers(i64::from(SYSCALL_UNKNOWN_MIN), [0; 6]), ENOSYS);
        assert_eq!(answers(100_000, [0; 6]), ENOSYS);
        assert_eq!(answers(i64::from(SYSCALL_UNKNOWN_MIN) - 1, [0; 6]), EPERM, "file_setattr is known and refused");
    }

    #[test]
    fn denied_ioctls_cannot_be_reached_by_their_upper_half() {
        let ioctl = |request: u64| answers(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
        assert_eq!(ioctl(0x5401), ALLOW);
        for request in IOCTLS_DENIED.map(u64::from) {
            assert_eq!(ioctl(request), EPERM, "{request:#x}");
            assert_eq!(ioctl(request | 1 << 32), EPERM, "{request:#x} with a bit above");
        }
    }

    #[test]
    fn only_everyday_socket_families_pass() {
        let socket = |family: i32| answers(libc::SYS_socket, [family as u64, 0, 0, 0, 0, 0]);
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK] {
            assert_eq!(socket(family), ALLOW);
        }
        for family in [libc::AF_PACKET, libc::AF_ALG, libc::AF_VSOCK, libc::AF_RDS] {
            assert_eq!(socket(family), EPERM);
        }
    }

    #[test]
    fn other_abis_are_never_allowed() {
        let program = compile(&profile().unwrap()).unwrap();
        let i386 = 0x4000_0003;
        assert_eq!(verdict(&program, i386, 0, [0; 6]), 0, "SECCOMP_RET_KILL_THREAD");
        assert_ne!(verdict(&program, AUDIT_ARCH_X86_64, i64::from(X32_BIT), [0; 6]), ALLOW);
    }

    #[test]
    fn every_name_in_the_profile_has_a_number() {
        let profile = profile().unwrap();
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        let unknown: Vec<_> = names.filter(|name| resolve(name).is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn a_torn_cache_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let profile = profile().unwrap();
        let fresh = cached(dir.path(), &profile).unwrap();
        let file = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        fs::write(&file, &fresh[..13]).unwrap();
        assert_eq!(cached(dir.path(), &profile).unwrap(), fresh);
        assert_eq!(fs::read(&file).unwrap(), fresh);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a draft was left");
    }
}
