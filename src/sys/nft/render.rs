//! Policies as nftables objects: pure, so that every rule can be read in a snapshot.
//!
//! ```text
//!  forward ─ from a tenant ─► from-tenant: source right? not to a tenant, not to 169.254/16? ─► out-<slot>
//!          └ to a tenant ───► to-tenant: an answer, or ────────────────────────────────────► in-<slot>
//!  input ─── from a tenant ─► to-host: source right and an answer to this host, else dropped
//!  postrouting ─ out of this machine ─► masquerade
//! ```
//!
//! A tenant's interface finds its chains in a verdict map, so that a packet costs the same with one tenant and with
//! a thousand, and an interface that is in no map is dropped. Packets of interfaces that are no tenant's pass the
//! table untouched. What this host itself sends to a tenant (the proxy) is not filtered.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use nftables::expr::{CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, Range, Verdict};
use nftables::schema::{Chain, Element, FlushObject, NfCmd, NfListObject, NfObject, Rule as NftRule, Set};
use nftables::schema::{SetType, SetTypeValue, Table};
use nftables::stmt::{JumpTarget, Match, Operator, Reject, RejectType, Statement, VerdictMap};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};
use serde_json::{Value, json};

use crate::domain::policy::{Action, Direction, Policy, PortRange, Protocol, Rule};
use crate::domain::{Instance, Slot, Subnet};

/// Length of a comment that nft keeps (`NFTNL_UDATA_COMMENT_MAXLEN`, with its final zero).
const COMMENT_BYTES_MAX: usize = 127;

/// Longest prefix: one address.
const HOST_PREFIX: u8 = 32;

/// Interface and address of every tenant: the sources a tenant may send from.
const SOURCES: &str = "sources";
/// Interface → chain of what the tenant sends.
const EGRESS: &str = "egress";
/// Interface → chain of what is sent to the tenant.
const INGRESS: &str = "ingress";

const FROM_TENANT: &str = "from-tenant";
const TO_TENANT: &str = "to-tenant";
const TO_HOST: &str = "to-host";

/// Priority of the filter chains: `filter` of nft(8). Another table's accept does not undo a drop made here.
const PRIORITY_FILTER: i32 = 0;
/// Priority of the masquerading chain: `srcnat` of nft(8).
const PRIORITY_SRCNAT: i32 = 100;

/// Link-local addresses: the gateway, and the metadata services of clouds.
const LINK_LOCAL: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);

/// One transaction: nft takes all of it or nothing.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Batch(Vec<Value>);

impl Batch {
    /// The text nft reads with `-j -f -`.
    pub(super) fn to_json(&self) -> String {
        json!({ "nftables": self.0 }).to_string()
    }

    fn push(&mut self, command: NfCmd<'static>) {
        // These types serialise to JSON by construction; a failure would be a null that nft refuses as a whole.
        self.0.push(serde_json::to_value(NfObject::CmdObject(command)).unwrap_or_default());
    }

    fn add(&mut self, object: NfListObject<'static>) {
        self.push(NfCmd::Add(object));
    }

    fn delete(&mut self, object: NfListObject<'static>) {
        self.push(NfCmd::Delete(object));
    }
}

/// Renders the objects of one instance's table.
#[derive(Debug, Clone)]
pub(super) struct Renderer {
    instance: Instance,
    subnet: Subnet,
}

impl Renderer {
    pub(super) fn new(instance: Instance, subnet: Subnet) -> Self {
        Self { instance, subnet }
    }

    pub(super) fn table(&self) -> &str {
        self.instance.as_str()
    }

    /// The slot a chain of ours belongs to.
    pub(super) fn slot_of_chain(name: &str) -> Option<Slot> {
        let digits = name.strip_prefix("out-")?;
        digits.parse().ok().filter(|slot: &u16| slot.to_string() == digits).map(Slot)
    }

