//! [`Firewall`] as the kernel keeps it: one task owns the table and hands transactions to nft.
//!
//! A run of nft costs milliseconds whatever it changes, so what is asked for while one runs goes into the next one
//! together. Where a merged transaction is refused each slot is tried alone, so that one tenant's bad rules fail no
//! other's.
//!
//! Removals run behind, in a lane of their own: nft ends only when the kernel has freed what was removed (a grace
//! period of RCU: 10 to 20 ms where a load takes 4), and no start shall wait for that. The lanes never hold the same
//! slot at once, and of several orders for one slot the last counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use nftables::schema::{NfListObject, NfObject, Nftables};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::render::{Batch, Renderer};
use super::run::{self, CHANGE_MS_MAX, LOAD_MS_MAX, RunError};
use super::{Firewall, FirewallError};
use crate::domain::policy::Policy;
use crate::domain::{Instance, Slot, Subnet};

/// Orders that wait for the task; a further caller waits for room.
const QUEUE_MAX: usize = 1024;

/// Orders in one transaction.
const MERGE_MAX: usize = 512;

/// Pairs of networks and ports in one transaction, but for the last order's. nft takes about 0.1 ms a rule, and a pair
/// is up to two rules: a transaction stays around a second, and one tenant's long policy delays the others no longer.
const MERGED_PAIRS_MAX: usize = 2_000;

type Reply<T> = oneshot::Sender<Result<T, FirewallError>>;

#[derive(Debug)]
enum Order {
    Change { slot: Slot, change: Change, reply: Reply<()> },
    Load { tenants: Vec<(Slot, Policy)>, reply: Reply<()> },
    List { reply: Reply<Vec<Slot>> },
    Unload { reply: Reply<()> },
}

/// What shall become of a slot's chains.
#[derive(Debug)]
enum Change {
    Apply(Box<Policy>),
    Remove,
}

/// The firewall of one instance, in the network namespace of the runtime's threads.
///
/// Cheap to clone; the task ends with the last clone.
#[derive(Debug, Clone)]
pub struct NftFirewall {
    queue: mpsc::Sender<Order>,
    kernel: Arc<Kernel>,
}

impl NftFirewall {
    /// Starts the task on the current tokio runtime. Touches nothing yet.
    pub fn new(instance: Instance, subnet: Subnet) -> Self {
        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        let renderer = Renderer::new(instance, subnet);
        let kernel = Arc::new(Kernel { renderer, transactions: AtomicU64::new(0) });
        let task = Task { orders, kernel: kernel.clone(), removals: BTreeMap::new(), behind: None };
        tokio::spawn(task.run());
        Self { queue, kernel }
    }

    /// How many transactions nft was given so far.
    pub fn transactions(&self) -> u64 {
        self.kernel.transactions.load(Ordering::Relaxed)
    }

    async fn order<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, FirewallError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(order(reply)).await.map_err(|_| FirewallError::Closed)?;
        answer.await.map_err(|_| FirewallError::Closed)?
    }
}

#[async_trait]
impl Firewall for NftFirewall {
    async fn load(&self, tenants: &[(Slot, Policy)]) -> Result<(), FirewallError> {
        let tenants = tenants.to_vec();
        self.order(|reply| Order::Load { tenants, reply }).await
    }

    async fn apply(&self, slot: Slot, policy: &Policy) -> Result<(), FirewallError> {
        let change = Change::Apply(Box::new(policy.clone()));
        self.order(|reply| Order::Change { slot, change, reply }).await
    }

    async fn remove(&self, slot: Slot) -> Result<(), FirewallError> {
        self.order(|reply| Order::Change { slot, change: Change::Remove, reply }).await
    }

    async fn list(&self) -> Result<Vec<Slot>, FirewallError> {
        self.order(|reply| Order::List { reply }).await
    }

    async fn unload(&self) -> Result<(), FirewallError> {
        self.order(|reply| Order::Unload { reply }).await
    }
}

/// What waits for a slot's order to be carried out.
type Replies = Vec<Reply<()>>;

/// Chains to load, by slot, with everybody who waits for them.
type Applies = BTreeMap<Slot, (Box<Policy>, Replies)>;

/// The removals under way.
#[derive(Debug)]
struct Behind {
    slots: BTreeSet<Slot>,
    done: JoinHandle<()>,
}

struct Task {
    orders: mpsc::Receiver<Order>,
    kernel: Arc<Kernel>,
    /// Removals that wait for those under way.
    removals: BTreeMap<Slot, Replies>,
    behind: Option<Behind>,
}

