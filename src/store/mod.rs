//! Records that outlive the daemon and the machine's power.
//!
//! [`Store`] is the small contract that sled and etcd both can keep: get, range, compare-and-commit of a batch,
//! watch by prefix. [`Records`] is the typed view everything above uses. Kernel objects have a journal of their own,
//! [`journal::RunJournal`], as short-lived as they are.
//!
//! Invariants: one writer process; a commit whose durability is [`Durability::Flushed`] has reached the disk when it
//! returns; a batch is applied whole or not at all.

use std::path::PathBuf;

use async_trait::async_trait;
use tokio::sync::broadcast;

pub mod by_container;
pub mod events;
pub mod journal;
pub mod schema;
pub mod sled;

pub use by_container::ByContainer;
pub use events::EventLog;
pub use schema::Records;

/// When a commit counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On the disk. Concurrent commits share one flush.
    Flushed,
    /// In the store; on the disk within [`sled::FLUSH_EVERY_MS`]. For what can be observed anew after a crash.
    Lazy,
}

/// What a batch expects of a key before it changes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Nothing is there.
    Absent,
    /// Exactly this is there.
    Value(Vec<u8>),
}

/// Changes that happen together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// What must hold first.
    pub expect: Vec<(String, Expect)>,
    /// In order: a value to put, or `None` to remove.
    pub writes: Vec<(String, Option<Vec<u8>>)>,
}

/// One key's change, as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// Its new value; `None` where it was removed.
    pub value: Option<Vec<u8>>,
}

/// A store operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The database itself.
    #[error("the store cannot {action}")]
    Database {
        /// What was tried.
        action: &'static str,
        /// The cause.
        #[source]
        source: ::sled::Error,
    },
    /// An expectation did not hold; nothing was changed.
    #[error("`{key}` has changed meanwhile")]
    Conflict {
        /// The first key whose expectation failed.
        key: String,
    },
    /// A value that does not read as what its key says.
    #[error("the record `{key}` does not read")]
    Corrupt {
        /// The key.
        key: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Written by a later version.
    #[error("the store has schema {found}, this version knows {known}: it was written by a later tenantry")]
    Schema {
        /// What the store says.
        found: u64,
        /// What we know.
        known: u64,
    },
    /// The run journal's file.
    #[error("cannot {action} the journal {}", path.display())]
    Journal {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A fault put there by a test.
    #[error("injected fault at {0}")]
    Injected(&'static str),
}

/// An ordered map of texts to bytes with atomic batches.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// One value.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError>;
    /// Up to `limit` pairs whose key starts with `prefix` and sorts after `after`, in order.
    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
    /// Applies a batch whole or not at all.
    async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError>;
    /// Changes from now on to keys that start with `prefix`. A watcher that falls more than
    /// [`sled::WATCH_BACKLOG_MAX`] behind is told that it lagged and must read anew.
    fn watch(&self, prefix: &str) -> Watch;
}

/// A subscription to changes below one prefix.
#[derive(Debug)]
pub struct Watch {
    prefix: String,
    changes: broadcast::Receiver<Change>,
}

impl Watch {
    /// The next change.
    ///
    /// # Errors
    /// The watcher lagged, or the store was closed.
    pub async fn next(&mut self) -> Result<Change, broadcast::error::RecvError> {
        loop {
            let change = self.changes.recv().await?;
            if change.key.starts_with(&self.prefix) {
                return Ok(change);
            }
        }
    }
}
