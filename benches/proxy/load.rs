//! Load: connections that ask again and again, as fast as they are answered or at a pace.
//!
//! As little HTTP as can be, so that what is measured is the other end: an answer has a `Content-Length`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Longer than any head here.
const HEAD_BYTES_MAX: usize = 8 << 10;
/// Before a round is measured: connections are made and warm.
const WARM_UP: Duration = Duration::from_millis(500);

/// Where to, and what is asked.
#[derive(Debug, Clone)]
pub struct Target {
    pub name: &'static str,
    pub addr: SocketAddr,
    pub host: String,
    pub path: &'static str,
}

/// What a round came to.
#[derive(Debug, Default)]
pub struct Round {
    pub requests: usize,
    pub lasted: Duration,
    pub took: Vec<Duration>,
}

/// A connection that is kept.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    request: Arc<[u8]>,
    buffer: Vec<u8>,
}

impl Connection {
    /// A connection that asks for a page of the target.
    pub async fn open(target: &Target) -> Result<Self> {
        let stream = TcpStream::connect(target.addr).await.with_context(|| target.name.to_owned())?;
        stream.set_nodelay(true)?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: text/html\r\n\
             Accept-Encoding: gzip, deflate\r\nAccept-Language: en\r\nCookie: session=0123456789abcdef\r\n\r\n",
            target.path, target.host
        );
        Ok(Self { stream, request: request.into_bytes().into(), buffer: Vec::with_capacity(HEAD_BYTES_MAX) })
    }

    /// One request and its whole answer, which must be a 200.
    pub async fn ask(&mut self) -> Result<()> {
        self.stream.write_all(&self.request).await?;
        self.buffer.clear();
        let (head, body) = loop {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the connection was closed");
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                let head = std::str::from_utf8(&self.buffer[..end])?;
                ensure!(head.starts_with("HTTP/1.1 200 "), "answered {}", head.lines().next().unwrap_or_default());
                break (end + 4, length(head)?);
            }
            if self.buffer.len() > HEAD_BYTES_MAX {
                bail!("the head does not end");
            }
        };
        while self.buffer.len() < head + body {
            ensure!(self.stream.read_buf(&mut self.buffer).await? > 0, "the answer was cut");
        }
        Ok(())
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn length(head: &str) -> Result<usize> {
    let line = head.lines().find(|line| line.len() > 15 && line[..15].eq_ignore_ascii_case("content-length:"));
    Ok(line.context("no Content-Length")?[15..].trim().parse()?)
}

/// Drives a target for so long. `rate` is of all connections together; without one each asks as fast as it is answered. Where there
/// is one, a request's time counts from when it was due: one that had to wait for the one before is not let off.
pub async fn drive(target: &Target, connections: usize, lasts: Duration, rate: Option<u32>) -> Result<Round> {
    let begin = Instant::now() + WARM_UP;
    let end = begin + lasts;
    let mut tasks = JoinSet::new();
    for n in 0..connections {
        let target = target.clone();
        let pace = rate.map(|rate| Duration::from_secs_f64(connections as f64 / f64::from(rate)));
        // Spread over the pace, or all would be due at once.
        let first = pace.map(|pace| Instant::now() + pace.mul_f64(n as f64 / connections as f64));
        tasks.spawn(async move {
            let mut connection = Connection::open(&target).await?;
            let mut took = Vec::new();
            let mut due = first;
            loop {
                if let Some(due) = due {
                    tokio::time::sleep_until(due.into()).await;
                }
                let began = due.unwrap_or_else(Instant::now);
                if began >= end {
                    return Ok::<_, anyhow::Error>(took);
                }
                connection.ask().await.with_context(|| target.name.to_owned())?;
                if began >= begin {
                    took.push(began.elapsed());
                }
                due = due.zip(pace).map(|(due, pace)| due + pace);
            }
        });
    }
    let mut round = Round { lasted: lasts, ..Round::default() };
    while let Some(done) = tasks.join_next().await {
        round.took.extend(done??);
    }
    round.requests = round.took.len();
    Ok(round)
}
