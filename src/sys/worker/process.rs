//! The daemon's side: one worker's process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::{Setup, VERB, WorkerError, cage};

/// How long a process may take to end after its socket was let go of, in milliseconds.
const END_MS_MAX: u64 = 5_000;

/// A worker's keeper, which ends when our end of the socket is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

/// Starts a worker; it can be spoken to at once.
///
/// # Errors
/// No socket, no process.
pub async fn start(program: &Path, setup: &Setup) -> Result<(Process, UnixStream), WorkerError> {
    let failed = |action| move |source| WorkerError { action, source };
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|e| failed("make a socket")(e.into()))?;
    let mut stream = stream(ours).map_err(failed("make a socket"))?;
    let mut command = Command::new(program);
    command.arg(VERB).env_clear().current_dir("/").stdin(Stdio::from(theirs)).stdout(Stdio::null()).kill_on_drop(false);
    let child = command.spawn().map_err(failed("start a process"))?;
    let text = serde_json::to_vec(setup).map_err(|e| failed("write the setup")(e.into()))?;
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    stream.write_all(&length.to_le_bytes()).await.map_err(failed("write the setup"))?;
    stream.write_all(&text).await.map_err(failed("write the setup"))?;
    Ok((Process { child }, stream))
}

fn stream(ours: OwnedFd) -> io::Result<UnixStream> {
    let stream = std::os::unix::net::UnixStream::from(ours);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

impl Process {
    /// Its keeper's pid.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it has ended, and says how. Our end of its socket must have been dropped, or it must be dying.
    pub async fn ended(&mut self) -> Ended {
        let wait = tokio::time::timeout(Duration::from_millis(END_MS_MAX), self.child.wait()).await;
        match wait {
            Ok(Ok(status)) => ended(status.code()),
            Ok(Err(error)) => Ended(format!("nobody knows how: {error}")),
            Err(_) => {
                let killed = self.child.kill().await;
                Ended(format!("it did not end by itself within {END_MS_MAX} ms; killed: {killed:?}"))
            }
        }
    }
}

/// How a worker ended, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended(pub String);

fn ended(code: Option<i32>) -> Ended {
    Ended(match code {
        Some(code) if code > cage::SIGNALLED => format!("killed by signal {}", code - cage::SIGNALLED),
        Some(code) => format!("exit code {code}"),
        None => "its keeper was killed".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_told_from_an_exit_code() {
        assert_eq!(ended(Some(137)).0, "killed by signal 9");
        assert_eq!(ended(Some(1)).0, "exit code 1");
        assert_eq!(ended(None).0, "its keeper was killed");
    }
}
