//! One seat's worker, as the pool speaks to it.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::domain::Bytes;
use crate::exec::protocol::{self, FRAME_BYTES_MAX, Kind};
use crate::exec::run::{Run, ScriptFile};
use crate::sys::worker::process::{self, Process};
use crate::sys::worker::{Setup, WorkerError, group::Groups};

/// How long a worker may take to come up, in milliseconds.
const START_MS_MAX: u64 = 10_000;
/// How a process ends whose allocation failed outside the engine.
pub const ABORTED: &str = "killed by signal 6";

/// A seat's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat(pub u16);

/// A worker that is ready, or busy.
#[derive(Debug)]
pub struct Worker {
    pub seat: Seat,
    pub process: Process,
    pub stream: UnixStream,
    /// Runs so far.
    pub runs: u32,
    /// What its present run may hold.
    pub memory: Bytes,
}

impl Worker {
    /// Starts one and waits until it is ready.
    pub async fn start(seat: Seat, program: &Path, setup: &Setup) -> Result<Self, WorkerError> {
        let (mut process, mut stream) = process::start(program, setup).await?;
        let ready = timeout(Duration::from_millis(START_MS_MAX), protocol::read(&mut stream)).await;
        let problem = match ready {
            Ok(Ok(Some(frame))) if frame.kind == Kind::Ready => {
                return Ok(Self { seat, process, stream, runs: 0, memory: Bytes(0) });
            }
            Ok(Ok(Some(_))) => "it said something else".to_owned(),
            Ok(Ok(None)) => "it ended".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("it said nothing within {START_MS_MAX} ms"),
        };
        drop(stream);
        let how = process.ended().await.0;
        let source = io::Error::other(format!("{problem} ({how}; it may have said why on standard error)"));
        Err(WorkerError { action: "wait for the first word", source })
    }

    /// Hands a run over.
    pub async fn hand_over(&mut self, run: Run) -> io::Result<()> {
        let (order, source, body) = protocol::order(run);
        protocol::write_json(&mut self.stream, Kind::Run, &order).await?;
        protocol::write(&mut self.stream, Kind::Source, source.as_bytes()).await?;
        for part in body.chunks(FRAME_BYTES_MAX) {
            protocol::write(&mut self.stream, Kind::Body, part).await?;
        }
        protocol::write(&mut self.stream, Kind::Go, &[]).await
    }

    /// Hands a check over.
    pub async fn hand_over_check(&mut self, file: &ScriptFile, source: &str) -> io::Result<()> {
        protocol::write_json(&mut self.stream, Kind::Check, file).await?;
        protocol::write(&mut self.stream, Kind::Source, source.as_bytes()).await?;
        protocol::write(&mut self.stream, Kind::Go, &[]).await
    }

    /// Waits for the end of one that hung up.
    pub async fn wait_end(&mut self) -> String {
        self.process.ended().await.0
    }

    /// Ends it; its seat is free when its process and group are gone.
    pub async fn end(self, groups: Option<&Groups>) -> Seat {
        let Self { seat, mut process, stream, .. } = self;
        drop(stream);
        let how = process.ended().await;
        tracing::debug!(seat = seat.0, how = how.0, "a script's worker has ended");
        if let Some(groups) = groups {
            groups.remove(seat.0).await;
        }
        seat
    }
}
