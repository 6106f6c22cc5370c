//! Deletions: the mark on a container, and the receipt that follows what is left of it.

use jiff::Timestamp;

use super::super::error::{Error, What};
use super::{Change, Ledger, log_transition, write};
use crate::domain::{ContainerId, Receipt, ReceiptId};
use crate::store::{Batch, Durability};
use crate::sys::btrfs::SubvolumeId;

impl Ledger {
    /// Marks a container as deleted, once; gives its receipt, which says from the first which subvolumes have to go. From here
    /// on it never runs again; the plan that erases it flushes the mark before it touches data. To delete it again is no change,
    /// whatever `if_match` says.
    ///
    /// # Errors
    /// No such container, it is protected, or at another generation than `if_match`.
    pub async fn tombstone(
        &self,
        id: ContainerId,
        subvolumes: &[SubvolumeId],
        if_match: Option<u64>,
    ) -> Result<Receipt, Error> {
        let _order = self.order.lock().await;
        let old = self.directory().container(id)?;
        if let Some(receipt) = old.receipt {
            return self.receipt(receipt).await;
        }
        if let Some(wanted) = if_match.filter(|wanted| *wanted != old.generation) {
            return Err(Error::Stale { what: What::Container, wanted, found: old.generation });
        }
        if old.settings.deletion_protection {
            return Err(Error::Protected(id));
        }
        let mut receipt = Receipt::pending(id, old.project, Timestamp::now());
        receipt.follow(subvolumes.iter().map(|id| id.0));
        let mut new = (*old).clone();
        new.receipt = Some(receipt.id);
        new.generation += 1;
        new.updated_at = Timestamp::now();
        let batch = log_transition(Batch::default(), &old, &mut new, Change::lazy("delete"))?;
        self.commit(batch.put(&new)?.put(&receipt)?).await?;
        write(&self.directory).put(new)?;
        write(&self.receipts).insert(id, receipt.id);
        Ok(receipt)
    }

    /// One receipt.
    ///
    /// # Errors
    /// No such receipt.
    pub async fn receipt(&self, id: ReceiptId) -> Result<Receipt, Error> {
        self.records.get::<Receipt>(&id).await?.ok_or_else(|| Error::not_found(What::Receipt, id))
    }

    /// Receipts that are not complete.
    ///
    /// # Errors
    /// The store's.
    pub async fn open_receipts(&self) -> Result<Vec<Receipt>, Error> {
        let all = self.records.all::<Receipt>().await?;
        Ok(all.into_iter().filter(|receipt| receipt.completed_at.is_none()).collect())
    }

    /// Writes a receipt's progress. Flushed.
    ///
    /// # Errors
    /// The store's.
    pub async fn put_receipt(&self, receipt: &Receipt) -> Result<(), Error> {
        self.records.commit(Batch::default().put(receipt)?, Durability::Flushed).await?;
        Ok(())
    }
}
