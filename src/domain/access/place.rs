//! Where credentials stand in a request.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::wrong;
use crate::domain::container::SettingsError;

/// Characters of the name of a header, cookie or parameter, at most.
const PLACE_CHARS_MAX: usize = 64;
/// What of a request is not there for credentials: it would be taken away from the container, or is not the visitor's.
const HEADERS_IN_USE: [&str; 10] = [
    "connection",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
];

/// Where in a request a credential stands; as text `header:authorization`, `cookie:session`, `param:key`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Place {
    /// A header, in lower case. In `authorization` the scheme `Bearer` goes before it, or nothing.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// A parameter of the query.
    Param(String),
}

impl Place {
    /// Where `Basic` and `Bearer` stand.
    pub fn authorization() -> Self {
        Self::Header("authorization".to_owned())
    }

    /// A header.
    ///
    /// # Errors
    /// Not the name of one, or of one that is not there for this.
    pub fn header(name: &str) -> Result<Self, SettingsError> {
        let name = place_name("header", name)?.to_ascii_lowercase();
        if HEADERS_IN_USE.contains(&name.as_str()) {
            return Err(wrong("header", "this one has another use"));
        }
        Ok(Self::Header(name))
    }

    /// A cookie.
    ///
    /// # Errors
    /// Not the name of one.
    pub fn cookie(name: &str) -> Result<Self, SettingsError> {
        place_name("cookie", name).map(Self::Cookie)
    }

    /// A parameter.
    ///
    /// # Errors
    /// Not the name of one.
    pub fn param(name: &str) -> Result<Self, SettingsError> {
        place_name("param", name).map(Self::Param)
    }

    /// The parameter, where it is one.
    pub fn as_param(&self) -> Option<&str> {
        match self {
            Self::Param(name) => Some(name),
            _ => None,
        }
    }

    /// What of the text that stands there is the credential.
    pub(super) fn credential<'t>(&self, text: &'t str) -> Option<&'t str> {
        match self {
            Self::Header(name) if name == "authorization" => match text.trim().split_once(' ') {
                Some((scheme, rest)) => scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim()),
                None => Some(text.trim()),
            },
            _ => Some(text),
        }
    }
}

/// The characters of a token (RFC 9110, 5.6.2), which headers and cookies are named by.
fn place_name(field: &'static str, name: &str) -> Result<String, SettingsError> {
    let may_stand = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if (1..=PLACE_CHARS_MAX).contains(&name.len()) && name.bytes().all(may_stand) {
        Ok(name.to_owned())
    } else {
        Err(wrong(field, "a name of 1 to 64 letters, digits and marks such as `-` and `_` is wanted"))
    }
}

impl FromStr for Place {
    type Err = SettingsError;
    fn from_str(text: &str) -> Result<Self, SettingsError> {
        match text.split_once(':') {
            Some(("header", name)) => Self::header(name),
            Some(("cookie", name)) => Self::cookie(name),
            Some(("param", name)) => Self::param(name),
            _ => Err(wrong("sources", "header:NAME, cookie:NAME or param:NAME is wanted")),
        }
    }
}

impl TryFrom<String> for Place {
    type Error = SettingsError;
    fn try_from(text: String) -> Result<Self, SettingsError> {
        text.parse()
    }
}

impl From<Place> for String {
    fn from(place: Place) -> String {
        place.to_string()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Param(name) => write!(f, "param:{name}"),
        }
    }
}
