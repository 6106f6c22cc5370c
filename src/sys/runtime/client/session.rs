//! One conversation with one helper.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

use super::orphans::{self, Registered};
use super::statuses::Statuses;
use super::{EXIT_WAIT_MS_MAX, failed};
use crate::domain::ContainerId;
use crate::sys::runtime::wire::{ExecCommand, ExecReport, Failure, LINE_BYTES_MAX, Places};
use crate::sys::runtime::{ExecOutcome, ExecRequest, Init, RuntimeError, process};

/// What an exec may take beyond the command's own time.
const EXEC_WAIT_MS_MORE: u64 = 20_000;
/// How long an ended helper's words, all in the pipe by then, may take to be read.
const LAST_WORDS_WAIT_MS_MAX: u64 = 1_000;

/// A helper, and both ends of the conversation with it. Dropped, it is killed, but not waited for: what it leaves can
/// be seen only when it is gone, so whoever ends one on purpose calls a method that waits.
#[derive(Debug)]
pub struct Session {
    id: ContainerId,
    child: Child,
    pipes: Pipes,
    init: Option<(Init, Registered)>,
    /// Set over each question: an answer that nobody waited for would be taken for the next one's.
    asking: bool,
    // Last: forgotten when the helper is killed.
    _registered: Registered,
}

/// A helper that has been told nothing yet. Dropped, it is killed.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    pipes: Pipes,
    // Last, as in a session.
    registered: Registered,
}

impl Helper {
    /// Starts one.
    pub fn spawn(helper: &Path, verb: &str) -> io::Result<Self> {
        let mut child = Command::new(helper)
            .arg0("tenantry")
            .args(["runtime", verb])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(gone)?;
        let pipes = Pipes { stdin: child.stdin.take(), stdout: BufReader::new(child.stdout.take().ok_or_else(gone)?) };
        Ok(Self { child, pipes, registered: Registered::new(pid) })
    }

