//! The firewall's task: it owns the table, and knows what should be in it.
//!
//! A run of nft costs milliseconds whatever it changes, so what is asked for while one runs goes into the next one
//! together. Where a merged transaction is refused each slot is tried alone, so that one tenant's bad rules fail no
//! other's.
//!
//! Removals run behind, in a lane of their own: nft ends only when the kernel has freed what was removed (a grace
//! period of RCU: 10 to 20 ms where a load takes 4), and no start shall wait for that. The lanes never hold the same
//! slot at once, and of several orders for one slot the last counts.
//!
//! Twice a second the task asks the kernel for the number of its ruleset, which any change by any program changes. Where it is
//! another one, the chains are counted, and a table that is not as it should be is loaded anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::kernel::{Change, Kernel, Outcomes, Rules, Scope};
use super::openings::{Memory, Named, Openings};
use super::orders::{Order, Reply};
use super::render::{Uses, chain_length, chain_name};
use super::{FirewallError, Inspection, Repairs};
use crate::domain::Slot;
use crate::domain::firewall::{Ruleset, Side, Told};

/// Orders in one transaction.
const MERGE_MAX: usize = 512;

/// Combinations of networks and ports in one transaction, but for the last order's. nft takes about 0.1 ms a rule, and a
/// combination is up to two rules: a transaction stays around a second, and one tenant's long rules delay the others no longer.
const MERGED_COMBINATIONS_MAX: usize = 2_000;

/// Between two looks whether another program has changed the table, in milliseconds. With the time to load a thousand
/// tenants (half a second) it stays below two seconds.
const WATCH_MS: u64 = 500;

/// How often the table is mended because nothing can be opened in it.
const TELLING_TRIES_MAX: u32 = 1;

/// Looks that are put off in a row because removals are under way.
const WATCHES_PUT_OFF_MAX: u32 = 2;

/// What waits for a slot's order to be carried out.
type Replies = Vec<Reply<()>>;

/// Chains to load, by slot, with everybody who waits for them.
type Applies = BTreeMap<Slot, (Arc<Ruleset>, Replies)>;

/// What goes together in one round: changes of rules in one transaction, and behind them what tenants are told, which so meets the rules
/// that are in force by then.
#[derive(Debug, Default)]
struct Changes {
    applies: Applies,
    tellings: Vec<(Slot, Told, Reply<()>)>,
}

/// The removals under way.
#[derive(Debug)]
struct Behind {
    slots: BTreeSet<Slot>,
    done: JoinHandle<()>,
}

/// What is known of the table's look.
#[derive(Debug, Default)]
struct Watch {
    /// The ruleset's number when the table was last seen to be as it should.
    seen: Option<u32>,
    put_off: u32,
}

/// What a look at the table came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    /// It is as it should be.
    Sound,
    /// It was not, and is now.
    Mended,
    /// It is not, or nobody knows.
    Broken,
}

pub(super) struct Task {
    orders: mpsc::Receiver<Order>,
    kernel: Arc<Kernel>,
    /// What should be in the table; `None` where there should be no table.
    loaded: Option<Rules>,
    openings: Openings,
    /// Removals that wait for those under way.
    removals: BTreeMap<Slot, Replies>,
    behind: Option<Behind>,
    ticks: Interval,
    watch: Watch,
    repairs: Repairs,
}

