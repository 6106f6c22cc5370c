//! The embedded store: sled, with a shared flush.
//!
//! Concurrent commits that want to be on the disk share one `flush` (an fsync): whoever comes while one runs waits
//! for the next, and that one covers all who came.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ::sled::transaction::{ConflictableTransactionError, TransactionError};
use async_trait::async_trait;
use tokio::sync::{Mutex, broadcast};

use super::{Batch, Change, Durability, Expect, Store, StoreError, Watch};

/// The longest a lazy commit stays in memory, in milliseconds.
pub const FLUSH_EVERY_MS: u64 = 200;
/// Changes a watcher may be behind before it is told that it lagged.
pub const WATCH_BACKLOG_MAX: usize = 4_096;
/// How long a folder that is locked is waited for, and the pause between two tries, in milliseconds.
const LOCK_WAIT_MS_MAX: u64 = 3_000;
const LOCK_LOOK_MS: u64 = 50;
/// sled's page cache, in bytes; its default of 1 GiB is more than a tenant's whole database.
const CACHE_BYTES_MAX: u64 = 4 << 20;

/// A sled database.
#[derive(Debug)]
pub struct SledStore {
    db: ::sled::Db,
    /// How many commits have been applied.
    applied: AtomicU64,
    /// How many of them are known to be on the disk; held while flushing.
    flushed: Mutex<u64>,
    changes: broadcast::Sender<Change>,
}

impl SledStore {
    /// Opens or makes the database in `folder`.
    ///
    /// # Errors
    /// The folder is locked by another daemon, or does not hold a sound database.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let db = ::sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES_MAX)
            .flush_every_ms(Some(FLUSH_EVERY_MS))
            .mode(::sled::Mode::HighThroughput)
            .open()
            .map_err(|source| StoreError::Database { action: "open its folder", source })?;
        let (changes, _) = broadcast::channel(WATCH_BACKLOG_MAX);
        Ok(Self { db, applied: AtomicU64::new(0), flushed: Mutex::new(0), changes })
    }

    /// The same, for a daemon that comes right after one that was killed: a process which that one was just starting holds the
    /// folder's lock for a moment longer, until it executes its program.
    ///
    /// # Errors
    /// As [`SledStore::open`].
    pub async fn open_after_another(folder: &Path) -> Result<Self, StoreError> {
        let deadline = Instant::now() + Duration::from_millis(LOCK_WAIT_MS_MAX);
        loop {
            match Self::open(folder) {
                // sled has no error of its own for a folder that is locked.
                Err(StoreError::Database { source: ::sled::Error::Io(_), .. }) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(LOCK_LOOK_MS)).await;
                }
                opened => return opened,
            }
        }
    }

    async fn flush(&self, mine: u64) -> Result<(), StoreError> {
        let mut flushed = self.flushed.lock().await;
        if *flushed >= mine {
            return Ok(());
        }
        let covered = self.applied.load(Ordering::Acquire);
        self.db.flush_async().await.map_err(|source| StoreError::Database { action: "flush", source })?;
        *flushed = covered;
        Ok(())
    }
}

enum Abort {
    Conflict(String),
}

fn apply(db: &::sled::Db, batch: &Batch) -> Result<(), StoreError> {
    let outcome = db.transaction(|tree| {
        for (key, expect) in &batch.expect {
            let found = tree.get(key.as_bytes())?;
            let holds = match expect {
                Expect::Absent => found.is_none(),
                Expect::Value(value) => found.is_some_and(|found| found == value.as_slice()),
            };
            if !holds {
                return Err(ConflictableTransactionError::Abort(Abort::Conflict(key.clone())));
            }
        }
        for (key, value) in &batch.writes {
            match value {
                Some(value) => tree.insert(key.as_bytes(), value.as_slice())?,
                None => tree.remove(key.as_bytes())?,
            };
        }
        Ok(())
    });
    match outcome {
        Ok(()) => Ok(()),
        Err(TransactionError::Abort(Abort::Conflict(key))) => Err(StoreError::Conflict { key }),
        Err(TransactionError::Storage(source)) => Err(StoreError::Database { action: "commit a batch", source }),
    }
}

