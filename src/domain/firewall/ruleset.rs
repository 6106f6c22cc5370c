//! All rules of one container, in the order in which they decide, and what they decide.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::host::HostPattern;
use super::own::OwnRules;
use super::peer::WasGiven;
use super::rule::{Action, Rule};
use crate::domain::Subnet;
use crate::domain::network::WayOut;
use crate::domain::policy::{Policy, PolicyError};

/// Metadata services of clouds that are not link-local: Alibaba's, Azure's wire server, Oracle's. They hand out the host's secrets to
/// whoever asks from its address, and serve nothing else that a tenant has a use for.
pub const METADATA: [Ipv4Addr; 3] =
    [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(192, 0, 0, 192)];

/// Which way packets go that open a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Towards the tenant.
    Ingress,
    /// From the tenant.
    Egress,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the protocols' headers")]
pub enum Payload {
    Tcp {
        source: u16,
        destination: u16,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    Icmp {
        kind: u8,
        code: u8,
    },
    /// Another protocol, by its number.
    Other(u8),
}

/// The packet that opens a flow, with its addresses as the rules see them: after destinations were translated, before sources are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Which way it goes.
    pub side: Side,
    /// Who is on the other side.
    pub peer: Ipv4Addr,
    /// What it carries.
    pub payload: Payload,
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
    /// Combinations of a peer and ports, over all rules.
    pub fn combinations(&self) -> usize {
        self.rules.iter().map(Rule::combinations).fold(0, usize::saturating_add)
    }

    /// The hosts that its rules name, in order, each once.
    pub fn hosts(&self) -> Vec<HostPattern> {
        let hosts: BTreeSet<_> = self.rules.iter().flat_map(|rule| rule.peers.hosts()).collect();
        hosts.into_iter().cloned().collect()
    }

    fn verdict(&self, packet: &Packet, was_given: WasGiven<'_>) -> Action {
        self.rules.iter().find(|rule| rule.matches(packet, was_given)).map_or(self.default, |rule| rule.action)
    }
}

/// What is in force for one container: its own rules that are enabled, then its policy's; and which way what they let out is led.
/// Within its bounds by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    ingress: Direction,
    egress: Direction,
    hosts: Vec<HostPattern>,
    way_out: WayOut,
}

impl Ruleset {
    /// Puts a container's own rules before a policy's.
    ///
    /// # Errors
    /// The policy is beyond its bounds. (Own rules cannot be.)
    pub fn new(policy: &Policy, own: &OwnRules) -> Result<Self, PolicyError> {
        policy.check()?;
        let join = |side: Side, theirs: &Direction| {
            let mine = own.enabled(side);
            Direction { default: theirs.default, rules: mine.chain(&theirs.rules).cloned().collect() }
        };
        let (ingress, egress) = (join(Side::Ingress, &policy.ingress), join(Side::Egress, &policy.egress));
        let hosts = egress.hosts();
        Ok(Self { ingress, egress, hosts, way_out: WayOut::Direct })
    }

    /// The same rules, with what they let out led this way.
    pub fn led(self, way_out: WayOut) -> Self {
        Self { way_out, ..self }
    }

    /// Which way what they let out is led.
    pub const fn way_out(&self) -> WayOut {
        self.way_out
    }

    /// One way's rules.
    pub const fn side(&self, side: Side) -> &Direction {
        match side {
            Side::Ingress => &self.ingress,
            Side::Egress => &self.egress,
        }
    }

    /// The hosts that the egress rules name, in order, each once; twice [`HOSTS_MAX`](crate::domain::policy::HOSTS_MAX) at most.
    pub fn hosts(&self) -> &[HostPattern] {
        &self.hosts
    }

    /// What becomes of the flow that a packet opens, as far as these rules have a say: see [`Base`] for what is above them.
    pub fn verdict(&self, packet: &Packet, was_given: WasGiven<'_>) -> Action {
        self.side(packet.side).verdict(packet, was_given)
    }

    /// Combinations of a peer and ports in both directions.
    pub fn combinations(&self) -> usize {
        self.ingress.combinations().saturating_add(self.egress.combinations())
    }
}

/// The base rules, which no policy opens, as far as an address tells: other tenants, link-local addresses and metadata services. (That a tenant does not reach this host at any of its addresses the kernel alone can tell.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// Tenants' addresses.
    pub subnet: Subnet,
}

impl Base {
    /// Whether a flow is closed whatever the rules say.
    pub fn closes(self, packet: &Packet) -> bool {
        let tenant = self.subnet.network().contains(packet.peer);
        let metadata = packet.peer.is_link_local() || METADATA.contains(&packet.peer);
        tenant || (packet.side == Side::Egress && metadata)
    }

