//! The table as the kernel has it: transactions by nft, looks and cuts by netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use netlink_packet_netfilter::nftables::{ChainAttribute, ChainMessage, GenAttribute, GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use nftables::schema::{NfListObject, NfObject, Nftables};
use serde_json::Value;

use super::conntrack::{self, Entry, Wanted};
use super::elements;
use super::netfilter::{Ask, Netfilter};
use super::openings::{AllGiven, Memory, Openings};
use super::render::{Batch, Before, Moves, Renderer, Uses, chain_name, chain_rules, hosts_in, spell};
use super::run::{self, CHANGE_MS_MAX, LOAD_MS_MAX, RunError};
use super::{FirewallError, Lines};
use crate::domain::Slot;
use crate::domain::firewall::{Ruleset, Side, Step};
use crate::domain::network::WayOut;

/// Up to so many slots' flows are asked for one by one; of more, the whole table of flows is read once.
const SIEVED_SLOTS_MAX: usize = 4;

/// What is in force, by slot.
pub(super) type Rules = BTreeMap<Slot, Arc<Ruleset>>;

/// What shall become of a slot's chains.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// Rules, and what becomes of what was open before.
    Apply(Arc<Ruleset>, Moves),
    Remove(Moves),
}

impl Change {
    /// The way of what the tenant sends afterwards.
    fn way_out(&self) -> WayOut {
        match self {
            Self::Apply(rules, _) => rules.way_out(),
            Self::Remove(_) => WayOut::Direct,
        }
    }
}

/// How each slot's change went.
pub(super) type Outcomes = BTreeMap<Slot, Result<(), FirewallError>>;

/// Whose flows are looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    Slots(BTreeSet<Slot>),
    All,
}

impl Scope {
    fn has(&self, slot: Option<Slot>) -> bool {
        match (self, slot) {
            (Self::All, _) => true,
            (Self::Slots(slots), slot) => slot.is_some_and(|slot| slots.contains(&slot)),
        }
    }
}

/// One instance's table.
#[derive(Debug)]
pub(super) struct Kernel {
    renderer: Renderer,
    netfilter: Netfilter,
    transactions: AtomicU64,
    /// Slots whose way may be another than straight in the kernel: rather one too many than one too few.
    led: Mutex<BTreeSet<Slot>>,
}

impl Kernel {
    pub(super) fn new(renderer: Renderer) -> Arc<Self> {
        Arc::new(Self {
            renderer,
            netfilter: Netfilter::default(),
            transactions: AtomicU64::new(0),
            led: Mutex::default(),
        })
    }

