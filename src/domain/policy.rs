//! Firewall policies: ordered rules, first match wins, and a default a direction.
//!
//! A policy is a TOML file whose stem is the policy's name:
//!
//! ```toml
//! [ingress]                     # towards the tenant, from outside this machine
//! default = "drop"              # allow | reject | drop: where no rule matches
//!
//! [egress]                      # from the tenant
//! default = "allow"
//!
//! [[egress.rules]]              # in order; the first match decides; at most 500 a direction, with 1000
//!                               # pairs of a network and a port between them
//! action = "reject"             # allow | reject (an error at once) | drop (silence)
//! protocol = "tcp"              # tcp | udp | icmp4; absent: any
//! peers = ["10.0.0.0/8"]        # the other side's networks; absent: any
//! ports = ["25", "8000-8100"]   # destination ports, only with tcp or udp; absent: any
//! description = "no mail"       # for people
//! ```
//!
//! Those we ship are part of the binary ([`Policies::shipped`]); the operator's folder adds to them, and replaces
//! one by a file of the same name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

/// Rules of one direction, at most.
pub const RULES_MAX: usize = 500;

/// Pairs of a network and a range of ports in one direction, at most: what the firewall has to look at one by one.
pub const PAIRS_MAX: usize = 1000;

/// Length of a rule's description, at most, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 256;

/// Length of a policy's name, at most, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// The policy of a container that names none.
pub const DEFAULT_POLICY: &str = "web";

/// The shipped policies: name and text.
const SHIPPED: [(&str, &str); 4] = [
    ("web", include_str!("../../policies/web.toml")),
    ("locked-down", include_str!("../../policies/locked-down.toml")),
    ("open", include_str!("../../policies/open.toml")),
    ("no-egress", include_str!("../../policies/no-egress.toml")),
];

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Let through.
    Allow,
    /// Refuse with an ICMP error or a TCP reset.
    Reject,
    /// Refuse without a word.
    Drop,
}

/// What a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP for IPv4.
    Icmp4,
}

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
    pub fn new(first: u16, last: u16) -> Result<Self, PortRangeError> {
        let fits = first != 0 && first <= last;
        if fits { Ok(Self { first, last }) } else { Err(PortRangeError(format!("{first}-{last}"))) }
    }

    /// The lowest port.
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port; not below the lowest.
    pub fn last(self) -> u16 {
        self.last
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

/// One rule. Empty lists match anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What happens.
    pub action: Action,
    /// `None`: any protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The other side: sources of an ingress rule, destinations of an egress rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Ipv4Network>,
    /// Destination ports; only with tcp or udp.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortRange>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

impl Rule {
    fn pairs(&self) -> usize {
        self.peers.len().max(1).saturating_mul(self.ports.len().max(1))
    }

    fn fault(&self) -> Option<&'static str> {
        let has_ports = matches!(self.protocol, Some(Protocol::Tcp | Protocol::Udp));
        let description = self.description.as_deref().unwrap_or_default();
        if !self.ports.is_empty() && !has_ports {
            Some("`ports` needs `protocol` to be tcp or udp")
        } else if self.peers.iter().any(|network| network.network() != network.ip()) {
            Some("`peers` has a network with host bits set, such as 10.1.2.3/8: 10.0.0.0/8 is wanted")
        } else if description.len() > DESCRIPTION_BYTES_MAX || description.chars().any(char::is_control) {
            Some("`description` is longer than 256 bytes or has control characters")
        } else {
            None
        }
    }
}

/// A direction's rules and what happens to what none of them matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Direction {
    /// Where no rule matches.
    pub default: Action,
    /// In order; the first match decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

impl Direction {
    /// Pairs of a network and a range of ports, over all rules.
    pub fn pairs(&self) -> usize {
        self.rules.iter().map(Rule::pairs).fold(0, usize::saturating_add)
    }
}

/// A whole policy: what may come in from outside this machine's tenants, and what may go out.
///
/// No policy opens what the base rules close: tenant to tenant, tenant to host, spoofed sources, metadata addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Towards the tenant.
    pub ingress: Direction,
    /// From the tenant.
    pub egress: Direction,
}

