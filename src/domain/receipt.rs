//! Receipts: what is left of a deleted container, the proof of what was erased. No personal data is in one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::{ContainerId, ProjectId, ReceiptId};

/// How far an erasure has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Erasure {
    /// Tombstoned: it will never run again; objects are being removed.
    Pending,
    /// Every object is removed; BTRFS's cleaner is still dropping the data.
    Removed,
    /// The cleaner has dropped the data too.
    Complete,
}

/// One thing that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// "processes", "cgroup", "link", "firewall chains", "rootfs", "logs", "record", …
    pub what: String,
    /// How it was seen to be gone, for people.
    pub verified: String,
    /// When.
    pub at: Timestamp,
}

/// A receipt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its id.
    pub id: ReceiptId,
    /// The container that was deleted.
    pub container: ContainerId,
    /// The project it was in.
    pub project: ProjectId,
    /// How far it has come.
    pub state: Erasure,
    /// When DELETE was asked for.
    pub requested_at: Timestamp,
    /// When it was complete.
    pub completed_at: Option<Timestamp>,
    /// Ids of the subvolumes whose data the cleaner drops.
    pub subvolumes: Vec<u64>,
    /// What was removed, in order.
    pub erased: Vec<Erased>,
}

impl Receipt {
    /// A receipt of something that is about to be erased.
    pub fn pending(container: ContainerId, project: ProjectId, now: Timestamp) -> Self {
        Self {
            id: ReceiptId::generate(),
            container,
            project,
            state: Erasure::Pending,
            requested_at: now,
            completed_at: None,
            subvolumes: Vec::new(),
            erased: Vec::new(),
        }
    }

    /// Adds the subvolumes whose data has to be followed to its end; whether one was not known yet.
    pub fn follow(&mut self, subvolumes: impl IntoIterator<Item = u64>) -> bool {
        let known = self.subvolumes.len();
        for id in subvolumes {
            if !self.subvolumes.contains(&id) {
                self.subvolumes.push(id);
            }
        }
        self.subvolumes.len() > known
    }

    /// Notes one thing that is gone.
    pub fn note(&mut self, what: &str, verified: impl Into<String>, at: Timestamp) {
        self.erased.push(Erased { what: what.to_owned(), verified: verified.into(), at });
    }
}
