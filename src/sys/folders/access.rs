//! A container's access log on the disk: lines that the daemon appends, in two files that take turns.
//!
//! ```text
//!  lines ─► access.log ──as long as it may be──► access.log.1, in the place of what was there
//! ```
//!
//! It lies beside the console log, in the container's folder and outside its rootfs: out of the tenant's reach, and gone with it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use super::Layout;
use super::log::tail_of;
use crate::domain::{Bytes, ContainerId};

/// Bytes of one of the two files.
pub const ACCESS_LOG_BYTES_MAX: Bytes = Bytes::mib(1);

/// What of some lines fits into one file: their end, from the beginning of a line.
fn fitting(lines: &[u8]) -> &[u8] {
    let max = usize::try_from(ACCESS_LOG_BYTES_MAX.0).unwrap_or(usize::MAX);
    let Some(over) = lines.len().checked_sub(max).filter(|over| *over > 0) else { return lines };
    let end = lines.get(over..).unwrap_or_default();
    let first = end.iter().position(|byte| *byte == b'\n').map_or(end.len(), |at| at + 1);
    end.get(first..).unwrap_or_default()
}

/// Appends whole lines. A container whose folder is gone has no log any more.
pub fn append(layout: &Layout, id: ContainerId, lines: &[u8]) -> io::Result<()> {
    let lines = fitting(lines);
    let path = layout.access_log(id);
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if file.metadata()?.len() + lines.len() as u64 > ACCESS_LOG_BYTES_MAX.0 {
        std::fs::rename(&path, layout.old_access_log(id))?;
        file = open()?;
    }
    file.write_all(lines)
}

/// The end of the log, at most `max`; the first line may be cut.
pub fn tail(layout: &Layout, id: ContainerId, max: Bytes) -> io::Result<Vec<u8>> {
    let end = tail_of(&layout.access_log(id), max.0)?;
    let missing = max.0.saturating_sub(end.len() as u64);
    let mut text = if missing > 0 { tail_of(&layout.old_access_log(id), missing)? } else { Vec::new() };
    text.extend(end);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::btrfs::PoolLayout;

    const ID: ContainerId = ContainerId::NIL;

    fn folder() -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { pool: PoolLayout::new(folder.path()), data: folder.path().to_owned() };
        std::fs::create_dir_all(layout.pool.logs(ID)).unwrap();
        (folder, layout)
    }

    #[test]
    fn the_log_is_bounded_and_its_end_is_kept() {
        let (_folder, layout) = folder();
        let batch: Vec<u8> = (0..2_000).flat_map(|n| format!("{n:099}\n").into_bytes()).collect();
        let batches = ACCESS_LOG_BYTES_MAX.0 as usize * 3 / batch.len();
        for _ in 0..batches {
            append(&layout, ID, &batch).unwrap();
        }
        let sizes =
            [layout.access_log(ID), layout.old_access_log(ID)].map(|path| std::fs::metadata(path).unwrap().len());
        assert!(sizes.iter().all(|size| (1..=ACCESS_LOG_BYTES_MAX.0).contains(size)), "{sizes:?}");
        append(&layout, ID, b"the last\n").unwrap();
        let text = tail(&layout, ID, Bytes(batch.len() as u64 + 9)).unwrap();
        assert!(text == [&batch, &b"the last\n"[..]].concat());
    }

    #[test]
    fn a_batch_beyond_the_bound_is_cut_to_its_last_lines() {
        let (_folder, layout) = folder();
        let batch = "0123456789abcde\n".repeat(ACCESS_LOG_BYTES_MAX.0 as usize / 16 + 1_000);
        append(&layout, ID, batch.as_bytes()).unwrap();
        let text = tail(&layout, ID, ACCESS_LOG_BYTES_MAX).unwrap();
        assert!(text.len() as u64 > ACCESS_LOG_BYTES_MAX.0 - 32 && text.starts_with(b"0123") && text.ends_with(b"\n"));
    }

    #[test]
    fn a_container_that_is_gone_gets_no_log() {
        let (folder, layout) = folder();
        std::fs::remove_dir_all(layout.pool.container(ID)).unwrap();
        append(&layout, ID, b"late\n").unwrap();
        assert!(!layout.pool.container(ID).exists());
        assert_eq!(tail(&layout, ID, Bytes(100)).unwrap(), b"");
        drop(folder);
    }
}
