//! A container's settings are changed: first what is in force, then the record.

use std::sync::Arc;

use super::super::bundle;
use super::super::error::{Error, What};
use super::super::ledger::Change;
use super::super::requests::ContainerPatch;
use super::Worker;
use crate::domain::Container;
use crate::domain::network::way_out;
use crate::sys::netlink::Rates;
use crate::sys::runtime::{Pins, Resized};

impl Worker {
    pub(super) async fn update(&self, patch: ContainerPatch, if_match: Option<u64>) -> Result<Arc<Container>, Error> {
        let old = self.record_at(if_match)?;
        self.replace(&old, Change::flushed("update"), |record| patch.apply(record)).await
    }

    /// The record, where it may be changed.
    pub(in crate::lifecycle) fn record_at(&self, if_match: Option<u64>) -> Result<Arc<Container>, Error> {
        let old = self.record()?;
        if old.receipt.is_some() {
            return Err(Error::not_found(What::Container, self.id));
        }
        if let Some(wanted) = if_match.filter(|wanted| *wanted != old.generation) {
            return Err(Error::Stale { what: What::Container, wanted, found: old.generation });
        }
        Ok(old)
    }

    /// First what is in force, then the record: a limit that the kernel does not take is not written down.
    pub(in crate::lifecycle) async fn replace(
        &self,
        old: &Arc<Container>,
        how: Change<'_>,
        patch: impl Fn(&mut Container) -> Result<(), Error> + Send + Sync,
    ) -> Result<Arc<Container>, Error> {
        let mut new = (**old).clone();
        patch(&mut new)?;
        let new = Arc::new(new);
        let result = match self.enforce(old, &new).await {
            Ok(()) => self.shared.ledger.change(self.id, how, &patch).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(record) => {
                self.write_manifest(&record).await;
                Ok(record)
            }
            Err(error) => {
                if let Err(back) = self.enforce(&new, old).await {
                    tracing::error!(error = &back as &dyn std::error::Error, "limits cannot be put back");
                }
                Err(error)
            }
        }
    }

    async fn enforce(&self, old: &Arc<Container>, new: &Arc<Container>) -> Result<(), Error> {
        let drivers = self.shared.executor.drivers();
        let (was, is) = (&old.settings, &new.settings);
        if was.limits.disk != is.limits.disk {
            let rootfs = self.shared.executor.layout().pool.rootfs(self.id);
            drivers.pool.set_limit(&rootfs, is.limits.disk).await.map_err(Error::driver)?;
        }
        let Some(init) = new.phase.init() else { return Ok(()) };
        if was.limits != is.limits {
            drivers.cgroups.set_limits(self.id, &is.limits).await.map_err(Error::driver)?;
        }
        let rates = Rates::from(&is.limits);
        if rates != Rates::from(&was.limits) {
            drivers.links.set_rates(new.slot, &Pins::of(init).net, rates).await.map_err(Error::driver)?;
        }
        if was.limits.ramdisk != is.limits.ramdisk && is.ramdisk {
            let resized = drivers.runtime.resize_ramdisk(init, is.limits.ramdisk).await.map_err(Error::driver)?;
            if resized == Resized::InUse {
                let reason = "the files in it need more".to_owned();
                return Err(Error::LimitBelowUse { limit: "ramdisk", reason });
            }
        }
        let ways = [was, is].map(|settings| way_out(settings.network.as_ref()));
        if was.firewall_policy != is.firewall_policy || was.firewall_rules != is.firewall_rules || ways[0] != ways[1] {
            let rules = Arc::new(self.shared.rules(new)?);
            drivers.firewall.apply(new.slot, &rules).await.map_err(Error::driver)?;
        }
        Ok(())
    }

    /// The copy beside the data is for rebuilding the store: that it could not be written is told, and no more.
    pub(super) async fn write_manifest(&self, record: &Container) {
        let json = bundle::manifest(record);
        if let Err(error) = self.shared.executor.drivers().folders.write_manifest(self.id, &json).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the manifest is behind the record");
        }
    }
}
