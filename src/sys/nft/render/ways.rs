//! Ways out that are not straight: to the daemon's relay, or none.
//!
//! ```text
//!  prerouting, before destinations change
//!    from a blocked tenant ─► blocked: an answer to who called it, a call to be kept awake, else dropped
//!    from a relayed tenant ─► relayed: an answer? a call to be kept awake? a question for the resolver? else TCP to the outside alone ─► out-<slot>, its own rules
//!  prerouting, where they change
//!    from a relayed tenant, TCP ─► 169.254.1.1:<the relay's port>; the kernel keeps the address it had
//! ```
//!
//! A tenant's own rules so see the address that it meant. They are asked here and not on the way to forward, where a relayed tenant's
//! packets never come: what was let out straight, before its way was changed, is refused here, and nothing new gets past the change of
//! its destination.

use nftables::expr::{Expression, Fib, FibFlag, FibResult, MetaKey, NamedExpression};
use nftables::schema::{Element, NfListObject, Set, SetType, SetTypeValue};
use nftables::stmt::{Operator, Reject, RejectType, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};

use super::base::LINK_LOCAL;
use super::doors::{DNS_PORT, KEEPALIVE_PORT, PREROUTING, ct, lead_to, to_gateway, to_port, was_led};
use super::words::{by_interface, goto, matches, meta, payload, prefix, text};
use super::{Batch, EGRESS, Renderer};
use crate::domain::Slot;
use crate::domain::firewall::METADATA;
use crate::domain::network::WayOut;

/// Interfaces of tenants whose TCP goes to the relay; also the chain of what they send.
const RELAYED: &str = "relayed";
/// Interfaces of tenants that send nothing out; also the chain of what they try.
const BLOCKED: &str = "blocked";
/// The chain that looks at ways before destinations change.
const WAYS: &str = "ways";
/// Its priority: before `dstnat` of nft(8), after connection tracking.
const PRIORITY_BEFORE_DSTNAT: i32 = -110;

/// What is known of a tenant's way before a transaction. One that deletes anything takes until the kernel has freed it: 10 to 20 ms
/// where one that only adds takes 4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sys::nft) enum Before {
    /// It was straight, or there was no tenant.
    Direct,
    /// It may have been any.
    Unknown,
}

impl Renderer {
    /// The chains of tenants that have a way of their own. After the doors, whose chain leads them.
    pub(super) fn ways(&self, batch: &mut Batch) {
        for name in [RELAYED, BLOCKED] {
            batch.add(NfListObject::Set(Box::new(Set {
                family: NfFamily::INet,
                table: self.table().to_owned().into(),
                name: name.into(),
                set_type: SetTypeValue::Single(SetType::Ifname),
                ..Set::default()
            })));
            batch.add(self.chain(name));
        }
        batch.add(self.base_chain(WAYS, NfChainType::Filter, NfHook::Prerouting, PRIORITY_BEFORE_DSTNAT));
        for (chain, statements) in self.way_rules() {
            batch.add(self.rule(chain, statements, None));
        }
    }

    fn way_rules(&self) -> Vec<(&'static str, Vec<Statement<'static>>)> {
        let from = |set: &str| matches(meta(MetaKey::Iifname), Operator::EQ, text(format!("@{set}")));
        let is_answer = || matches(ct("direction"), Operator::EQ, text("reply"));
        let within = |network: Expression<'static>| matches(payload("ip", "daddr"), Operator::EQ, network);
        let tcp = |op| matches(meta(MetaKey::L4proto), op, text("tcp"));
        let (accept, drop) = (|| Statement::Accept(None), || Statement::Drop(None));
        let to_this_host =
            Expression::Named(NamedExpression::Fib(Fib { result: FibResult::Type, flags: [FibFlag::Daddr].into() }));
        let established = || matches(ct("state"), Operator::IN, text("established"));
        let reset = Statement::Reject(Some(Reject::new(Some(RejectType::TCPReset), None)));
        let subnet = self.subnet.network();
        let [alibaba, azure, oracle] =
            METADATA.map(|address| (RELAYED, vec![within(text(address.to_string())), drop()]));
        let mut rules = vec![
            (WAYS, vec![from(BLOCKED), goto(BLOCKED)]),
            (WAYS, vec![from(RELAYED), goto(RELAYED)]),
            (BLOCKED, vec![is_answer(), accept()]),
            (BLOCKED, vec![to_gateway(), to_port("tcp", KEEPALIVE_PORT), accept()]),
            (BLOCKED, vec![drop()]),
            (RELAYED, vec![is_answer(), accept()]),
            (RELAYED, vec![to_gateway(), to_port("udp", DNS_PORT), accept()]),
            (RELAYED, vec![to_gateway(), to_port("tcp", DNS_PORT), accept()]),
            (RELAYED, vec![to_gateway(), to_port("tcp", KEEPALIVE_PORT), accept()]),
            (RELAYED, vec![tcp(Operator::NEQ), drop()]),
            (RELAYED, vec![matches(to_this_host, Operator::EQ, text("local")), drop()]),
            (RELAYED, vec![within(prefix(LINK_LOCAL.0, LINK_LOCAL.1)), drop()]),
            (RELAYED, vec![within(prefix(subnet.network(), subnet.prefix())), drop()]),
            alibaba,
            azure,
            oracle,
            (RELAYED, vec![established(), was_led(), accept()]),
            // It began when the way was straight.
            (RELAYED, vec![established(), reset]),
            (RELAYED, vec![by_interface(MetaKey::Iifname, EGRESS)]),
            (RELAYED, vec![drop()]),
        ];
        if let Some(doors) = self.doors {
            rules.push((PREROUTING, vec![from(RELAYED), tcp(Operator::EQ), lead_to(doors.relay)]));
        }
        rules
    }

    /// Leads what a tenant sends another way, from the end of this transaction on.
    pub(super) fn way_out(&self, batch: &mut Batch, slot: Slot, way: WayOut, before: Before) {
        for (set, wanted) in [(RELAYED, WayOut::Relayed), (BLOCKED, WayOut::Blocked)] {
            let element = NfListObject::Element(Element {
                family: NfFamily::INet,
                table: self.table().to_owned().into(),
                name: set.into(),
                elem: vec![text(slot.link_name(&self.instance))].into(),
            });
            if way == wanted {
                batch.add(element);
            } else if before == Before::Unknown {
                // Adding what may be there makes the deletion succeed where it is not.
                batch.add(element.clone());
                batch.delete(element);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::gateway::Doors;

    fn renderer() -> Renderer {
        Renderer::new("lab".parse().unwrap(), "10.201.0.0/16".parse().unwrap()).with_doors(Doors {
            dns: 5300,
            relay: 5301,
            keepalive: 5302,
        })
    }

    #[test]
    fn the_ways() {
        let mut batch = Batch::default();
        renderer().ways(&mut batch);
        insta::assert_snapshot!(batch.lines());
    }

    #[test]
    fn a_tenants_way() {
        let mut batch = Batch::default();
        for way in [WayOut::Relayed, WayOut::Blocked, WayOut::Direct] {
            renderer().way_out(&mut batch, Slot(7), way, Before::Unknown);
        }
        insta::assert_snapshot!(batch.lines());
    }

    #[test]
    fn a_way_that_stays_straight_deletes_nothing() {
        let mut batch = Batch::default();
        renderer().way_out(&mut batch, Slot(7), WayOut::Direct, Before::Direct);
        assert_eq!(batch, Batch::default());
        renderer().way_out(&mut batch, Slot(7), WayOut::Blocked, Before::Direct);
        assert!(!batch.lines().contains("delete"), "{}", batch.lines());
    }
}
