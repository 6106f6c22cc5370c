//! The system calls a worker may make: those of an event loop that speaks TCP and reads files. Any other gives `EPERM`.
//!
//! What is not here is the point: no execve, no fork, no ptrace, no mount, no namespace, no signal to another process, no key, no
//! BPF, no io_uring, no socket but unix and IP ones.

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

/// Allowed whatever their arguments.
const ALLOWED: &[&str] = &[
    // Memory.
    "brk",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    // Threads, which look names up; making one has a rule of its own.
    "exit",
    "exit_group",
    "futex",
    "gettid",
    "getpid",
    "membarrier",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "restart_syscall",
    "tgkill",
    // Time and chance.
    "clock_getres",
    "clock_gettime",
    "clock_nanosleep",
    "getrandom",
    "gettimeofday",
    "nanosleep",
    // Waiting.
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_wait",
    "eventfd2",
    "pipe2",
    "poll",
    "ppoll",
    // Files; there are hardly any.
    "access",
    "close",
    "dup",
    "faccessat2",
    "fcntl",
    "fstat",
    "getcwd",
    "getdents64",
    "ioctl",
    "lseek",
    "lstat",
    "newfstatat",
    "open",
    "openat",
    "pread64",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "stat",
    "statx",
    "write",
    "writev",
    // Connections, outwards.
    "bind",
    "connect",
    "getpeername",
    "getsockname",
    "getsockopt",
    "recvfrom",
    "recvmmsg",
    "recvmsg",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "setsockopt",
    "shutdown",
    // Who and where it is.
    "getegid",
    "geteuid",
    "getgid",
    "getuid",
    "getrlimit",
    "prlimit64",
    "setrlimit",
    "sysinfo",
    "uname",
];

/// Address families of sockets.
const FAMILIES: [i32; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Closes the filter over this thread and all it makes; sets `no_new_privs`.
pub(super) fn close() -> Result<(), SeccompError> {
    let mut filter = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM))?;
    filter.set_ctl_optimize(2)?;
    for name in ALLOWED {
        // One that this libseccomp does not know stays refused.
        if let Ok(call) = ScmpSyscall::from_name(name) {
            filter.add_rule(ScmpAction::Allow, call)?;
        }
    }
    for family in FAMILIES {
        let is =
            ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(u64::from(u32::MAX)), u64::from(family.unsigned_abs()));
        filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("socket")?, &[is])?;
    }
    let unix = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(u64::from(u32::MAX)), libc::AF_UNIX as u64);
    filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("socketpair")?, &[unix])?;
    // `clone3` hides its flags behind a pointer; glibc falls back to `clone` where it seems not to exist.
    filter.add_rule(ScmpAction::Errno(libc::ENOSYS), ScmpSyscall::from_name("clone3")?)?;
    let thread = libc::CLONE_THREAD as u64;
    let is = ScmpArgCompare::new(0, ScmpCompareOp::MaskedEqual(thread), thread);
    filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("clone")?, &[is])?;
    let name = ScmpArgCompare::new(0, ScmpCompareOp::Equal, libc::PR_SET_NAME as u64);
    filter.add_rule_conditional(ScmpAction::Allow, ScmpSyscall::from_name("prctl")?, &[name])?;
    filter.load()
}
