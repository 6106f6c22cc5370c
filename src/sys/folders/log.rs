//! A container's log on the disk: one file that init appends to, cut where it has grown too long.
//!
//! It lies in a subvolume of its own whose limit ([`super::LOG_DISK_MAX`]) the kernel keeps: how much a flood holds on the disk does
//! not depend on how soon somebody looks, or on a daemon being there.
//!
//! ```text
//!  everything ever written   0 ─────────────── base ────────── end
//!                                   └ console.log.1 ┘ console.log ┘
//!                                   └ what is kept ────────────────┘
//! ```
//!
//! A place in the log is counted from its first byte ever, so that it stays true when the log is cut: `console.log.base`
//! holds how much was cut off so far. A cut empties the log before it moves the base. A reader in between finds an end that
//! lies before its place, which says that there is nothing new; the other way round it would read what it has read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::disk::write_whole;
use super::{Layout, LogPart};
use crate::domain::{Bytes, ContainerId};

/// A console log is cut when it is longer than this.
pub const LOG_BYTES_MAX: Bytes = Bytes::mib(4);
/// What of it is kept, in the file beside it.
const LOG_BYTES_KEPT: Bytes = Bytes::mib(2);
/// What `st_blocks` counts in (stat(3type)).
const BLOCK_BYTES: u64 = 512;
/// How often a read is made anew because the log was cut meanwhile.
const TRIES_MAX: usize = 3;

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Up to `max` bytes of a file from `from`, and the file's length; nothing where there is no file.
fn read(path: &Path, from: impl FnOnce(u64) -> u64, max: u64) -> io::Result<(Vec<u8>, u64)> {
    let Some(mut file) = open(path)? else { return Ok((Vec::new(), 0)) };
    let length = file.seek(SeekFrom::End(0))?;
    let mut bytes = Vec::new();
    if max > 0 {
        file.seek(SeekFrom::Start(from(length)))?;
        file.take(max).read_to_end(&mut bytes)?;
    }
    Ok((bytes, length))
}

/// The last `max` bytes of a file; none where there is no file.
pub(super) fn tail_of(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    Ok(read(path, |length| length.saturating_sub(max), max)?.0)
}

/// The end of the log, at most `max`.
pub fn tail(layout: &Layout, id: ContainerId, max: Bytes) -> io::Result<Vec<u8>> {
    let mut end = tail_of(&layout.log(id), max.0)?;
    let missing = max.0.saturating_sub(end.len() as u64);
    if missing > 0 {
        let mut before = tail_of(&layout.old_log(id), missing)?;
        before.append(&mut end);
        end = before;
    }
    Ok(end)
}

