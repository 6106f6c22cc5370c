//! API tokens: shown once, stored hashed.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::{ProjectId, TokenId};
use super::secret::Secret;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permissions {
    /// Everything.
    FullAccess,
    /// GET alone.
    ReadOnly,
}

/// The SHA-256 of a token's secret: enough, because the secret is 32 random bytes and not a password.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenHash(pub String);

impl TokenHash {
    /// The hash of a presented secret.
    pub fn of(secret: &str) -> Self {
        Self(hex::encode(Sha256::digest(secret.as_bytes())))
    }
}

/// A token's record; the secret is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// For people; unique.
    pub alias: String,
    /// What its secret hashes to.
    pub hash: TokenHash,
    /// What it may do.
    pub permissions: Permissions,
    /// The only project it may know of; `None`: all.
    pub project: Option<ProjectId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
}

/// A new token's secret: `tnt_` and 64 hex digits.
pub fn new_secret() -> Secret {
    Secret::new(format!("tnt_{}", hex::encode(rand::random::<[u8; 32]>())))
}
