//! Removing a container for good: everything it had goes, the receipt takes the record's place.
//!
//! What was deleted must go whether or not somebody asks again, so an erasure that fails is tried again behind, a bounded number of
//! times, then by the next daemon.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;

use super::error::{Error, What};
use super::execute::{Target, Timings};
use super::plan::Plan;
use super::worker::{Command, Worker};
use crate::domain::Receipt;
use crate::domain::receipt::Erasure;

/// An erasure that failed is tried again so often.
const ERASE_TRIES_MAX: u32 = 10;
/// The pause before the first further try, in milliseconds; doubled each time.
const ERASE_PAUSE_MS_MIN: u64 = 500;

impl Worker {
    /// Removes everything and puts the receipt in the record's place.
    pub(super) async fn erase(&mut self) -> Result<Receipt, Error> {
        let Ok(container) = self.record() else {
            let known = self.shared.ledger.receipt_of(self.id);
            let known = known.ok_or_else(|| Error::not_found(What::Container, self.id))?;
            return self.shared.ledger.receipt(known).await;
        };
        let Some(receipt) = container.receipt else { return Err(Error::Busy(self.id)) };
        let mut receipt = self.shared.ledger.receipt(receipt).await?;
        let target = Target::from(&*container);
        let shared = self.shared.clone();
        // Made by a create that went on while the container was deleted.
        if receipt.follow(shared.executor.subvolumes(self.id).await?.into_iter().map(|id| id.0)) {
            shared.ledger.put_receipt(&receipt).await?;
        }
        // Side by side: the kernel takes as long for the link as everything else needs together.
        let network =
            async { shared.executor.remove_part(target, "delete", &Plan::disconnect(), &mut Timings::new()).await };
        let rest = async {
            if let Some(init) = container.phase.init() {
                self.end(init, None).await?;
            }
            shared.executor.remove_part(target, "delete", &Plan::erase_but_slot(), &mut Timings::new()).await
        };
        let (disconnected, erased) = tokio::join!(network, rest);
        erased.and(disconnected)?;
        shared.executor.close(target)?;
        self.verify(target, &mut receipt).await?;
        receipt.state = Erasure::Removed;
        self.shared.ledger.bury(self.id, &receipt).await?;
        self.shared.activities.forget(self.id);
        self.shared.wakes.well(self.id);
        self.shared.clean_later(receipt.clone());
        Ok(receipt)
    }

    /// What was deleted must go, whether or not somebody asks again; what is not gone after the last try is left to the next
    /// start of the daemon.
    pub(super) fn erase_later(&self, tries: u32) {
        if tries >= ERASE_TRIES_MAX {
            return;
        }
        let (id, shared) = (self.id, self.shared.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ERASE_PAUSE_MS_MIN << tries)).await;
            let command = Command::Erase { tries: tries + 1, reply: oneshot::channel().0 };
            // Refused where DELETE came again meanwhile or the daemon ends.
            let _ = shared.send(id, command);
        });
    }

    /// Looks whether what was removed is gone; the receipt says how that was seen.
    async fn verify(&self, target: Target, receipt: &mut Receipt) -> Result<(), Error> {
        let drivers = self.shared.executor.drivers();
        let left = |what: &str| Error::Left { id: target.id, what: what.to_owned() };
        if drivers.cgroups.usage(target.id).await.map_err(Error::driver)?.is_some() {
            return Err(left("cgroup"));
        }
        if drivers.links.usage(target.slot).await.map_err(Error::driver)?.is_some() {
            return Err(left("link"));
        }
        if drivers
            .pool
            .id(&self.shared.executor.layout().pool.rootfs(target.id))
            .await
            .map_err(Error::driver)?
            .is_some()
        {
            return Err(left("rootfs"));
        }
        if drivers.folders.list().await.map_err(Error::driver)?.contains(&target.id) {
            return Err(left("folders"));
        }
        let now = Timestamp::now();
        receipt.note("processes and cgroup", "no cgroup of the container exists", now);
        receipt.note("network link, address and route", "no link of the container's slot exists", now);
        receipt.note("firewall chains", "removed in one transaction that nft confirmed", now);
        receipt.note("rootfs", "its subvolume is deleted and the deletion committed", now);
        receipt.note("logs, manifest and bundle", "no folder of the container exists", now);
        receipt.note(
            "record, environment, name and status log",
            "removed from the store, which reuses their bytes as it writes on",
            now,
        );
        Ok(())
    }
}