#[async_trait]
impl Store for Arc<SledStore> {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.db.get(key).map_err(|source| StoreError::Database { action: "read a record", source })?;
        Ok(found.map(|value| value.to_vec()))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let from = after.map_or_else(|| prefix.to_owned(), |after| format!("{after}\0"));
        let mut found = Vec::new();
        for pair in self.db.range(from..).take(limit) {
            let (key, value) = pair.map_err(|source| StoreError::Database { action: "read a range", source })?;
            let key = String::from_utf8_lossy(&key).into_owned();
            if !key.starts_with(prefix) {
                break;
            }
            found.push((key, value.to_vec()));
        }
        Ok(found)
    }

    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        apply(&self.db, &batch)?;
        let mine = self.applied.fetch_add(1, Ordering::AcqRel) + 1;
        for (key, value) in batch.writes {
            // Nobody watching is no error.
            let _ = self.changes.send(Change { key, value });
        }
        match durability {
            Durability::Flushed => self.flush(mine).await,
            Durability::Lazy => Ok(()),
        }
    }

    fn watch(&self, prefix: &str) -> Watch {
        Watch { prefix: prefix.to_owned(), changes: self.changes.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Arc<SledStore>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SledStore::open(folder.path()).unwrap());
        (folder, store)
    }

    fn put(key: &str, value: &str) -> Batch {
        Batch { expect: vec![], writes: vec![(key.to_owned(), Some(value.as_bytes().to_vec()))] }
    }

    #[tokio::test]
    async fn a_batch_whose_expectation_fails_changes_nothing() {
        let (_folder, store) = open();
        store.commit(put("a", "1"), Durability::Flushed).await.unwrap();
        let mut batch = put("b", "2");
        batch.expect.push(("a".into(), Expect::Absent));
        let error = store.commit(batch, Durability::Flushed).await.unwrap_err();
        assert!(matches!(error, StoreError::Conflict { key } if key == "a"));
        assert_eq!(store.get("b").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_range_is_ordered_bounded_and_goes_on_behind_a_key() {
        let (_folder, store) = open();
        for key in ["c/3", "c/1", "d/1", "c/2", "b/9"] {
            store.commit(put(key, key), Durability::Lazy).await.unwrap();
        }
        let keys = |found: Vec<(String, Vec<u8>)>| found.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert_eq!(keys(store.range("c/", None, 10).await.unwrap()), ["c/1", "c/2", "c/3"]);
        assert_eq!(keys(store.range("c/", Some("c/1"), 1).await.unwrap()), ["c/2"]);
    }

    #[tokio::test]
    async fn a_watcher_sees_changes_below_its_prefix_alone() {
        let (_folder, store) = open();
        let mut watch = store.watch("c/");
        store.commit(put("b/1", "x"), Durability::Lazy).await.unwrap();
        store.commit(put("c/1", "y"), Durability::Lazy).await.unwrap();
        assert_eq!(watch.next().await.unwrap(), Change { key: "c/1".into(), value: Some(b"y".to_vec()) });
    }

    #[tokio::test]
    async fn a_folder_that_is_locked_a_moment_longer_is_waited_for() {
        let (folder, store) = open();
        assert!(SledStore::open(folder.path()).is_err());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(2 * LOCK_LOOK_MS)).await;
            drop(store);
        });
        SledStore::open_after_another(folder.path()).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_flushed_is_there_after_opening_again() {
        let (folder, store) = open();
        store.commit(put("a", "1"), Durability::Flushed).await.unwrap();
        drop(store);
        let store = Arc::new(SledStore::open(folder.path()).unwrap());
        assert_eq!(store.get("a").await.unwrap(), Some(b"1".to_vec()));
    }
}
