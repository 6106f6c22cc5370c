//! Control files: read, written, waited for.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use super::{CgroupError, plan};

/// The first pause between two looks at a file that will change, in microseconds; each further one is twice as long.
const POLL_PAUSE_US_FIRST: u64 = 250;

/// The longest such pause, in microseconds.
const POLL_PAUSE_US_MAX: u64 = 20_000;

pub(super) fn make_folder(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(CgroupError::Io { action: "make", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Asks until there is an answer, or `bound` is over: then `None`.
pub(super) fn poll<T>(
    bound: Duration,
    mut ask: impl FnMut() -> Result<Option<T>, CgroupError>,
) -> Result<Option<T>, CgroupError> {
    let deadline = Instant::now() + bound;
    let mut pause = Duration::from_micros(POLL_PAUSE_US_FIRST);
    loop {
        if let Some(answer) = ask()? {
            return Ok(Some(answer));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_micros(POLL_PAUSE_US_MAX));
    }
}

/// One write(2) of the whole value, as control files want it; never makes the file.
pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|source| CgroupError::Io { action: "write", path: path.to_owned(), source })
}

pub(super) fn read(path: &Path) -> Result<String, CgroupError> {
    std::fs::read_to_string(path).map_err(|source| CgroupError::Io { action: "read", path: path.to_owned(), source })
}

/// A file that is one number; `None` where the file is not there.
pub(super) fn read_number(path: &Path) -> Result<Option<u64>, CgroupError> {
    match need_number(path) {
        Err(CgroupError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        number => number.map(Some),
    }
}

pub(super) fn need_number(path: &Path) -> Result<u64, CgroupError> {
    read(path)?.trim().parse().map_err(|_| odd(path))
}

pub(super) fn read_key(path: &Path, key: &str) -> Result<u64, CgroupError> {
    plan::flat_value(&read(path)?, key).ok_or_else(|| odd(path))
}

pub(super) fn odd(path: &Path) -> CgroupError {
    CgroupError::Io { action: "understand", path: path.to_owned(), source: ErrorKind::InvalidData.into() }
}

/// Whether a group went away: its file is not there, or was open when it went.
pub(super) fn gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

pub(super) fn busy(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}