impl Task {
    /// Begins with nothing loaded. Touches nothing yet.
    pub(super) fn new(orders: mpsc::Receiver<Order>, kernel: Arc<Kernel>, named: Named) -> Self {
        let mut ticks = interval(Duration::from_millis(WATCH_MS));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            orders,
            kernel,
            loaded: None,
            openings: Openings::new(named),
            removals: BTreeMap::new(),
            behind: None,
            ticks,
            watch: Watch::default(),
            repairs: Repairs::default(),
        }
    }

    /// Until nobody is left who could give an order.
    pub(super) async fn run(mut self) {
        let mut held = None;
        loop {
            self.start_removals();
            let order = match held.take() {
                Some(order) => order,
                None => tokio::select! {
                    // Cancel-safe: `recv` loses no order.
                    order = self.orders.recv() => match order {
                        Some(order) => order,
                        None => return self.finish_removals().await,
                    },
                    // Cancel-safe: the removals run in a task of their own.
                    () = ended(&mut self.behind) => continue,
                    // Cancel-safe: a tick that was not taken comes again.
                    _ = self.ticks.tick() => {
                        self.look().await;
                        continue;
                    }
                },
            };
            held = self.carry_out(order).await;
        }
    }

    /// Carries an order out, with those that wait behind it and go together with it; gives back the first that does not.
    async fn carry_out(&mut self, order: Order) -> Option<Order> {
        // Whoever gave up waiting does not hear the answer; the work is done all the same.
        match order {
            order @ (Order::Apply { .. } | Order::Remove { .. } | Order::Tell { .. }) => {
                let mut changes = Changes::default();
                // It is one of those that are sorted.
                drop(self.sort(&mut changes, order));
                let held = self.gather(&mut changes).await;
                self.apply(changes.applies).await;
                for (slot, told, reply) in changes.tellings {
                    let _ = reply.send(self.tell(slot, &told).await);
                }
                return held;
            }
            Order::Load { tenants, reply } => {
                self.finish_removals().await;
                let _ = reply.send(self.load(tenants).await.map(drop));
            }
            Order::List { reply } => {
                self.finish_removals().await;
                let _ = reply.send(self.kernel.list().await);
            }
            Order::Inspect { slot, reply } => {
                self.finish_removals().await;
                let _ = reply.send(self.inspect(slot).await);
            }
            Order::Unload { reply } => {
                self.finish_removals().await;
                let _ = reply.send(self.unload().await);
            }
        }
        None
    }

    /// Takes further changes off the queue; gives back the first order that is something else.
    async fn gather(&mut self, changes: &mut Changes) -> Option<Order> {
        // Callers who are ready to ask get to ask.
        tokio::task::yield_now().await;
        for _ in 1..MERGE_MAX {
            let combinations: usize = changes.applies.values().map(|(rules, _)| rules.combinations()).sum();
            if combinations > MERGED_COMBINATIONS_MAX {
                break;
            }
            let order = self.orders.try_recv().ok()?;
            if let Some(other) = self.sort(changes, order) {
                return Some(other);
            }
        }
        None
    }

    /// Of several orders for one slot the last counts, and everybody gets its outcome. Gives back what does not go together with others.
    fn sort(&mut self, changes: &mut Changes, order: Order) -> Option<Order> {
        let (slot, rules, reply) = match order {
            Order::Apply { slot, rules, reply } => (slot, Some(rules), reply),
            Order::Remove { slot, reply } => (slot, None, reply),
            Order::Tell { slot, told, reply } => {
                changes.tellings.push((slot, told, reply));
                return None;
            }
            other => return Some(other),
        };
        let applies = &mut changes.applies;
        let mut replies = applies.remove(&slot).map(|(_, replies)| replies).unwrap_or_default();
        replies.extend(self.removals.remove(&slot).unwrap_or_default());
        replies.push(reply);
        match rules {
            Some(rules) => drop(applies.insert(slot, (rules, replies))),
            None => drop(self.removals.insert(slot, replies)),
        }
        None
    }

    async fn apply(&mut self, applies: Applies) {
        if applies.is_empty() {
            return;
        }
        if self.behind.as_ref().is_some_and(|behind| applies.keys().any(|slot| behind.slots.contains(slot))) {
            ended(&mut self.behind).await;
        }
        let mut todo: Rules = applies.iter().map(|(slot, (rules, _))| (*slot, rules.clone())).collect();
        let mut news = BTreeSet::new();
        let mut outcomes = self.change(&todo, &mut news).await;
        let refused = |slot: &Slot, outcomes: &Outcomes| matches!(outcomes[slot], Err(FirewallError::Refused { .. }));
        todo.retain(|slot, _| refused(slot, &outcomes));
        // Nothing can be added to a table that another program has taken away.
        if !todo.is_empty() && self.mend().await == Table::Mended {
            outcomes.extend(self.change(&todo, &mut news).await);
        }
        let done: BTreeSet<Slot> =
            outcomes.iter().filter(|(_, outcome)| outcome.is_ok()).map(|(slot, _)| *slot).collect();
        // A slot that had no chains has no flows: they went with its last tenant, and the base rules let none come to be on an address
        // that is nobody's.
        let changed: BTreeSet<Slot> = done.difference(&news).copied().collect();
        let rules = changed.iter().map(|slot| (*slot, applies[slot].0.clone())).collect();
        let memory = self.openings.memory(|slot| changed.contains(slot));
        let cut = match changed.is_empty() {
            true => Ok(0),
            false => self.kernel.cut(Scope::Slots(changed), rules, memory).await,
        };
        let cut = cut.map(drop);
        for (slot, (_, replies)) in applies {
            let outcome = outcomes.remove(&slot).unwrap_or(Err(FirewallError::Closed)).and_then(|()| cut.clone());
            answer(replies, &outcome);
        }
    }

    /// Loads chains, and remembers those that are in force by then; `news` gets the slots that had none before.
    async fn change(&mut self, todo: &Rules, news: &mut BTreeSet<Slot>) -> Outcomes {
        let loaded = self.loaded.get_or_insert_default();
        let now = Instant::now();
        let moves = |slot: &Slot, rules: &Ruleset| match loaded.contains_key(slot) {
            true => self.openings.moves(*slot, rules.hosts(), now),
            // What is open there was another tenant's.
            false => self.openings.moves(*slot, &[], now),
        };
        let change = |(slot, rules): (&Slot, &Arc<Ruleset>)| (*slot, Change::Apply(rules.clone(), moves(slot, rules)));
        let outcomes = self.kernel.change(&todo.iter().map(change).collect()).await;
        for (slot, rules) in todo.iter().filter(|(slot, _)| matches!(outcomes.get(slot), Some(Ok(())))) {
            let is_new = loaded.insert(*slot, rules.clone()).is_none();
            if is_new {
                news.insert(*slot);
            }
            self.openings.applied(*slot, rules.hosts(), is_new);
        }
        outcomes
    }

    /// Opens what a tenant is about to be told, where its rules name it.
    async fn tell(&mut self, slot: Slot, told: &Told) -> Result<(), FirewallError> {
        let mut tries = 0..TELLING_TRIES_MAX;
        loop {
            let Some(rules) = self.loaded.as_ref().and_then(|loaded| loaded.get(&slot)).cloned() else { return Ok(()) };
            let (after, steps) = self.openings.tell(slot, rules.hosts(), told, Instant::now());
            if steps.is_empty() {
                return Ok(());
            }
            match self.kernel.open(slot, rules, steps).await {
                Ok(()) => {
                    self.openings.told(slot, after);
                    return Ok(());
                }
                // Nothing can be opened in a table that another program has taken away.
                Err(error) if tries.next().is_none() || self.mend().await != Table::Mended => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// Replaces the whole table; how many flows were cut.
    async fn load(&mut self, tenants: Rules) -> Result<usize, FirewallError> {
        let memory = match self.loaded {
            Some(_) => self.openings.memory(|slot| tenants.contains_key(slot)),
            None => Memory::Lost,
        };
        if self.loaded.is_none() {
            match self.kernel.recall(&tenants).await {
                Ok(found) => self.openings.recall(found),
                // They ask again; nothing is open that should not be.
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "what was open for hosts' names is forgotten"
                    );
                }
            }
        }
        self.kernel.load(&tenants, &self.openings).await?;
        self.openings.loaded(&tenants);
        self.loaded = Some(tenants.clone());
        self.kernel.cut(Scope::All, tenants, memory).await
    }

    async fn unload(&mut self) -> Result<(), FirewallError> {
        self.kernel.unload().await?;
        self.loaded = None;
        self.openings.loaded(&Rules::new());
        self.kernel.cut(Scope::All, Rules::new(), Memory::default()).await.map(drop)
    }

    async fn inspect(&mut self, slot: Slot) -> Result<Inspection, FirewallError> {
        let rules = self.loaded.as_ref().and_then(|loaded| loaded.get(&slot)).map(Arc::as_ref);
        let ingress = self.kernel.lines(slot, Side::Ingress, rules).await?;
        let egress = self.kernel.lines(slot, Side::Egress, rules).await?;
        let table = self.is_as_it_should().await?;
        Ok(Inspection { ingress, egress, table, repairs: self.repairs })
    }

    /// Looks whether another program has changed the table, where any has changed anything.
    async fn look(&mut self) {
        if self.loaded.is_none() {
            return;
        }
        let number = match self.kernel.generation().await {
            Ok(number) if self.watch.seen == Some(number) => return,
            Ok(number) => number,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the firewall cannot be watched");
                return;
            }
        };
        let busy = self.behind.is_some() || !self.removals.is_empty();
        if busy && self.watch.put_off < WATCHES_PUT_OFF_MAX {
            self.watch.put_off += 1;
            return;
        }
        self.watch.put_off = 0;
        // What could not be seen or mended is tried again at the next look.
        if self.mend().await == Table::Sound {
            self.watch.seen = Some(number);
        }
    }

    /// Loads the table anew where it is not as it should be.
    async fn mend(&mut self) -> Table {
        self.finish_removals().await;
        let Some(tenants) = self.loaded.clone() else { return Table::Sound };
        match self.is_as_it_should().await {
            Ok(true) => return Table::Sound,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the firewall cannot be looked at");
                return Table::Broken;
            }
        }
        let (began, count) = (Instant::now(), tenants.len());
        tracing::warn!(tenants = count, "another program has changed the firewall's table: it is loaded anew");
        match self.load(tenants).await {
            Ok(cut) => {
                self.repairs = Repairs { count: self.repairs.count + 1, last: Some(Timestamp::now()) };
                let took_ms = began.elapsed().as_millis() as u64;
                tracing::warn!(tenants = count, flows_cut = cut, took_ms, "the firewall's table is mended");
                Table::Mended
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "the firewall's table cannot be mended");
                Table::Broken
            }
        }
    }

    /// Whether the kernel counts in every chain what should be there. Nothing of ours may be under way.
    async fn is_as_it_should(&self) -> Result<bool, FirewallError> {
        Ok(self.kernel.uses().await? == self.wanted())
    }

    fn wanted(&self) -> Uses {
        let Some(loaded) = &self.loaded else { return Uses::new() };
        let mut uses = self.kernel.base_uses();
        for (slot, rules) in loaded {
            for side in Side::BOTH {
                // Its rules, and the element that leads to it.
                let count = chain_length(rules.side(side)) + 1;
                uses.insert(chain_name(side, *slot), u32::try_from(count).unwrap_or(u32::MAX));
            }
        }
        uses
    }

    /// Lets the removals that wait go, all in one transaction, unless some are under way.
    fn start_removals(&mut self) {
        if self.behind.is_some() || self.removals.is_empty() {
            return;
        }
        let (removals, now) = (std::mem::take(&mut self.removals), Instant::now());
        let slots: BTreeSet<Slot> = removals.keys().copied().collect();
        let moves = slots.iter().map(|slot| (*slot, Change::Remove(self.openings.moves(*slot, &[], now)))).collect();
        if let Some(loaded) = &mut self.loaded {
            loaded.retain(|slot, _| !slots.contains(slot));
        }
        self.openings.removed(&slots, now);
        let done = tokio::spawn(remove(self.kernel.clone(), removals, moves));
        self.behind = Some(Behind { slots, done });
    }

    /// Waits until no removal waits or is under way.
    async fn finish_removals(&mut self) {
        while self.behind.is_some() || !self.removals.is_empty() {
            self.start_removals();
            ended(&mut self.behind).await;
        }
    }
}

/// Removes chains, then every flow of their tenants: the next one with such an address shall not be taken for them.
async fn remove(kernel: Arc<Kernel>, removals: BTreeMap<Slot, Replies>, changes: BTreeMap<Slot, Change>) {
    let mut outcomes = kernel.change(&changes).await;
    let cut = kernel.cut(Scope::Slots(changes.into_keys().collect()), Rules::new(), Memory::default()).await.map(drop);
    for (slot, replies) in removals {
        let outcome = outcomes.remove(&slot).unwrap_or(Err(FirewallError::Closed)).and_then(|()| cut.clone());
        answer(replies, &outcome);
    }
}

/// Waits for the removals under way; for ever where there are none.
async fn ended(behind: &mut Option<Behind>) {
    match behind {
        // A panic in there has dropped the replies, and so told who waits.
        Some(Behind { done, .. }) => drop(done.await),
        None => std::future::pending().await,
    }
    *behind = None;
}

fn answer(replies: Replies, outcome: &Result<(), FirewallError>) {
    for reply in replies {
        // Whoever gave up waiting does not hear the answer; the work is done all the same.
        let _ = reply.send(outcome.clone());
    }
}