fn base(layout: &Layout, id: ContainerId) -> io::Result<u64> {
    match std::fs::read_to_string(layout.log_base(id)) {
        Ok(text) => text.trim().parse().map_err(|_| io::Error::other("no number is in it")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// What was written after a place, at most `max`; begins later where that is not kept any more.
pub fn after(layout: &Layout, id: ContainerId, position: u64, max: Bytes) -> io::Result<LogPart> {
    let mut tries = 0;
    loop {
        tries += 1;
        let before = base(layout, id)?;
        let part = after_base(layout, id, before, position, max)?;
        if tries == TRIES_MAX || base(layout, id)? == before {
            return Ok(part);
        }
    }
}

fn after_base(layout: &Layout, id: ContainerId, base: u64, position: u64, max: Bytes) -> io::Result<LogPart> {
    if position < base {
        let mut start = position;
        let old = |length: u64| {
            let kept_from = base.saturating_sub(length);
            start = position.max(kept_from);
            start - kept_from
        };
        let (text, _) = read(&layout.old_log(id), old, max.0)?;
        if !text.is_empty() {
            return Ok(LogPart { start, text, end: base + read(&layout.log(id), |_| 0, 0)?.1 });
        }
    }
    let offset = position.saturating_sub(base);
    let (text, length) = read(&layout.log(id), |length| offset.min(length), max.0)?;
    Ok(LogPart { start: position.max(base).min(base + length), text, end: base + length })
}

/// Cuts a log that has grown beyond its bound. The log stays the same file: init holds it open for appending. What is written
/// between the reading and the cut is lost, which is what a bound on a log costs. What is
/// kept lies beside the log's volume, which may be full.
pub fn trim(layout: &Layout, id: ContainerId) -> io::Result<()> {
    let log = layout.log(id);
    match std::fs::metadata(&log) {
        // A program that opens its output anew may reserve space beyond the end, or set the length to anything.
        Ok(found) if found.len().max(found.blocks() * BLOCK_BYTES) > LOG_BYTES_MAX.0 => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(()),
    }
    let before = base(layout, id)?;
    write_whole(&layout.old_log(id), &tail_of(&log, LOG_BYTES_KEPT.0)?)?;
    let file = OpenOptions::new().write(true).open(&log)?;
    let length = file.metadata()?.len();
    file.set_len(0)?;
    write_whole(&layout.log_base(id), before.saturating_add(length).to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::btrfs::PoolLayout;

    struct Log {
        layout: Layout,
        init: File,
        written: Vec<u8>,
        _folder: tempfile::TempDir,
    }

    const ID: ContainerId = ContainerId::NIL;

    impl Log {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout { pool: PoolLayout::new(folder.path()), data: folder.path().to_owned() };
            std::fs::create_dir_all(layout.log_volume(ID)).unwrap();
            let init = OpenOptions::new().append(true).create(true).open(layout.log(ID)).unwrap();
            Self { layout, init, written: Vec::new(), _folder: folder }
        }

        fn write(&mut self, bytes: &[u8]) {
            self.init.write_all(bytes).unwrap();
            self.written.extend_from_slice(bytes);
        }

        /// Numbered lines, so that a wrong place shows.
        fn grow(&mut self, bytes: u64) {
            let from = self.written.len() as u64;
            let lines: Vec<_> = (0..bytes / 16).map(|n| format!("{:015}\n", from + n * 16)).collect();
            self.write(lines.concat().as_bytes());
        }

        fn after(&self, position: u64, max: u64) -> LogPart {
            after(&self.layout, ID, position, Bytes(max)).unwrap()
        }
    }

    #[test]
    fn what_is_written_is_read_once_in_bounded_parts() {
        let mut log = Log::new();
        assert_eq!(log.after(0, 10), LogPart { start: 0, text: Vec::new(), end: 0 });
        log.write(b"one\ntwo\n");
        assert_eq!(log.after(0, 4), LogPart { start: 0, text: b"one\n".to_vec(), end: 8 });
        assert_eq!(log.after(4, 100), LogPart { start: 4, text: b"two\n".to_vec(), end: 8 });
        assert_eq!(log.after(8, 100).text, b"");
        assert_eq!(log.after(u64::MAX, 0).end, 8);
    }

    #[test]
    fn a_reader_loses_nothing_when_the_log_is_cut_and_knows_what_is_not_kept() {
        let mut log = Log::new();
        log.grow(LOG_BYTES_MAX.0 + 16);
        let end = log.written.len() as u64;
        trim(&log.layout, ID).unwrap();
        assert_eq!(std::fs::metadata(log.layout.log(ID)).unwrap().len(), 0);
        log.grow(64);
        // Behind the cut, at it, before it, and where nothing is kept.
        assert_eq!(log.after(end + 16, 16).text, format!("{:015}\n", end + 16).into_bytes());
        assert_eq!(log.after(end, 16).text, format!("{end:015}\n").into_bytes());
        assert_eq!(log.after(end - 32, 16).text, format!("{:015}\n", end - 32).into_bytes());
        let oldest = log.after(0, 16);
        assert_eq!((oldest.start, oldest.end), (end - LOG_BYTES_KEPT.0, end + 64));
        assert_eq!(oldest.text, format!("{:015}\n", oldest.start).into_bytes());
        let mut read = Vec::new();
        let mut at = oldest.start;
        loop {
            let part = log.after(at, 100_000);
            if part.text.is_empty() {
                break;
            }
            assert_eq!(part.start, at);
            at += part.text.len() as u64;
            read.extend(part.text);
        }
        assert!(read == log.written[usize::try_from(oldest.start).unwrap()..]);
        assert_eq!(tail(&log.layout, ID, Bytes(80)).unwrap(), log.written[log.written.len() - 80..]);
    }

    #[test]
    fn a_reader_in_the_middle_of_a_cut_reads_nothing_twice() {
        let mut log = Log::new();
        log.grow(64);
        // Emptied, and the base not moved yet.
        log.init.set_len(0).unwrap();
        assert_eq!(log.after(64, 100).text, b"");
    }

    #[test]
    fn a_log_is_cut_again_and_again() {
        let mut log = Log::new();
        for _ in 0..3 {
            log.grow(LOG_BYTES_MAX.0 + 16);
            trim(&log.layout, ID).unwrap();
        }
        let end = log.written.len() as u64;
        assert_eq!(log.after(u64::MAX, 0).end, end);
        log.grow(16);
        assert_eq!(log.after(end - 16, 100).text, format!("{:015}\n", end - 16).into_bytes());
    }
}
