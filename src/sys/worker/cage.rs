//! The worker's side: entered before anything makes a thread, left as a worker in its cage.
//!
//! | taken away | by |
//! |---|---|
//! | the file system | a mount namespace whose root holds the scripts folder, read-only, and the API's socket |
//! | other processes, their memory and queues | pid and ipc namespaces; no `/proc` |
//! | being somebody | a uid and gid of its own, no groups, no capability, `no_new_privs` |
//! | the kernel | a seccomp filter of about seventy calls |
//! | more than its share | rlimits, a control group |
//!
//! The network stays the host's: a script speaks to the world for its operator.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};

use super::{Api, Cage, FILES_MAX, SCRIPTS_INSIDE, SOCKET_INSIDE, Setup, filter, kernel, root};

/// A setup's largest size on the wire, in bytes.
pub const SETUP_BYTES_MAX: usize = 64 * 1024;
/// How much more likely the kernel is to kill a worker than its daemon when memory runs out.
const OOM_SCORE: &str = "500";
/// A worker gives way to the daemon.
const NICE: i32 = 5;
/// What a keeper ends with when its worker was killed: 128 and the signal, as a shell has it.
pub const SIGNALLED: i32 = 128;

/// Reads the setup, makes the cage, and calls `work` in it. In the keeper, and so in most callers' eyes, this returns when the worker
/// has ended, with its exit code.
///
/// # Errors
/// The cage could not be made.
pub fn enter(work: impl FnOnce(UnixStream, Setup) -> ExitCode) -> io::Result<ExitCode> {
    let socket = kernel::close_all_but(kernel::take_socket()?)?;
    let mut stream = UnixStream::from(socket);
    let mut setup = read_setup(&mut stream)?;
    prctl::set_dumpable(false)?;
    if let Cage::Full { id, group } = setup.cage.clone() {
        for procs in &group {
            std::fs::write(procs, "0").map_err(|e| step(&format!("join {}", procs.display()), &e))?;
        }
        std::fs::write("/proc/self/oom_score_adj", OOM_SCORE)?;
        let new =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        unshare(new).map_err(|e| step("make namespaces", &e.into()))?;
        if let Some(worker) = kernel::fork()? {
            return keep(worker, &stream.into());
        }
        root::enter(&setup).map_err(|e| step("make the root", &e))?;
        become_nobody(id).map_err(|e| step("become nobody", &e))?;
        setup.scripts_dir = SCRIPTS_INSIDE.into();
        if let Api::Socket(path) = &mut setup.api {
            *path = SOCKET_INSIDE.into();
        }
    }
    kernel::end_on_abort()?;
    limit().map_err(|e| step("set limits", &e))?;
    filter::close().map_err(|e| step("close the filter", &io::Error::other(e)))?;
    Ok(work(stream, setup))
}

fn step(step: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {step}: {error}"))
}

/// Four bytes of length, then JSON.
fn read_setup(stream: &mut UnixStream) -> io::Result<Setup> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > SETUP_BYTES_MAX {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Waits for the worker, and kills it when the daemon is gone or wants it gone.
fn keep(worker: Pid, socket: &OwnedFd) -> io::Result<ExitCode> {
    let handle = crate::sys::runtime::process::open_child(worker.as_raw())?;
    loop {
        // That the other end is gone is told unasked (poll(2)).
        let mut fds = [PollFd::new(handle.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            polled => drop(polled?),
        }
        if fds[0].any() != Some(true) {
            kill(worker, Signal::SIGKILL)?;
        }
        return Ok(ExitCode::from(match waitpid(worker, None)? {
            WaitStatus::Exited(_, code) => u8::try_from(code).unwrap_or(u8::MAX),
            WaitStatus::Signaled(_, signal, _) => u8::try_from(SIGNALLED + signal as i32).unwrap_or(u8::MAX),
            _ => u8::MAX,
        }));
    }
}

/// Nobody's user, without a capability; dies with its keeper.
fn become_nobody(id: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    caps::clear(None, caps::CapSet::Bounding).map_err(io::Error::other)?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // Without a capability from here on: all of root's go with its uid.
    setresuid(uid, uid, uid)?;
    for set in [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    // Behind the change of user, which forgets it.
    Ok(prctl::set_pdeathsig(Signal::SIGKILL)?)
}

fn limit() -> io::Result<()> {
    kernel::lower_priority(NICE);
    for (resource, most) in [
        (Resource::RLIMIT_NOFILE, FILES_MAX),
        // 1, not 0, as everywhere here: at 0 the kernel still starts the program of `core_pattern`.
        (Resource::RLIMIT_CORE, 1),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        (Resource::RLIMIT_MSGQUEUE, 0),
    ] {
        setrlimit(resource, most, most)?;
    }
    Ok(prctl::set_no_new_privs()?)
}

/// Lets the process hold so much writable memory from now on: what a script's values may take, and what is beside them.
///
/// # Errors
/// The kernel's.
pub fn limit_data(bytes: u64) -> io::Result<()> {
    let (_, hard) = nix::sys::resource::getrlimit(Resource::RLIMIT_DATA)?;
    Ok(setrlimit(Resource::RLIMIT_DATA, bytes.min(hard), hard)?)
}