/// A policy that cannot be kept, with the place of the fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The text is no TOML of the form that this module's documentation shows.
    #[error("firewall policy `{policy}`: {message}")]
    Syntax {
        /// Its name.
        policy: String,
        /// Line, column and fault, as the TOML reader puts it.
        message: String,
    },
    /// A direction has too many rules.
    #[error("{direction} has {count} rules, more than {RULES_MAX}")]
    TooManyRules {
        /// "ingress" or "egress".
        direction: &'static str,
        /// How many it has.
        count: usize,
    },
    /// A direction's rules have too many networks and ports between them.
    #[error("the rules of {direction} have {count} pairs of a network and a port, more than {PAIRS_MAX}")]
    TooManyPairs {
        /// "ingress" or "egress".
        direction: &'static str,
        /// How many they have.
        count: usize,
    },
    /// A rule says something that cannot be.
    #[error("{direction} rule {number}{}: {fault}", label(.description))]
    Rule {
        /// "ingress" or "egress".
        direction: &'static str,
        /// From 1.
        number: usize,
        /// The rule's own description.
        description: Option<String>,
        /// What is wrong.
        fault: &'static str,
    },
    /// One of the operator's files is at fault.
    #[error("firewall policy `{policy}` cannot be used")]
    File {
        /// Its name.
        policy: String,
        /// What is wrong in it.
        #[source]
        source: Box<PolicyError>,
    },
}

fn label(description: &Option<String>) -> String {
    description.as_ref().map(|text| format!(" ({})", text.escape_debug())).unwrap_or_default()
}

impl Policy {
    /// Whether the firewall can keep it: see [`PolicyError`] for what may be wrong.
    pub fn check(&self) -> Result<(), PolicyError> {
        for (direction, side) in [("ingress", &self.ingress), ("egress", &self.egress)] {
            let rules = &side.rules;
            if rules.len() > RULES_MAX {
                return Err(PolicyError::TooManyRules { direction, count: rules.len() });
            }
            if side.pairs() > PAIRS_MAX {
                return Err(PolicyError::TooManyPairs { direction, count: side.pairs() });
            }
            let faults = rules.iter().zip(1..).find_map(|(rule, number)| Some((rule.fault()?, rule, number)));
            if let Some((fault, rule, number)) = faults {
                // Never echo an unbounded input back.
                let description = rule.description.as_ref().map(|text| text.chars().take(64).collect());
                return Err(PolicyError::Rule { direction, number, description, fault });
            }
        }
        Ok(())
    }

    /// Reads and checks a policy file.
    pub fn from_toml(name: &PolicyName, text: &str) -> Result<Self, PolicyError> {
        let syntax =
            |error: toml::de::Error| PolicyError::Syntax { policy: name.to_string(), message: error.to_string() };
        let policy: Self = toml::from_str(text).map_err(syntax)?;
        let file = |source| PolicyError::File { policy: name.to_string(), source: Box::new(source) };
        policy.check().map_err(file)?;
        Ok(policy)
    }
}

/// A policy's name: the stem of its file; 1–64 of `a-z 0-9 - _`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PolicyName(String);

/// A text that is no policy's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the name of a firewall policy: 1 to 64 of a-z, 0-9, - and _ are wanted")]
pub struct PolicyNameError(String);

impl PolicyName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for PolicyName {
    fn default() -> Self {
        Self(DEFAULT_POLICY.to_owned())
    }
}

impl FromStr for PolicyName {
    type Err = PolicyNameError;
    fn from_str(text: &str) -> Result<Self, PolicyNameError> {
        let alphabet = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(alphabet);
        if fits { Ok(Self(text.to_owned())) } else { Err(PolicyNameError(text.chars().take(64).collect())) }
    }
}

impl TryFrom<String> for PolicyName {
    type Error = PolicyNameError;
    fn try_from(text: String) -> Result<Self, PolicyNameError> {
        text.parse()
    }
}

