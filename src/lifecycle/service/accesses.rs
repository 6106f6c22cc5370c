//! Access logs: what was asked of a container's URL.

use std::collections::BTreeMap;

use super::super::error::Error;
use super::Service;
use crate::domain::{AccessLine, Bytes, ContainerId};

impl Service {
    /// Appends lines to the logs of their containers; those of containers that are gone or going are dropped.
    pub async fn append_access_logs(&self, mut logs: BTreeMap<ContainerId, Vec<u8>>) {
        logs.retain(|id, _| self.container(*id).is_ok_and(|container| container.receipt.is_none()));
        if let Err(error) = self.drivers().folders.append_access_logs(logs).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "access logs cannot be written");
        }
    }

    /// The requests in the last `max` bytes of a container's access log, oldest first.
    ///
    /// # Errors
    /// No such container, or its log cannot be read.
    pub async fn accesses(&self, id: ContainerId, max: Bytes) -> Result<Vec<AccessLine>, Error> {
        self.container(id)?;
        let text = self.drivers().folders.access_log_tail(id, max).await.map_err(Error::driver)?;
        Ok(text.split(|byte| *byte == b'\n').filter_map(AccessLine::from_line).collect())
    }
}
