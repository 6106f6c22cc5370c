//! A log that is followed: server-sent events of what is written, until the client goes, the container is deleted, the
//! token is refused or the daemon ends.
//!
//! The log is looked at, not pushed: nothing waits in memory for a client that does not read, and one that was slow goes on
//! where it was, as far as the log is kept. The data of all events, one after the other, is the text; a carriage return,
//! which an event cannot hold, becomes a line end. An event `end` comes last and says why.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::Api;
use super::auth::Caller;
use super::error::ApiError;
use crate::domain::{Bytes, ContainerId};
use crate::lifecycle::{Error, Service};

/// Logs and streams of events that are followed at once, at most.
const FOLLOWERS_MAX: usize = 256;
/// When one who was refused may come again, in seconds.
const FOLLOWERS_RETRY_S: u64 = 10;
/// Between two looks at a log that has nothing new, in milliseconds.
const LOOK_EVERY_MS: u64 = 250;
/// Bytes of one event, at most.
const EVENT_MAX: Bytes = Bytes(64 << 10);
/// Bytes of one character of UTF-8, at most.
const CHAR_BYTES_MAX: usize = 4;
/// Between two comments that keep a silent connection open, in seconds.
pub(super) const HEARTBEAT_S: u64 = 15;

/// What all followers share.
#[derive(Debug, Clone)]
pub struct Followers {
    places: Arc<Semaphore>,
    pub(super) shutdown: CancellationToken,
}

impl Followers {
    /// A place among those who follow.
    ///
    /// # Errors
    /// 429: there is none.
    pub(super) fn place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        Arc::clone(&self.places).try_acquire_owned().map_err(|_none| {
            let text = format!("{FOLLOWERS_MAX} logs and streams of events are being followed, as many as may be");
            let refusal = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_FOLLOWERS", text);
            refusal.retry_after_s(FOLLOWERS_RETRY_S)
        })
    }

    /// Followers that go when `shutdown` comes.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { places: Arc::new(Semaphore::new(FOLLOWERS_MAX)), shutdown }
    }
}

/// Why a log is not followed any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Deleted,
    TokenRefused,
    ShuttingDown,
    LogUnreadable,
}

impl End {
    const fn word(self) -> &'static str {
        match self {
            Self::Deleted => "container_deleted",
            Self::TokenRefused => "token_refused",
            Self::ShuttingDown => "shutting_down",
            Self::LogUnreadable => "log_unreadable",
        }
    }
}

struct Follower {
    service: Service,
    caller: Caller,
    shutdown: CancellationToken,
    id: ContainerId,
    position: u64,
    ended: bool,
    _place: OwnedSemaphorePermit,
}

/// Follows a log from its last lines on; `first` bytes at most are looked through for these.
///
/// # Errors
/// Too many follow already, or the log cannot be read.
pub async fn follow(
    api: &Api,
    caller: Caller,
    id: ContainerId,
    lines: usize,
    first: Bytes,
) -> Result<Response, ApiError> {
    let place = api.followers.place()?;
    let position = from_last_lines(&api.service, id, lines, first).await?;
    let follower = Follower {
        service: api.service.clone(),
        caller,
        shutdown: api.followers.shutdown.clone(),
        id,
        position,
        ended: false,
        _place: place,
    };
    let heartbeat = KeepAlive::new().interval(Duration::from_secs(HEARTBEAT_S));
    Ok(Sse::new(events(follower)).keep_alive(heartbeat).into_response())
}

/// Where the last lines of a log begin.
async fn from_last_lines(service: &Service, id: ContainerId, lines: usize, first: Bytes) -> Result<u64, ApiError> {
    let end = service.log_after(id, u64::MAX, Bytes(0)).await?.end;
    let part = service.log_after(id, end.saturating_sub(first.0), first).await?;
    let last = super::logs::last_lines(&part.text, lines).len() as u64;
    Ok(part.start + part.text.len() as u64 - last)
}

fn events(follower: Follower) -> impl Stream<Item = Result<Event, Infallible>> {
    futures_util::stream::unfold(follower, |mut follower| async move {
        if follower.ended {
            return None;
        }
        let event = match follower.next().await {
            Ok(text) => Event::default().data(text),
            Err(end) => {
                follower.ended = true;
                Event::default().event("end").data(end.word())
            }
        };
        Some((Ok(event), follower))
    })
}

impl Follower {
    /// The next text, once there is some.
    async fn next(&mut self) -> Result<String, End> {
        loop {
            self.check()?;
            let part = match self.service.log_after(self.id, self.position, EVENT_MAX).await {
                Ok(part) => part,
                Err(Error::NotFound { .. }) => return Err(End::Deleted),
                Err(error) => {
                    tracing::error!(container = %self.id, error = &error as &dyn std::error::Error, "a log cannot be followed");
                    return Err(End::LogUnreadable);
                }
            };
            let (text, taken) = sendable(&part.text);
            if taken > 0 {
                self.position = part.start + taken as u64;
                return Ok(text);
            }
            tokio::select! {
                // Both only wait.
                () = tokio::time::sleep(Duration::from_millis(LOOK_EVERY_MS)) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    fn check(&self) -> Result<(), End> {
        if self.shutdown.is_cancelled() {
            return Err(End::ShuttingDown);
        }
        if !self.caller.is_still_known(&self.service) {
            return Err(End::TokenRefused);
        }
        match self.service.container(self.id) {
            Ok(container) if container.receipt.is_none() => Ok(()),
            _ => Err(End::Deleted),
        }
    }
}

/// What of some bytes can be sent as text, and how many bytes that is. A character, or a carriage return before its line
/// feed, that is not whole at the end waits for its rest.
fn sendable(bytes: &[u8]) -> (String, usize) {
    let mut taken = bytes.len();
    for back in 1..CHAR_BYTES_MAX.min(bytes.len() + 1) {
        let cut = bytes.len() - back;
        if let Err(error) = std::str::from_utf8(&bytes[cut..])
            && error.valid_up_to() == 0
            && error.error_len().is_none()
        {
            taken = cut;
        }
    }
    if bytes[..taken].ends_with(b"\r") {
        taken -= 1;
    }
    let text = String::from_utf8_lossy(&bytes[..taken]).replace("\r\n", "\n").replace('\r', "\n");
    (text, taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_waits_for_its_rest() {
        assert_eq!(sendable(b"abc\n"), ("abc\n".into(), 4));
        assert_eq!(sendable("aé".as_bytes()), ("aé".into(), 3));
        assert_eq!(sendable(&"aé".as_bytes()[..2]), ("a".into(), 1));
        for cut in 1..4 {
            assert_eq!(sendable(&"a🦀".as_bytes()[..=cut]), ("a".into(), 1), "{cut}");
        }
        assert_eq!(sendable(b"a\r"), ("a".into(), 1));
        assert_eq!(sendable(b"a\r\nb\rc"), ("a\nb\nc".into(), 6));
        assert_eq!(sendable(b""), (String::new(), 0));
    }

    #[test]
    fn what_is_no_text_is_replaced_and_never_waited_for() {
        assert_eq!(sendable(b"a\xffb"), ("a\u{fffd}b".into(), 3));
        assert_eq!(sendable(b"\xff\xff"), ("\u{fffd}\u{fffd}".into(), 2));
        assert_eq!(sendable(b"\x80\x80\x80\x80").1, 4);
    }
}
