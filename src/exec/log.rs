//! What scripts print and how their runs ended: a bounded log for each, lines of JSON in two files that take turns.
//!
//! One task writes, so that no run waits for the disk; where it cannot keep up, lines are dropped and their number is noted. The log
//! is for whoever may manage scripts: what a script throws is told here, and not to its visitors.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::run::ScriptFile;

/// Bytes of one of the two files of a script's log, after which they change places: twice as much is kept, at most.
const HALF_BYTES_MAX: u64 = 512 << 10;
/// Lines that wait to be written, at most.
const QUEUE_MAX: usize = 4_096;
/// Bytes of one line's text, at most.
const TEXT_BYTES_MAX: usize = 8 << 10;
/// Lines that one question gets, at most.
pub const TAIL_LINES_MAX: usize = 10_000;
/// Of a log: root alone reads it.
const MODE: u32 = 0o600;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub time: Timestamp,
    /// Of which run.
    pub run: String,
    /// `log`, `info`, `warn`, `error`, `debug` of its console, or `run`: how it ended.
    pub level: String,
    /// What.
    pub text: String,
}

#[derive(Debug)]
enum Order {
    Write(ScriptFile, LogLine),
    Erase(ScriptFile),
    /// Answered when all before it is done.
    Done(oneshot::Sender<()>),
}

/// The logs of all scripts; cheap to clone.
#[derive(Debug, Clone)]
pub struct RunLog {
    folder: PathBuf,
    orders: mpsc::Sender<Order>,
    dropped: Arc<AtomicU64>,
}

impl RunLog {
    /// Logs in this folder, which is there; they are written until the last clone is dropped.
    pub fn open(folder: PathBuf) -> Self {
        let (orders, waiting) = mpsc::channel(QUEUE_MAX);
        let dropped = Arc::<AtomicU64>::default();
        let log = Self { folder: folder.clone(), orders, dropped: Arc::clone(&dropped) };
        tokio::task::spawn_blocking(move || write_all(&folder, waiting, &dropped));
        log
    }

    /// Adds a line, unless too many wait.
    pub fn add(&self, file: &ScriptFile, run: &str, level: &str, text: &str) {
        let line = LogLine {
            time: Timestamp::now(),
            run: run.to_owned(),
            level: level.to_owned(),
            text: cut(text, TEXT_BYTES_MAX).to_owned(),
        };
        if self.orders.try_send(Order::Write(file.clone(), line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Erases a script's log.
    pub async fn erase(&self, file: &ScriptFile) {
        // The writer only ends with the daemon.
        let _ = self.orders.send(Order::Erase(file.clone())).await;
    }

    /// The last lines of a script's log, none from before `since`.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn tail(&self, file: &ScriptFile, lines: usize, since: Option<Timestamp>) -> io::Result<Vec<LogLine>> {
        let (done, written) = oneshot::channel();
        if self.orders.send(Order::Done(done)).await.is_ok() {
            // What is asked for right after a run holds that run.
            let _ = written.await;
        }
        let path = path_of(&self.folder, file);
        let read = move || -> io::Result<Vec<LogLine>> {
            let mut found = Vec::new();
            for path in [old(&path), path] {
                let text = match fs::read(path) {
                    Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                // A line that a full disk cut short is none.
                found.extend(text.lines().filter_map(|line| serde_json::from_str::<LogLine>(line).ok()));
            }
            found.retain(|line| since.is_none_or(|since| line.time >= since));
            found.drain(..found.len().saturating_sub(lines.min(TAIL_LINES_MAX)));
            Ok(found)
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

/// The beginning of a text, at most so many bytes.
fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A script's name may be longer than a file's.
fn path_of(folder: &Path, file: &ScriptFile) -> PathBuf {
    let digest = hex::encode(Sha256::digest(file.0.as_bytes()));
    folder.join(format!("{}.log", cut(&digest, 32)))
}

fn old(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn write_all(folder: &Path, mut waiting: mpsc::Receiver<Order>, dropped: &AtomicU64) {
    while let Some(order) = waiting.blocking_recv() {
        let (what, outcome) = match order {
            Order::Done(done) => {
                // Whoever asked may have gone.
                let _ = done.send(());
                continue;
            }
            Order::Erase(file) => {
                let path = path_of(folder, &file);
                (file, remove(&old(&path)).and(remove(&path)))
            }
            Order::Write(file, mut line) => {
                match dropped.swap(0, Ordering::Relaxed) {
                    0 => {}
                    count => {
                        line.text.push_str(&format!(" ({count} lines before this one, of any script, were dropped)"))
                    }
                }
                let outcome = append(&path_of(folder, &file), &line);
                (file, outcome)
            }
        };
        if let Err(error) = outcome {
            tracing::warn!(script = %what, %error, "a script's log cannot be written");
        }
    }
}

fn append(path: &Path, line: &LogLine) -> io::Result<()> {
    let mut log = open(path)?;
    if log.metadata()?.len() > HALF_BYTES_MAX {
        fs::rename(path, old(path))?;
        log = open(path)?;
    }
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    log.write_all(&text)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(MODE).open(path)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_has_the_last_lines_of_its_script_alone() {
        let folder = tempfile::tempdir().unwrap();
        let log = RunLog::open(folder.path().to_owned());
        let (a, b) = (ScriptFile("a.js".into()), ScriptFile("b.js".into()));
        for round in 0..5 {
            log.add(&a, "r1", "info", &format!("line {round}"));
        }
        log.add(&b, "r2", "run", "other");
        let lines = log.tail(&a, 2, None).await.unwrap();
        assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), ["line 3", "line 4"]);
        assert_eq!((lines[0].run.as_str(), lines[0].level.as_str()), ("r1", "info"));
        assert!(log.tail(&a, 9, Some(Timestamp::now())).await.unwrap().is_empty());
        log.erase(&a).await;
        assert!(log.tail(&a, 9, None).await.unwrap().is_empty());
        assert_eq!(log.tail(&b, 9, None).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_log_is_bounded_and_keeps_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let log = RunLog::open(folder.path().to_owned());
        let file = ScriptFile("a.js".into());
        for round in 0..400 {
            log.add(&file, "r", "log", &format!("{round} {}", "é".repeat(TEXT_BYTES_MAX)));
            if round % 100 == 0 {
                log.tail(&file, 1, None).await.unwrap();
            }
        }
        let last = log.tail(&file, 1, None).await.unwrap();
        assert!(last[0].text.starts_with("399 ") && last[0].text.len() <= TEXT_BYTES_MAX);
        let held: u64 =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(held <= 2 * (HALF_BYTES_MAX + 2 * TEXT_BYTES_MAX as u64), "{held}");
    }
}
