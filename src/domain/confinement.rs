//! How closely a container is confined: one of the profiles that we ship, by its name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A profile. All but the first open a part of the kernel that many holes were in, for what cannot work without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confinement {
    /// What `bundles/README.md` describes.
    #[default]
    Standard,
    /// Also namespaces and mounts of its own: containers inside, browsers' sandboxes.
    Nested,
    /// Also io_uring.
    IoUring,
}

/// A name that is no profile's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("one of standard, nested, io-uring is wanted")]
pub struct ConfinementError;

impl Confinement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Standard, Self::Nested, Self::IoUring];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Nested => "nested",
            Self::IoUring => "io-uring",
        }
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Confinement {
    type Err = ConfinementError;
    fn from_str(text: &str) -> Result<Self, ConfinementError> {
        Self::ALL.into_iter().find(|one| one.as_str() == text).ok_or(ConfinementError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_known_by_one_name_everywhere() {
        for one in Confinement::ALL {
            assert_eq!(one.as_str().parse(), Ok(one));
            assert_eq!(serde_json::to_value(one).unwrap(), one.as_str());
        }
        assert_eq!("Standard".parse::<Confinement>(), Err(ConfinementError));
        assert_eq!(Confinement::default(), Confinement::Standard);
    }
}
