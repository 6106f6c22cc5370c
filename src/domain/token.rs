//! API tokens: shown once, stored hashed.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::container::Container;
use super::id::{ContainerId, ProjectId, TokenId};
use super::secret::Secret;

/// Templates that one token names, at most.
pub const TEMPLATES_MAX: usize = 64;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permissions {
    /// Everything.
    FullAccess,
    /// GET alone.
    ReadOnly,
    /// Copies templates; changes and deletes what it made. What that comes to is in [`super::may`].
    Provisioner,
}

impl Permissions {
    /// Each.
    pub const ALL: [Self; 3] = [Self::FullAccess, Self::ReadOnly, Self::Provisioner];

    /// The word in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FullAccess => "full_access",
            Self::ReadOnly => "read_only",
            Self::Provisioner => "provisioner",
        }
    }
}

/// A template as a token names it. A name stands for whichever container has it: a template that is made anew under its name
/// needs no new token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum TemplateRef {
    /// This container.
    Id(ContainerId),
    /// The container of this name.
    Name(String),
}

impl TemplateRef {
    /// Whether it is this container.
    pub fn is(&self, container: &Container) -> bool {
        match self {
            Self::Id(id) => *id == container.id,
            Self::Name(name) => name == container.name.as_str(),
        }
    }
}

impl fmt::Display for TemplateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for TemplateRef {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.parse().map_or_else(|_not_an_id| Self::Name(text.to_owned()), Self::Id))
    }
}

impl From<String> for TemplateRef {
    fn from(text: String) -> Self {
        text.parse().unwrap_or(Self::Name(text))
    }
}

impl From<TemplateRef> for String {
    fn from(template: TemplateRef) -> String {
        template.to_string()
    }
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

/// The secret that a token had before its last rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// What it hashes to.
    pub hash: TokenHash,
    /// From when on it is refused.
    pub until: Timestamp,
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
    /// What a provisioner may copy; empty: whatever is a template.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateRef>,
    /// Whether it may read and write scripts, their secrets and their logs.
    #[serde(default)]
    pub scripts: bool,
    /// The secret that works beside its own for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
}

impl Token {
    /// Whether a secret that hashes so is one of its, whether or not the token has expired.
    pub fn has(&self, hash: &TokenHash, now: Timestamp) -> bool {
        self.hash == *hash || self.previous.as_ref().is_some_and(|old| old.hash == *hash && old.until > now)
    }

    /// Whether it has expired.
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// The same with another secret; the one it had works on for `grace`. What was before that one works no more.
    pub fn rotated(&self, hash: TokenHash, now: Timestamp, grace: std::time::Duration) -> Self {
        let until = now.checked_add(grace).unwrap_or(Timestamp::MAX);
        let previous = (!grace.is_zero()).then(|| Previous { hash: self.hash.clone(), until });
        Self { hash, previous, ..self.clone() }
    }
}

/// A new token's secret: `tnt_` and 64 hex digits.
pub fn new_secret() -> Secret {
    Secret::new(format!("tnt_{}", hex::encode(rand::random::<[u8; 32]>())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn token() -> Token {
        Token {
            id: TokenId::NIL,
            alias: "ci".into(),
            hash: TokenHash::of("one"),
            permissions: Permissions::Provisioner,
            project: None,
            created_at: Timestamp::UNIX_EPOCH,
            expires_at: None,
            templates: vec!["base".parse().unwrap(), ContainerId::NIL.to_string().parse().unwrap()],
            scripts: false,
            previous: None,
        }
    }

    #[test]
    fn an_old_secret_works_for_its_grace_and_the_one_before_it_no_more() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let second = token().rotated(TokenHash::of("two"), at(100), Duration::from_secs(60));
        assert!(second.has(&TokenHash::of("two"), at(1_000)));
        assert!(second.has(&TokenHash::of("one"), at(159)) && !second.has(&TokenHash::of("one"), at(160)));
        let third = second.rotated(TokenHash::of("three"), at(110), Duration::from_secs(60));
        assert!(third.has(&TokenHash::of("two"), at(120)) && !third.has(&TokenHash::of("one"), at(120)));
        let fourth = third.rotated(TokenHash::of("four"), at(120), Duration::ZERO);
        assert!(!fourth.has(&TokenHash::of("three"), at(120)));
    }

    #[test]
    fn a_record_reads_back_and_so_does_one_from_before_there_were_templates() {
        let text = serde_json::to_string(&token()).unwrap();
        assert!(text.contains(r#""templates":["base","000000000000000000000000"]"#), "{text}");
        assert_eq!(serde_json::from_str::<Token>(&text).unwrap(), token());
        let old = r#"{"id":"000000000000000000000000","alias":"a","hash":"x","permissions":"full_access","project":null,
            "created_at":"1970-01-01T00:00:00Z","expires_at":null}"#;
        let old: Token = serde_json::from_str(old).unwrap();
        assert!(old.templates.is_empty() && !old.scripts && old.previous.is_none());
    }
}