    /// Replaces the whole table by the base rules alone. Tenants are added in the same batch.
    pub(super) fn base(&self, batch: &mut Batch) {
        // Adding what may be there makes the deletion succeed where it is not.
        batch.add(self.table_object());
        batch.delete(self.table_object());
        batch.add(self.table_object());
        self.maps(batch);
        for name in [FROM_TENANT, TO_TENANT, TO_HOST] {
            batch.add(self.chain(name));
        }
        let filter = NfChainType::Filter;
        batch.add(self.base_chain("forward", filter, NfHook::Forward, PRIORITY_FILTER));
        batch.add(self.base_chain("input", filter, NfHook::Input, PRIORITY_FILTER));
        batch.add(self.base_chain("postrouting", NfChainType::NAT, NfHook::Postrouting, PRIORITY_SRCNAT));
        for (chain, statements) in self.base_rules() {
            batch.add(self.rule(chain, statements, None));
        }
    }

    /// Removes the whole table, there or not.
    pub(super) fn nothing(&self, batch: &mut Batch) {
        batch.add(self.table_object());
        batch.delete(self.table_object());
    }

    /// Adds a tenant's chains, or replaces their rules. `None` where the slot lies outside the subnet.
    pub(super) fn tenant(&self, batch: &mut Batch, slot: Slot, policy: &Policy) -> Option<()> {
        let address = self.subnet.address(slot)?;
        for (prefix, field, direction) in [("in", "saddr", &policy.ingress), ("out", "daddr", &policy.egress)] {
            let chain = format!("{prefix}-{slot}");
            batch.add(self.chain(&chain));
            batch.push(NfCmd::Flush(FlushObject::Chain(self.chain_value(&chain))));
            for (statements, comment) in direction_rules(direction, field) {
                batch.add(self.rule(&chain, statements, comment));
            }
        }
        for element in self.elements(slot, address) {
            batch.add(element);
        }
        Some(())
    }

    /// Removes a tenant's chains, there or not. `None` where the slot lies outside the subnet.
    pub(super) fn remove(&self, batch: &mut Batch, slot: Slot) -> Option<()> {
        let address = self.subnet.address(slot)?;
        let chains = [format!("in-{slot}"), format!("out-{slot}")];
        for chain in &chains {
            batch.add(self.chain(chain));
        }
        for element in self.elements(slot, address) {
            batch.add(element.clone());
            batch.delete(element);
        }
        for chain in &chains {
            batch.push(NfCmd::Flush(FlushObject::Chain(self.chain_value(chain))));
            batch.delete(self.chain(chain));
        }
        Some(())
    }

