//! [`Firewall`] as the kernel keeps it: one task owns the table and hands transactions to nft.
//!
//! A run of nft costs milliseconds whatever it changes, so what is asked for while one runs goes into the next one
//! together. A removal that comes alone waits a moment for company. Of several orders for one slot the last counts.
//! Where a merged transaction is refused each slot is tried alone, so that one tenant's bad rules fail no other's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use nftables::schema::{NfListObject, NfObject, Nftables};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::render::{Batch, Renderer};
use super::run::{self, NFT_MS_MAX, RunError};
use super::{Firewall, FirewallError};
use crate::domain::policy::Policy;
use crate::domain::{Instance, Slot, Subnet};

/// Orders that wait for the task; a further caller waits for room.
const QUEUE_MAX: usize = 1024;

/// Orders in one transaction.
const MERGE_MAX: usize = 512;

/// How long removals alone wait for other orders to go with, in milliseconds.
const REMOVAL_DELAY_MS_MAX: u64 = 5;

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
    transactions: Arc<AtomicU64>,
}

impl NftFirewall {
    /// Starts the task on the current tokio runtime. Touches nothing yet.
    pub fn new(instance: Instance, subnet: Subnet) -> Self {
        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        let transactions = Arc::new(AtomicU64::new(0));
        let task = Task { orders, renderer: Renderer::new(instance, subnet), transactions: transactions.clone() };
        tokio::spawn(task.run());
        Self { queue, transactions }
    }

    /// How many transactions nft was given so far.
    pub fn transactions(&self) -> u64 {
        self.transactions.load(Ordering::Relaxed)
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

/// The changes of one transaction, the last one of each slot, with everybody who waits for it.
#[derive(Debug, Default)]
struct Changes {
    by_slot: BTreeMap<Slot, (Change, Vec<Reply<()>>)>,
    orders: usize,
    applies: usize,
}

impl Changes {
    fn add(&mut self, slot: Slot, change: Change, reply: Reply<()>) {
        self.orders += 1;
        self.applies += usize::from(matches!(change, Change::Apply(_)));
        let (_, mut replies) = self.by_slot.remove(&slot).unwrap_or((Change::Remove, Vec::new()));
        replies.push(reply);
        self.by_slot.insert(slot, (change, replies));
    }
}

struct Task {
    orders: mpsc::Receiver<Order>,
    renderer: Renderer,
    transactions: Arc<AtomicU64>,
}

impl Task {
    /// Until the last [`NftFirewall`] is dropped.
    async fn run(mut self) {
        let mut held = None;
        loop {
            let next = match held.take() {
                Some(order) => order,
                None => match self.orders.recv().await {
                    Some(order) => order,
                    None => return,
                },
            };
            // Whoever gave up waiting does not hear the answer; the work is done all the same.
            match next {
                Order::Change { slot, change, reply } => {
                    let mut changes = Changes::default();
                    changes.add(slot, change, reply);
                    held = self.gather(&mut changes).await;
                    self.change(changes).await;
                }
                Order::Load { tenants, reply } => drop(reply.send(self.load(&tenants).await)),
                Order::List { reply } => drop(reply.send(self.list().await)),
                Order::Unload { reply } => drop(reply.send(self.unload().await)),
            }
        }
    }

    /// Takes further changes off the queue; gives back the first order that is something else.
    async fn gather(&mut self, changes: &mut Changes) -> Option<Order> {
        let deadline = Instant::now() + Duration::from_millis(REMOVAL_DELAY_MS_MAX);
        // Callers who are ready to ask get to ask.
        tokio::task::yield_now().await;
        while changes.orders < MERGE_MAX {
            let next = match self.orders.try_recv() {
                Ok(order) => Some(order),
                Err(_) if changes.applies > 0 => None,
                // Cancel-safe: `recv` loses no order when the deadline comes first.
                Err(_) => timeout_at(deadline, self.orders.recv()).await.ok().flatten(),
            };
            match next {
                Some(Order::Change { slot, change, reply }) => changes.add(slot, change, reply),
                other => return other,
            }
        }
        None
    }

    async fn change(&self, changes: Changes) {
        let slots = changes.by_slot;
        if slots.len() > 1 {
            let mut batch = Batch::default();
            let rendered = slots.iter().try_for_each(|(slot, (change, _))| self.render(&mut batch, *slot, change));
            let merged = match rendered {
                Ok(()) => self.commit(&batch, || format!("change the chains of {} slots", slots.len())).await,
                Err(error) => Err(error),
            };
            match merged {
                Ok(()) => return slots.into_values().for_each(|(_, replies)| answer(replies, &Ok(()))),
                // Trying each alone would only wait as long again, each.
                Err(error @ FirewallError::Timeout { .. }) => {
                    return slots.into_values().for_each(|(_, replies)| answer(replies, &Err(error.clone())));
                }
                Err(error) => tracing::warn!(%error, slots = slots.len(), "trying each slot's chains alone"),
            }
        }
        for (slot, (change, replies)) in slots {
            answer(replies, &self.change_one(slot, &change).await);
        }
    }

    async fn change_one(&self, slot: Slot, change: &Change) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        self.render(&mut batch, slot, change)?;
        let verb = if matches!(change, Change::Remove) { "remove" } else { "load" };
        let outcome = self.commit(&batch, || format!("{verb} the chains of slot {slot}")).await;
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
        self.commit(&batch, || "load the whole table".into()).await
    }

    async fn unload(&self) -> Result<(), FirewallError> {
        let mut batch = Batch::default();
        self.renderer.nothing(&mut batch);
        self.commit(&batch, || "remove the table".into()).await
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

    async fn commit(&self, batch: &Batch, action: impl Fn() -> String) -> Result<(), FirewallError> {
        self.transactions.fetch_add(1, Ordering::Relaxed);
        run::commit(&batch.to_json()).await.map_err(|error| self.named(action(), error))
    }

    fn named(&self, action: String, error: RunError) -> FirewallError {
        let table = self.renderer.table().to_owned();
        match error {
            RunError::Nft(source) => FirewallError::Refused { action, table, source: Arc::new(source) },
            RunError::Timeout => FirewallError::Timeout { action, table, waited_ms: NFT_MS_MAX },
        }
    }
}

fn answer(replies: Vec<Reply<()>>, outcome: &Result<(), FirewallError>) {
    for reply in replies {
        // Whoever gave up waiting does not hear the answer; the work is done all the same.
        let _ = reply.send(outcome.clone());
    }
}
