//! Firewall policies: ordered rules, first match wins, and a default a direction.

use std::fmt;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

/// Rules of one direction, at most.
pub const RULES_MAX: usize = 500;

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

/// A range of ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    /// The lowest.
    pub first: u16,
    /// The highest; not below `first`.
    pub last: u16,
}

/// One rule. Empty lists match anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What happens.
    pub action: Action,
    /// `None`: any protocol.
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// The other side: sources of an ingress rule, destinations of an egress rule.
    #[serde(default)]
    pub peers: Vec<Ipv4Network>,
    /// Destination ports; only with tcp or udp.
    #[serde(default)]
    pub ports: Vec<PortRange>,
    /// For people.
    #[serde(default)]
    pub description: Option<String>,
}

/// A direction's rules and what happens to what none of them matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Direction {
    /// Where no rule matches.
    pub default: Action,
    /// In order; the first match decides.
    #[serde(default)]
    pub rules: Vec<Rule>,
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

/// A policy's name: the stem of its file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PolicyName(pub String);

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
