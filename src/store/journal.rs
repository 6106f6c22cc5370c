//! The run journal: which kernel objects may exist, for the daemon that comes after a killed one.
//!
//! An append-only file in the run folder (tmpfs), written without fsync: it outlives the daemon and not a reboot, and
//! so do the objects it speaks of. A verb that makes kernel objects says [`Entry::Begin`] before the first one and
//! [`Entry::End`] when it has made or undone all; [`Entry::Running`] says which process serves a container.
//!
//! Invariants: no kernel object without an entry; the last entry of a container wins; a torn last line (the daemon
//! died within a write) is read as if it were not there.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::domain::{ContainerId, Init, Slot};

/// Lines after which the file is written anew with what still matters.
const LINES_MAX: usize = 10_000;
/// The folder it is in may be passed by containers' inits.
const FILE_MODE: u32 = 0o600;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "entry", rename_all = "snake_case")]
pub enum Entry {
    /// Kernel objects of this container are about to be made or removed.
    Begin {
        /// Whose.
        id: ContainerId,
        /// What link, chains and ids derive from.
        slot: Slot,
        /// The verb, for people.
        verb: String,
    },
    /// The container runs: its objects are all there.
    Running {
        /// Which.
        id: ContainerId,
        /// Its slot.
        slot: Slot,
        /// Its process.
        init: Init,
        /// The environment's revision it was started with.
        env_revision: u64,
    },
    /// Nothing of the container is left in the kernel.
    End {
        /// Whose.
        id: ContainerId,
    },
}

impl Entry {
    const fn id(&self) -> ContainerId {
        match self {
            Self::Begin { id, .. } | Self::Running { id, .. } | Self::End { id } => *id,
        }
    }
}

/// The journal's file and what it says now.
#[derive(Debug)]
pub struct RunJournal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    lines: usize,
    last: BTreeMap<ContainerId, Entry>,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Journal { action, path, source }
}

fn read(path: &Path) -> Result<BTreeMap<ContainerId, Entry>, StoreError> {
    let mut last = BTreeMap::new();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(last),
        Err(error) => return Err(failed("open", path)(error)),
    };
    for line in BufReader::new(file).split(b'\n') {
        let line = line.map_err(failed("read", path))?;
        match serde_json::from_slice::<Entry>(&line) {
            Ok(Entry::End { id }) => drop(last.remove(&id)),
            Ok(entry) => drop(last.insert(entry.id(), entry)),
            Err(error) => tracing::warn!(%error, path = %path.display(), "a torn line of the run journal is left out"),
        }
    }
    Ok(last)
}

impl Inner {
    /// Writes what still matters to a new file and puts it in the old one's place.
    fn rewrite(path: &Path, last: BTreeMap<ContainerId, Entry>) -> Result<Self, StoreError> {
        let fresh = path.with_extension("new");
        let mut text = Vec::new();
        for entry in last.values() {
            line(&mut text, path, entry)?;
        }
        let made = OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&fresh);
        made.and_then(|mut file| file.write_all(&text)).map_err(failed("write", &fresh))?;
        std::fs::rename(&fresh, path).map_err(failed("replace", path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(failed("open", path))?;
        Ok(Self { file, lines: last.len(), last })
    }
}

fn line(text: &mut Vec<u8>, path: &Path, entry: &Entry) -> Result<(), StoreError> {
    serde_json::to_writer(&mut *text, entry)
        .map_err(|source| StoreError::Corrupt { key: path.display().to_string(), source })?;
    text.push(b'\n');
    Ok(())
}

impl RunJournal {
    /// Opens the journal of a run folder, which must exist.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: PathBuf) -> Result<Self, StoreError> {
        let last = read(&path)?;
        let inner = Inner::rewrite(&path, last)?;
        Ok(Self { path, inner: Mutex::new(inner) })
    }

    /// Appends an entry: one `write(2)`.
    ///
    /// # Errors
    /// The file cannot be written; nothing may then be done that the entry announces.
    pub fn append(&self, entry: Entry) -> Result<(), StoreError> {
        let mut text = Vec::new();
        line(&mut text, &self.path, &entry)?;
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.file.write_all(&text).map_err(failed("write", &self.path))?;
        inner.lines += 1;
        match entry {
            Entry::End { id } => drop(inner.last.remove(&id)),
            entry => drop(inner.last.insert(entry.id(), entry)),
        }
        if inner.lines > LINES_MAX + inner.last.len() {
            let last = std::mem::take(&mut inner.last);
            *inner = Inner::rewrite(&self.path, last)?;
        }
        Ok(())
    }

    /// Whether a container may have kernel objects.
    pub fn is_open(&self, id: ContainerId) -> bool {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).last.contains_key(&id)
    }

    /// How many containers may have kernel objects.
    pub fn open_count(&self) -> usize {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).last.len()
    }

    /// The last entry of each container that may have kernel objects.
    pub fn open_entries(&self) -> Vec<Entry> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner).last.values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn id(n: u8) -> ContainerId {
        ContainerId::new(Timestamp::UNIX_EPOCH, [n; 8])
    }

    fn begin(n: u8) -> Entry {
        Entry::Begin { id: id(n), slot: Slot(n.into()), verb: "start".into() }
    }

    fn running(n: u8) -> Entry {
        Entry::Running { id: id(n), slot: Slot(n.into()), init: Init { pid: 7, start_ticks: 8 }, env_revision: 1 }
    }

    #[test]
    fn the_next_daemon_reads_what_was_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = RunJournal::open(path.clone()).unwrap();
        for entry in [begin(1), begin(2), running(2), begin(3), Entry::End { id: id(3) }] {
            journal.append(entry).unwrap();
        }
        drop(journal);
        assert_eq!(RunJournal::open(path).unwrap().open_entries(), [begin(1), running(2)]);
    }

    #[test]
    fn a_torn_last_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        RunJournal::open(path.clone()).unwrap().append(begin(1)).unwrap();
        for torn in [br#"{"entry":"end","id":"00"#.as_slice(), b"\xff\xfe"] {
            OpenOptions::new().append(true).open(&path).unwrap().write_all(torn).unwrap();
            assert_eq!(RunJournal::open(path.clone()).unwrap().open_entries(), [begin(1)]);
        }
    }

    #[test]
    fn the_file_does_not_grow_without_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = RunJournal::open(path.clone()).unwrap();
        journal.append(running(9)).unwrap();
        for _ in 0..LINES_MAX {
            journal.append(begin(1)).unwrap();
            journal.append(Entry::End { id: id(1) }).unwrap();
        }
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LINES_MAX + 2, "{lines} lines");
        assert_eq!(journal.open_entries(), [running(9)]);
    }
}
