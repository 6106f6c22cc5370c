//! Ports, one by one and in lists.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A range of ports, both ends included; as text `443` or `8000-8100`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// A text or a pair of numbers that is no range of ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a range of ports: 1 to 65535, as 443 or 8000-8100, the lower one first")]
pub struct PortRangeError(String);

impl PortRange {
    /// The range from `first` to `last`.
    ///
    /// # Errors
    /// Port 0, or the higher one first.
    pub fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        let fits = first != 0 && first <= last;
        if fits { Ok(Self { first, last }) } else { Err(PortRangeError(format!("{first}-{last}"))) }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port; not below the lowest.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether a port is in it.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl FromStr for PortRange {
    type Err = PortRangeError;
    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let wrong = || PortRangeError(text.chars().take(32).collect());
        // `u16::from_str` takes a leading plus sign; ports have none.
        let port = |digits: &str| match digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u16>().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(port(first.trim())?, port(last.trim())?).map_err(|_| wrong())
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortRangeError;
    fn try_from(text: String) -> Result<Self, PortRangeError> {
        text.parse()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> String {
        range.to_string()
    }
}

/// A list of ports, sorted, with ranges that touch or overlap made one; empty: any port. As text `80,443` or `80-90`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<PortRange>", into = "Vec<PortRange>")]
pub struct Ports(Vec<PortRange>);

impl Ports {
    /// Whether every port is meant.
    pub fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// Whether a port is meant.
    pub fn contains(&self, port: u16) -> bool {
        self.is_any() || self.0.iter().any(|range| range.contains(port))
    }
}

impl From<Vec<PortRange>> for Ports {
    fn from(mut ranges: Vec<PortRange>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(before) if range.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(range.last)
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl From<Ports> for Vec<PortRange> {
    fn from(ports: Ports) -> Self {
        ports.0
    }
}

impl FromStr for Ports {
    type Err = PortRangeError;
    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let ranges = text.split(',').map(|part| part.trim().parse()).collect::<Result<Vec<PortRange>, _>>()?;
        Ok(ranges.into())
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            write!(f, "{}{range}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn odd_ports_are_refused() {
        for text in ["", "0", "65536", "+80", "80-", "-80", "80-79", "1-2-3"] {
            assert!(text.parse::<PortRange>().is_err(), "{text} was taken");
            assert!(format!("443,{text}").parse::<Ports>().is_err(), "{text} was taken");
        }
    }

    #[test]
    fn lists_that_read_the_same_are_the_same() {
        let ports = |text: &str| text.parse::<Ports>().unwrap();
        assert_eq!(ports("443, 80"), ports("80,443,80"));
        assert_eq!(ports("81-90,80,85-100").to_string(), "80-100");
        assert_eq!(ports("65535,65000-65534").to_string(), "65000-65535");
    }

    proptest! {
        #[test]
        fn port_ranges_read_back(first in 1u16.., more in 0u16..1000) {
            let range = PortRange::new(first, first.saturating_add(more)).unwrap();
            prop_assert_eq!(range.to_string().parse::<PortRange>().unwrap(), range);
        }

        #[test]
        fn a_list_means_the_ports_of_its_ranges_in_any_order(
            pairs in proptest::collection::vec((1u16..400, 0u16..30), 1..8), port in 1u16..450,
        ) {
            let ranges: Vec<_> = pairs.iter().map(|(first, more)| PortRange::new(*first, first + more).unwrap()).collect();
            let wanted = ranges.iter().any(|range| range.contains(port));
            let backwards: Ports = ranges.iter().rev().copied().collect::<Vec<_>>().into();
            let ports = Ports::from(ranges);
            prop_assert_eq!(ports.contains(port), wanted);
            prop_assert_eq!(&ports, &backwards);
            prop_assert_eq!(ports.to_string().parse::<Ports>().unwrap(), ports);
        }
    }
}
