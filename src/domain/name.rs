//! Names people give: to a container, and to the instance whose kernel objects carry it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name outside its alphabet or length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: {wanted}")]
pub struct NameError {
    text: String,
    what: &'static str,
    wanted: &'static str,
}

impl NameError {
    fn new(text: &str, what: &'static str, wanted: &'static str) -> Self {
        Self { text: text.chars().take(128).collect(), what, wanted }
    }
}

/// A container's name, unique in its project: 3–100 of `A-Z a-z 0-9 - _`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerName(String);

impl ContainerName {
    /// A name for a container that was given none: `tenant-` and eight hex digits.
    pub fn random(random: [u8; 4]) -> Self {
        Self(format!("tenant-{}", hex::encode(random)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (3..=100).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::new(text, "container name", "3 to 100 of A-Z, a-z, 0-9, - and _ are wanted"))
        }
    }
}

/// The instance's name: 1–8 of `a-z 0-9`, a letter first. It stands in the name of every kernel object, so that
/// several daemons live on one host; eight, because `<instance>-<slot>` must fit an interface name (15 bytes,
/// `IFNAMSIZ` of `linux/if.h`, with a slot of up to five digits).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Instance(String);

impl Instance {
    /// The name where the configuration gives none.
    pub fn tenantry() -> Self {
        Self("tenantry".to_owned())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Instance {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (1..=8).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            && text.starts_with(|c: char| c.is_ascii_lowercase());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::new(text, "instance name", "1 to 8 of a-z and 0-9, a letter first, are wanted"))
        }
    }
}

macro_rules! text_conversions {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    )*};
}
text_conversions!(ContainerName Instance);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_keep_to_their_alphabet() {
        for good in ["abc", "Acme_Corp-7", &"x".repeat(100)] {
            assert!(good.parse::<ContainerName>().is_ok(), "{good}");
        }
        for bad in ["", "ab", "a b c", "acmé", "a/b", "..", &"x".repeat(101)] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_instance_fits_an_interface_name() {
        assert!("tenantry".parse::<Instance>().is_ok());
        for bad in ["", "tenantry1", "Ten", "1t", "t-1"] {
            assert!(bad.parse::<Instance>().is_err(), "{bad}");
        }
    }
}
