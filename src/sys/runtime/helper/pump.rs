//! Carries a command's input and output, bounded in bytes and time, until it ends.
//!
//! One poll loop, since the helper has one thread. What a command leaves running in the background may hold its output
//! open for ever: when the command has ended, what it wrote is taken and nobody is waited for.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use super::Step;
use crate::sys::runtime::process::{self, Reaped};
use crate::sys::runtime::wire::Failure;
use crate::sys::runtime::{Exit, Init};

/// Bytes moved at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Reads of one stream after the command's end: a pipe holds 16 chunks at its largest.
const DRAIN_READS_MAX: usize = 64;

/// A forked command; ended with its process group when dropped, so that no way out leaves it behind.
#[derive(Debug)]
pub struct Command {
    pid: Pid,
    id: Init,
    handle: OwnedFd,
}

impl Command {
    /// Takes a child over. `host_proc` is the host's `/proc`: the container's, where we are by now, does not show it
    /// under the pid that we know.
    pub fn new(pid: Pid, host_proc: &OwnedFd) -> Result<Self, Failure> {
        let what = "find the command";
        let path = format!("{pid}/stat");
        let stat = openat(host_proc, path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).step(what)?;
        let stat =
            process::Stat::parse(&io::read_to_string(File::from(stat)).step(what)?).ok_or(Failure::NotRunning)?;
        let id = Init { pid: pid.as_raw(), start_ticks: stat.start_ticks };
        Ok(Self { pid, id, handle: process::open_child(pid.as_raw()).step(what)? })
    }

    /// Its pid on the host and its start time.
    pub fn id(&self) -> Init {
        self.id
    }

    /// Kills the command and what is in its process group.
    fn kill(&self) {
        // Either may be gone already; the command itself is caught by its handle before it has made its group.
        let _ = killpg(self.pid, Signal::SIGKILL);
        let _ = process::send(&self.handle, libc::SIGKILL);
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        if process::reap(&self.handle) == Reaped::Running {
            self.kill();
            let _ = nix::sys::wait::waitpid(self.pid, None);
        }
    }
}

/// The ends of the pipes that are ours.
#[derive(Debug)]
pub struct Streams<'a> {
    pub input: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
    /// Where the daemon's end shows.
    pub control: BorrowedFd<'a>,
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    pub timed_out: bool,
    pub stdout: Kept,
    pub stderr: Kept,
}

/// The beginning of a stream.
#[derive(Debug)]
pub struct Kept {
    source: Option<File>,
    bytes_max: usize,
    pub kept: Vec<u8>,
    pub truncated: bool,
}

impl Kept {
    fn new(source: OwnedFd, bytes_max: u64) -> io::Result<Self> {
        nonblocking(&source)?;
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        Ok(Self { source: Some(source.into()), bytes_max, kept: Vec::new(), truncated: false })
    }

    /// Takes what is there; whether there may be more.
    fn take(&mut self) -> bool {
        let Some(source) = &mut self.source else { return false };
        let mut chunk = [0; CHUNK_BYTES];
        match source.read(&mut chunk) {
            Ok(0) => self.source = None,
            Ok(count) => {
                let room = self.bytes_max.saturating_sub(self.kept.len()).min(count);
                self.kept.extend_from_slice(&chunk[..room]);
                self.truncated |= room < count;
                return true;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => self.source = None,
        }
        false
    }
}

/// Runs a command to its end, its timeout or the daemon's end.
pub fn run(
    command: Command,
    streams: Streams<'_>,
    stdin: &[u8],
    timeout_ms: u64,
    output_bytes_max: u64,
) -> io::Result<Ended> {
    let deadline = Instant::now() + Duration::from_millis(timeout_ms);
    let mut stdout = Kept::new(streams.stdout, output_bytes_max)?;
    let mut stderr = Kept::new(streams.stderr, output_bytes_max)?;
    nonblocking(&streams.input)?;
    let mut input = Input { pipe: (!stdin.is_empty()).then(|| streams.input.into()), rest: stdin };
    let mut timed_out = false;
    let exit = loop {
        match process::reap(&command.handle) {
            Reaped::Running => {}
            Reaped::Ended(exit) => break exit,
            Reaped::NotOurs => break Exit::Unknown,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && !timed_out {
            timed_out = true;
            command.kill();
        }
        let daemon_is_gone = wait(&command, streams.control, &input, &stdout, &stderr, left, timed_out)?;
        if daemon_is_gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        input.give();
        stdout.take();
        stderr.take();
    };
    for stream in [&mut stdout, &mut stderr] {
        let _ = (0..DRAIN_READS_MAX).take_while(|_| stream.take()).count();
    }
    Ok(Ended { exit, timed_out, stdout, stderr })
}

/// What is still to be written to the command; dropping the pipe is its end of file.
struct Input<'a> {
    pipe: Option<File>,
    rest: &'a [u8],
}

impl Input<'_> {
    fn give(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        match pipe.write(self.rest) {
            Ok(count) => self.rest = &self.rest[count..],
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return,
            // It does not read (any more); that is its own affair.
            Err(_) => self.rest = &[],
        }
        if self.rest.is_empty() {
            self.pipe = None;
        }
    }
}

/// Sleeps until something happens; whether the daemon is gone.
fn wait(
    command: &Command,
    control: BorrowedFd<'_>,
    input: &Input<'_>,
    stdout: &Kept,
    stderr: &Kept,
    left: Duration,
    killed: bool,
) -> io::Result<bool> {
    // The daemon says nothing more, so its end can only hang up.
    let mut fds = vec![PollFd::new(control, PollFlags::POLLIN), PollFd::new(command.handle.as_fd(), PollFlags::POLLIN)];
    fds.extend(input.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)));
    let sources = [&stdout.source, &stderr.source];
    fds.extend(sources.into_iter().flatten().map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN)));
    // A millisecond more, so that the deadline has passed when the time is up.
    let bound = if killed { PollTimeout::NONE } else { timeout(left + Duration::from_millis(1)) };
    match poll(&mut fds, bound) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(fds[0].any().unwrap_or(false)),
        Err(errno) => Err(errno.into()),
    }
}

fn timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

fn nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