    /// Its process; `None` where it has ended.
    #[cfg(test)]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it still waits to be told something.
    pub fn is_waiting(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Session {
    /// The conversation with a new helper.
    pub fn of(id: ContainerId, helper: Helper) -> Self {
        let Helper { child, pipes, registered } = helper;
        Self { id, child, pipes, init: None, asking: false, _registered: registered }
    }

    /// Notes the init that the helper has made.
    pub fn set_init(&mut self, init: Init) {
        self.init = Some((init, Registered::new(init.pid)));
    }

    /// The init that the helper has made.
    pub fn init(&self) -> Option<Init> {
        self.init.as_ref().map(|(init, _)| *init)
    }

    /// One request and its answer. The helper is killed if it does not answer in time, and when this is dropped.
    pub async fn ask<Q: Serialize, A: DeserializeOwned>(
        &mut self,
        request: &Q,
        step: &'static str,
        wait_ms_max: u64,
    ) -> Result<A, RuntimeError> {
        if std::mem::replace(&mut self.asking, true) {
            let source = io::Error::other("an earlier step was given up");
            return Err(RuntimeError::Helper { action: "speak to", id: self.id, source });
        }
        let conversation = async {
            // A helper that failed between two steps has said so and does not listen any more.
            let sent = self.pipes.send(request, &[]).await;
            self.pipes.receive().await.map_err(|unheard| sent.err().unwrap_or(unheard))
        };
        let conversation = while_alive(&mut self.child, conversation);
        match tokio::time::timeout(Duration::from_millis(wait_ms_max), conversation).await {
            Ok(Ok(answer)) => {
                self.asking = false;
                Ok(answer)
            }
            Ok(Err(source)) => {
                let ended = self.end().await;
                Err(RuntimeError::Helper { action: "speak to", id: self.id, source: with_status(source, ended) })
            }
            Err(_) => {
                self.end().await;
                Err(RuntimeError::Timeout { id: self.id, step, waited_ms: wait_ms_max })
            }
        }
    }

    /// The helper has said its last word: waits for its end.
    pub async fn finish(&mut self, step: &'static str, wait_ms_max: u64) -> Result<(), RuntimeError> {
        match tokio::time::timeout(Duration::from_millis(wait_ms_max), self.child.wait()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(RuntimeError::Helper { action: "wait for", id: self.id, source }),
            Err(_) => {
                self.end().await;
                Err(RuntimeError::Timeout { id: self.id, step, waited_ms: wait_ms_max })
            }
        }
    }

    /// The helper has failed and is undoing: waits for its end, and gives the error that it failed with.
    pub async fn lost(&mut self, error: RuntimeError) -> RuntimeError {
        let id = self.id;
        if let Err(also) = self.finish("undo", EXIT_WAIT_MS_MAX).await {
            tracing::warn!(container = %id, error = &also as &dyn std::error::Error, "a failed runtime helper did not end");
        }
        error
    }

    /// Kills the helper and waits until it is gone.
    pub async fn kill(&mut self) {
        self.end().await;
    }

    async fn end(&mut self) -> Option<ExitStatus> {
        // A helper that has ended cannot be killed, which is as well; SIGKILL is not refused otherwise.
        let _ = self.child.start_kill();
        let status = self.child.wait().await.ok();
        drop(self.init.take());
        orphans::end().await;
        status
    }
}

fn with_status(source: io::Error, status: Option<ExitStatus>) -> io::Error {
    match status {
        Some(status) => io::Error::new(source.kind(), format!("{source} (it ended: {status})")),
        None => source,
    }
}

/// Our ends of a helper's standard input and output.
#[derive(Debug)]
struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Pipes {
    async fn send(&mut self, request: &impl Serialize, payload: &[u8]) -> io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let stdin = self.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        stdin.write_all(&line).await?;
        stdin.write_all(payload).await
    }

    async fn receive<A: DeserializeOwned>(&mut self) -> io::Result<A> {
        let mut line = Vec::new();
        (&mut self.stdout).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(io::Error::from)
    }
}

/// A conversation that ends with its helper. The pipe alone does not tell: what a killed helper has forked holds its
/// other end open.
async fn while_alive<T>(child: &mut Child, conversation: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::pin!(conversation);
    // Both arms may be dropped: `wait` forgets no status, and the conversation goes on in the second.
    tokio::select! {
        answer = &mut conversation => answer,
        _ = child.wait() => {
            let last_words = tokio::time::timeout(Duration::from_millis(LAST_WORDS_WAIT_MS_MAX), conversation);
            last_words.await.unwrap_or_else(|_| Err(io::ErrorKind::UnexpectedEof.into()))
        }
    }
}

/// Runs one command in one helper. Should the caller go away, the command is ended and its helper waited for all the
/// same: a helper left to itself would be taken for an orphan, and an unreaped command keeps its container from dying.
pub async fn exec(
    id: ContainerId,
    helper: &Path,
    places: Places,
    init: Init,
    request: &ExecRequest,
) -> Result<ExecOutcome, RuntimeError> {
    let command = ExecCommand {
        id,
        places,
        init,
        command: request.command.clone(),
        env: request.env.iter().map(|(key, value)| (key.as_str().to_owned(), value.clone())).collect(),
        cwd: request.cwd.clone(),
        stdin_bytes: request.stdin.len() as u64,
        timeout_ms: request.timeout_ms,
        output_bytes_max: request.output_max.0,
    };
    let helper = Helper::spawn(helper, "exec");
    let session = Session::of(id, helper.map_err(|source| RuntimeError::Helper { action: "start", id, source })?);
    let (_caller, caller_gone) = oneshot::channel();
    let attended = tokio::spawn(attend(session, command, request.stdin.clone(), caller_gone));
    attended.await.unwrap_or_else(|e| Err(RuntimeError::Helper { action: "attend", id, source: io::Error::other(e) }))
}

/// Sees a command through to its end, its time or its caller's end.
async fn attend(
    mut session: Session,
    command: ExecCommand,
    stdin: Vec<u8>,
    caller_gone: oneshot::Receiver<()>,
) -> Result<ExecOutcome, RuntimeError> {
    let id = command.id;
    let wait_ms_max = command.timeout_ms.saturating_add(EXEC_WAIT_MS_MORE);
    // Both arms may be dropped at any point: what follows either of them ends the helper.
    let Session { child, pipes, init, .. } = &mut session;
    let conversation = while_alive(child, converse(pipes, init, &command, &stdin));
    let answer = tokio::select! {
        answer = tokio::time::timeout(Duration::from_millis(wait_ms_max), conversation) => answer,
        _ = caller_gone => {
            session.hang_up().await;
            return Err(RuntimeError::Helper { action: "wait for", id, source: io::ErrorKind::Interrupted.into() });
        }
    };
    match answer {
        Ok(Ok(outcome)) => {
            session.finish("end", EXIT_WAIT_MS_MAX).await?;
            outcome.map_err(|failure| failed(id, failure))
        }
        Ok(Err(source)) => {
            let source = with_status(source, session.give_up().await);
            Err(RuntimeError::Helper { action: "speak to", id, source })
        }
        Err(_) => {
            session.give_up().await;
            Err(RuntimeError::Timeout { id, step: "exec", waited_ms: wait_ms_max })
        }
    }
}

async fn converse(
    pipes: &mut Pipes,
    running: &mut Option<(Init, Registered)>,
    command: &ExecCommand,
    stdin: &[u8],
) -> io::Result<Result<ExecOutcome, Failure>> {
    // A helper that failed at once may not have read all of it.
    let sent = pipes.send(command, stdin).await;
    let mut report = pipes.receive().await.map_err(|unheard| sent.err().unwrap_or(unheard))?;
    if let ExecReport::Running(process) = report {
        *running = Some((process, Registered::new(process.pid)));
        report = pipes.receive().await?;
    }
    let (exit, timed_out, truncated, lengths) = match report {
        ExecReport::Ended { exit, timed_out, stdout_bytes, stderr_bytes, truncated } => {
            (exit, timed_out, truncated, [stdout_bytes, stderr_bytes])
        }
        ExecReport::Failed(failure) => return Ok(Err(failure)),
        ExecReport::Running(_) => return Err(io::ErrorKind::InvalidData.into()),
    };
    let mut streams = [Vec::new(), Vec::new()];
    for (stream, length) in streams.iter_mut().zip(lengths) {
        let length = length.min(command.output_bytes_max);
        (&mut pipes.stdout).take(length).read_to_end(stream).await?;
    }
    let [stdout, stderr] = streams;
    Ok(Ok(ExecOutcome { exit, timed_out, stdout, stderr, truncated }))
}

impl Session {
    /// Lets an exec's helper end its command by itself; kills both if it does not.
    async fn hang_up(mut self) {
        self.pipes.stdin = None;
        let ended = tokio::time::timeout(Duration::from_millis(EXIT_WAIT_MS_MAX), self.child.wait()).await;
        if ended.is_err() {
            self.give_up().await;
        }
    }

    /// Kills an exec's helper, and reaps the command, which dies with it and is ours then.
    async fn give_up(mut self) -> Option<ExitStatus> {
        let command = self.init();
        let status = self.end().await;
        if let Some(command) = command {
            if let Ok(Some(handle)) = process::open(command) {
                let _ = process::send(&handle, libc::SIGKILL);
            }
            let statuses = Statuses::default();
            let ended = statuses.wait(command);
            if tokio::time::timeout(Duration::from_millis(EXIT_WAIT_MS_MAX), ended).await.is_err() {
                tracing::warn!(container = %self.id, pid = command.pid, "a killed command does not die");
            }
        }
        status
    }
}
