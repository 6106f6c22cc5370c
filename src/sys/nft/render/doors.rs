//! The way to the daemon's own sockets: what a tenant may reach on this host, and nothing beside it.
//!
//! ```text
//!  prerouting (nat)  from a tenant to 169.254.1.1:53 or :80 ─► 169.254.1.1:<ports of this daemon>
//!  to-host ─► doors  led here? not too often? ─► accepted
//!  input             to those ports from anybody else: dropped
//! ```
//!
//! A tenant that names the daemon's port itself was not led there and is dropped with everything else. How often one may
//! come is counted here by source address, which is checked against the interface before: the daemon's socket is all
//! tenants', and a flood of one would push the others' questions out of its buffer.

use nftables::expr::{CT, Expression, MetaKey, NamedExpression};
use nftables::schema::{NfListObject, Set, SetFlag, SetType, SetTypeValue};
use nftables::stmt::{JumpTarget, NAT, NATFamily, Operator, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};
use serde_json::{Value, json};

use super::words::{matches, meta, payload, text};
use super::{Batch, Renderer};
use crate::domain::slot::GATEWAY;

/// The chain of what a tenant may reach here.
const DOORS: &str = "doors";
/// Who came lately, and how often.
const CALLERS: &str = "callers";

/// Packets of questions, and connections, that one tenant may send a second; as many may come at once. The daemon's
/// own bound is lower and answers; this one is for floods.
const CALLS_PER_S_MAX: u32 = 500;
/// After so many seconds without a call a tenant is forgotten. It is let in again with the whole burst: longer than a burst takes to
/// be earned.
const CALLER_S: u32 = 10;
/// Addresses of the largest subnet.
const CALLERS_MAX: u32 = 65_536;

/// Flows of one tenant that may be open to the daemon at once: every question of a resolver that takes a new port for each, at the
/// rate that the daemon answers, for the half minute that the kernel remembers a flow of two packets.
const FLOWS_MAX: u32 = 4_096;
/// Who has how many.
const CALLERS_FLOWS: &str = "callers-flows";

/// DNS (RFC 1035, 4.2).
pub(super) const DNS_PORT: u16 = 53;
/// Where a tenant asks to be kept awake.
pub(super) const KEEPALIVE_PORT: u16 = 80;
/// Priority of chains that change destinations: `dstnat` of nft(8).
const PRIORITY_DSTNAT: i32 = -100;
pub(super) const PREROUTING: &str = "prerouting";

