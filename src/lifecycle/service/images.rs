//! Images: imported once, copied many times. (import follows)

use std::sync::Arc;

use super::super::error::{Error, What};
use super::Service;
use crate::domain::{Image, ImageId};

impl Service {
    /// All of them in the order they were imported.
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.ledger().images().all()
    }

    /// Deletes an image that no container was made from.
    ///
    /// # Errors
    /// No such image, or it is in use.
    pub async fn delete_image(&self, id: ImageId) -> Result<(), Error> {
        let image = self.ledger().images().get(&id).ok_or_else(|| Error::not_found(What::Image, id))?;
        if self.containers().iter().any(|container| container.image == id) {
            return Err(Error::ImageInUse(image.name.clone()));
        }
        self.ledger().remove_image(&image).await?;
        Ok(())
    }
}
