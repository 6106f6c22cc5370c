//! Whether a file or a folder is still what it was when it was read.
//!
//! Two changes within one tick of the kernel's clock bear the same time. What had changed just before it was read is therefore read
//! again the next time, however equal it looks: an edit is never missed.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How old a change has to be to be told from one after it: many ticks of any kernel, in milliseconds.
const SETTLE_MS: u64 = 50;

/// What changes with a file's content. The time of change cannot be set back, as that of modification can.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    /// Of what was found.
    pub fn of(found: &Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }

    /// Whether a later change is bound to show; `read_at` is taken before the reading.
    pub fn is_settled(&self, read_at: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else { return false };
        let changed = UNIX_EPOCH + Duration::new(seconds, nanos);
        read_at.duration_since(changed).is_ok_and(|age| age >= Duration::from_millis(SETTLE_MS))
    }
}
