//! The helper: this binary once more, as a short-lived process with a single thread.
//!
//! The only code that touches libcontainer, namespaces and setns. It is entered before anything has made a thread,
//! because the kernel lets only a single-threaded process change its user namespace, and because libcontainer forks
//! without exec, changes the working folder and the caller's oom score. It speaks [`super::wire`] on its standard
//! input and output and ends when its work is done or when its daemon goes away.

mod cgroup;
mod exec;
mod kernel;
mod namespaces;
mod program;
mod pump;
mod rootfs;
mod sight;
mod start;
mod visit;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::{Failure, LINE_BYTES_MAX};
pub(super) use start::LIBCONTAINER_NAMES;

/// The name under which helpers, and what they fork, show up in `/proc`.
pub(super) const NAME: &std::ffi::CStr = c"tenantry-start";

/// Runs the helper's verb: `start` or `exec`.
pub fn main(mut args: impl Iterator<Item = String>) -> ExitCode {
    let done = match args.next().as_deref() {
        Some("start") => start::run(),
        Some("exec") => exec::run(),
        other => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("unknown runtime verb {other:?}"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be left to read it; there is nothing else to do about it.
            let _ = writeln!(io::stderr(), "tenantry runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The daemon's end of the conversation, as the helper sees it.
struct Daemon {
    input: BufReader<File>,
    output: File,
}

impl Daemon {
    /// Takes standard input and output over; afterwards both are /dev/null, so that nothing forked can write into the
    /// conversation.
    fn take() -> io::Result<Self> {
        let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        nix::unistd::dup2_stdin(&null)?;
        nix::unistd::dup2_stdout(&null)?;
        Ok(Self { input: BufReader::new(input), output })
    }

    /// The next request; `None` when the daemon is gone.
    fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = Vec::new();
        self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(io::Error::from)
    }

    fn say(&mut self, report: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.output.write_all(&line)
    }
}

/// Names the step that failed, with the whole chain of causes.
trait Step<T> {
    fn step(self, step: &str) -> Result<T, Failure>;
}

impl<T, E: Error> Step<T> for Result<T, E> {
    fn step(self, step: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::Step { step: step.to_owned(), message: chain(&error) })
    }
}

/// An error and its causes, each once: some of libcontainer's repeat their source's text, some do not.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

/// A pipe whose ends are closed on exec.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_failed_step_carries_every_cause_once() {
        let failed: Result<(), _> = Err(Outer(io::Error::other("inner")));
        let Failure::Step { step, message } = failed.step("map the rootfs").unwrap_err() else { panic!() };
        assert_eq!((step.as_str(), message.as_str()), ("map the rootfs", "outer: inner"));
    }
}