    /// How many transactions nft was given so far.
    pub(super) fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
    }

    fn led(&self) -> MutexGuard<'_, BTreeSet<Slot>> {
        self.led.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes changes in one transaction; where that is refused, each in one of its own.
    pub(super) async fn change(&self, changes: &BTreeMap<Slot, Change>) -> Outcomes {
        let outcomes = self.change_all(changes).await;
        let straight = changes.iter().filter(|(_, change)| change.way_out() == WayOut::Direct);
        let straight = straight.filter(|(slot, _)| outcomes.get(slot).is_some_and(Result::is_ok));
        let straight: BTreeSet<Slot> = straight.map(|(slot, _)| *slot).collect();
        self.led().retain(|slot| !straight.contains(slot));
        outcomes
    }

    async fn change_all(&self, changes: &BTreeMap<Slot, Change>) -> Outcomes {
        if changes.len() > 1 {
            let same =
                |outcome: Result<(), FirewallError>| changes.keys().map(|slot| (*slot, outcome.clone())).collect();
            match self.change_together(changes).await {
                Ok(()) => return same(Ok(())),
                // Trying each alone would only wait as long again, each.
                Err(error @ FirewallError::Timeout { .. }) => return same(Err(error)),
                Err(error) => tracing::warn!(%error, slots = changes.len(), "trying each slot's chains alone"),
            }
        }
        let mut outcomes = Outcomes::new();
        for (slot, change) in changes {
            outcomes.insert(*slot, self.change_one(*slot, change).await);
        }
        outcomes
    }

    async fn change_together(&self, changes: &BTreeMap<Slot, Change>) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        for (slot, change) in changes {
            self.render(&mut batch, *slot, change)?;
        }
        self.commit(&batch, CHANGE_MS_MAX, || format!("change the chains of {} slots", changes.len())).await
    }

    async fn change_one(&self, slot: Slot, change: &Change) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        self.render(&mut batch, slot, change)?;
        let verb = if matches!(change, Change::Remove(_)) { "remove" } else { "load" };
        let outcome = self.commit(&batch, CHANGE_MS_MAX, || format!("{verb} the chains of slot {slot}")).await;
        match (outcome, change) {
            // Without the table there is nothing to remove from; what is not there is removed.
            (Err(error @ FirewallError::Refused { .. }), Change::Remove(_)) => {
                if self.list().await?.contains(&slot) {
                    Err(error)
                } else {
                    Ok(())
                }
            }
            (outcome, _) => outcome,
        }
    }

    fn render(&self, batch: &mut Batch, slot: Slot, change: &Change) -> Result<(), FirewallError> {
        let mut led = self.led();
        let before = if led.contains(&slot) { Before::Unknown } else { Before::Direct };
        // Whether or not the transaction then comes to anything.
        if change.way_out() != WayOut::Direct {
            led.insert(slot);
        }
        drop(led);
        let rendered = match change {
            Change::Apply(rules, moves) => self.renderer.tenant(batch, slot, rules, before, moves),
            Change::Remove(moves) => self.renderer.remove(batch, slot, moves),
        };
        rendered.ok_or(FirewallError::NoAddress(slot))
    }

    /// Replaces the whole table; what was given stays open for the rest of its time.
    pub(super) async fn load(&self, tenants: &Rules, openings: &Openings) -> Result<(), FirewallError> {
        let (mut batch, now) = (Batch::default(), Instant::now());
        self.renderer.base(&mut batch);
        for (slot, rules) in tenants {
            let moves = openings.anew(*slot, rules.hosts(), now);
            let rendered = self.renderer.tenant(&mut batch, *slot, rules, Before::Direct, &moves);
            rendered.ok_or(FirewallError::NoAddress(*slot))?;
        }
        let led = tenants.iter().filter(|(_, rules)| rules.way_out() != WayOut::Direct).map(|(slot, _)| *slot);
        let led: BTreeSet<Slot> = led.collect();
        self.led().extend(&led);
        self.commit(&batch, LOAD_MS_MAX, || "load the whole table".into()).await?;
        *self.led() = led;
        Ok(())
    }

    /// Opens and closes what a tenant's rules name.
    pub(super) async fn open(
        self: &Arc<Self>,
        slot: Slot,
        rules: Arc<Ruleset>,
        steps: Vec<Step>,
    ) -> Result<(), FirewallError> {
        let failed = |source| FirewallError::Open { slot, source: Arc::new(source) };
        let work = move |kernel: &Self| {
            let link = slot.link_name(kernel.renderer.instance());
            let messages = elements::transaction(kernel.renderer.table(), &link, rules.hosts(), &steps);
            kernel.netfilter.transact(messages)
        };
        self.apart(work).await.map_err(failed)
    }

    /// What the table has open for these tenants: what an earlier daemon gave them.
    pub(super) async fn recall(&self, tenants: &Rules) -> Result<AllGiven, FirewallError> {
        if tenants.values().all(|rules| rules.hosts().is_empty()) {
            return Ok(AllGiven::new());
        }
        let action = || "list the sets".into();
        let listed = run::list_sets(self.renderer.table()).await.map_err(|error| self.named(action(), error))?;
        let invalid = |error| RunError::Nft(nftables::helper::NftablesError::NftInvalidJson(error));
        let text = listed.unwrap_or_else(|| Value::Null.to_string());
        let listing = serde_json::from_str(&text).map_err(|error| self.named(action(), invalid(error)))?;
        let (mut all, now) = (AllGiven::new(), Instant::now());
        for (link, host, address, left) in hosts_in(&listing) {
            let slot = Slot::from_link_name(self.renderer.instance(), &link);
            let named = |slot: &Slot| tenants.get(slot).is_some_and(|rules| rules.hosts().contains(&host));
            if let Some(slot) = slot.filter(named) {
                all.entry(slot).or_default().note(host, address, now + left);
            }
        }
        Ok(all)
    }

    /// Removes the table.
    pub(super) async fn unload(&self) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        self.renderer.nothing(&mut batch);
        self.commit(&batch, CHANGE_MS_MAX, || "remove the table".into()).await?;
        self.led().clear();
        Ok(())
    }

    /// Slots that have chains.
    pub(super) async fn list(&self) -> Result<Vec<Slot>, FirewallError> {
        let action = || "list the chains".into();
        let text = run::list_chains().await.map_err(|error| self.named(action(), error))?;
        let parsed: Result<Nftables<'static>, _> = serde_json::from_str(&text);
        let invalid = |error| RunError::Nft(nftables::helper::NftablesError::NftInvalidJson(error));
        let listed = parsed.map_err(|error| self.named(action(), invalid(error)))?;
        let slot = |object: &NfObject<'static>| match object {
            NfObject::ListObject(NfListObject::Chain(chain)) if chain.table == self.renderer.table() => {
                Renderer::slot_of_chain(&chain.name)
            }
            _ => None,
        };
        let mut slots: Vec<_> = listed.objects.iter().filter_map(slot).collect();
        slots.sort_unstable();
        Ok(slots)
    }

    async fn commit(&self, batch: &Batch, ms_max: u64, action: impl Fn() -> String) -> Result<(), FirewallError> {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        run::commit(&batch.to_json(), ms_max).await.map_err(|error| self.named(action(), error))
    }

    fn named(&self, action: String, error: RunError) -> FirewallError {
        let table = self.renderer.table().to_owned();
        match error {
            RunError::Nft(source) => FirewallError::Refused { action, table, source: Arc::new(source) },
            RunError::Timeout { waited_ms } => FirewallError::Timeout { action, table, waited_ms },
        }
    }

    /// How often each chain is in use where the base rules alone are loaded.
    pub(super) fn base_uses(&self) -> Uses {
        let mut batch = Batch::default();
        self.renderer.base(&mut batch);
        batch.uses()
    }

    /// The number of the ruleset, all tables of the namespace together: any change by anybody changes it.
    pub(super) async fn generation(self: &Arc<Self>) -> Result<u32, FirewallError> {
        let answers =
            self.ask(Ask::One, tables(NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() }))).await?;
        let number = answers.into_iter().find_map(|answer| match answer.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(message)) => {
                message.attributes.into_iter().find_map(|attribute| match attribute {
                    GenAttribute::Id(number) => Some(number),
                    _ => None,
                })
            }
            _ => None,
        });
        number.ok_or_else(|| look_failed(io::Error::other("the kernel does not number its ruleset")))
    }

    /// How often each chain of the table is in use: rules in it, rules and map elements that lead to it.
    pub(super) async fn uses(self: &Arc<Self>) -> Result<Uses, FirewallError> {
        let message = tables(NfTablesMessage::GetChain(ChainMessage { attributes: Vec::new() }));
        let answers = self.ask(Ask::Dump, message).await?;
        Ok(answers.into_iter().filter_map(|answer| used_chain(answer, self.renderer.table())).collect())
    }

    async fn ask(
        self: &Arc<Self>,
        ask: Ask,
        message: NetfilterMessage,
    ) -> Result<Vec<NetfilterMessage>, FirewallError> {
        self.apart(move |kernel| kernel.netfilter.ask(ask, message)).await.map_err(look_failed)
    }

    /// Runs what may block for milliseconds.
    async fn apart<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let kernel = self.clone();
        tokio::task::spawn_blocking(move || work(&kernel)).await.map_err(io::Error::other)?
    }

    /// Cuts the flows in the scope that the rules do not let go on; of a slot without rules, all. How many those were.
    pub(super) async fn cut(
        self: &Arc<Self>,
        scope: Scope,
        rules: Rules,
        memory: Memory,
    ) -> Result<usize, FirewallError> {
        let failed = |source| FirewallError::Flows { source: Arc::new(source) };
        self.apart(move |kernel| kernel.cut_now(&scope, &rules, &memory)).await.map_err(failed)
    }

    fn cut_now(&self, scope: &Scope, rules: &Rules, memory: &Memory) -> io::Result<usize> {
        let subnet = self.renderer.subnet;
        let asked: Vec<Wanted> = match scope {
            Scope::Slots(slots) if slots.len() <= SIEVED_SLOTS_MAX => {
                let addresses = slots.iter().filter_map(|slot| subnet.address(*slot));
                addresses.flat_map(|address| [Wanted::OpenedBy(address), Wanted::AnsweredBy(address)]).collect()
            }
            _ => vec![Wanted::All],
        };
        let doomed = |entry: &Entry| {
            let flow = &entry.flow;
            let concerned = scope.has(subnet.slot(flow.opened.from)) || scope.has(subnet.slot(flow.answered.from));
            let rules = |slot| rules.get(&slot).map(Arc::as_ref);
            concerned && !flow.goes_on(subnet, rules, |slot, host, address| memory.has(slot, host, address))
        };
        let mut cut = 0;
        for wanted in asked {
            let entries = self.netfilter.ask(Ask::Dump, conntrack::list(wanted))?;
            for entry in entries.into_iter().filter_map(conntrack::read).filter(doomed) {
                match self.netfilter.ask(Ask::One, conntrack::delete(&entry)) {
                    Ok(_) => cut += 1,
                    // It has ended by itself.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(cut)
    }

    /// One way's rules of a slot: as they should be, and as the kernel has them.
    pub(super) async fn lines(&self, slot: Slot, side: Side, rules: Option<&Ruleset>) -> Result<Lines, FirewallError> {
        let action = || format!("list the {side} chain of slot {slot}");
        let wanted = rules.map(|rules| chain_rules(rules, side)).unwrap_or_default();
        let desired = wanted.iter().map(|(statements, comment)| {
            spell(&serde_json::to_value(statements).unwrap_or_default(), comment.as_deref())
        });
        let listed = run::list_chain(self.renderer.table(), &chain_name(side, slot)).await;
        let listed = match listed.map_err(|error| self.named(action(), error))? {
            Some(text) => serde_json::from_str::<Value>(&text).map_err(|error| {
                let invalid = nftables::helper::NftablesError::NftInvalidJson(error);
                self.named(action(), RunError::Nft(invalid))
            })?,
            None => Value::Null,
        };
        let rules = listed["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("rule"));
        let kernel = rules.map(|rule| spell(&rule["expr"], rule["comment"].as_str()));
        Ok(Lines { desired: desired.collect(), kernel: kernel.collect() })
    }
}

fn look_failed(source: io::Error) -> FirewallError {
    FirewallError::Look { source: Arc::new(source) }
}

fn tables(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}

fn used_chain(answer: NetfilterMessage, table: &str) -> Option<(String, u32)> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(message)) = answer.inner else { return None };
    let (mut ours, mut name, mut uses) = (false, None, 0);
    for attribute in message.attributes {
        match attribute {
            ChainAttribute::Table(of) => ours = of == table,
            ChainAttribute::Name(text) => name = Some(text),
            ChainAttribute::Use(count) => uses = count,
            _ => {}
        }
    }
    ours.then_some((name?, uses))
}
