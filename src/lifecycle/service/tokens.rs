//! Tokens: who may ask.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::super::error::{Error, What};
use super::super::requests::{MadeToken, NewToken, Refused};
use super::Service;
use crate::domain::token::{self, Permissions, TokenHash};
use crate::domain::{Secret, Token, TokenId};

/// The alias of the token that the first start makes.
pub const ADMIN: &str = "admin";

impl Service {
    /// Makes a token; its secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// Its alias is in use, its project is not there.
    pub async fn create_token(&self, new: NewToken) -> Result<MadeToken, Error> {
        if let Some(project) = new.project {
            self.project(project)?;
        }
        let secret = token::new_secret();
        let token = Token {
            id: TokenId::generate(),
            alias: new.alias,
            hash: TokenHash::of(secret.reveal()),
            permissions: new.permissions,
            project: new.project,
            created_at: Timestamp::now(),
            expires_at: new.expires_at,
            templates: new.templates,
            scripts: new.scripts,
            previous: None,
        };
        let token = (*self.ledger().add_token(token).await?).clone();
        Ok(MadeToken { token, secret })
    }

    /// Gives a token another secret; its old one works on for `grace`. The admin token's is written to its file, too.
    ///
    /// # Errors
    /// No such token; the file cannot be written: then the next start gives the token another secret once more.
    pub async fn rotate_token(&self, id: TokenId, grace: Duration) -> Result<MadeToken, Error> {
        let secret = token::new_secret();
        let hash = TokenHash::of(secret.reveal());
        let token = self.ledger().change_token(id, |old| old.rotated(hash, Timestamp::now(), grace)).await?;
        if token.alias == ADMIN
            && let Some(file) = self.inner.admin_file.get()
        {
            write_admin(file, &secret)?;
        }
        Ok(MadeToken { token: (*token).clone(), secret })
    }

    /// One token.
    ///
    /// # Errors
    /// No such token.
    pub fn token(&self, id: TokenId) -> Result<Arc<Token>, Error> {
        self.ledger().tokens().get(&id).ok_or_else(|| Error::not_found(What::Token, id))
    }

    /// All of them in the order they were made.
    pub fn tokens(&self) -> Vec<Arc<Token>> {
        self.ledger().tokens().all()
    }

    /// Forgets a token; from here on it is refused.
    ///
    /// # Errors
    /// No such token.
    pub async fn delete_token(&self, id: TokenId) -> Result<(), Error> {
        let token = self.token(id)?;
        self.ledger().remove_token(&token).await?;
        self.inner.uses.forget(self.records(), id).await
    }

    /// Whose secret hashes so. Hashes are compared, not secrets: how long it takes says nothing about one.
    ///
    /// # Errors
    /// Nobody's, or its token has expired.
    pub fn authenticate(&self, hash: &TokenHash) -> Result<Arc<Token>, Refused> {
        let now = Timestamp::now();
        let token = self.ledger().tokens().find(|token| token.has(hash, now)).ok_or(Refused::Unknown)?;
        if token.is_over(now) {
            return Err(Refused::Expired);
        }
        self.inner.uses.note(token.id, now);
        Ok(token)
    }

    /// Whether a secret that was admitted would be admitted again.
    pub fn knows(&self, id: TokenId, hash: &TokenHash) -> bool {
        let now = Timestamp::now();
        self.ledger().tokens().get(&id).is_some_and(|token| token.has(hash, now) && !token.is_over(now))
    }

    /// When a token was last presented.
    pub fn last_used(&self, id: TokenId) -> Option<Timestamp> {
        self.inner.uses.last(id)
    }

    /// Writes down when tokens were last presented, as far as that is not written yet.
    ///
    /// # Errors
    /// The store's.
    pub async fn keep_uses(&self) -> Result<(), Error> {
        self.inner.uses.keep(self.records()).await
    }

    /// Sees to it that the admin token's file holds a secret that is known; a lost file, or one that a rotation did not come to
    /// write, gets a new one. An admin token that is older than scripts may manage them.
    ///
    /// # Errors
    /// The file cannot be read or written, the store fails.
    pub async fn ensure_admin_token(&self, file: &Path) -> Result<(), Error> {
        let _first = self.inner.admin_file.set(file.to_owned());
        let held = std::fs::read_to_string(file).ok().map(|text| TokenHash::of(text.trim()));
        let admin = self.ledger().tokens().named(ADMIN);
        if let (Some(admin), Some(held)) = (&admin, &held)
            && admin.hash == *held
        {
            if !admin.scripts {
                self.ledger().change_token(admin.id, |old| Token { scripts: true, ..old.clone() }).await?;
            }
            return Ok(());
        }
        if let Some(admin) = admin {
            self.ledger().remove_token(&admin).await?;
        }
        let new = NewToken { scripts: true, ..NewToken::new(ADMIN, Permissions::FullAccess) };
        let made = self.create_token(new).await?;
        write_admin(file, &made.secret)
    }
}

fn write_admin(file: &Path, secret: &Secret) -> Result<(), Error> {
    let written = write_secret(file, secret);
    written.map_err(|source| Error::File { action: "write", path: file.to_owned(), source })?;
    tracing::info!(path = %file.display(), "the admin token is written");
    Ok(())
}

/// Whole or not at all, and never readable by others.
fn write_secret(file: &Path, secret: &Secret) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let fresh = file.with_extension("new");
    let mut to = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
    to.write_all(secret.reveal().as_bytes())?;
    to.write_all(b"\n")?;
    to.sync_all()?;
    std::fs::rename(&fresh, file)
}
