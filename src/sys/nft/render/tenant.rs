//! One tenant's two chains, and how the base rules find them.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use nftables::expr::{Expression, MetaKey, NamedExpression, Range, Verdict};
use nftables::schema::{Element, NfListObject};
use nftables::stmt::{CTCount, JumpTarget, Operator, Reject, RejectType, Statement};
use nftables::types::{NfFamily, RejectCode};

use super::hosts::{Moves, is_open_to};
use super::ways::Before;
use super::words::{matches, meta, payload, prefix, text};
use super::{Batch, EGRESS, INGRESS, Renderer, SOURCES};
use crate::domain::Slot;
use crate::domain::firewall::{
    Action, Direction, HostPattern, Icmp, Peer, Peers, Ports, Protocol, Rule, Ruleset, Side, Traffic,
};
use crate::domain::network::WayOut;

/// Length of a comment that nft keeps (`NFTNL_UDATA_COMMENT_MAXLEN`, with its final zero).
const COMMENT_BYTES_MAX: usize = 127;

/// Flows of one tenant that may be open at once in each direction, so that none fills the kernel's table, which is all tenants'
/// and this host's (`nf_conntrack_max`, 262 144 on machines with 1 GiB and more). Counted are those that were opened since
/// the chain was loaded.
pub(in crate::sys::nft) const FLOWS_MAX: u32 = 4_096;

impl Renderer {
    /// Adds a tenant's chains, or replaces their rules, and moves what is open by hosts' names along. `None` where the slot lies
    /// outside the subnet.
    pub(in crate::sys::nft) fn tenant(
        &self,
        batch: &mut Batch,
        slot: Slot,
        rules: &Ruleset,
        before: Before,
        moves: &Moves,
    ) -> Option<()> {
        let address = self.subnet.address(slot)?;
        self.host_sets(batch, rules);
        for side in Side::BOTH {
            let chain = chain_name(side, slot);
            batch.add(self.chain(&chain));
            batch.flush(self.chain_value(&chain));
            for (statements, comment) in chain_rules(rules, side) {
                batch.add(self.rule(&chain, statements, comment));
            }
        }
        for element in self.elements(slot, address) {
            batch.add(element);
        }
        self.host_moves(batch, slot, moves);
        self.way_out(batch, slot, rules.way_out(), before);
        Some(())
    }

    /// Removes a tenant's chains, there or not, and what was open by hosts' names. `None` where the slot lies outside the subnet.
    pub(in crate::sys::nft) fn remove(&self, batch: &mut Batch, slot: Slot, moves: &Moves) -> Option<()> {
        let address = self.subnet.address(slot)?;
        self.host_moves(batch, slot, moves);
        let chains = Side::BOTH.map(|side| chain_name(side, slot));
        for chain in &chains {
            batch.add(self.chain(chain));
        }
        for element in self.elements(slot, address) {
            batch.add(element.clone());
            batch.delete(element);
        }
        self.way_out(batch, slot, WayOut::Direct, Before::Unknown);
        for chain in &chains {
            batch.flush(self.chain_value(chain));
            batch.delete(self.chain(chain));
        }
        Some(())
    }

    fn elements(&self, slot: Slot, address: Ipv4Addr) -> [NfListObject<'static>; 3] {
        let link = slot.link_name(&self.instance);
        let element = |name: &'static str, value: Expression<'static>| {
            NfListObject::Element(Element {
                family: NfFamily::INet,
                table: self.table().to_owned().into(),
                name: name.into(),
                elem: vec![value].into(),
            })
        };
        let goto = |side| {
            let target = Verdict::Goto(JumpTarget { target: chain_name(side, slot).into() });
            Expression::List(vec![text(link.clone()), Expression::Verdict(target)])
        };
        let source = Expression::Named(NamedExpression::Concat(vec![text(link.clone()), text(address.to_string())]));
        [element(EGRESS, goto(Side::Egress)), element(INGRESS, goto(Side::Ingress)), element(SOURCES, source)]
    }
}

/// What a tenant's chain is called.
pub(in crate::sys::nft) fn chain_name(side: Side, slot: Slot) -> String {
    match side {
        Side::Ingress => format!("in-{slot}"),
        Side::Egress => format!("out-{slot}"),
    }
}

