//! Names of hosts, as rules speak of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Length of a name, at most (RFC 1035, 2.3.4, without the final dot).
const NAME_BYTES_MAX: usize = 253;
/// Length of a label, at most.
const LABEL_BYTES_MAX: usize = 63;
/// Labels of a name, at least: `*.com` would be half the internet, and a lone word is nobody's.
const LABELS_MIN: usize = 2;
const WILDCARD: &str = "*.";

/// The name of a host (`api.example.com`), or of all hosts below one (`*.example.com`, which `example.com` is not). Lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern(String);

/// A text that is no host's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host's name such as api.example.com or *.example.com, in ASCII, with two labels or more")]
pub struct HostPatternError;

impl HostPattern {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it speaks of a host; its name in lower case, without a final dot.
    pub fn fits(&self, name: &str) -> bool {
        match self.0.strip_prefix(WILDCARD) {
            Some(above) => name.strip_suffix(above).is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            None => name == self.0,
        }
    }

    /// Whether it speaks of every host that another one speaks of.
    pub(super) fn covers(&self, other: &Self) -> bool {
        // What stands for a label in a wildcard is below whatever the rest is below.
        self == other || self.fits(&other.0)
    }
}

impl FromStr for HostPattern {
    type Err = HostPatternError;
    fn from_str(text: &str) -> Result<Self, HostPatternError> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let name = text.strip_prefix(WILDCARD).unwrap_or(text);
        let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |label: &str| {
            let length = (1..=LABEL_BYTES_MAX).contains(&label.len());
            length && label.bytes().all(byte) && !label.starts_with('-') && !label.ends_with('-')
        };
        let labels: Vec<&str> = name.split('.').collect();
        // Else an address with a slip in it would be a name.
        let numeric = labels.last().is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
        let fits = name.len() <= NAME_BYTES_MAX && labels.len() >= LABELS_MIN && !numeric;
        match fits && labels.into_iter().all(label) {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => Err(HostPatternError),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = HostPatternError;
    fn try_from(text: String) -> Result<Self, HostPatternError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> String {
        pattern.0
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_taken_in_one_form() {
        assert_eq!(pattern("API.Stripe.com."), pattern("api.stripe.com"));
        assert_eq!(pattern("*.Example.com").as_str(), "*.example.com");
        assert!("_acme.xn--bcher-kva.example".parse::<HostPattern>().is_ok());
        let long = format!("{}.example", "a".repeat(64));
        for text in [
            "",
            ".",
            "com",
            "*.com",
            "*",
            "*.*.example.com",
            "a.*.example.com",
            "a..b",
            ".a.b",
            "-a.example",
            "a-.example",
            "bücher.example",
            "10.0.0.300",
            "10.0.0.1",
            "a b.example",
            "https://a.example",
            "a.example/x",
            &long,
            &"a.".repeat(128),
        ] {
            assert!(text.parse::<HostPattern>().is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_pattern_fits_its_host_or_all_below_it() {
        let host = pattern("api.example.com");
        assert!(host.fits("api.example.com") && !host.fits("x.api.example.com") && !host.fits("example.com"));
        let below = pattern("*.example.com");
        for (name, fits) in [
            ("a.example.com", true),
            ("b.a.example.com", true),
            ("example.com", false),
            (".example.com", false),
            ("evilexample.com", false),
            ("a.example.com.evil.test", false),
        ] {
            assert_eq!(below.fits(name), fits, "{name}");
        }
    }

    #[test]
    fn wider_patterns_cover_narrower_ones() {
        let covers = |wide: &str, narrow: &str| pattern(wide).covers(&pattern(narrow));
        assert!(covers("*.example.com", "a.example.com") && covers("*.example.com", "*.a.example.com"));
        assert!(covers("a.example.com", "a.example.com") && covers("*.example.com", "*.example.com"));
        assert!(!covers("a.example.com", "*.a.example.com") && !covers("*.a.example.com", "*.example.com"));
        assert!(!covers("*.example.com", "example.com"));
    }
}