impl Task {
    /// Until the last [`NftFirewall`] is dropped.
    async fn run(mut self) {
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
                },
            };
            // Whoever gave up waiting does not hear the answer; the work is done all the same.
            match order {
                Order::Change { slot, change, reply } => {
                    let mut applies = Applies::new();
                    self.sort(&mut applies, slot, change, reply);
                    held = self.gather(&mut applies).await;
                    self.apply(applies).await;
                }
                Order::Load { tenants, reply } => {
                    self.finish_removals().await;
                    let _ = reply.send(self.kernel.load(&tenants).await);
                }
                Order::List { reply } => {
                    self.finish_removals().await;
                    let _ = reply.send(self.kernel.list().await);
                }
                Order::Unload { reply } => {
                    self.finish_removals().await;
                    let _ = reply.send(self.kernel.unload().await);
                }
            }
        }
    }

    /// Takes further changes off the queue; gives back the first order that is something else.
    async fn gather(&mut self, applies: &mut Applies) -> Option<Order> {
        // Callers who are ready to ask get to ask.
        tokio::task::yield_now().await;
        for _ in 1..MERGE_MAX {
            let pairs = |(policy, _): &(Box<Policy>, Replies)| policy.ingress.pairs() + policy.egress.pairs();
            if applies.values().map(pairs).sum::<usize>() > MERGED_PAIRS_MAX {
                break;
            }
            match self.orders.try_recv().ok()? {
                Order::Change { slot, change, reply } => self.sort(applies, slot, change, reply),
                other => return Some(other),
            }
        }
        None
    }

    /// Of several orders for one slot the last counts, and everybody gets its outcome.
    fn sort(&mut self, applies: &mut Applies, slot: Slot, change: Change, reply: Reply<()>) {
        let mut replies = applies.remove(&slot).map(|(_, replies)| replies).unwrap_or_default();
        replies.extend(self.removals.remove(&slot).unwrap_or_default());
        replies.push(reply);
        match change {
            Change::Apply(policy) => drop(applies.insert(slot, (policy, replies))),
            Change::Remove => drop(self.removals.insert(slot, replies)),
        }
    }

    async fn apply(&mut self, applies: Applies) {
        if self.behind.as_ref().is_some_and(|behind| applies.keys().any(|slot| behind.slots.contains(slot))) {
            ended(&mut self.behind).await;
        }
        let changes = applies.into_iter().map(|(slot, (policy, replies))| (slot, (Change::Apply(policy), replies)));
        self.kernel.change(changes.collect()).await;
    }

    /// Lets the removals that wait go, all in one transaction, unless some are under way.
    fn start_removals(&mut self) {
        if self.behind.is_some() || self.removals.is_empty() {
            return;
        }
        let removals = std::mem::take(&mut self.removals);
        let slots = removals.keys().copied().collect();
        let changes = removals.into_iter().map(|(slot, replies)| (slot, (Change::Remove, replies))).collect();
        let kernel = self.kernel.clone();
        self.behind = Some(Behind { slots, done: tokio::spawn(async move { kernel.change(changes).await }) });
    }

    /// Waits until no removal waits or is under way.
    async fn finish_removals(&mut self) {
        while self.behind.is_some() || !self.removals.is_empty() {
            self.start_removals();
            ended(&mut self.behind).await;
        }
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

/// Transactions with nft.
#[derive(Debug)]
struct Kernel {
    renderer: Renderer,
    transactions: AtomicU64,
}

impl Kernel {
    async fn change(&self, changes: BTreeMap<Slot, (Change, Replies)>) {
        if changes.len() > 1 {
            match self.change_together(&changes).await {
                Ok(()) => return changes.into_values().for_each(|(_, replies)| answer(replies, &Ok(()))),
                // Trying each alone would only wait as long again, each.
                Err(error @ FirewallError::Timeout { .. }) => {
                    return changes.into_values().for_each(|(_, replies)| answer(replies, &Err(error.clone())));
                }
                Err(error) => tracing::warn!(%error, slots = changes.len(), "trying each slot's chains alone"),
            }
        }
        for (slot, (change, replies)) in changes {
            answer(replies, &self.change_one(slot, &change).await);
        }
    }

    async fn change_together(&self, changes: &BTreeMap<Slot, (Change, Replies)>) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        for (slot, (change, _)) in changes {
            self.render(&mut batch, *slot, change)?;
        }
        self.commit(&batch, CHANGE_MS_MAX, || format!("change the chains of {} slots", changes.len())).await
    }

    async fn change_one(&self, slot: Slot, change: &Change) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        self.render(&mut batch, slot, change)?;
        let verb = if matches!(change, Change::Remove) { "remove" } else { "load" };
        let outcome = self.commit(&batch, CHANGE_MS_MAX, || format!("{verb} the chains of slot {slot}")).await;
        match (outcome, change) {
            // Without the table there is nothing to remove from; what is not there is removed.
            (Err(error @ FirewallError::Refused { .. }), Change::Remove) => {
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
        let rendered = match change {
            Change::Apply(policy) => self.renderer.tenant(batch, slot, policy),
            Change::Remove => self.renderer.remove(batch, slot),
        };
        rendered.ok_or(FirewallError::NoAddress(slot))
    }

    async fn load(&self, tenants: &[(Slot, Policy)]) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        self.renderer.base(&mut batch);
        for (slot, policy) in tenants {
            self.renderer.tenant(&mut batch, *slot, policy).ok_or(FirewallError::NoAddress(*slot))?;
        }
        self.commit(&batch, LOAD_MS_MAX, || "load the whole table".into()).await
    }

    async fn unload(&self) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        self.renderer.nothing(&mut batch);
        self.commit(&batch, CHANGE_MS_MAX, || "remove the table".into()).await
    }

    async fn list(&self) -> Result<Vec<Slot>, FirewallError> {
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
}

fn answer(replies: Replies, outcome: &Result<(), FirewallError>) {
    for reply in replies {
        // Whoever gave up waiting does not hear the answer; the work is done all the same.
        let _ = reply.send(outcome.clone());
    }
}
