//! The base rules: what holds for every tenant, whatever its policy says.

use std::net::Ipv4Addr;

use nftables::expr::{CT, Expression, MetaKey, NamedExpression};
use nftables::schema::{NfListObject, Set, SetType, SetTypeValue};
use nftables::stmt::{Operator, Statement};
use nftables::types::{NfChainType, NfFamily, NfHook};
use serde_json::json;

use super::doors::by_the_doors;
use super::words::{by_interface, goto, matches, meta, payload, prefix, text};
use super::{Batch, EGRESS, INGRESS, Renderer, SOURCES};
use crate::domain::firewall::METADATA;

pub(super) const OUTPUT: &str = "output";
const FROM_TENANT: &str = "from-tenant";
const TO_TENANT: &str = "to-tenant";
const TO_HOST: &str = "to-host";

/// Priority of the filter chains: `filter` of nft(8). Another table's accept does not undo a drop made here.
const PRIORITY_FILTER: i32 = 0;
/// Priority of the masquerading chain: `srcnat` of nft(8).
const PRIORITY_SRCNAT: i32 = 100;

/// Link-local addresses: the gateway, and the metadata services of clouds.
pub(super) const LINK_LOCAL: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 0, 0), 16);

impl Renderer {
    /// Replaces the whole table by the base rules alone. Tenants are added in the same batch.
    pub(in crate::sys::nft) fn base(&self, batch: &mut Batch) {
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
        batch.add(self.base_chain(OUTPUT, filter, NfHook::Output, PRIORITY_FILTER));
        batch.add(self.base_chain("postrouting", NfChainType::NAT, NfHook::Postrouting, PRIORITY_SRCNAT));
        self.doors(batch);
        self.ways(batch);
        for (chain, statements) in self.base_rules() {
            batch.add(self.rule(chain, statements, None));
        }
        self.scripts(batch);
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
            batch.raw(json!({ "add": { "map": map } }));
        }
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
        let within = |field| matches(payload("ip", field), Operator::EQ, prefix(network.network(), network.prefix()));
        let (accept, drop) = (|| Statement::Accept(None), || Statement::Drop(None));
        let to = |address: Ipv4Addr| matches(payload("ip", "daddr"), Operator::EQ, text(address.to_string()));
        let [alibaba, azure, oracle] = METADATA.map(|address| (FROM_TENANT, vec![to(address), drop()]));
        vec![
            ("forward", vec![from_tenants(), goto(FROM_TENANT)]),
            ("forward", vec![to_tenants(Operator::EQ), goto(TO_TENANT)]),
            // Nobody else has an address of tenants: no flow is open with one that is nobody's now, for its next tenant to inherit.
            ("forward", vec![within("daddr"), drop()]),
            ("forward", vec![within("saddr"), drop()]),
            ("input", vec![from_tenants(), goto(TO_HOST)]),
            ("input", vec![within("saddr"), drop()]),
            (OUTPUT, vec![within("daddr"), to_tenants(Operator::NEQ), drop()]),
            (FROM_TENANT, vec![not_ipv4(), drop()]),
            (FROM_TENANT, vec![spoofed(), drop()]),
            (FROM_TENANT, vec![to_tenants(Operator::EQ), drop()]),
            // Also where the tenant does not run: its address would be routed out of this machine.
            (FROM_TENANT, vec![within("daddr"), drop()]),
            (FROM_TENANT, vec![link_local(), drop()]),
            // Untracked answers would leave with the tenant's own address.
            (FROM_TENANT, vec![state(&["invalid"]), drop()]),
            (FROM_TENANT, vec![answers(), accept()]),
            alibaba,
            azure,
            oracle,
            (FROM_TENANT, vec![by_interface(MetaKey::Iifname, EGRESS)]),
            (FROM_TENANT, vec![drop()]),
            (TO_TENANT, vec![not_ipv4(), drop()]),
            (TO_TENANT, vec![answers(), accept()]),
            (TO_TENANT, vec![by_interface(MetaKey::Oifname, INGRESS)]),
            (TO_TENANT, vec![drop()]),
            (TO_HOST, vec![not_ipv4(), drop()]),
            (TO_HOST, vec![spoofed(), drop()]),
            (TO_HOST, vec![by_the_doors()]),
            (TO_HOST, vec![answers(), accept()]),
            (TO_HOST, vec![drop()]),
            ("postrouting", vec![within("saddr"), to_tenants(Operator::NEQ), Statement::Masquerade(None)]),
        ]
    }
}
