//! Rules as nftables objects: pure, so that every rule can be read in a snapshot.
//!
//! ```text
//!  forward ─ from a tenant ─► from-tenant: source right? not to a tenant, not to 169.254/16? ─► out-<slot>
//!          └ to a tenant ───► to-tenant: an answer, or ────────────────────────────────────► in-<slot>
//!  input ─── from a tenant ─► to-host: source right, and to a door of the daemon's or an answer to this host, else dropped
//!  output ── to an address of tenants, but not to a tenant ─► dropped
//!          └ from a script's worker, to a tenant or a metadata service ─► refused
//!  postrouting ─ out of this machine ─► masquerade
//! ```
//!
//! A tenant's interface finds its chains in a verdict map, so that a packet costs the same with one tenant and with
//! a thousand, and an interface that is in no map is dropped. Packets of interfaces that are no tenant's pass the
//! table untouched. What this host itself sends to a tenant (the proxy) is not filtered.

mod base;
mod doors;
mod hosts;
mod scripts;
mod spell;
mod tenant;
mod ways;
mod words;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use nftables::schema::{Chain, FlushObject, NfCmd, NfListObject, NfObject, Rule as NftRule, Table};
use nftables::stmt::Statement;
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde_json::{Value, json};

pub(super) use hosts::{Moves, comment_of, hosts_in, set_name};
pub(super) use spell::spell;
pub(super) use tenant::{chain_length, chain_name, chain_rules};
pub(super) use ways::Before;

use crate::domain::{Instance, Slot, Subnet};
use crate::sys::gateway::Doors;

/// Interface and address of every tenant: the sources a tenant may send from.
const SOURCES: &str = "sources";
/// Interface → chain of what the tenant sends.
const EGRESS: &str = "egress";
/// Interface → chain of what is sent to the tenant.
const INGRESS: &str = "ingress";

/// One transaction: nft takes all of it or nothing.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Batch(Vec<Value>);

impl Batch {
    /// The text nft reads with `-j -f -`.
    pub(super) fn to_json(&self) -> String {
        json!({ "nftables": self.0 }).to_string()
    }

    /// A command that the crate's schema cannot say.
    pub(super) fn raw(&mut self, command: Value) {
        self.0.push(command);
    }

    /// One object a line, so that a snapshot reads like a ruleset.
    #[cfg(test)]
    pub(super) fn lines(&self) -> String {
        self.0.iter().map(|value| format!("{value}\n")).collect()
    }

    fn push(&mut self, command: NfCmd<'static>) {
        // These types serialise to JSON by construction; a failure would be a null that nft refuses as a whole.
        self.0.push(serde_json::to_value(NfObject::CmdObject(command)).unwrap_or_default());
    }

    pub(super) fn add(&mut self, object: NfListObject<'static>) {
        self.push(NfCmd::Add(object));
    }

    fn delete(&mut self, object: NfListObject<'static>) {
        self.push(NfCmd::Delete(object));
    }

    /// How often each chain of the batch is in use once nothing but the batch is there: by the rules in it, and by what leads to it.
    /// The kernel counts the same.
    pub(super) fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        for object in self.0.iter().filter_map(|command| command["add"].as_object()) {
            if let Some(name) = object.get("chain").and_then(|chain| chain["name"].as_str()) {
                uses.entry(name.to_owned()).or_default();
            }
            if let Some(name) = object.get("rule").and_then(|rule| rule["chain"].as_str()) {
                *uses.entry(name.to_owned()).or_default() += 1;
            }
            object.values().for_each(|body| count_targets(body, &mut uses));
        }
        uses
    }

    fn flush(&mut self, chain: Chain<'static>) {
        self.push(NfCmd::Flush(FlushObject::Chain(chain)));
    }
}

/// Chains by name, and how often each is in use.
pub(super) type Uses = BTreeMap<String, u32>;

fn count_targets(value: &Value, uses: &mut Uses) {
    match value {
        Value::Object(fields) => {
            for (name, body) in fields {
                match body["target"].as_str() {
                    Some(chain) if name == "goto" || name == "jump" => *uses.entry(chain.to_owned()).or_default() += 1,
                    _ => count_targets(body, uses),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| count_targets(item, uses)),
        _ => {}
    }
}

/// Renders the objects of one instance's table.
#[derive(Debug, Clone)]
pub(super) struct Renderer {
    instance: Instance,
    pub(super) subnet: Subnet,
    /// The daemon's own ports; `None` where it has none.
    doors: Option<Doors>,
    /// The ids of scripts' workers; `None` where none are run.
    scripts: Option<RangeInclusive<u32>>,
}

impl Renderer {
    pub(super) fn new(instance: Instance, subnet: Subnet) -> Self {
        Self { instance, subnet, doors: None, scripts: None }
    }

    pub(super) fn with_doors(self, doors: Doors) -> Self {
        Self { doors: Some(doors), ..self }
    }

    pub(super) fn with_scripts(self, ids: RangeInclusive<u32>) -> Self {
        Self { scripts: Some(ids), ..self }
    }

    pub(super) const fn instance(&self) -> &Instance {
        &self.instance
    }

    pub(super) fn table(&self) -> &str {
        self.instance.as_str()
    }

    /// The slot a chain of ours belongs to.
    pub(super) fn slot_of_chain(name: &str) -> Option<Slot> {
        let digits = name.strip_prefix("out-")?;
        digits.parse().ok().filter(|slot: &u16| slot.to_string() == digits).map(Slot)
    }

    /// Removes the whole table, there or not.
    pub(super) fn nothing(&self, batch: &mut Batch) {
        batch.add(self.table_object());
        batch.delete(self.table_object());
    }

    fn table_object(&self) -> NfListObject<'static> {
        NfListObject::Table(Table { family: NfFamily::INet, name: self.table().to_owned().into(), handle: None })
    }

    fn chain_value(&self, name: &str) -> Chain<'static> {
        Chain {
            family: NfFamily::INet,
            table: self.table().to_owned().into(),
            name: name.to_owned().into(),
            ..Chain::default()
        }
    }

    pub(super) fn chain(&self, name: &str) -> NfListObject<'static> {
        NfListObject::Chain(self.chain_value(name))
    }

    pub(super) fn base_chain(&self, name: &str, kind: NfChainType, hook: NfHook, prio: i32) -> NfListObject<'static> {
        NfListObject::Chain(Chain {
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(prio),
            // Packets that are no tenant's are none of our business.
            policy: Some(NfChainPolicy::Accept),
            ..self.chain_value(name)
        })
    }

    pub(super) fn rule(
        &self,
        chain: &str,
        statements: Vec<Statement<'static>>,
        comment: Option<String>,
    ) -> NfListObject<'static> {
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

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod tests;
