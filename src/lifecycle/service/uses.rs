//! When each token was last presented: in memory at once, in the store now and then, and never while a request waits for it.
//!
//! Beside the token's record and not in it: a record is flushed and ordered with others, and this may be a minute old after a
//! crash.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::super::error::Error;
use crate::domain::TokenId;
use crate::store::{Batch, Durability, Records};

const PREFIX: &str = "token-used/";

/// The last use of every token.
#[derive(Debug, Default)]
pub struct Uses(Mutex<BTreeMap<TokenId, Used>>);

#[derive(Debug, Clone, Copy)]
struct Used {
    at: Timestamp,
    kept: bool,
}

fn key(id: TokenId) -> String {
    format!("{PREFIX}{id}")
}

impl Uses {
    /// Reads what is kept.
    pub async fn load(records: &Records) -> Result<Self, Error> {
        let kept = records.all_at::<Timestamp>(PREFIX).await?;
        let one =
            |(key, at): (String, Timestamp)| Some((key.strip_prefix(PREFIX)?.parse().ok()?, Used { at, kept: true }));
        Ok(Self(Mutex::new(kept.into_iter().filter_map(one).collect())))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TokenId, Used>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, id: TokenId, now: Timestamp) {
        self.lock().insert(id, Used { at: now, kept: false });
    }

    pub fn last(&self, id: TokenId) -> Option<Timestamp> {
        self.lock().get(&id).map(|used| used.at)
    }

    pub async fn keep(&self, records: &Records) -> Result<(), Error> {
        let new: Vec<_> = self.lock().iter().filter(|(_, used)| !used.kept).map(|(id, used)| (*id, used.at)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for (id, at) in &new {
            batch = batch.put_at(key(*id), at)?;
        }
        records.commit(batch, Durability::Lazy).await?;
        let mut uses = self.lock();
        for (id, at) in new {
            if let Some(used) = uses.get_mut(&id).filter(|used| used.at == at) {
                used.kept = true;
            }
        }
        Ok(())
    }

    /// Forgets a token that is deleted.
    pub async fn forget(&self, records: &Records, id: TokenId) -> Result<(), Error> {
        self.lock().remove(&id);
        Ok(records.commit(Batch::default().remove_at(key(id)), Durability::Lazy).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::sled::SledStore;

    #[tokio::test]
    async fn the_next_daemon_knows_what_was_kept_and_nothing_of_a_deleted_token() {
        let folder = tempfile::tempdir().unwrap();
        let store = SledStore::open(&folder.path().join("db")).unwrap();
        let records = Records::open(Arc::new(Arc::new(store))).await.unwrap();
        let uses = Uses::load(&records).await.unwrap();
        let (one, two) = (TokenId::generate(), TokenId::generate());
        let at = |second| Timestamp::from_second(second).unwrap();
        uses.note(one, at(1));
        uses.note(two, at(2));
        assert_eq!(Uses::load(&records).await.unwrap().last(one), None, "nothing is written while a request waits");
        uses.keep(&records).await.unwrap();
        uses.note(one, at(3));
        uses.forget(&records, two).await.unwrap();
        let next = Uses::load(&records).await.unwrap();
        assert_eq!((next.last(one), next.last(two), uses.last(one)), (Some(at(1)), None, Some(at(3))));
    }
}
