//! A run under way: what its worker says, to whom that goes, and what becomes of the worker.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::protocol::{self, Failed, Frame, Head, Kind};
use super::super::run::{Console, RunError};
use super::{LAST_WORD_MS_MAX, Taken};

/// A run that was handed over.
pub(super) struct Going {
    pub taken: Taken,
    pub ends: Instant,
    pub wall: Duration,
    pub console: Arc<dyn Console>,
    /// Whether the answer is whole.
    pub ended: bool,
}

/// What a worker says that its run's client hears of.
pub(super) enum Said {
    Head(Head),
    Part(Vec<u8>),
    Done,
    Failed(Failed),
    Ready,
}

impl Going {
    /// The next thing said. Not to be dropped in between: a frame may be half read. A worker that ends or says nothing in time is
    /// told as an error, and is not used again.
    pub async fn next(&mut self) -> Result<Said, RunError> {
        loop {
            let left = self.ends.saturating_duration_since(Instant::now());
            let closing = self.taken.inner.closing.clone();
            let worker = self.taken.worker()?;
            let read = tokio::select! {
                () = closing.cancelled() => return Err(RunError::Worker { how: "the daemon stops".to_owned() }),
                read = timeout(left, protocol::read(&mut worker.stream)) => read,
            };
            let frame = match read {
                Err(_) => return Err(RunError::Time { wall: self.wall }),
                Ok(Ok(Some(frame))) => frame,
                Ok(_) => return Err(self.take_over().gone().await),
            };
            // Within the bound too: answers of the shared store wait for a worker that does not read them.
            let understood = timeout(left, self.understand(frame)).await;
            let understood = understood.map_err(|_| RunError::Time { wall: self.wall })?;
            if let Some(said) = understood.map_err(|e| RunError::Worker { how: e.to_string() })? {
                return Ok(said);
            }
        }
    }

    /// The seat, to be ended; what is left here has none.
    fn take_over(&mut self) -> Taken {
        let empty = Taken { inner: Arc::clone(&self.taken.inner), worker: None, permit: None };
        std::mem::replace(&mut self.taken, empty)
    }

    async fn understand(&mut self, frame: Frame) -> std::io::Result<Option<Said>> {
        Ok(Some(match frame.kind {
            Kind::Head => Said::Head(sound(frame.json()?)?),
            Kind::Body => Said::Part(frame.payload),
            Kind::Done => Said::Done,
            Kind::Failed => Said::Failed(frame.json()?),
            Kind::Ready => Said::Ready,
            Kind::Console => {
                self.console.print(frame.json()?);
                return Ok(None);
            }
            Kind::Ask => {
                let protocol::Ask { id, ask } = frame.json()?;
                let told =
                    self.taken.inner.shared.lock().unwrap_or_else(PoisonError::into_inner).answer(ask, Instant::now());
                let told = protocol::Told { id, told: told.map_err(|error| error.to_string()) };
                if let Ok(worker) = self.taken.worker() {
                    protocol::write_json(&mut worker.stream, Kind::Told, &told).await?;
                }
                return Ok(None);
            }
            _ => return Err(protocol::odd("a frame that a worker does not send")),
        }))
    }

    /// Carries the body to who wants it, then waits until the worker can take another run. Nobody wanting it ends the run.
    pub async fn carry(mut self, parts: mpsc::Sender<Result<Vec<u8>, RunError>>) {
        let outcome = tokio::select! {
            () = parts.closed() => return,
            outcome = self.pass_on(&parts) => outcome,
        };
        match outcome {
            Ok(()) => {
                drop(parts);
                self.rest().await;
            }
            // The seat first: who hears of the failure may run the next script at once.
            Err(error) => {
                drop(self);
                let _ = timeout(Duration::from_millis(LAST_WORD_MS_MAX), parts.send(Err(error))).await;
            }
        }
    }

    async fn pass_on(&mut self, parts: &mpsc::Sender<Result<Vec<u8>, RunError>>) -> Result<(), RunError> {
        loop {
            match self.next().await? {
                Said::Part(part) => {
                    let left = self.ends.saturating_duration_since(Instant::now());
                    if timeout(left, parts.send(Ok(part))).await.is_err() {
                        return Err(RunError::Time { wall: self.wall });
                    }
                }
                Said::Done => return Ok(()),
                Said::Failed(failed) => return Err(failed.error),
                Said::Head(_) | Said::Ready => {}
            }
        }
    }

    /// Waits for the worker, whose answer is whole, and gives it back.
    pub async fn rest(mut self) {
        self.ended = true;
        while let Ok(said) = self.next().await {
            match said {
                Said::Ready => return self.taken.give_back(),
                Said::Failed(failed) if !failed.goes_on => return,
                _ => {}
            }
        }
    }

    /// A failure before the head: the worker may go on, behind the caller's back.
    pub fn failed(self, failed: Failed) -> RunError {
        if failed.goes_on {
            tokio::spawn(self.rest());
        }
        failed.error
    }
}

/// A head that HTTP can carry; a worker is not believed.
fn sound(head: Head) -> std::io::Result<Head> {
    let name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b))
    };
    let value = |value: &str| !value.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0));
    let fits = (200..=599).contains(&head.status) && head.headers.iter().all(|(n, v)| name(n) && value(v));
    if fits { Ok(head) } else { Err(protocol::odd("a head that is none")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_would_split_an_answer_is_none() {
        let head = |status, name: &str, value: &str| Head { status, headers: vec![(name.into(), value.into())] };
        assert!(sound(head(200, "x-a", "b c")).is_ok());
        for wrong in
            [head(100, "x", ""), head(600, "x", ""), head(200, "x y", ""), head(200, "", ""), head(200, "x", "a\r\nb")]
        {
            assert!(sound(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
