//! What one rule says.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::peer::{Peers, WasGiven};
use super::port::Ports;
use super::ruleset::{Packet, Payload};

/// Length of a rule's description, at most, in bytes.
pub const DESCRIPTION_BYTES_MAX: usize = 256;

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

impl Action {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Reject => "reject",
            Self::Drop => "drop",
        }
    }
}

/// What a rule speaks of, where it does not speak of everything.
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

impl Protocol {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp4 => "icmp4",
        }
    }
}

/// The ports of both ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    /// Where it comes from.
    pub source: Ports,
    /// Where it goes.
    pub destination: Ports,
}

/// A kind of ICMP message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp {
    /// Its type, such as 8 for an echo request.
    pub kind: u8,
    /// Its code; `None`: any.
    pub code: Option<u8>,
}

/// What packets a rule speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Traffic {
    /// All of them.
    Any,
    /// TCP between these ports.
    Tcp(Ends),
    /// UDP between these ports.
    Udp(Ends),
    /// ICMP; `None`: any message.
    Icmp4(Option<Icmp>),
}

impl Traffic {
    /// Its protocol, if it is of one.
    pub const fn protocol(&self) -> Option<Protocol> {
        match self {
            Self::Any => None,
            Self::Tcp(_) => Some(Protocol::Tcp),
            Self::Udp(_) => Some(Protocol::Udp),
            Self::Icmp4(_) => Some(Protocol::Icmp4),
        }
    }

    /// The ports, where there are such.
    pub const fn ends(&self) -> Option<&Ends> {
        match self {
            Self::Tcp(ends) | Self::Udp(ends) => Some(ends),
            Self::Any | Self::Icmp4(_) => None,
        }
    }

    fn matches(&self, payload: Payload) -> bool {
        let fits =
            |ends: &Ends, source, destination| ends.source.contains(source) && ends.destination.contains(destination);
        match (self, payload) {
            (Self::Any, _) | (Self::Icmp4(None), Payload::Icmp { .. }) => true,
            (Self::Tcp(ends), Payload::Tcp { source, destination })
            | (Self::Udp(ends), Payload::Udp { source, destination }) => fits(ends, source, destination),
            (Self::Icmp4(Some(icmp)), Payload::Icmp { kind, code }) => {
                icmp.kind == kind && icmp.code.is_none_or(|wanted| wanted == code)
            }
            _ => false,
        }
    }
}

/// A text for people: up to 256 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Description(String);

/// A text that is no description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a description has up to {DESCRIPTION_BYTES_MAX} bytes and no control characters")]
pub struct DescriptionError;

impl Description {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Description {
    type Error = DescriptionError;
    fn try_from(text: String) -> Result<Self, DescriptionError> {
        let fits = text.len() <= DESCRIPTION_BYTES_MAX && !text.chars().any(char::is_control);
        if fits { Ok(Self(text)) } else { Err(DescriptionError) }
    }
}

impl From<Description> for String {
    fn from(description: Description) -> String {
        description.0
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawRule", into = "RawRule")]
pub struct Rule {
    /// What happens.
    pub action: Action,
    /// To which packets.
    pub traffic: Traffic,
    /// The other side: sources of an ingress rule, destinations of an egress rule.
    pub peers: Peers,
    /// For people.
    pub description: Option<Description>,
}

/// Parts that do not make a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Destination ports of something that has none.
    #[error("`ports` needs `protocol` to be tcp or udp")]
    Ports,
    /// Source ports of something that has none.
    #[error("`source_ports` needs `protocol` to be tcp or udp")]
    SourcePorts,
    /// A type of message of something that is not ICMP.
    #[error("`icmp_type` needs `protocol` to be icmp4")]
    IcmpType,
    /// A code without the type that it is a code of.
    #[error("`icmp_code` needs `icmp_type`")]
    IcmpCode,
    /// Something else than an allowance for a name. A refusal would only hold for who asks for the name, and as long as its answer does.
    #[error("a host's name can only be allowed: whoever knows its address passes a refusal by")]
    HostNotAllowed,
}

/// A rule as it is written: each part by itself, whether or not they go together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "each is the part of the same name of a rule")]
pub struct RawRule {
    pub action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    #[serde(default, skip_serializing_if = "is_empty")]
    pub peers: Peers,
    #[serde(default, skip_serializing_if = "Ports::is_any")]
    pub ports: Ports,
    #[serde(default, skip_serializing_if = "Ports::is_any")]
    pub source_ports: Ports,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Description>,
}

fn is_empty(peers: &Peers) -> bool {
    peers.named().is_empty()
}

impl TryFrom<RawRule> for Rule {
    type Error = RuleError;
    fn try_from(raw: RawRule) -> Result<Self, RuleError> {
        let RawRule { action, protocol, peers, ports, source_ports, icmp_type, icmp_code, description } = raw;
        let has_ports = matches!(protocol, Some(Protocol::Tcp | Protocol::Udp));
        match () {
            () if !has_ports && !ports.is_any() => return Err(RuleError::Ports),
            () if !has_ports && !source_ports.is_any() => return Err(RuleError::SourcePorts),
            () if protocol != Some(Protocol::Icmp4) && icmp_type.is_some() => return Err(RuleError::IcmpType),
            () if icmp_type.is_none() && icmp_code.is_some() => return Err(RuleError::IcmpCode),
            () if action != Action::Allow && peers.hosts().next().is_some() => return Err(RuleError::HostNotAllowed),
            () => {}
        }
        let ends = Ends { source: source_ports, destination: ports };
        let traffic = match protocol {
            None => Traffic::Any,
            Some(Protocol::Tcp) => Traffic::Tcp(ends),
            Some(Protocol::Udp) => Traffic::Udp(ends),
            Some(Protocol::Icmp4) => Traffic::Icmp4(icmp_type.map(|kind| Icmp { kind, code: icmp_code })),
        };
        Ok(Self { action, traffic, peers, description })
    }
}

impl From<Rule> for RawRule {
    fn from(rule: Rule) -> Self {
        let protocol = rule.traffic.protocol();
        let (ends, icmp) = match rule.traffic {
            Traffic::Any => (Ends::default(), None),
            Traffic::Tcp(ends) | Traffic::Udp(ends) => (ends, None),
            Traffic::Icmp4(icmp) => (Ends::default(), icmp),
        };
        Self {
            action: rule.action,
            protocol,
            peers: rule.peers,
            ports: ends.destination,
            source_ports: ends.source,
            icmp_type: icmp.map(|icmp| icmp.kind),
            icmp_code: icmp.and_then(|icmp| icmp.code),
            description: rule.description,
        }
    }
}

impl Rule {
    /// Whether it speaks of a packet.
    pub fn matches(&self, packet: &Packet, was_given: WasGiven<'_>) -> bool {
        self.traffic.matches(packet.payload) && self.peers.contains(packet.peer, was_given)
    }

