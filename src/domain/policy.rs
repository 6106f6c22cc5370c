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
//! peers = ["10.0.0.0/8"]        # the other side's networks; absent: any. To allow what is sent, names of hosts too:
//!                               # "api.example.com", "*.example.com"; at most 32 of them
//! ports = ["25", "8000-8100"]   # destination ports, only with tcp or udp; absent: any
//! source_ports = ["1024-65535"] # source ports, only with tcp or udp; absent: any
//! icmp_type = 8                 # only with icmp4; absent: any; `icmp_code` only beside it
//! description = "no mail"       # for people
//! ```
//!
//! Those we ship are part of the binary ([`Policies::shipped`]); the operator's folder adds to them, and replaces
//! one by a file of the same name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::firewall::{Direction, HostPattern, Side};

/// Rules of one direction, at most.
pub const RULES_MAX: usize = 500;

/// Pairs of a network and a range of ports in one direction, at most: what the firewall has to look at one by one.
pub const PAIRS_MAX: usize = 1000;

/// Hosts that a policy's egress rules name, and that a container's own do, at most.
pub const HOSTS_MAX: usize = 32;

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
        /// Which way's.
        direction: Side,
        /// How many it has.
        count: usize,
    },
    /// A direction's rules have too many networks and ports between them.
    #[error("the rules of {direction} have {count} pairs of a network and a port, more than {PAIRS_MAX}")]
    TooManyPairs {
        /// Which way's.
        direction: Side,
        /// How many they have.
        count: usize,
    },
    /// Too many names of hosts.
    #[error("the rules of egress name {count} hosts, more than {HOSTS_MAX}")]
    TooManyHosts {
        /// How many.
        count: usize,
    },
    /// A name on the side where it says nothing.
    #[error("ingress rules name no hosts: where `{0}` leads to says nothing about who comes")]
    HostOfIngress(HostPattern),
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

impl Policy {
    /// Whether it is within its bounds.
    ///
    /// # Errors
    /// A direction with too many rules, or too many networks and ports; too many hosts, or hosts of ingress rules.
    pub fn check(&self) -> Result<(), PolicyError> {
        for (direction, side) in [(Side::Ingress, &self.ingress), (Side::Egress, &self.egress)] {
            if side.rules.len() > RULES_MAX {
                return Err(PolicyError::TooManyRules { direction, count: side.rules.len() });
            }
            if side.combinations() > PAIRS_MAX {
                return Err(PolicyError::TooManyPairs { direction, count: side.combinations() });
            }
        }
        let count = self.egress.hosts().len();
        match self.ingress.hosts().into_iter().next() {
            Some(host) => Err(PolicyError::HostOfIngress(host)),
            None if count > HOSTS_MAX => Err(PolicyError::TooManyHosts { count }),
            None => Ok(()),
        }
    }

    /// Reads and checks a policy file.
    pub fn from_toml(name: &PolicyName, text: &str) -> Result<Self, PolicyError> {
        let syntax = |message: String| PolicyError::Syntax { policy: name.to_string(), message };
        let reader = toml::Deserializer::parse(text).map_err(|error| syntax(error.to_string()))?;
        let policy: Self = serde_path_to_error::deserialize(reader)
            .map_err(|error| syntax(format!("{}{}", place(error.path()), error.inner())))?;
        let file = |source| PolicyError::File { policy: name.to_string(), source: Box::new(source) };
        policy.check().map_err(file)?;
        Ok(policy)
    }
}

/// Where in the file, in words: the TOML reader's line is that of the first rule.
fn place(path: &serde_path_to_error::Path) -> String {
    let mut text = String::new();
    for segment in path.iter() {
        match segment {
            serde_path_to_error::Segment::Seq { index } => text += &format!(" number {}", index + 1),
            serde_path_to_error::Segment::Map { key } if text.is_empty() => text += key,
            serde_path_to_error::Segment::Map { key } => text += &format!(".{key}"),
            _ => {}
        }
    }
    if text.is_empty() { text } else { text + ": " }
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
    use crate::domain::chain;
    use crate::domain::firewall::Action;

    fn name(text: &str) -> PolicyName {
        text.parse().unwrap()
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
        let text = refusal(rule);
        assert!(
            text.contains("`mine`") && text.contains("egress.rules number 2: ") && text.contains("`ports` needs"),
            "{text}"
        );
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
        let ports: Vec<_> = (1..=101).map(|port| format!("\"{}\"", port * 2)).collect();
        let peers: Vec<_> = (1..=10).map(|n| format!("\"10.{n}.0.0/16\"")).collect();
        let (ports, peers) = (ports.join(","), peers.join(","));
        let wide = format!("[[egress.rules]]\naction=\"drop\"\nprotocol=\"tcp\"\nports=[{ports}]\npeers=[{peers}]\n");
        assert!(refusal(&wide).contains("egress have 1010 pairs"));
    }

    #[test]
    fn hosts_are_named_in_egress_rules_that_allow_and_are_few() {
        let hosts = |count| (0..count).map(|n| format!("\"h{n}.example\"")).collect::<Vec<_>>().join(",");
        let allow = |count| format!("[[egress.rules]]\naction = \"allow\"\npeers = [{}]\n", hosts(count));
        assert!(refusal(&allow(HOSTS_MAX + 1)).contains("egress name 33 hosts"));
        assert!(
            refusal(&allow(2).replace("egress", "ingress")).contains("ingress rules name no hosts: where `h0.example`")
        );
        assert!(refusal(&allow(1).replace("allow", "drop")).contains("can only be allowed"));
        let text = format!("[ingress]\ndefault = \"drop\"\n[egress]\ndefault = \"drop\"\n{}", allow(HOSTS_MAX));
        assert!(Policy::from_toml(&name("mine"), &text).is_ok());
    }

    #[test]
    fn odd_names_are_refused() {
        for text in ["", "Web", "a b", "../web", "a.toml", &"x".repeat(65)] {
            assert!(text.parse::<PolicyName>().is_err(), "{text} was taken");
        }
    }
}
