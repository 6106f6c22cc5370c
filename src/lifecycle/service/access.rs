//! Passwords in front of containers' URLs.

use tokio::sync::Semaphore;

use super::super::error::Error;
use super::{Service, gone};
use crate::domain::access::{PasswordGroup, PlainPassword};

/// Passwords hashed at once: each takes 19 MiB and a core for tens of milliseconds.
const HASHING_MAX: usize = 2;

/// Of the process, as its memory is.
static HASHING: Semaphore = Semaphore::const_new(HASHING_MAX);

impl Service {
    /// Hashes a password, on a thread that serves nobody else.
    ///
    /// # Errors
    /// The daemon ends, or the password is one that cannot be hashed.
    pub async fn hash_password(&self, plain: PlainPassword) -> Result<PasswordGroup, Error> {
        let permit = HASHING.acquire().await.map_err(gone)?;
        let hashed = tokio::task::spawn_blocking(move || {
            // Held by the work and not by whoever waits for it, who may go away.
            let _permit = permit;
            plain.generate_group()
        });
        Ok(hashed.await.map_err(gone)??)
    }
}