pub(in crate::sys::nft) type CommentedRule = (Vec<Statement<'static>>, Option<String>);

/// A chain's rules: the bound of flows, the rules in order, what happens to the rest.
pub(in crate::sys::nft) fn chain_rules(rules: &Ruleset, side: Side) -> Vec<CommentedRule> {
    direction_rules(rules.side(side), side, rules.hosts())
}

pub(super) fn direction_rules(direction: &Direction, side: Side, hosts: &[HostPattern]) -> Vec<CommentedRule> {
    let too_many = Statement::CTCount(CTCount { val: Expression::Number(FLOWS_MAX), inv: Some(true) });
    let mut rules = vec![(vec![too_many, Statement::Drop(None)], None)];
    rules.extend(direction.rules.iter().flat_map(|rule| rule_statements(rule, side, hosts)));
    rules.extend(verdicts(direction.default, None).into_iter().map(|verdict| (verdict, None)));
    rules
}

/// How many rules [`chain_rules`] gives, without making them: asked for all tenants at once.
pub(in crate::sys::nft) fn chain_length(direction: &Direction) -> usize {
    let verdicts = |action, protocol: Option<Protocol>| 1 + usize::from(action == Action::Reject && protocol.is_none());
    let alternatives = |rule: &Rule| {
        let peers = if rule.peers.is_any() { 1 } else { rule.peers.named().len() };
        let ports = |ports: &Ports| ports.ranges().len().max(1);
        let ports = rule.traffic.ends().map_or(1, |ends| ports(&ends.source) * ports(&ends.destination));
        peers * ports * verdicts(rule.action, rule.traffic.protocol())
    };
    1 + direction.rules.iter().map(alternatives).sum::<usize>() + verdicts(direction.default, None)
}

/// One rule for every combination of a peer and ports, without anonymous sets: nft reads every set there is, one by one,
/// before it changes an element anywhere. With two sets in the chains of each of a thousand tenants one more tenant
/// took 250 ms, without them 11. The bounds of rules say how many that can be.
pub(super) fn rule_statements(rule: &Rule, side: Side, hosts: &[HostPattern]) -> Vec<CommentedRule> {
    let comment = rule.description.as_ref().map(|text| comment(text.as_str()));
    let mut rules = Vec::new();
    for peer in any_of(peers(&rule.peers, side, hosts)) {
        for traffic in traffic(&rule.traffic) {
            for verdict in verdicts(rule.action, rule.traffic.protocol()) {
                let protocol = traffic.protocol.iter();
                let conditions = protocol.chain(&peer).chain(&traffic.rest).cloned();
                rules.push((conditions.chain(verdict).collect(), comment.clone()));
            }
        }
    }
    rules
}

/// The alternatives of a condition; a single `None` is no condition.
fn any_of<T>(values: Vec<T>) -> Vec<Option<T>> {
    if values.is_empty() { vec![None] } else { values.into_iter().map(Some).collect() }
}

/// The conditions on what a packet carries, as nft lists them: one that names a protocol's field says the protocol by that.
#[derive(Debug, Clone, Default)]
struct Conditions {
    protocol: Option<Statement<'static>>,
    rest: Vec<Statement<'static>>,
}

fn traffic(traffic: &Traffic) -> Vec<Conditions> {
    let whole = |name| {
        let protocol = Some(matches(meta(MetaKey::L4proto), Operator::EQ, text(name)));
        vec![Conditions { protocol, rest: Vec::new() }]
    };
    let equals = |protocol, field, value| matches(payload(protocol, field), Operator::EQ, value);
    match (traffic, traffic.protocol().map(protocol_name), traffic.ends()) {
        (_, Some(name), Some(ends)) if ends.source.is_any() && ends.destination.is_any() => whole(name),
        (_, Some(name), Some(ends)) => {
            let mut all = Vec::new();
            for source in any_of(ports(&ends.source)) {
                for destination in any_of(ports(&ends.destination)) {
                    let source = source.clone().map(|value| equals(name, "sport", value));
                    let destination = destination.map(|value| equals(name, "dport", value));
                    all.push(Conditions { protocol: None, rest: source.into_iter().chain(destination).collect() });
                }
            }
            all
        }
        (Traffic::Icmp4(Some(Icmp { kind, code })), Some(name), None) => {
            let kind = equals(name, "type", Expression::Number((*kind).into()));
            let code = code.map(|code| equals(name, "code", Expression::Number(code.into())));
            vec![Conditions { protocol: None, rest: [kind].into_iter().chain(code).collect() }]
        }
        (_, Some(name), None) => whole(name),
        (_, None, _) => vec![Conditions::default()],
    }
}

/// The statements that carry out an action: two rules where a refusal differs by protocol.
fn verdicts(action: Action, protocol: Option<Protocol>) -> Vec<Vec<Statement<'static>>> {
    let reset = || Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)));
    let prohibited =
        || Statement::Reject(Some(Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited))));
    match (action, protocol) {
        (Action::Allow, _) => vec![vec![Statement::Accept(None)]],
        (Action::Drop, _) => vec![vec![Statement::Drop(None)]],
        (Action::Reject, Some(Protocol::Tcp)) => vec![vec![reset()]],
        (Action::Reject, Some(Protocol::Udp | Protocol::Icmp4)) => vec![vec![prohibited()]],
        (Action::Reject, None) => {
            let tcp = matches(meta(MetaKey::L4proto), Operator::EQ, text(protocol_name(Protocol::Tcp)));
            vec![vec![tcp, reset()], vec![prohibited()]]
        }
    }
}

const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp4 => "icmp",
    }
}

/// The peers to match; none where that is everybody. `hosts` are all that the rules name, in order.
fn peers(peers: &Peers, side: Side, hosts: &[HostPattern]) -> Vec<Statement<'static>> {
    if peers.is_any() {
        return Vec::new();
    }
    let field = match side {
        Side::Ingress => "saddr",
        Side::Egress => "daddr",
    };
    let network = |network: &Ipv4Network| {
        let addresses = prefix(network.network(), network.prefix());
        matches(payload("ip", field), Operator::EQ, addresses)
    };
    let peer = |peer: &Peer| match peer {
        Peer::Network(addresses) => network(addresses),
        Peer::Host(host) => is_open_to(hosts, host),
    };
    peers.named().iter().map(peer).collect()
}

/// The ports to match; none where that is all.
fn ports(ports: &Ports) -> Vec<Expression<'static>> {
    let number = |port: u16| Expression::Number(port.into());
    let expression = |first, last| match first == last {
        true => number(first),
        false => Expression::Range(Box::new(Range { range: [number(first), number(last)] })),
    };
    ports.ranges().iter().map(|range| expression(range.first(), range.last())).collect()
}

pub(super) fn comment(text: &str) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= COMMENT_BYTES_MAX).last();
    text[..end.unwrap_or(0)].to_owned()
}