    fn table_object(&self) -> NfListObject<'static> {
        NfListObject::Table(Table { family: NfFamily::INet, name: self.table().to_owned().into(), handle: None })
    }

    fn maps(&self, batch: &mut Batch) {
        let set_type = SetTypeValue::Concatenated(vec![SetType::Ifname, SetType::Ipv4Addr].into());
        batch.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: self.table().to_owned().into(),
            name: SOURCES.into(),
            set_type,
            ..Set::default()
        })));
        // The crate's schema knows no maps to verdicts, so these two are written out.
        for name in [EGRESS, INGRESS] {
            let map =
                json!({ "family": "inet", "table": self.table(), "name": name, "type": "ifname", "map": "verdict" });
            batch.0.push(json!({ "add": { "map": map } }));
        }
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
        let goto = |chain: String| {
            let target = Verdict::Goto(JumpTarget { target: chain.into() });
            Expression::List(vec![text(link.clone()), Expression::Verdict(target)])
        };
        let source = Expression::Named(NamedExpression::Concat(vec![text(link.clone()), text(address.to_string())]));
        [
            element(EGRESS, goto(format!("out-{slot}"))),
            element(INGRESS, goto(format!("in-{slot}"))),
            element(SOURCES, source),
        ]
    }

    fn base_rules(&self) -> Vec<(&'static str, Vec<Statement<'static>>)> {
        let tenants = || text(format!("{}-*", self.instance));
        let from_tenants = || matches(meta(MetaKey::Iifname), Operator::EQ, tenants());
        let to_tenants = |op| matches(meta(MetaKey::Oifname), op, tenants());
        let not_ipv4 = || matches(meta(MetaKey::Nfproto), Operator::NEQ, text("ipv4"));
        let spoofed = || {
            let pair = Expression::Named(NamedExpression::Concat(vec![meta(MetaKey::Iifname), payload("ip", "saddr")]));
            matches(pair, Operator::NEQ, text(format!("@{SOURCES}")))
        };
        let state = |states: &[&'static str]| {
            let left = Expression::Named(NamedExpression::CT(CT { key: "state".into(), family: None, dir: None }));
            matches(left, Operator::IN, Expression::List(states.iter().map(|state| text(*state)).collect()))
        };
        let answers = || state(&["established", "related"]);
        let link_local = || matches(payload("ip", "daddr"), Operator::EQ, prefix(LINK_LOCAL.0, LINK_LOCAL.1));
        let network = self.subnet.network();
        let ours = matches(payload("ip", "saddr"), Operator::EQ, prefix(network.network(), network.prefix()));
        let (accept, drop) = (|| Statement::Accept(None), || Statement::Drop(None));
        vec![
            ("forward", vec![from_tenants(), goto(FROM_TENANT)]),
            ("forward", vec![to_tenants(Operator::EQ), goto(TO_TENANT)]),
            ("input", vec![from_tenants(), goto(TO_HOST)]),
            (FROM_TENANT, vec![not_ipv4(), drop()]),
            (FROM_TENANT, vec![spoofed(), drop()]),
            (FROM_TENANT, vec![to_tenants(Operator::EQ), drop()]),
            (FROM_TENANT, vec![link_local(), drop()]),
            // Untracked answers would leave with the tenant's own address.
            (FROM_TENANT, vec![state(&["invalid"]), drop()]),
            (FROM_TENANT, vec![answers(), accept()]),
            (FROM_TENANT, vec![by_interface(MetaKey::Iifname, EGRESS)]),
            (FROM_TENANT, vec![drop()]),
            (TO_TENANT, vec![not_ipv4(), drop()]),
            (TO_TENANT, vec![answers(), accept()]),
            (TO_TENANT, vec![by_interface(MetaKey::Oifname, INGRESS)]),
            (TO_TENANT, vec![drop()]),
            (TO_HOST, vec![not_ipv4(), drop()]),
            (TO_HOST, vec![spoofed(), drop()]),
            (TO_HOST, vec![answers(), accept()]),
            (TO_HOST, vec![drop()]),
            ("postrouting", vec![ours, to_tenants(Operator::NEQ), Statement::Masquerade(None)]),
        ]
    }

    fn chain_value(&self, name: &str) -> Chain<'static> {
        Chain {
            family: NfFamily::INet,
            table: self.table().to_owned().into(),
            name: name.to_owned().into(),
            ..Chain::default()
        }
    }

    fn chain(&self, name: &str) -> NfListObject<'static> {
        NfListObject::Chain(self.chain_value(name))
    }

    fn base_chain(&self, name: &str, kind: NfChainType, hook: NfHook, prio: i32) -> NfListObject<'static> {
        NfListObject::Chain(Chain {
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(prio),
            // Packets that are no tenant's are none of our business.
            policy: Some(NfChainPolicy::Accept),
            ..self.chain_value(name)
        })
    }

    fn rule(&self, chain: &str, statements: Vec<Statement<'static>>, comment: Option<String>) -> NfListObject<'static> {
        NfListObject::Rule(NftRule {
            family: NfFamily::INet,
            table: self.table().to_owned().into(),
            chain: chain.to_owned().into(),
            expr: statements.into(),
            comment: comment.map(Into::into),
            ..NftRule::default()
        })
    }
}

