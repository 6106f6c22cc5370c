//! Values that tell of containers, under keys of their own: an index by container lets DELETE find and erase them.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use super::schema::Records;
use super::{Batch, Durability, StoreError};
use crate::domain::ContainerId;

/// An index; its entries are `<prefix><container>/<digest of the key>` to the key.
#[derive(Debug, Clone, Copy)]
pub struct ByContainer(pub &'static str);

impl ByContainer {
    /// The entry for a value that lies at `key` and tells of this container.
    pub fn entry(self, container: ContainerId, key: &str) -> String {
        format!("{}{container}/{}", self.0, hex::encode(Sha256::digest(key.as_bytes())))
    }

    /// Puts what `erased` leaves in the place of each value that tells of a container, and removes its entries.
    ///
    /// # Errors
    /// The store's.
    pub async fn erase<T: DeserializeOwned + Serialize>(
        self,
        records: &Records,
        container: ContainerId,
        erased: impl Fn(T) -> T,
    ) -> Result<(), StoreError> {
        let entries = records.all_at::<String>(&format!("{}{container}/", self.0)).await?;
        if entries.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for (entry, key) in entries {
            if let Some(value) = records.get_at(&key).await? {
                batch = batch.put_at(key, &erased(value))?;
            }
            batch = batch.remove_at(entry);
        }
        records.commit(batch, Durability::Flushed).await
    }
}
