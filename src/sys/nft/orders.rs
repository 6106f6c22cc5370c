//! [`Firewall`] as the kernel keeps it: orders to the task that owns the table.

use std::ops::RangeInclusive;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::driver::Task;
use super::kernel::{Kernel, Rules};
use super::openings::Named;
use super::render::Renderer;
use super::{Firewall, FirewallError, Inspection};
use crate::domain::firewall::{Ruleset, Told};
use crate::domain::{Instance, Slot, Subnet};
use crate::sys::gateway::Doors;

/// Orders that wait for the task; a further caller waits for room.
const QUEUE_MAX: usize = 1024;

/// Where the answer to an order goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, FirewallError>>;

/// What the task is asked to do.
#[derive(Debug)]
pub(super) enum Order {
    Apply { slot: Slot, rules: Arc<Ruleset>, reply: Reply<()> },
    Remove { slot: Slot, reply: Reply<()> },
    Load { tenants: Rules, reply: Reply<()> },
    List { reply: Reply<Vec<Slot>> },
    Tell { slot: Slot, told: Told, reply: Reply<()> },
    Inspect { slot: Slot, reply: Reply<Inspection> },
    Unload { reply: Reply<()> },
}

/// The firewall of one instance, in the network namespace of the runtime's threads.
///
/// Cheap to clone; the task ends with the last clone.
#[derive(Debug, Clone)]
pub struct NftFirewall {
    queue: mpsc::Sender<Order>,
    kernel: Arc<Kernel>,
    named: Named,
}

impl NftFirewall {
    /// Starts the task on the current tokio runtime. Touches nothing yet.
    pub fn new(instance: Instance, subnet: Subnet) -> Self {
        Self::rendering(Renderer::new(instance, subnet))
    }

    /// As [`NftFirewall::new`], with a way for tenants to the daemon's own sockets, and with rules for the processes of these ids, which
    /// evaluate scripts.
    pub fn of_daemon(instance: Instance, subnet: Subnet, doors: Doors, scripts: Option<RangeInclusive<u32>>) -> Self {
        let renderer = Renderer::new(instance, subnet).with_doors(doors);
        Self::rendering(match scripts {
            Some(ids) => renderer.with_scripts(ids),
            None => renderer,
        })
    }

    fn rendering(renderer: Renderer) -> Self {
        let (queue, orders) = mpsc::channel(QUEUE_MAX);
        let kernel = Kernel::new(renderer);
        let named = Named::default();
        tokio::spawn(Task::new(orders, kernel.clone(), named.clone()).run());
        Self { queue, kernel, named }
    }

    /// How many transactions nft was given so far.
    pub fn transactions(&self) -> u64 {
        self.kernel.transactions()
    }

    async fn order<T>(&self, order: impl FnOnce(Reply<T>) -> Order) -> Result<T, FirewallError> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(order(reply)).await.map_err(|_| FirewallError::Closed)?;
        answer.await.map_err(|_| FirewallError::Closed)?
    }
}

#[async_trait]
impl Firewall for NftFirewall {
    async fn load(&self, tenants: &[(Slot, Arc<Ruleset>)]) -> Result<(), FirewallError> {
        let tenants = tenants.iter().cloned().collect();
        self.order(|reply| Order::Load { tenants, reply }).await
    }

    async fn apply(&self, slot: Slot, rules: &Arc<Ruleset>) -> Result<(), FirewallError> {
        let rules = rules.clone();
        self.order(|reply| Order::Apply { slot, rules, reply }).await
    }

    async fn remove(&self, slot: Slot) -> Result<(), FirewallError> {
        self.order(|reply| Order::Remove { slot, reply }).await
    }

    async fn tell(&self, slot: Slot, told: Told) -> Result<(), FirewallError> {
        if !self.named.name(slot, &told.name) {
            return Ok(());
        }
        self.order(|reply| Order::Tell { slot, told, reply }).await
    }

    async fn list(&self) -> Result<Vec<Slot>, FirewallError> {
        self.order(|reply| Order::List { reply }).await
    }

    async fn inspect(&self, slot: Slot) -> Result<Inspection, FirewallError> {
        self.order(|reply| Order::Inspect { slot, reply }).await
    }

    async fn unload(&self) -> Result<(), FirewallError> {
        self.order(|reply| Order::Unload { reply }).await
    }
}
