//! The typed view of the store: which record lies under which key, as JSON.
//!
//! Only primary records are kept; names, aliases and slots are indexed in memory from them, so that no index can
//! disagree with what it indexes.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Batch, Durability, Store, StoreError};
use crate::domain::{
    AliasId, Container, ContainerId, Project, ProjectId, ProxyAlias, Receipt, ReceiptId, Token, TokenId,
};
use crate::domain::{Image, ImageId};

/// The schema this version writes.
const SCHEMA: u64 = 1;
const SCHEMA_KEY: &str = "meta/schema";
/// Pairs read at once when a whole kind is loaded.
const PAGE: usize = 1_000;

/// A record that has a key of its own.
pub trait Record: Serialize + DeserializeOwned + Send + Sync {
    /// What the keys of this kind start with.
    const PREFIX: &'static str;
    /// The rest of the key.
    type Id: std::fmt::Display + Send + Sync;
    /// This record's.
    fn id(&self) -> Self::Id;
}

macro_rules! records {
    ($($record:ty, $id:ty, $prefix:literal;)*) => {$(
        impl Record for $record {
            const PREFIX: &'static str = $prefix;
            type Id = $id;
            fn id(&self) -> $id {
                self.id
            }
        }
    )*};
}
records! {
    Project, ProjectId, "project/";
    Container, ContainerId, "container/";
    Image, ImageId, "image/";
    Token, TokenId, "token/";
    Receipt, ReceiptId, "receipt/";
    ProxyAlias, AliasId, "alias/";
}

fn key<R: Record>(id: &R::Id) -> String {
    format!("{}{id}", R::PREFIX)
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Corrupt { key: key.to_owned(), source })
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Corrupt { key: key.to_owned(), source })
}

impl Batch {
    /// Adds a record to be written.
    ///
    /// # Errors
    /// The record does not serialise.
    pub fn put<R: Record>(self, record: &R) -> Result<Self, StoreError> {
        self.put_at(key::<R>(&record.id()), record)
    }

    /// Adds a value to be written under a key that is no record's.
    ///
    /// # Errors
    /// The value does not serialise.
    pub fn put_at<T: Serialize>(mut self, key: String, value: &T) -> Result<Self, StoreError> {
        let bytes = encode(&key, value)?;
        self.writes.push((key, Some(bytes)));
        Ok(self)
    }

    /// Adds a record to be removed.
    pub fn remove<R: Record>(self, id: &R::Id) -> Self {
        self.remove_at(key::<R>(id))
    }

    /// Adds a key to be removed.
    pub fn remove_at(mut self, key: String) -> Self {
        self.writes.push((key, None));
        self
    }
}

/// Typed access to a store.
#[derive(Debug, Clone)]
pub struct Records {
    store: Arc<dyn Store>,
}

impl Records {
    /// Takes a store whose schema this version knows; a new one is marked with it.
    ///
    /// # Errors
    /// A later version wrote it, or it cannot be read.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, StoreError> {
        let records = Self { store };
        match records.get_at::<u64>(SCHEMA_KEY).await? {
            Some(found) if found > SCHEMA => return Err(StoreError::Schema { found, known: SCHEMA }),
            Some(_) => {}
            None => {
                let batch = Batch::default().put_at(SCHEMA_KEY.to_owned(), &SCHEMA)?;
                records.commit(batch, Durability::Flushed).await?;
            }
        }
        Ok(records)
    }

    /// One record.
    ///
    /// # Errors
    /// The store's.
    pub async fn get<R: Record>(&self, id: &R::Id) -> Result<Option<R>, StoreError> {
        self.get_at(&key::<R>(id)).await
    }

    /// One value under a key that is no record's.
    ///
    /// # Errors
    /// The store's.
    pub async fn get_at<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        self.store.get(key).await?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Every record of a kind, in the order of their ids.
    ///
    /// # Errors
    /// The store's, or the first record that does not read.
    pub async fn all<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        let pairs = self.all_at(R::PREFIX).await?;
        Ok(pairs.into_iter().map(|(_, record)| record).collect())
    }

    /// Every value below a prefix, with its key.
    ///
    /// # Errors
    /// The store's, or the first value that does not read.
    pub async fn all_at<T: DeserializeOwned>(&self, prefix: &str) -> Result<Vec<(String, T)>, StoreError> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.range(prefix, after.as_deref(), PAGE).await?;
            let last = page.len() < PAGE;
            after = page.last().map(|(key, _)| key.clone());
            for (key, bytes) in page {
                let value = decode(&key, &bytes)?;
                found.push((key, value));
            }
            if last {
                return Ok(found);
            }
        }
    }

    /// Up to `limit` values below a prefix behind a key, with their keys: for kinds of which there may be many.
    ///
    /// # Errors
    /// The store's, or the first value that does not read.
    pub async fn page_at<T: DeserializeOwned>(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let page = self.store.range(prefix, after, limit).await?;
        let read = |(key, bytes): (String, Vec<u8>)| decode(&key, &bytes).map(|value| (key, value));
        page.into_iter().map(read).collect()
    }

    /// Returns when all that was committed before is on the disk.
    ///
    /// # Errors
    /// The store's.
    pub async fn flush(&self) -> Result<(), StoreError> {
        // An empty batch changes nothing.
        self.store.commit(Batch::default(), Durability::Flushed).await
    }

    /// Applies a batch whole or not at all.
    ///
    /// # Errors
    /// The store's.
    pub async fn commit(&self, batch: Batch, durability: Durability) -> Result<(), StoreError> {
        self.store.commit(batch, durability).await
    }
}