impl Renderer {
    /// The chains that lead tenants to the daemon; empty where it has no sockets. Before the rules that jump there.
    pub(super) fn doors(&self, batch: &mut Batch) {
        batch.add(self.chain(DOORS));
        let Some(doors) = self.doors else { return };
        batch.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: self.table().to_owned().into(),
            name: CALLERS.into(),
            set_type: SetTypeValue::Single(SetType::Ipv4Addr),
            flags: Some([SetFlag::Timeout].into()),
            timeout: Some(CALLER_S),
            size: Some(CALLERS_MAX),
            ..Set::default()
        })));
        batch.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: self.table().to_owned().into(),
            name: CALLERS_FLOWS.into(),
            // nft makes it one that rules fill, since one does. The kernel takes out who has no flow left.
            set_type: SetTypeValue::Single(SetType::Ipv4Addr),
            size: Some(CALLERS_MAX),
            ..Set::default()
        })));
        batch.add(self.base_chain(PREROUTING, NfChainType::NAT, NfHook::Prerouting, PRIORITY_DSTNAT));
        let ways =
            [("udp", DNS_PORT, doors.dns), ("tcp", DNS_PORT, doors.dns), ("tcp", KEEPALIVE_PORT, doors.keepalive)];
        for (protocol, asked, door) in ways {
            let asked = vec![self.sent_by_tenants(Operator::EQ), to_gateway(), to_port(protocol, asked)];
            batch.add(self.rule(PREROUTING, asked.into_iter().chain([lead_to(door)]).collect(), None));
        }
        let led = |protocol, port| vec![was_led(), to_gateway(), to_port(protocol, port)];
        self.too_often(batch, led("udp", doors.dns));
        let tcp = [doors.dns, doors.relay, doors.keepalive];
        for port in tcp {
            self.too_often(batch, [led("tcp", port), vec![is_new()]].concat());
        }
        // Those to the relay have passed the tenant's own chain, which counts them.
        for (protocol, port) in [("udp", doors.dns), ("tcp", doors.dns), ("tcp", doors.keepalive)] {
            self.too_many(batch, [led(protocol, port), vec![is_new()]].concat());
        }
        for (protocol, port) in [("udp", doors.dns)].into_iter().chain(tcp.map(|port| ("tcp", port))) {
            let accepted = [led(protocol, port), vec![Statement::Accept(None)]].concat();
            batch.add(self.rule(DOORS, accepted, None));
            let strangers = vec![self.sent_by_tenants(Operator::NEQ), to_gateway(), to_port(protocol, port)];
            batch.add(self.rule("input", strangers.into_iter().chain([Statement::Drop(None)]).collect(), None));
        }
    }

    /// A rule that drops what comes too often.
    fn too_often(&self, batch: &mut Batch, conditions: Vec<Statement<'static>>) {
        let limit =
            json!({ "limit": { "rate": CALLS_PER_S_MAX, "burst": CALLS_PER_S_MAX, "per": "second", "inv": true } });
        self.counted(batch, conditions, "update", CALLERS, &limit);
    }

    /// A rule that drops flows of whoever has too many: the kernel's table of them is all tenants' and this host's.
    fn too_many(&self, batch: &mut Batch, conditions: Vec<Statement<'static>>) {
        let limit = json!({ "ct count": { "val": FLOWS_MAX, "inv": true } });
        self.counted(batch, conditions, "add", CALLERS_FLOWS, &limit);
    }

    /// A rule that drops what exceeds a limit that is kept for each source. The crate's schema knows no statements within an element, so
    /// it is written out.
    fn counted(&self, batch: &mut Batch, conditions: Vec<Statement<'static>>, op: &str, set: &str, limit: &Value) {
        let counted = json!({ "set": {
            "op": op, "elem": payload("ip", "saddr"), "set": format!("@{set}"), "stmt": [limit] } });
        let mut statements: Vec<_> = conditions.iter().map(|one| json!(one)).collect();
        statements.extend([counted, json!({ "drop": null })]);
        let rule = json!({ "family": "inet", "table": self.table(), "chain": DOORS, "expr": statements });
        batch.raw(json!({ "add": { "rule": rule } }));
    }

    fn sent_by_tenants(&self, op: Operator) -> Statement<'static> {
        matches(meta(MetaKey::Iifname), op, text(format!("{}-*", self.table())))
    }
}

/// The statement that leads into [`DOORS`] and comes back where nothing there fits.
pub(super) fn by_the_doors() -> Statement<'static> {
    Statement::Jump(JumpTarget { target: DOORS.into() })
}

pub(super) fn to_gateway() -> Statement<'static> {
    matches(payload("ip", "daddr"), Operator::EQ, text(GATEWAY.to_string()))
}

pub(super) fn to_port(protocol: &'static str, port: u16) -> Statement<'static> {
    matches(payload(protocol, "dport"), Operator::EQ, Expression::Number(port.into()))
}

pub(super) fn lead_to(port: u16) -> Statement<'static> {
    Statement::DNAT(Some(NAT {
        addr: Some(text(GATEWAY.to_string())),
        family: Some(NATFamily::IP),
        port: Some(Expression::Number(port.into())),
        flags: None,
    }))
}

pub(super) fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

pub(super) fn was_led() -> Statement<'static> {
    matches(ct("status"), Operator::IN, text("dnat"))
}

fn is_new() -> Statement<'static> {
    matches(ct("state"), Operator::IN, text("new"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::gateway::Doors;

    #[test]
    fn the_doors() {
        let renderer = Renderer::new("lab".parse().unwrap(), "10.201.0.0/16".parse().unwrap());
        let mut batch = Batch::default();
        renderer.with_doors(Doors { dns: 5300, relay: 5301, keepalive: 5302 }).doors(&mut batch);
        insta::assert_snapshot!(batch.lines());
    }

    #[test]
    fn a_daemon_without_sockets_has_no_doors() {
        let mut batch = Batch::default();
        Renderer::new("lab".parse().unwrap(), "10.201.0.0/16".parse().unwrap()).doors(&mut batch);
        assert_eq!(batch.lines().lines().count(), 1, "the chain alone");
    }
}
