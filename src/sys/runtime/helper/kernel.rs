//! The system calls the helper needs that have no safe wrapper in our dependencies.
#![allow(unsafe_code)] // Each block says why it is sound.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::{ForkResult, Pid};

/// Who we are after a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The forked process.
    Child,
    /// The forking one.
    Parent(Pid),
}

/// fork(2) of the helper.
pub fn fork() -> io::Result<Fork> {
    // SAFETY: the helper has a single thread (it is entered before any is made and makes none), so the child's
    // memory, locks included, is in a state that a running program may go on from.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Fork::Child),
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
    }
}

/// Ends a forked process at once, without running what the parent registered for its own end.
pub fn exit_child(status: i32) -> ! {
    // SAFETY: _exit(2) touches no memory of ours.
    unsafe { libc::_exit(status) }
}

/// A detached copy of the mount that `path` is on, with `path` as its root.
pub fn open_tree(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    check(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Sets attributes of a detached mount, and maps its ids through a user namespace where one is given.
pub fn set_attributes(tree: &OwnedFd, attributes: u64, user_namespace: Option<&OwnedFd>) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: attributes | user_namespace.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let (path, flags) = (c"", libc::AT_EMPTY_PATH);
    let size = std::mem::size_of::<libc::mount_attr>();
    // SAFETY: `wanted` is a `struct mount_attr` of exactly `size` bytes, `path` an empty string; both outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree.as_raw_fd(), path.as_ptr(), flags, &raw const wanted, size)
    };
    check(done)
}

/// Attaches a detached mount.
pub fn move_mount(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
    // SAFETY: both strings are NUL-terminated and outlive the call.
    let done = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), flags)
    };
    check(done)
}

/// Loads a seccomp program for this process and all it becomes. It must be a sound array of `sock_filter`.
pub fn load_seccomp(program: &[u8]) -> io::Result<()> {
    const INSTRUCTION_BYTES: usize = std::mem::size_of::<libc::sock_filter>();
    let mut filters: Vec<libc::sock_filter> = program
        .chunks_exact(INSTRUCTION_BYTES)
        .map(|i| libc::sock_filter {
            code: u16::from_ne_bytes([i[0], i[1]]),
            jt: i[2],
            jf: i[3],
            k: u32::from_ne_bytes([i[4], i[5], i[6], i[7]]),
        })
        .collect();
    let len = u16::try_from(filters.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: filters.as_mut_ptr() };
    // SAFETY: `program` points to `len` instructions in `filters`, which outlives the call; the kernel checks them.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    check(done)
}

/// Leaves the session keyring that was inherited for a new, empty one, which nothing else can reach.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is handed over.
    let joined = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    });
    match joined {
        // A kernel without keys has none to separate.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined,
    }
}

/// Marks every descriptor from 3 on to be closed by execve.
pub fn close_on_exec_from_three() -> io::Result<()> {
    // SAFETY: no memory is handed over; the descriptors stay open and owned until execve.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })
}

/// Gives SIGPIPE, which Rust's runtime ignores, its default meaning again, and blocks no signal.
pub fn default_signals() -> io::Result<()> {
    use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};
    // SAFETY: the default action is no handler of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }?;
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// The most that we may set a resource limit to, without a privilege.
pub fn hard_rlimit(resource: libc::__rlimit_resource_t) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a `struct rlimit` for the kernel to fill; a null new limit changes nothing.
    check(unsafe { libc::prlimit(0, resource, std::ptr::null(), &raw mut limit) }.into())?;
    Ok(limit.rlim_max)
}

/// A resource limit of ourselves.
pub fn set_rlimit(resource: libc::__rlimit_resource_t, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call; a null old limit is not written.
    check(unsafe { libc::prlimit(0, resource, &raw const limit, std::ptr::null_mut()) }.into())
}

/// Whether something can be read, or the other end is gone, within the time.
pub fn readable_within(fd: &impl AsFd, milliseconds: u16) -> io::Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::from(milliseconds))? > 0)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
