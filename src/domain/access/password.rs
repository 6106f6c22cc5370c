//! Passwords: kept as what Argon2id makes of them.
//!
//! Whoever brings a password that is hashed already, as SHA-256 over salt and password in hex, is taken at that word; what is kept is
//! Argon2id over that text, so that what lies in the store is as hard to guess from as any other.

use std::borrow::Cow;
use std::fmt;

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::wrong;
use crate::domain::container::SettingsError;
use crate::domain::secret::Secret;

/// Characters of a user's name.
const USERNAME_CHARS: std::ops::RangeInclusive<usize> = 1..=128;
/// Bytes of a password.
const PASSWORD_BYTES: std::ops::RangeInclusive<usize> = 8..=256;
/// Bytes of a salt, at most.
const SALT_BYTES: std::ops::RangeInclusive<usize> = 1..=128;
/// Hex digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// A user with a password, before it is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainPassword {
    username: String,
    password: Secret,
    salt: Option<Secret>,
}

impl PlainPassword {
    /// A user with a password; with a salt, 64 hex digits are taken for its SHA-256 over salt and password.
    ///
    /// # Errors
    /// A name that HTTP cannot say, a password that is too short or too long.
    pub fn new(username: String, password: Secret, salt: Option<Secret>) -> Result<Self, SettingsError> {
        let plain = |text: &str| !text.chars().any(char::is_control);
        if !USERNAME_CHARS.contains(&username.chars().count()) || !plain(&username) || username.contains(':') {
            return Err(wrong("username", "1 to 128 characters are wanted, no control characters and no colon"));
        }
        if !PASSWORD_BYTES.contains(&password.reveal().len()) || !plain(password.reveal()) {
            return Err(wrong("password", "8 to 256 bytes are wanted, no control characters"));
        }
        if salt.as_ref().is_some_and(|salt| !SALT_BYTES.contains(&salt.reveal().len())) {
            return Err(wrong("salt", "1 to 128 bytes are wanted"));
        }
        let is_hash = password.reveal().len() == SHA256_DIGITS
            && password.reveal().bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        Ok(Self { username, password, salt: salt.filter(|_| is_hash) })
    }

    /// Hashes it, with a salt of its own: tens of milliseconds, and 19 MiB of memory meanwhile.
    ///
    /// # Errors
    /// Argon2 does not take it, or the system has no randomness.
    pub fn generate_group(self) -> Result<PasswordGroup, SettingsError> {
        let hashed: Result<PasswordHash, _> = Argon2::default().hash_password(self.password.reveal().as_bytes());
        let hash = hashed.map_err(|_| wrong("password", "one that Argon2 takes is wanted"))?;
        Ok(PasswordGroup { username: self.username, salt: self.salt, hash: Secret::new(hash.to_string()) })
    }
}

/// Whoever knows a user's password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PasswordGroup {
    username: String,
    /// Where the hash is one of a SHA-256: what went before the password into that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    salt: Option<Secret>,
    hash: Secret,
}

impl PasswordGroup {
    /// The user.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// What it hashes to: another text for each password that was ever set.
    pub const fn hash(&self) -> &Secret {
        &self.hash
    }

    /// Whether a password is right: as slow as hashing it.
    pub fn is(&self, password: &str) -> bool {
        let hashed: Cow<'_, str> = match &self.salt {
            None => password.into(),
            Some(salt) => {
                let digest = Sha256::new().chain_update(salt.reveal()).chain_update(password).finalize();
                hex::encode(digest).into()
            }
        };
        // Compared in constant time (phc's Output).
        PasswordHash::new(self.hash.reveal())
            .is_ok_and(|hash| Argon2::default().verify_password(hashed.as_bytes(), &hash).is_ok())
    }
}

impl fmt::Debug for PasswordGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordGroup").field("username", &self.username).finish_non_exhaustive()
    }
}
