//! Processes by pidfd and start time: a bare pid may be somebody else's by the time it is used.
#![allow(unsafe_code)] // pidfd_open, pidfd_send_signal and tokio's AsyncFd have no safe form.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Delivery, Exit, Init};
use crate::domain::Bytes;

/// What `/proc/<pid>/stat` says of a process (proc(5)), as far as we need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Field 2, the command's name.
    pub comm: String,
    /// Field 3; `Z` is a process that waits to be reaped.
    pub state: char,
    /// Field 4.
    pub parent: i32,
    /// Field 22.
    pub start_ticks: u64,
}

impl Stat {
    /// Reads a process's; `None` where there is no such process.
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Reads the file's text.
    pub fn parse(text: &str) -> Option<Self> {
        // The name may hold blanks and brackets; the last bracket ends it.
        let (head, tail) = text.rsplit_once(')')?;
        let (_, comm) = head.split_once('(')?;
        let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
        Some(Self {
            comm: comm.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            start_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether it has ended and is only waiting to be reaped.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// The process with this pid as it is now.
pub fn identify(pid: i32) -> Option<Init> {
    Stat::of(pid).map(|stat| Init { pid, start_ticks: stat.start_ticks })
}

/// A handle on that very process, dead or alive, as long as nobody has reaped it.
///
/// # Errors
/// Anything but "there is no such process", which is `None`.
pub fn open(process: Init) -> io::Result<Option<OwnedFd>> {
    let fd = match open_child(process.pid) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    // Asked after the handle was opened: were the pid another's by now, so would the start time be.
    Ok((identify(process.pid) == Some(process)).then_some(fd))
}

/// A handle on a child of ours that nobody has reaped: its pid cannot be another's.
///
/// # Errors
/// What the kernel says against it.
pub fn open_child(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is handed over; the result is a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A handle to wait on: readable from the process's death on.
///
/// # Errors
/// The reactor's, such as too many descriptors.
pub fn watch(handle: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and stays the same open file until the `AsyncFd` that owns it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?)
}

/// Whether that very process still runs.
pub fn is_alive(process: Init) -> bool {
    Stat::of(process.pid).is_some_and(|stat| stat.start_ticks == process.start_ticks && !stat.is_dead())
}

/// Sends a signal by handle; whether there was somebody to get it.
///
/// # Errors
/// Anything but "the process is gone".
pub fn send(handle: &impl AsFd, signal: i32) -> io::Result<bool> {
    let fd = handle.as_fd().as_raw_fd();
    // SAFETY: a null siginfo is allowed and means what kill(2) would send.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0) };
    match io::Error::last_os_error() {
        _ if sent == 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        error => Err(error),
    }
}

/// Sends a signal to a container's init, unless the kernel would throw it away.
///
/// # Errors
/// What the kernel says against it.
pub fn signal_init(init: Init, signal: i32) -> io::Result<Delivery> {
    let Some(handle) = open(init)? else { return Ok(Delivery::Gone) };
    let status = fs::read_to_string(format!("/proc/{}/status", init.pid)).unwrap_or_default();
    if !init_would_see(&status, signal) {
        return Ok(Delivery::Ignored);
    }
    Ok(if send(&handle, signal)? { Delivery::Sent } else { Delivery::Gone })
}

/// pid_namespaces(7): an init gets only what it has a handler for, and from outside SIGKILL and SIGSTOP. A blocked
/// signal is kept, since there may be a handler (or a signalfd) by the time it is looked at.
fn init_would_see(status: &str, signal: i32) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        u64::from_str_radix(line.trim(), 16).unwrap_or_default()
    };
    let bit = u32::try_from(signal - 1).ok().and_then(|n| 1u64.checked_shl(n)).unwrap_or_default();
    matches!(signal, libc::SIGKILL | libc::SIGSTOP | libc::SIGCONT) || (mask("SigCgt:") | mask("SigBlk:")) & bit != 0
}

/// What has become of a process whose handle says that it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// It was our child; it is gone now, and this is its status.
    Ended(Exit),
    /// It still runs.
    Running,
    /// It is not our child, or somebody has reaped it already.
    NotOurs,
}

/// Takes a child's status, without waiting.
pub fn reap(handle: &impl AsFd) -> Reaped {
    match waitid(Id::PIDFd(handle.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
        Ok(WaitStatus::Exited(_, code)) => Reaped::Ended(Exit::Code(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Reaped::Ended(Exit::Signal(signal as i32)),
        Ok(_) => Reaped::Running,
        Err(_) => Reaped::NotOurs,
    }
}

/// What the netlink sockets in a process's network namespace hold that nobody has read.
///
/// # Errors
/// It is gone, or the kernel does not tell.
pub(super) fn unread(init: Init) -> std::io::Result<Bytes> {
    let table = std::fs::read_to_string(format!("/proc/{}/net/netlink", init.pid))?;
    Ok(unread_in(&table))
}

/// The sum of the column `Rmem` of `/proc/net/netlink`.
fn unread_in(table: &str) -> Bytes {
    const RMEM: usize = 4;
    let held = |line: &str| line.split_whitespace().nth(RMEM)?.parse::<u64>().ok();
    Bytes(table.lines().filter_map(held).fold(0, u64::saturating_add))
}

#[cfg(test)]
#[expect(clippy::zombie_processes, reason = "the code under test reaps them")]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let line = "71 (a) b (c) Z 9 71 71 0 -1 1 0 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.parent, stat.start_ticks), ("a) b (c", 'Z', 9, 4242));
        assert!(stat.is_dead());
        assert_eq!(Stat::parse("71 (a"), None);
    }

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let me = identify(std::process::id() as i32).unwrap();
        assert!(open(me).unwrap().is_some() && is_alive(me));
        let other = Init { start_ticks: me.start_ticks + 1, ..me };
        assert!(open(other).unwrap().is_none() && !is_alive(other));
        assert_eq!(signal_init(other, 0).unwrap(), Delivery::Gone);
    }

    #[test]
    fn an_init_sees_only_what_it_handles() {
        let status = "SigBlk:\t0000000000000002\nSigIgn:\t0000000000000001\nSigCgt:\t0000000000004000\n";
        assert!(init_would_see(status, libc::SIGTERM), "it has a handler");
        assert!(init_would_see(status, libc::SIGINT), "it blocks it, perhaps for a signalfd");
        assert!(init_would_see(status, libc::SIGKILL) && init_would_see("", libc::SIGKILL));
        assert!(!init_would_see(status, libc::SIGHUP), "it ignores it");
        assert!(!init_would_see(status, libc::SIGUSR1), "it has no handler");
    }

    #[test]
    fn a_childs_status_is_taken_once() {
        let child = Command::new("/bin/sh").args(["-c", "exit 7"]).spawn().unwrap();
        let handle = open(identify(child.id() as i32).unwrap()).unwrap().unwrap();
        let ended = loop {
            match reap(&handle) {
                Reaped::Running => std::thread::yield_now(),
                other => break other,
            }
        };
        assert_eq!(ended, Reaped::Ended(Exit::Code(7)));
        assert_eq!(reap(&handle), Reaped::NotOurs);
    }

    #[test]
    fn what_lies_unread_is_summed_over_all_sockets() {
        let table = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
            00000000058a48ea 0   0          00000000 4096     0        0     2        0        4\n\
            00000000f338d0f7 0   7          00000000 212992   0        0     2        9        565\n";
        assert_eq!((unread_in(table), unread_in("")), (Bytes(217_088), Bytes(0)));
    }
}
