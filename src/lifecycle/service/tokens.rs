//! Tokens: who may ask.

use std::path::Path;
use std::sync::Arc;

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
        };
        let token = (*self.ledger().add_token(token).await?).clone();
        Ok(MadeToken { token, secret })
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
        let token = self.ledger().tokens().get(&id).ok_or_else(|| Error::not_found(What::Token, id))?;
        self.ledger().remove_token(&token).await
    }

    /// Whose secret this is. Hashes are compared, not secrets: how long it takes says nothing about one.
    ///
    /// # Errors
    /// Nobody's, or its token has expired.
    pub fn authenticate(&self, secret: &str) -> Result<Arc<Token>, Refused> {
        let hash = TokenHash::of(secret);
        let token = self.ledger().tokens().find(|token| token.hash == hash).ok_or(Refused::Unknown)?;
        match token.expires_at {
            Some(end) if end <= Timestamp::now() => Err(Refused::Expired),
            _ => Ok(token),
        }
    }

    /// Whether a token that was admitted would be admitted again.
    pub fn knows(&self, token: &Token) -> bool {
        let in_time = token.expires_at.is_none_or(|end| end > Timestamp::now());
        in_time && self.ledger().tokens().get(&token.id).is_some()
    }

    /// Sees to it that the admin token's file holds a secret that is known; a lost file gets a new one.
    ///
    /// # Errors
    /// The file cannot be read or written, the store fails.
    pub async fn ensure_admin_token(&self, file: &Path) -> Result<(), Error> {
        let admin = self.ledger().tokens().named(ADMIN);
        let held = std::fs::read_to_string(file).ok().map(|text| TokenHash::of(text.trim()));
        if let (Some(admin), Some(held)) = (&admin, &held)
            && admin.hash == *held
        {
            return Ok(());
        }
        if let Some(admin) = admin {
            self.ledger().remove_token(&admin).await?;
        }
        let new =
            NewToken { alias: ADMIN.to_owned(), permissions: Permissions::FullAccess, project: None, expires_at: None };
        let made = self.create_token(new).await?;
        write_secret(file, &made.secret).map_err(|source| Error::File {
            action: "write",
            path: file.to_owned(),
            source,
        })?;
        tracing::info!(path = %file.display(), "the admin token is written");
        Ok(())
    }
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
