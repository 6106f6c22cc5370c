//! Containers' further names.

use std::sync::Arc;

use super::super::aliases::Aliases;
use super::super::error::{Error, What};
use super::{Ledger, write};
use crate::domain::{AliasId, ProxyAlias};
use crate::store::{Batch, Durability};

impl Ledger {
    /// Adds or changes a further name of a container that is not being deleted. Flushed.
    ///
    /// # Errors
    /// What `make` refuses, no such container, the name is in use, too many.
    pub async fn put_alias(
        &self,
        make: impl FnOnce(&Aliases) -> Result<ProxyAlias, Error> + Send,
    ) -> Result<Arc<ProxyAlias>, Error> {
        let alias = {
            let _order = self.order.lock().await;
            let new = make(&self.aliases())?;
            self.check_alias(&new)?;
            let old = self.aliases().get(new.id).ok();
            let alias = write(&self.aliases).put(new)?;
            if let Err(error) = self.commit(Batch::default().put(&*alias)?).await {
                let mut aliases = write(&self.aliases);
                aliases.remove(alias.id);
                if let Some(old) = old {
                    aliases.put((*old).clone())?;
                }
                return Err(error);
            }
            alias
        };
        self.settle(Durability::Flushed).await?;
        Ok(alias)
    }

    fn check_alias(&self, new: &ProxyAlias) -> Result<(), Error> {
        let directory = self.directory();
        if directory.container(new.container)?.receipt.is_some() {
            return Err(Error::Deleting { what: What::Container });
        }
        match directory.by_alias(&new.alias) {
            Some(_) => Err(Error::AliasInUse { what: What::Alias, name: new.alias.to_string() }),
            None => Ok(()),
        }
    }

    /// Takes a further name away. Flushed.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_alias(&self, id: AliasId) -> Result<(), Error> {
        {
            let _order = self.order.lock().await;
            self.commit(Batch::default().remove::<ProxyAlias>(&id)).await?;
            write(&self.aliases).remove(id);
        }
        self.settle(Durability::Flushed).await
    }
}
