//! System calls without a safe form in our dependencies.
#![allow(unsafe_code)] // Each block says why it is sound.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, Pid};

/// fork(2) of the keeper; `None` in the child.
pub(super) fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the keeper has a single thread (it is entered before any is made and makes none), so the child's memory, locks
    // included, is in a state that a running program may go on from.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(None),
        ForkResult::Parent { child } => Ok(Some(child)),
    }
}

/// The end of the socket that the daemon left in place of standard input; 0 is /dev/null from then on.
pub(super) fn take_socket() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(socket)
}

/// Closes every descriptor from 3 on but one, whatever the daemon forgot to mark.
pub(super) fn close_all_but(kept: OwnedFd) -> io::Result<OwnedFd> {
    use std::os::fd::IntoRawFd;
    let kept = kept.into_raw_fd();
    for (first, last) in [(3, kept - 1), (kept + 1, i32::MAX)] {
        if first <= last {
            // SAFETY: no memory is handed over; nobody in this process owns a descriptor in the range (it has just begun).
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
            if closed < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    // SAFETY: it was given up by `into_raw_fd` above and not closed since.
    Ok(unsafe { OwnedFd::from_raw_fd(kept) })
}

/// The lowest number that no descriptor has: where they are made and none is closed, how many there are.
///
/// # Errors
/// There are as many as may be.
pub fn lowest_free() -> io::Result<i32> {
    use std::os::fd::AsRawFd;
    Ok(io::stdin().as_fd().try_clone_to_owned()?.as_raw_fd())
}

/// Processor time of the calling thread.
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec for the kernel to fill; the clock exists on every Linux, so that it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Waits until something can be written, or the other end is gone.
///
/// # Errors
/// The kernel's.
pub fn wait_writable(fd: &impl AsFd) -> io::Result<()> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    match poll(&mut fds, PollTimeout::NONE) {
        Err(nix::errno::Errno::EINTR) => Ok(()),
        waited => Ok(waited.map(drop)?),
    }
}

/// Gives way to others. That it cannot is no harm.
pub(super) fn lower_priority(nice: i32) {
    // SAFETY: no memory is handed over.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}

/// What a shell says of a process that aborted.
const ABORTED: i32 = 128 + libc::SIGABRT;

/// Lets an abort (an allocation that failed outside the engine, above all) be told from a crash: the first process of a pid namespace
/// has no default action for SIGABRT, and would die of what abort(3) tries next.
pub(super) fn end_on_abort() -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: _exit(2) is safe in a signal's handler, and touches no memory of ours.
        unsafe { libc::_exit(ABORTED) }
    }
    let action = SigAction::new(SigHandler::Handler(end), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing but end the process.
    unsafe { sigaction(Signal::SIGABRT, &action) }?;
    Ok(())
}
