//! Images: imported once, copied many times.

use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::super::error::{Error, What};
use super::super::requests::{ImportProgress, Imported, NewImage};
use super::Service;
use crate::domain::{Bytes, Image, ImageId};
use crate::sys::btrfs::{Access, PRIVATE_MODE};
use crate::sys::image::{self, BASE_IMAGE, ImageError, ImageLimits, Step, Unpacked};

/// Characters of an image's name, at most.
pub const IMAGE_NAME_CHARS_MAX: usize = 128;

impl Service {
    /// All of them in the order they were imported.
    pub fn images(&self) -> Vec<Arc<Image>> {
        self.ledger().images().all()
    }

    /// Imports an archive or an OCI layout's folder; what it says of itself is checked.
    ///
    /// # Errors
    /// Its name is in use, it is damaged or hostile, the pool is full. Nothing is left then.
    pub async fn import_image(
        &self,
        new: NewImage,
        progress: watch::Sender<ImportProgress>,
    ) -> Result<Imported, Error> {
        self.check_image_name(&new.name)?;
        self.make_image(new.name, move |rootfs| {
            let tell = &mut |at: image::Progress| {
                let step = match at.step {
                    Step::Inspect => "inspect".to_owned(),
                    Step::Layer { number, of } => format!("layer {number} of {of}"),
                };
                let total = (at.total > 0).then_some(Bytes(at.total));
                // Nobody watching is no error.
                let _ = progress.send(ImportProgress { step, done: Bytes(at.read), total });
            };
            image::unpack(&new.source, &rootfs, &ImageLimits::default(), tell)
        })
        .await
    }

    /// Sees to it that the built-in `base` image is there and was made from this busybox.
    ///
    /// # Errors
    /// There is no static busybox, or the image cannot be made.
    pub async fn ensure_base_image(&self, busybox: PathBuf) -> Result<(), Error> {
        let digest = image::base_digest(&busybox).map_err(refused)?;
        // Apart from the `if`, which would hold the catalogue's lock while the image is deleted, and wait for it forever.
        let old = self.ledger().images().named(BASE_IMAGE);
        if let Some(old) = old {
            let in_use = self.containers().iter().any(|container| container.image == old.id);
            // An image that containers were made from stays what it is.
            if old.digest == digest || in_use {
                return Ok(());
            }
            self.delete_image(old.id).await?;
        }
        let made = self.make_image(BASE_IMAGE.to_owned(), move |rootfs| image::build_base(&busybox, &rootfs)).await?;
        tracing::info!(image = %made.image.id, "the base image is made");
        Ok(())
    }

    fn check_image_name(&self, name: &str) -> Result<(), Error> {
        let alphabet = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':');
        let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if !first || name.len() > IMAGE_NAME_CHARS_MAX || !name.chars().all(alphabet) {
            return Err(Error::BadImage(
                "its name has to be 1 to 128 of A-Z, a-z, 0-9, `.`, `-`, `_`, `/` and `:`, a letter or digit first"
                    .into(),
            ));
        }
        if self.ledger().images().named(name).is_some() {
            return Err(Error::AliasInUse { what: What::Image, name: name.to_owned() });
        }
        Ok(())
    }

    /// Makes a subvolume, fills it, protects it and writes the record; undone where one of them fails.
    async fn make_image(
        &self,
        name: String,
        fill: impl FnOnce(PathBuf) -> Result<Unpacked, ImageError> + Send + 'static,
    ) -> Result<Imported, Error> {
        let id = ImageId::generate();
        let made = self.fill_image(id, name, fill).await;
        if made.is_err()
            && let Err(error) = self.remove_image_files(id).await
        {
            tracing::error!(image = %id, error = &error as &dyn std::error::Error, "a failed import is left over");
        }
        made
    }

    async fn fill_image(
        &self,
        id: ImageId,
        name: String,
        fill: impl FnOnce(PathBuf) -> Result<Unpacked, ImageError> + Send + 'static,
    ) -> Result<Imported, Error> {
        let layout = self.layout();
        let (folder, rootfs) = (layout.pool.image(id), layout.pool.image_rootfs(id));
        let file = |source| Error::File { action: "make the folder", path: folder.clone(), source };
        layout.pool.make_image_folder(id).map_err(file)?;
        let pool = &self.drivers().pool;
        pool.create(&rootfs).await.map_err(Error::driver)?;
        let inside = rootfs.clone();
        let unpacked =
            tokio::task::spawn_blocking(move || fill(inside)).await.map_err(super::gone)?.map_err(refused)?;
        pool.set_access(&rootfs, Access::ReadOnly).await.map_err(Error::driver)?;
        let image = Image {
            id,
            name,
            digest: unpacked.digest,
            config: unpacked.config,
            size: unpacked.size,
            created_at: Timestamp::now(),
        };
        Ok(Imported { image: self.ledger().add_image(image).await?, warnings: unpacked.warnings })
    }

    async fn remove_image_files(&self, id: ImageId) -> Result<(), Error> {
        let layout = self.layout();
        self.drivers().pool.delete(&layout.pool.image_rootfs(id)).await.map_err(Error::driver)?;
        let folder = layout.pool.image(id);
        match tokio::fs::remove_dir_all(&folder).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::File { action: "remove", path: folder, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Removes what imports that did not end have left; before anything else is asked.
    ///
    /// # Errors
    /// The pool cannot be read or written.
    pub async fn sweep_images(&self) -> Result<(), Error> {
        let layout = self.layout();
        // Nobody imports yet, so every upload is one that was cut off.
        let uploads = layout.uploads();
        let private = || std::fs::DirBuilder::new().mode(PRIVATE_MODE).create(&uploads);
        let emptied = std::fs::remove_dir_all(&uploads).and_then(|()| private());
        emptied.map_err(|source| Error::File { action: "empty", path: uploads, source })?;
        let list = |source| Error::File { action: "list", path: layout.pool.images(), source };
        for id in layout.pool.list_images().map_err(list)? {
            if self.ledger().images().get(&id).is_none() {
                tracing::warn!(image = %id, "an unfinished import is removed");
                self.remove_image_files(id).await?;
            }
        }
        Ok(())
    }

    /// Deletes an image that no container is made from.
    ///
    /// # Errors
    /// No such image, or it is in use.
    pub async fn delete_image(&self, id: ImageId) -> Result<(), Error> {
        let image = self.ledger().images().get(&id).ok_or_else(|| Error::not_found(What::Image, id))?;
        if self.containers().iter().any(|container| container.image == id) {
            return Err(Error::ImageInUse(image.name.clone()));
        }
        // The record first: what is left of the files after a crash is an unfinished import's.
        self.ledger().remove_image(&image).await?;
        self.remove_image_files(id).await
    }
}

fn refused(error: ImageError) -> Error {
    if matches!(error, ImageError::Full { .. }) {
        return Error::PoolFull { available: Bytes(0) };
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    Error::BadImage(text)
}
