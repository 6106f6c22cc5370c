//! Identifiers: 24 lower-case hex digits, 4 bytes of Unix time and 8 random ones.
//!
//! The time leads so that ids sort by creation; the random part makes them unguessable enough to stand in
//! a log, never enough to be a secret.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Bytes of an id; its text has twice as many digits.
const ID_BYTES: usize = 12;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an id: 24 hex digits are wanted")]
pub struct IdError(pub String);

fn parse(text: &str) -> Result<[u8; ID_BYTES], IdError> {
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    let mut bytes = [0; ID_BYTES];
    match hex::decode_to_slice(text, &mut bytes) {
        Ok(()) if lower => Ok(bytes),
        // Never echo an unbounded input back.
        _ => Err(IdError(text.chars().take(64).collect())),
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; ID_BYTES]);

        impl $name {
            /// The id of nothing: all zero.
            pub const NIL: Self = Self([0; ID_BYTES]);

            /// A new id from the time and eight random bytes.
            pub fn new(now: Timestamp, random: [u8; 8]) -> Self {
                let seconds = u32::try_from(now.as_second()).unwrap_or(u32::MAX);
                let mut bytes = [0; ID_BYTES];
                bytes[..4].copy_from_slice(&seconds.to_be_bytes());
                bytes[4..].copy_from_slice(&random);
                Self(bytes)
            }

            /// A new id from this moment and the system's random source.
            pub fn generate() -> Self {
                Self::new(Timestamp::now(), rand::random())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    )*};
}

ids! {
    /// One tenant's container.
    ContainerId;
    /// A project: the customer base of one product.
    ProjectId;
    /// An unpacked image.
    ImageId;
    /// A further name of a container.
    AliasId;
    /// An API token (not its secret).
    TokenId;
    /// What is left of a deleted container: the record of what was erased.
    ReceiptId;
    /// One lifecycle verb as it was carried out.
    OperationId;
}

impl TokenId {
    /// Whoever a script is: one for all of them, so that each may change what another one made. No token has it.
    pub const SCRIPTS: Self = Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ids_sort_by_the_time_they_were_made() {
        let early = ContainerId::new(Timestamp::from_second(1_000).unwrap(), [0xff; 8]);
        let late = ContainerId::new(Timestamp::from_second(1_001).unwrap(), [0; 8]);
        assert!(early < late);
        assert!(early.to_string() < late.to_string());
    }

    #[test]
    fn upper_case_and_other_lengths_are_refused() {
        for text in ["", "abc", "ABCDEFABCDEFABCDEFABCDEF", "zz0000000000000000000000", &"0".repeat(26)] {
            assert!(text.parse::<ContainerId>().is_err(), "{text} was taken");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(seconds in 0i64..4_000_000_000, random: [u8; 8]) {
            let id = ProjectId::new(Timestamp::from_second(seconds).unwrap(), random);
            prop_assert_eq!(id.to_string().parse::<ProjectId>().unwrap(), id);
            prop_assert_eq!(id.to_string().len(), 24);
        }
    }
}