type CommentedRule = (Vec<Statement<'static>>, Option<String>);

fn direction_rules(direction: &Direction, field: &'static str) -> Vec<CommentedRule> {
    let mut rules: Vec<_> = direction.rules.iter().flat_map(|rule| rule_statements(rule, field)).collect();
    rules.extend(verdicts(direction.default, None).into_iter().map(|verdict| (verdict, None)));
    rules
}

/// One rule for every pair of a peer and a port, without anonymous sets: nft reads every set there is, one by one,
/// before it changes an element anywhere. With two sets in the chains of each of a thousand tenants one more tenant
/// took 250 ms, without them 11. [`Policy::check`] bounds how many rules that can be.
fn rule_statements(rule: &Rule, field: &'static str) -> Vec<CommentedRule> {
    let protocol = rule.protocol.map(|name| matches(meta(MetaKey::L4proto), Operator::EQ, text(protocol_name(name))));
    let (peers, ports) = (any_of(peers(&rule.peers)), any_of(ports(&rule.ports)));
    let mut rules = Vec::new();
    for peer in &peers {
        for port in &ports {
            let peer = peer.clone().map(|value| matches(payload("ip", field), Operator::EQ, value));
            let port = port.clone().map(|value| matches(payload("th", "dport"), Operator::EQ, value));
            let conditions: Vec<_> = [protocol.clone(), peer, port].into_iter().flatten().collect();
            for verdict in verdicts(rule.action, rule.protocol) {
                let statements = conditions.iter().cloned().chain(verdict).collect();
                rules.push((statements, rule.description.as_deref().map(comment)));
            }
        }
    }
    rules
}

/// The alternatives of a condition; a single `None` is no condition.
fn any_of(values: Vec<Expression<'static>>) -> Vec<Option<Expression<'static>>> {
    if values.is_empty() { vec![None] } else { values.into_iter().map(Some).collect() }
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

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Icmp4 => "icmp",
    }
}

/// The networks to match; none where that is everybody. Networks inside others are left out.
fn peers(networks: &[Ipv4Network]) -> Vec<Expression<'static>> {
    let mut kept: Vec<Ipv4Network> = Vec::new();
    let mut sorted = networks.to_vec();
    sorted.sort_by_key(|network| (network.prefix(), network.network()));
    for network in sorted {
        if !kept.iter().any(|wider| wider.contains(network.network())) {
            kept.push(network);
        }
    }
    kept.retain(|network| network.prefix() != 0);
    kept.into_iter().map(|network| prefix(network.network(), network.prefix())).collect()
}

/// The ports to match; none where that is all. Ranges that touch or overlap become one.
fn ports(ranges: &[PortRange]) -> Vec<Expression<'static>> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some((_, last)) if range.first() <= last.saturating_add(1) => *last = range.last().max(*last),
            _ => merged.push((range.first(), range.last())),
        }
    }
    let number = |port: u16| Expression::Number(port.into());
    let expression = |(first, last)| match first == last {
        true => number(first),
        false => Expression::Range(Box::new(Range { range: [number(first), number(last)] })),
    };
    merged.into_iter().map(expression).collect()
}

fn comment(text: &str) -> String {
    let end = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= COMMENT_BYTES_MAX).last();
    text[..end.unwrap_or(0)].to_owned()
}