impl From<PolicyName> for String {
    fn from(name: PolicyName) -> String {
        name.0
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The policies a container may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policies(BTreeMap<PolicyName, Policy>);

impl Policies {
    /// Those that are part of the binary.
    pub fn shipped() -> Result<Self, PolicyError> {
        let mut policies = Self(BTreeMap::new());
        for (name, text) in SHIPPED {
            policies.add(PolicyName(name.to_owned()), text)?;
        }
        Ok(policies)
    }

    /// Adds a policy from its file's text, or replaces the one of that name.
    pub fn add(&mut self, name: PolicyName, text: &str) -> Result<(), PolicyError> {
        let policy = Policy::from_toml(&name, text)?;
        self.0.insert(name, policy);
        Ok(())
    }

    /// The policy of this name.
    pub fn get(&self, name: &PolicyName) -> Option<&Policy> {
        self.0.get(name)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &PolicyName> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> PolicyName {
        text.parse().unwrap()
    }

    /// The whole chain of an error, as the edge prints it.
    fn chain(error: &dyn std::error::Error) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }

    fn refusal(egress: &str) -> String {
        let text = format!("[ingress]\ndefault = \"drop\"\n[egress]\ndefault = \"allow\"\n{egress}");
        chain(&Policy::from_toml(&name("mine"), &text).unwrap_err())
    }

    #[test]
    fn the_shipped_policies_are_sound_and_the_default_is_among_them() {
        let policies = Policies::shipped().unwrap();
        let names: Vec<_> = policies.names().map(PolicyName::as_str).collect();
        assert_eq!(names, ["locked-down", "no-egress", "open", "web"]);
        assert!(policies.get(&PolicyName::default()).is_some());
    }

    #[test]
    fn only_open_lets_strangers_in() {
        let policies = Policies::shipped().unwrap();
        for name in policies.names().filter(|name| name.as_str() != "open") {
            let ingress = &policies.get(name).unwrap().ingress;
            assert!(ingress.default == Action::Drop && ingress.rules.is_empty(), "{name}");
        }
    }

    #[test]
    fn the_operators_file_replaces_a_shipped_one() {
        let mut policies = Policies::shipped().unwrap();
        let closed = "[ingress]\ndefault = \"drop\"\n[egress]\ndefault = \"drop\"\n";
        policies.add(name("web"), closed).unwrap();
        assert_eq!(policies.get(&name("web")).unwrap().egress.default, Action::Drop);
        assert_eq!(policies.names().count(), SHIPPED.len());
    }

    #[test]
    fn a_faulty_rule_is_named() {
        let rule = "[[egress.rules]]\naction = \"allow\"\n[[egress.rules]]\naction = \"drop\"\nports = [\"25\"]\n";
        assert_eq!(
            refusal(&format!("{rule}description = \"no mail\"\n")),
            "firewall policy `mine` cannot be used: egress rule 2 (no mail): `ports` needs `protocol` to be tcp or udp"
        );
        let icmp = "[[egress.rules]]\naction = \"drop\"\nprotocol = \"icmp4\"\nports = [\"25\"]\n";
        assert!(refusal(icmp).contains("egress rule 1: `ports` needs"));
        let host_bits = "[[egress.rules]]\naction = \"drop\"\npeers = [\"10.1.2.3/8\"]\n";
        assert!(refusal(host_bits).contains("host bits"));
    }

    #[test]
    fn unknown_keys_and_words_are_refused_with_their_line() {
        let misspelt = refusal("[[egress.rules]]\naction = \"drop\"\nport = [\"25\"]\n");
        assert!(misspelt.contains("firewall policy `mine`") && misspelt.contains("line 7"), "{misspelt}");
        assert!(refusal("[[egress.rules]]\naction = \"deny\"\n").contains("deny"));
        let backwards = refusal("[[egress.rules]]\naction = \"drop\"\nprotocol = \"tcp\"\nports = [\"90-80\"]\n");
        assert!(backwards.contains("`90-80` is not a range of ports"), "{backwards}");
    }

    #[test]
    fn a_direction_has_a_bounded_number_of_rules() {
        let rule = "[[egress.rules]]\naction = \"drop\"\n";
        assert!(refusal(&rule.repeat(RULES_MAX + 1)).contains("egress has 501 rules, more than 500"));
        let ports: Vec<_> = (1..=101).map(|port| format!("\"{port}\"")).collect();
        let peers: Vec<_> = (1..=10).map(|n| format!("\"10.{n}.0.0/16\"")).collect();
        let (ports, peers) = (ports.join(","), peers.join(","));
        let wide = format!("[[egress.rules]]\naction=\"drop\"\nprotocol=\"tcp\"\nports=[{ports}]\npeers=[{peers}]\n");
        assert!(refusal(&wide).contains("egress have 1010 pairs"));
    }

    #[test]
    fn odd_ports_and_names_are_refused() {
        for text in ["", "0", "65536", "+80", "80-", "-80", "80-79", "80,443", "1-2-3"] {
            assert!(text.parse::<PortRange>().is_err(), "{text} was taken");
        }
        for text in ["", "Web", "a b", "../web", "a.toml", &"x".repeat(65)] {
            assert!(text.parse::<PolicyName>().is_err(), "{text} was taken");
        }
    }

    proptest! {
        #[test]
        fn port_ranges_read_back(first in 1u16.., more in 0u16..1000) {
            let range = PortRange::new(first, first.saturating_add(more)).unwrap();
            prop_assert_eq!(range.to_string().parse::<PortRange>().unwrap(), range);
        }
    }
}
