//! A container's environment variables.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::secret::Secret;

/// Bytes of a key, at most.
pub const ENV_KEY_BYTES_MAX: usize = 128;
/// Bytes of a value, at most.
pub const ENV_VALUE_BYTES_MAX: usize = 65_536;
/// Variables of one container, at most.
pub const ENV_KEYS_MAX: usize = 256;
/// Keys that start so are ours to set.
pub const ENV_PREFIX_RESERVED: &str = "TENANTRY_";

/// An environment that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// Outside `[A-Za-z_][A-Za-z0-9_]*` or too long.
    #[error(
        "`{0}` is not a key of an environment variable: up to 128 of A-Z, a-z, 0-9 and _ are wanted, no digit first"
    )]
    Key(String),
    /// In the reserved prefix.
    #[error("`{0}` starts with TENANTRY_, which is reserved")]
    Reserved(String),
    /// Too long or holding a NUL byte; the value itself is not repeated.
    #[error("the value of `{0}` is longer than 65536 bytes or holds a NUL byte")]
    Value(EnvKey),
    /// Too many variables.
    #[error("{0} environment variables are more than the 256 a container may have")]
    TooMany(usize),
}

/// A variable's key: `[A-Za-z_][A-Za-z0-9_]*`, at most 128 bytes, not in the reserved prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EnvKey(String);

impl EnvKey {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for EnvKey {
    type Err = EnvError;
    fn from_str(text: &str) -> Result<Self, EnvError> {
        let alphabet = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let first = text.bytes().next().is_some_and(|b| !b.is_ascii_digit());
        if !alphabet || !first || text.len() > ENV_KEY_BYTES_MAX {
            return Err(EnvError::Key(text.chars().take(ENV_KEY_BYTES_MAX).collect()));
        }
        if text.starts_with(ENV_PREFIX_RESERVED) {
            return Err(EnvError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for EnvKey {
    type Error = EnvError;
    fn try_from(text: String) -> Result<Self, EnvError> {
        text.parse()
    }
}

impl From<EnvKey> for String {
    fn from(key: EnvKey) -> String {
        key.0
    }
}

impl fmt::Display for EnvKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checked environment, in the order of its keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EnvVars(BTreeMap<EnvKey, Secret>);

impl EnvVars {
    /// Reads a map of texts.
    ///
    /// # Errors
    /// The first key or value that does not fit, or the count.
    pub fn parse(map: impl IntoIterator<Item = (String, impl Into<Secret>)>) -> Result<Self, EnvError> {
        let mut vars = Self::default();
        for (key, value) in map {
            vars.set(key.parse()?, value.into())?;
        }
        Ok(vars)
    }

    /// Sets one variable.
    ///
    /// # Errors
    /// A value that is too long, or one variable too many; the environment is then as it was.
    pub fn set(&mut self, key: EnvKey, value: Secret) -> Result<(), EnvError> {
        if value.reveal().len() > ENV_VALUE_BYTES_MAX || value.reveal().contains('\0') {
            return Err(EnvError::Value(key));
        }
        if self.0.len() == ENV_KEYS_MAX && !self.0.contains_key(&key) {
            return Err(EnvError::TooMany(ENV_KEYS_MAX + 1));
        }
        self.0.insert(key, value);
        Ok(())
    }

    /// Removes one variable; whether it was there.
    pub fn remove(&mut self, key: &EnvKey) -> bool {
        self.0.remove(key).is_some()
    }

    /// One variable's value.
    pub fn get(&self, key: &EnvKey) -> Option<&Secret> {
        self.0.get(key)
    }

    /// All of them, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&EnvKey, &Secret)> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<EnvVars, EnvError> {
        EnvVars::parse([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn keys_keep_to_the_shell_alphabet() {
        assert!(parse("PLAN_2", "pro").is_ok());
        for key in ["", "2A", "A-B", "A=B", "É", &"A".repeat(129)] {
            assert!(matches!(parse(key, ""), Err(EnvError::Key(_))), "{key}");
        }
        assert!(matches!(parse("TENANTRY_ID", ""), Err(EnvError::Reserved(_))));
    }

    #[test]
    fn values_and_counts_are_bounded() {
        assert!(parse("A", &"x".repeat(ENV_VALUE_BYTES_MAX)).is_ok());
        assert!(matches!(parse("A", &"x".repeat(ENV_VALUE_BYTES_MAX + 1)), Err(EnvError::Value(_))));
        assert!(matches!(parse("A", "nul\0"), Err(EnvError::Value(_))));
        let many = (0..=ENV_KEYS_MAX).map(|n| (format!("K{n}"), String::new()));
        assert!(matches!(EnvVars::parse(many), Err(EnvError::TooMany(257))));
    }

    #[test]
    fn a_value_is_never_in_the_debug_text() {
        assert!(!format!("{:?}", parse("STRIPE_KEY", "sk_live_1").unwrap()).contains("sk_live"));
    }
}