fn text(value: impl Into<std::borrow::Cow<'static, str>>) -> Expression<'static> {
    Expression::String(value.into())
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn payload(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn prefix(address: Ipv4Addr, length: u8) -> Expression<'static> {
    let address = text(address.to_string());
    if length == HOST_PREFIX {
        return address;
    }
    Expression::Named(NamedExpression::Prefix(Prefix { addr: Box::new(address), len: length.into() }))
}

fn matches(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn goto(chain: &'static str) -> Statement<'static> {
    Statement::Goto(JumpTarget { target: chain.into() })
}

fn by_interface(key: MetaKey, map: &str) -> Statement<'static> {
    Statement::VerdictMap(VerdictMap { key: meta(key), data: text(format!("@{map}")) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn renderer() -> Renderer {
        Renderer::new("lab".parse().unwrap(), "10.201.0.0/16".parse().unwrap())
    }

    /// One object a line, so that a snapshot reads like a ruleset.
    fn lines(batch: &Batch) -> String {
        batch.0.iter().map(|value| format!("{value}\n")).collect()
    }

    fn rule(text: &str) -> Rule {
        toml::from_str(text).unwrap()
    }

    fn rendered(rule: &Rule) -> Vec<String> {
        rule_statements(rule, "daddr").iter().map(|(rule, _)| serde_json::to_string(rule).unwrap()).collect()
    }

    #[test]
    fn the_base_table() {
        let mut batch = Batch::default();
        renderer().base(&mut batch);
        insta::assert_snapshot!(lines(&batch));
    }

    #[test]
    fn one_tenants_chains() {
        let policy = r#"
            ingress.default = "drop"
            egress.default = "reject"
            [[egress.rules]]
            action = "allow"
            protocol = "tcp"
            peers = ["198.51.100.0/24", "203.0.113.7/32"]
            ports = ["443", "8000-8100"]
            description = "the API"
            [[egress.rules]]
            action = "reject"
            protocol = "icmp4"
        "#;
        let mut batch = Batch::default();
        renderer().tenant(&mut batch, Slot(7), &toml::from_str(policy).unwrap()).unwrap();
        insta::assert_snapshot!(lines(&batch));
    }

    #[test]
    fn a_tenants_removal() {
        let mut batch = Batch::default();
        renderer().remove(&mut batch, Slot(7)).unwrap();
        insta::assert_snapshot!(lines(&batch));
    }

    #[test]
    fn networks_within_others_and_ports_that_touch_are_one() {
        let nested = rule("action = \"drop\"\npeers = [\"10.1.0.0/16\", \"10.0.0.0/8\", \"10.0.0.0/8\"]\n");
        assert_eq!(rendered(&nested).len(), 1);
        let everybody = rule("action = \"drop\"\npeers = [\"10.0.0.0/8\", \"0.0.0.0/0\"]\n");
        assert_eq!(rendered(&everybody), [r#"[{"drop":null}]"#]);
        let touching = rule("action = \"drop\"\nprotocol = \"udp\"\nports = [\"81-90\", \"80\", \"85-100\"]\n");
        assert!(rendered(&touching).concat().contains(r#"{"range":[80,100]}"#));
    }

    #[test]
    fn alternatives_become_rules_and_never_sets() {
        let text = "action = \"reject\"\nprotocol = \"tcp\"\nports = [\"80\", \"443\"]\npeers = [\"10.0.0.0/8\", \"192.0.2.1/32\"]\n";
        let rules = rendered(&rule(text));
        assert_eq!(rules.len(), 4);
        assert!(!rules.concat().contains("set\":["));
    }

    #[test]
    fn a_slot_outside_the_subnet_is_not_rendered() {
        let renderer = Renderer::new("lab".parse().unwrap(), "10.201.0.0/28".parse().unwrap());
        assert_eq!(renderer.remove(&mut Batch::default(), Slot(15)), None);
    }

    #[test]
    fn comments_are_cut_between_characters() {
        assert_eq!(comment(&"é".repeat(100)).len(), 126);
        assert_eq!(comment("short"), "short");
    }

    proptest! {
        #[test]
        fn only_our_chains_have_a_slot(slot: u16, other in "[a-z-]{0,8}") {
            prop_assert_eq!(Renderer::slot_of_chain(&format!("out-{slot}")), Some(Slot(slot)));
            prop_assert_eq!(Renderer::slot_of_chain(&format!("in-{slot}")), None);
            prop_assert_eq!(Renderer::slot_of_chain(&other), None);
        }
    }
}
