//! Images and tokens: records that have a name.

use std::sync::{Arc, RwLock};

use super::super::catalog::{Catalog, Named};
use super::super::error::{Error, What};
use super::{Ledger, write};
use crate::domain::{Image, Token, TokenId};
use crate::store::{Batch, Durability};

impl Ledger {
    /// Adds an image. Flushed.
    ///
    /// # Errors
    /// Its name is in use.
    pub async fn add_image(&self, image: Image) -> Result<Arc<Image>, Error> {
        self.add_to(&self.images, image).await
    }

    /// Forgets an image. Flushed.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_image(&self, image: &Image) -> Result<(), Error> {
        self.remove_from(&self.images, image).await
    }

    /// Adds a token. Flushed.
    ///
    /// # Errors
    /// Its alias is in use.
    pub async fn add_token(&self, token: Token) -> Result<Arc<Token>, Error> {
        self.add_to(&self.tokens, token).await
    }

    /// Puts a changed token in the place of the one with its id and alias. Flushed.
    ///
    /// # Errors
    /// No such token, the store's.
    pub async fn change_token(
        &self,
        id: TokenId,
        change: impl FnOnce(&Token) -> Token + Send,
    ) -> Result<Arc<Token>, Error> {
        let changed = {
            let _order = self.order.lock().await;
            let old = self.tokens().get(&id).ok_or_else(|| Error::not_found(What::Token, id))?;
            let new = change(&old);
            self.commit(Batch::default().put(&new)?).await?;
            write(&self.tokens).replace(new)
        };
        self.settle(Durability::Flushed).await?;
        Ok(changed)
    }

    /// Forgets a token. Flushed.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_token(&self, token: &Token) -> Result<(), Error> {
        self.remove_from(&self.tokens, token).await
    }

    async fn add_to<R: Named>(&self, catalog: &RwLock<Catalog<R>>, record: R) -> Result<Arc<R>, Error> {
        let record = {
            let _order = self.order.lock().await;
            let record = write(catalog).add(record)?;
            if let Err(error) = self.commit(Batch::default().put(&*record)?).await {
                write(catalog).remove(&record);
                return Err(error);
            }
            record
        };
        self.settle(Durability::Flushed).await?;
        Ok(record)
    }

    async fn remove_from<R: Named>(&self, catalog: &RwLock<Catalog<R>>, record: &R) -> Result<(), Error> {
        {
            let _order = self.order.lock().await;
            self.commit(Batch::default().remove::<R>(&record.id())).await?;
            write(catalog).remove(record);
        }
        self.settle(Durability::Flushed).await
    }
}
