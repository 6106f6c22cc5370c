//! What waits to be written to access logs.
//!
//! A request that has ended leaves a few words here, under one lock and without a system call; one task takes them out in
//! batches. Where that task cannot keep up, what does not fit is lost and counted: no request ever waits for a log.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::Method;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;

use super::account::Kind;
use crate::domain::access_log::{PATH_BYTES_MAX, RAW_METHOD};
use crate::domain::{AccessLine, ContainerId};
use crate::metrics::Counter;

/// Lines that wait, at most: 6 MiB where each path is as long as may be.
const WAITING_MAX: usize = 16_384;
/// How long lines are collected before they are taken: what a line may be late.
const COLLECT_MS: Duration = Duration::from_millis(200);
/// Lines that are taken sooner: at 80 000 requests a second 200 ms would be as many as may wait, and the writer at work on them for as
/// long as a processor's turn lasts.
const COLLECT_LINES: usize = 2_048;

/// One line to be; its path lies beside, so that a line costs no allocation.
#[derive(Debug)]
pub(super) struct Line {
    pub container: ContainerId,
    pub ended: Timestamp,
    pub client: IpAddr,
    pub kind: Kind,
    pub status: Option<u16>,
    pub bytes: u64,
    pub took: Duration,
    pub upstream: Option<Duration>,
    pub woken: bool,
    pub request_id: [u8; 16],
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<(Line, usize)>,
    paths: String,
}

/// Lines that wait to be written.
#[derive(Debug, Default)]
pub struct AccessQueue {
    waiting: Mutex<Waiting>,
    first: Notify,
    many: Notify,
    lost: Counter,
}

impl AccessQueue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, line: Line, path: &str) {
        let mut waiting = self.lock();
        if waiting.lines.len() >= WAITING_MAX {
            drop(waiting);
            return self.lost.count();
        }
        waiting.paths.push_str(path);
        let end = waiting.paths.len();
        waiting.lines.push((line, end));
        let lines = waiting.lines.len();
        drop(waiting);
        match lines {
            1 => self.first.notify_one(),
            COLLECT_LINES => self.many.notify_one(),
            _ => {}
        }
    }

    /// Waits until there are lines, and a moment for more, so that a busy proxy wakes the writer rarely.
    pub async fn collected(&self) {
        while self.lock().lines.is_empty() {
            self.first.notified().await;
        }
        // Either will do: there are some, or there are many.
        let _ = tokio::time::timeout(COLLECT_MS, self.many.notified()).await;
    }

    /// The lines that wait now.
    pub fn take(&self) -> Vec<(ContainerId, AccessLine)> {
        let Waiting { lines, paths } = std::mem::take(&mut *self.lock());
        let mut from = 0;
        let line = |(line, to): (Line, usize)| {
            let path = paths.get(from..to).unwrap_or_default().to_owned();
            from = to;
            (line.container, line.told(path))
        };
        lines.into_iter().map(line).collect()
    }

    /// How many there was no room for.
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().lines.len()
    }
}

impl Line {
    fn told(self, path: String) -> AccessLine {
        let us = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let took = SignedDuration::try_from(self.took).unwrap_or(SignedDuration::MAX);
        AccessLine {
            at: self.ended.checked_sub(took).unwrap_or(self.ended),
            client: self.client.to_canonical(),
            method: match self.kind {
                Kind::Connection => RAW_METHOD.into(),
                Kind::Request(Method::GET) => "GET".into(),
                Kind::Request(Method::POST) => "POST".into(),
                Kind::Request(other) => other.as_str().to_owned().into(),
            },
            path,
            status: self.status,
            bytes: self.bytes,
            duration_us: us(self.took),
            upstream_us: self.upstream.map(us),
            woken: self.woken,
            request_id: hex::encode(self.request_id),
        }
    }
}

/// A path, cut to what is kept of one, at a whole character.
pub(super) fn kept_of(path: &str) -> &str {
    let mut end = path.len().min(PATH_BYTES_MAX);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    path.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(status: u16) -> Line {
        Line {
            container: ContainerId::NIL,
            ended: Timestamp::UNIX_EPOCH + SignedDuration::from_secs(9),
            client: "::ffff:192.0.2.7".parse().unwrap(),
            kind: Kind::Request(Method::PUT),
            status: Some(status),
            bytes: 5,
            took: Duration::from_secs(2),
            upstream: None,
            woken: true,
            request_id: [0xab; 16],
        }
    }

    #[tokio::test]
    async fn lines_come_out_as_they_went_in() {
        let queue = AccessQueue::default();
        queue.push(line(200), "/one");
        queue.push(line(404), "");
        queue.push(line(500), "/three");
        queue.collected().await;
        let lines = queue.take();
        let told: Vec<_> = lines.iter().map(|(_, line)| (line.status, line.path.as_str())).collect();
        assert_eq!(told, [(Some(200), "/one"), (Some(404), ""), (Some(500), "/three")]);
        let (_, first) = &lines[0];
        assert_eq!(first.at.as_second(), 7, "when it began");
        assert_eq!((first.client.to_string().as_str(), &*first.method), ("192.0.2.7", "PUT"));
        assert_eq!(first.request_id, "ab".repeat(16));
        assert!(queue.take().is_empty());
    }

    #[tokio::test]
    async fn many_lines_are_taken_sooner_than_few() {
        let queue = AccessQueue::default();
        let took = async || {
            let began = tokio::time::Instant::now();
            queue.collected().await;
            queue.take();
            began.elapsed()
        };
        queue.push(line(200), "/");
        assert!(took().await >= COLLECT_MS);
        (0..COLLECT_LINES).for_each(|_| queue.push(line(200), "/"));
        assert!(took().await < COLLECT_MS);
        queue.push(line(200), "/");
        assert!(took().await >= COLLECT_MS, "what was told once is not told again");
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let queue = AccessQueue::default();
        (0..WAITING_MAX + 3).for_each(|_| queue.push(line(200), "/"));
        assert_eq!((queue.waiting(), queue.lost()), (WAITING_MAX, 3));
        assert_eq!(queue.take().len(), WAITING_MAX);
    }

    #[test]
    fn a_long_path_is_cut_at_a_whole_character() {
        let path = format!("{}ä", "x".repeat(PATH_BYTES_MAX - 1));
        assert_eq!(kept_of(&path).len(), PATH_BYTES_MAX - 1);
        assert_eq!(kept_of("/a"), "/a");
    }
}