    /// What becomes of the flow that a packet opens.
    pub fn verdict(self, rules: &Ruleset, packet: &Packet, was_given: WasGiven<'_>) -> Action {
        if self.closes(packet) { Action::Drop } else { rules.verdict(packet, was_given) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::firewall::{OwnRule, State};

    const SOMEBODY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    const NOBODY: WasGiven<'_> = &|_, _| false;

    fn policy(text: &str) -> Policy {
        toml::from_str(text).unwrap()
    }

    fn own(side: Side, rules: &[(&str, State)]) -> OwnRules {
        let mut own = OwnRules::default();
        for (text, state) in rules {
            let rule = OwnRule { rule: toml::from_str(text).unwrap(), state: *state };
            own.add(side, rule).unwrap();
        }
        own
    }

    fn to(peer: Ipv4Addr, payload: Payload) -> Packet {
        Packet { side: Side::Egress, peer, payload }
    }

    fn tcp(destination: u16) -> Payload {
        Payload::Tcp { source: 40_000, destination }
    }

    #[test]
    fn the_first_match_decides_and_own_rules_come_first() {
        let policy = policy(
            "ingress.default = 'drop'\negress.default = 'allow'\n[[egress.rules]]\naction = 'drop'\nprotocol = 'tcp'\nports = ['25']\n",
        );
        let plain = Ruleset::new(&policy, &OwnRules::default()).unwrap();
        assert_eq!(plain.verdict(&to(SOMEBODY, tcp(25)), NOBODY), Action::Drop);
        assert_eq!(plain.verdict(&to(SOMEBODY, tcp(26)), NOBODY), Action::Allow);
        let allow = "action = 'allow'\nprotocol = 'tcp'\npeers = ['198.51.100.0/24']\nports = ['25']";
        let rules = own(Side::Egress, &[(allow, State::Enabled), ("action = 'reject'", State::Enabled)]);
        let both = Ruleset::new(&policy, &rules).unwrap();
        assert_eq!(both.verdict(&to(SOMEBODY, tcp(25)), NOBODY), Action::Allow);
        assert_eq!(both.verdict(&to(Ipv4Addr::new(198, 51, 101, 1), tcp(25)), NOBODY), Action::Reject);
        let off = own(Side::Egress, &[(allow, State::Disabled)]);
        assert_eq!(Ruleset::new(&policy, &off).unwrap(), plain);
    }

    #[test]
    fn a_rule_matches_its_protocol_its_ports_and_its_peers() {
        let rules = |text: &str| {
            let closed = "ingress.default = 'drop'\negress.default = 'drop'\n";
            Ruleset::new(&policy(closed), &own(Side::Egress, &[(text, State::Enabled)])).unwrap()
        };
        let allows = |text: &str, payload| rules(text).verdict(&to(SOMEBODY, payload), NOBODY) == Action::Allow;
        let udp = Payload::Udp { source: 53, destination: 443 };
        assert!(allows("action = 'allow'", Payload::Other(47)));
        assert!(allows("action = 'allow'\nprotocol = 'udp'\nports = ['443']\nsource_ports = ['53']", udp));
        assert!(!allows("action = 'allow'\nprotocol = 'tcp'\nports = ['443']", udp));
        assert!(!allows("action = 'allow'\nprotocol = 'udp'\nsource_ports = ['54']", udp));
        let echo = Payload::Icmp { kind: 8, code: 0 };
        assert!(allows("action = 'allow'\nprotocol = 'icmp4'", echo));
        assert!(allows("action = 'allow'\nprotocol = 'icmp4'\nicmp_type = 8", echo));
        assert!(!allows("action = 'allow'\nprotocol = 'icmp4'\nicmp_type = 8\nicmp_code = 1", echo));
        assert!(!allows("action = 'allow'\nprotocol = 'icmp4'\nicmp_type = 13", echo));
    }

    #[test]
    fn a_name_takes_its_place_among_the_rules() {
        let policy = policy("ingress.default = 'drop'\negress.default = 'drop'\n");
        let first = ("action = 'drop'\nprotocol = 'tcp'\nports = ['25']", State::Enabled);
        let second = ("action = 'allow'\npeers = ['*.shop.example', '192.0.2.0/24']", State::Enabled);
        let rules = Ruleset::new(&policy, &own(Side::Egress, &[first, second])).unwrap();
        assert_eq!(rules.hosts(), ["*.shop.example".parse().unwrap()]);
        let given: WasGiven<'_> = &|host, address| host.fits("a.shop.example") && address == SOMEBODY;
        assert_eq!(rules.verdict(&to(SOMEBODY, tcp(443)), given), Action::Allow);
        assert_eq!(rules.verdict(&to(SOMEBODY, tcp(443)), NOBODY), Action::Drop);
        assert_eq!(rules.verdict(&to(SOMEBODY, tcp(25)), given), Action::Drop, "the first match decides");
        assert_eq!(rules.verdict(&to([192, 0, 2, 9].into(), tcp(443)), NOBODY), Action::Allow);
    }

    #[test]
    fn no_rule_opens_what_the_base_closes() {
        let open = policy("ingress.default = 'allow'\negress.default = 'allow'\n");
        let rules = Ruleset::new(&open, &OwnRules::default()).unwrap();
        let base = Base { subnet: "10.201.0.0/16".parse().unwrap() };
        for peer in [[10, 201, 0, 9], [169, 254, 169, 254], [169, 254, 1, 1], [100, 100, 100, 200], [168, 63, 129, 16]]
        {
            let packet = to(peer.into(), tcp(80));
            assert_eq!(
                (rules.verdict(&packet, NOBODY), base.verdict(&rules, &packet, NOBODY)),
                (Action::Allow, Action::Drop)
            );
        }
        assert_eq!(base.verdict(&rules, &to(SOMEBODY, tcp(80)), NOBODY), Action::Allow);
        let neighbour = Packet { side: Side::Ingress, peer: [10, 201, 0, 9].into(), payload: tcp(80) };
        assert_eq!(base.verdict(&rules, &neighbour, NOBODY), Action::Drop);
    }
}
