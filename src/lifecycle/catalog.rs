//! Records that are found by id and by a unique name: images, tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::error::{Error, What};
use crate::domain::{Image, Token};
use crate::store::schema::Record;

/// A record with a unique name.
pub trait Named: Record<Id: Ord> {
    /// Its kind, for errors.
    const WHAT: What;
    /// Its name.
    fn name(&self) -> &str;
}

impl Named for Image {
    const WHAT: What = What::Image;
    fn name(&self) -> &str {
        &self.name
    }
}

impl Named for Token {
    const WHAT: What = What::Token;
    fn name(&self) -> &str {
        &self.alias
    }
}

/// All records of a kind. There are few; names are searched, not indexed.
#[derive(Debug)]
pub struct Catalog<R: Named> {
    records: BTreeMap<R::Id, Arc<R>>,
}

impl<R: Named> Catalog<R> {
    /// With these in it.
    pub fn new(records: Vec<R>) -> Self {
        Self { records: records.into_iter().map(|record| (record.id(), Arc::new(record))).collect() }
    }

    /// Adds one.
    ///
    /// # Errors
    /// Its name is in use.
    pub fn add(&mut self, record: R) -> Result<Arc<R>, Error> {
        if self.named(record.name()).is_some() {
            return Err(Error::AliasInUse { what: R::WHAT, name: record.name().to_owned() });
        }
        let record = Arc::new(record);
        self.records.insert(record.id(), record.clone());
        Ok(record)
    }

    /// Puts one in the place of the one with its id, whose name it has.
    pub fn replace(&mut self, record: R) -> Arc<R> {
        let record = Arc::new(record);
        self.records.insert(record.id(), record.clone());
        record
    }

    /// Forgets one.
    pub fn remove(&mut self, record: &R) {
        self.records.remove(&record.id());
    }

    /// The one with this id.
    pub fn get(&self, id: &R::Id) -> Option<Arc<R>> {
        self.records.get(id).cloned()
    }

    /// The one with this name.
    pub fn named(&self, name: &str) -> Option<Arc<R>> {
        self.find(|record| record.name() == name)
    }

    /// The first that fits.
    pub fn find(&self, fits: impl Fn(&R) -> bool) -> Option<Arc<R>> {
        self.records.values().find(|record| fits(record)).cloned()
    }

    /// All of them, in the order they were made.
    pub fn all(&self) -> Vec<Arc<R>> {
        self.records.values().cloned().collect()
    }
}