    /// Whether it does the same to the same packets as another one.
    pub fn does_as(&self, other: &Self) -> bool {
        (self.action, &self.traffic, &self.peers) == (other.action, &other.traffic, &other.peers)
    }

    /// How many combinations of a peer and ports it has: what the kernel looks at one by one.
    pub fn combinations(&self) -> usize {
        let ends = self.traffic.ends();
        let ports = |ports: Option<&Ports>| ports.map_or(1, |ports| ports.ranges().len().max(1));
        let ports = ports(ends.map(|ends| &ends.source)).saturating_mul(ports(ends.map(|ends| &ends.destination)));
        self.peers.named().len().max(1).saturating_mul(ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Result<Rule, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn parts_that_do_not_go_together_are_refused_by_name() {
        for (text, wanted) in [
            ("action = 'drop'\nports = ['25']", "`ports` needs `protocol` to be tcp or udp"),
            ("action = 'drop'\nprotocol = 'icmp4'\nports = ['25']", "`ports` needs"),
            ("action = 'drop'\nsource_ports = ['25']", "`source_ports` needs"),
            ("action = 'drop'\nprotocol = 'tcp'\nicmp_type = 8", "`icmp_type` needs `protocol` to be icmp4"),
            ("action = 'drop'\nprotocol = 'icmp4'\nicmp_code = 0", "`icmp_code` needs `icmp_type`"),
            ("action = 'drop'\ndescription = \"a\\nb\"", "no control characters"),
            ("action = 'drop'\npeers = ['ads.example']", "a host's name can only be allowed"),
            ("action = 'reject'\npeers = ['192.0.2.1', '*.ads.example']", "a host's name can only be allowed"),
            ("action = 'deny'", "deny"),
            ("action = 'drop'\nport = ['25']", "port"),
        ] {
            let error = rule(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn a_rule_is_written_as_it_is_read() {
        let text = "action = 'allow'\nprotocol = 'udp'\npeers = ['10.0.0.0/8']\nports = ['53']\nsource_ports = ['1024-65535']\ndescription = 'DNS'";
        let read = rule(text).unwrap();
        let json = serde_json::to_value(&read).unwrap();
        assert_eq!(
            json,
            serde_json::json!({ "action": "allow", "protocol": "udp", "peers": ["10.0.0.0/8"], "ports": ["53"],
                "source_ports": ["1024-65535"], "description": "DNS" })
        );
        assert_eq!(serde_json::from_value::<Rule>(json).unwrap(), read);
    }

    #[test]
    fn what_it_is_called_makes_no_difference_to_what_it_does() {
        let one = rule("action = 'drop'\nprotocol = 'tcp'\nports = ['80', '443']\ndescription = 'a'").unwrap();
        let two = rule("action = 'drop'\nprotocol = 'tcp'\nports = ['443', '80-80']").unwrap();
        assert!(one.does_as(&two) && one != two);
        assert_eq!(one.combinations(), 2);
    }
}
