//! [`Links`] as the kernel keeps them: veth pairs, by rtnetlink.
//!
//! Requests that do not need each other's answers are sent together, so that a container's link costs three rounds
//! to attach (make the pair and look it up; the host's end; the inside) and two to take up. The driver remembers
//! nothing: names follow from slots, and indexes are asked for. Removing a pair waits for the kernel's readers (RCU, 16 ms
//! on the machine this was measured on), so removals go past the queue of the other requests.

use std::fs::File;
use std::io;
use std::path::Path;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use rtnetlink::Error;
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::message::{self, LinkFacts, Macs, Request};
use super::shape::{self, Bucket, Found};
use super::wire::{Inside, REQUEST_MS_MAX, Wire, WireError};
use super::{LinkError, LinkUsage, Links, Rates};
use crate::domain::slot::GATEWAY;
use crate::domain::{BytesPerSecond, Instance, Slot, Subnet};

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

/// The switch that makes this host a router for its tenants.
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// The links of one instance, in the network namespace in which this was made.
#[derive(Debug)]
pub struct VethLinks {
    instance: Instance,
    subnet: Subnet,
    wire: Wire,
}

impl VethLinks {
    /// Opens a netlink socket in the calling thread's network namespace.
    pub fn new(instance: Instance, subnet: Subnet) -> io::Result<Self> {
        Ok(Self { instance, subnet, wire: Wire::open()? })
    }

    fn address(&self, slot: Slot) -> Result<Ipv4Addr, LinkError> {
        self.subnet.address(slot).ok_or(LinkError::NoAddress(slot))
    }

    async fn host(&self, link: &str, request: Request) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
        let action = request.action;
        self.wire.ask(request).await.map_err(|error| named(action, link, error))
    }

    /// The link by its name; `None` where there is none.
    async fn look_up(&self, link: &str) -> Result<Option<LinkFacts>, LinkError> {
        let answers = absent_is_empty(self.host(link, message::get(link)).await)?;
        Ok(answers.into_iter().find_map(LinkFacts::read))
    }

    /// The link by its name, which must be there.
    async fn find(&self, link: &str) -> Result<LinkFacts, LinkError> {
        let gone = || LinkError::Missing { link: link.to_owned() };
        self.look_up(link).await?.ok_or_else(gone)
    }

    async fn configure_inside(&self, link: &str, inside: &Inside, slot: Slot, index: u32) -> Result<(), LinkError> {
        let requests = [
            message::loopback_up(),
            message::up_inside("take up the container's end of", index),
            message::address("add the address behind", index, self.address(slot)?),
            message::neighbour("add the gateway's neighbour entry behind", index, GATEWAY, Macs::of(slot).host),
            message::default_route(index),
        ];
        try_join_all(requests.map(|request| ask_inside(link, inside, request))).await.map(drop)
    }

    /// A socket inside the namespace at a path.
    async fn enter(&self, netns: &Path) -> Result<(File, Inside), LinkError> {
        let failed = |(action, source)| LinkError::Io { action, path: netns.to_owned(), source };
        let file = File::open(netns).map_err(|error| failed(("open", error)))?;
        let inside = self.wire.enter(netns, &file).await.map_err(failed)?;
        Ok((file, inside))
    }

    /// Sets both rates; `index` and `peer` are the two ends'.
    async fn limit(
        &self,
        link: &str,
        inside: &Inside,
        (index, peer): (u32, u32),
        rates: Rates,
    ) -> Result<(), LinkError> {
        let named_limit = |limit| move |source| LinkError::Rate { limit, source: Box::new(source) };
        let rx = limit_end(link, index, rates.rx, |request| self.host(link, request));
        let tx = limit_end(link, peer, rates.tx, |request| ask_inside(link, inside, request));
        let (rx, tx) = tokio::join!(rx, tx);
        rx.map_err(named_limit("net_rx_bps")).and(tx.map_err(named_limit("net_tx_bps")))
    }

    async fn configure_host(&self, link: &str, slot: Slot, index: u32) -> Result<(), LinkError> {
        let requests = [
            message::settings(link),
            message::address("add the gateway's address to", index, GATEWAY),
            message::neighbour("add the neighbour entry to", index, self.address(slot)?, Macs::of(slot).tenant),
        ];
        let ipv6_off = async {
            let path = || Path::new("/proc/sys/net/ipv6/conf").join(link).join("disable_ipv6");
            let failed = |source| LinkError::Io { action: "switch IPv6 off by", path: path(), source };
            self.wire.disable_ipv6(link).await.map_err(failed)
        };
        let rest = try_join_all(requests.map(|request| self.host(link, request)));
        tokio::try_join!(ipv6_off, rest).map(drop)
    }
}

#[async_trait]
impl Links for VethLinks {
    async fn prepare_host(&self) -> Result<(), LinkError> {
        let failed = |source| LinkError::Io { action: "switch forwarding on by", path: FORWARDING.into(), source };
        self.wire.write_setting(FORWARDING, "1").await.map_err(failed)
    }

    async fn attach(&self, slot: Slot, netns: &Path, rates: Rates) -> Result<(), LinkError> {
        self.address(slot)?;
        let link = slot.link_name(&self.instance);
        // First, so that the new device never has IPv6.
        let (file, inside) = self.enter(netns).await?;
        let make = self.host(&link, message::make_pair(&link, Macs::of(slot), file.as_raw_fd()));
        let (_, facts) = tokio::try_join!(make, self.find(&link))?;
        let Some(peer) = facts.peer_index else { return Err(LinkError::Missing { link }) };
        let outside = self.configure_host(&link, slot, facts.index);
        tokio::try_join!(outside, self.configure_inside(&link, &inside, slot, peer))?;
        if rates == Rates::default() {
            // A new pair has no limits.
            return Ok(());
        }
        self.limit(&link, &inside, (facts.index, peer), rates).await
    }

    async fn set_rates(&self, slot: Slot, netns: &Path, rates: Rates) -> Result<(), LinkError> {
        let link = slot.link_name(&self.instance);
        let (_file, inside) = self.enter(netns).await?;
        let (facts, other) =
            tokio::try_join!(self.find(&link), ask_inside(&link, &inside, message::get(message::INSIDE_NAME)))?;
        let other = other.into_iter().find_map(LinkFacts::read).filter(|other| other.mac == Macs::of(slot).tenant);
        match other {
            Some(other) if Some(other.index) == facts.peer_index => {
                self.limit(&link, &inside, (facts.index, other.index), rates).await
            }
            _ => Err(LinkError::Elsewhere { link, path: netns.to_owned() }),
        }
    }

    async fn up(&self, slot: Slot) -> Result<(), LinkError> {
        let address = self.address(slot)?;
        let link = slot.link_name(&self.instance);
        let (_, facts) = tokio::try_join!(self.host(&link, message::up(&link)), self.find(&link))?;
        let route = self.host(&link, message::tenant_route(facts.index, address));
        let settle = async {
            match (facts.peer_index, facts.peer_netns_id) {
                (Some(index), Some(id)) => self.host(&link, message::get_peer(index, id)).await.map(drop),
                _ => Ok(()),
            }
        };
        tokio::try_join!(route, settle).map(drop)
    }

    async fn detach(&self, slot: Slot) -> Result<(), LinkError> {
        let link = slot.link_name(&self.instance);
        let request = message::delete(&link);
        let action = request.action;
        let outcome = self.wire.ask_apart(request).await.map_err(|error| named(action, &link, error));
        absent_is_empty(outcome.map(|()| Vec::new())).map(drop)
    }

    async fn usage(&self, slot: Slot) -> Result<Option<LinkUsage>, LinkError> {
        let facts = self.look_up(&slot.link_name(&self.instance)).await?;
        // What the host's end sends, the tenant receives.
        let usage = facts.and_then(|facts| facts.stats).map(|stats| LinkUsage {
            rx_bytes: stats.tx_bytes,
            tx_bytes: stats.rx_bytes,
            rx_packets: stats.tx_packets,
            tx_packets: stats.rx_packets,
        });
        Ok(usage)
    }

    async fn list(&self) -> Result<Vec<Slot>, LinkError> {
        let all = format!("{}-*", self.instance);
        let answers = self.host(&all, message::list()).await?;
        let names = answers.into_iter().filter_map(LinkFacts::read).map(|facts| facts.name);
        let mut slots: Vec<_> = names.filter_map(|name| Slot::from_link_name(&self.instance, &name)).collect();
        slots.sort_unstable();
        Ok(slots)
    }
}

async fn ask_inside(link: &str, inside: &Inside, request: Request) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
    let action = request.action;
    inside.ask(request).await.map_err(|error| named(action, link, error))
}

/// Sets, or lifts, the rate of what one end sends, and reads it back.
async fn limit_end<A>(
    link: &str,
    index: u32,
    rate: Option<BytesPerSecond>,
    ask: impl Fn(Request) -> A,
) -> Result<(), LinkError>
where
    A: Future<Output = Result<Vec<RouteNetlinkMessage>, LinkError>>,
{
    let bucket = rate.map(Bucket::of);
    match bucket {
        Some(bucket) => drop(ask(shape::set(index, bucket)).await?),
        None => drop(no_queue_is_empty(ask(shape::clear(index)).await)?),
    }
    let found: Option<Found> = no_queue_is_empty(ask(shape::get(index)).await)?.iter().find_map(shape::read);
    let holds = match (bucket, found) {
        (Some(bucket), Some(found)) => bucket.is(found),
        (bucket, found) => bucket.is_none() && found.is_none(),
    };
    if holds {
        return Ok(());
    }
    let text = |rate: Option<u64>| rate.map_or("no limit".to_owned(), |rate| rate.to_string());
    let (wanted, found) = (text(bucket.map(|bucket| bucket.rate)), text(found.map(|found| found.rate)));
    Err(LinkError::NotTaken { link: link.to_owned(), wanted, found })
}

fn named(action: &'static str, link: &str, error: WireError) -> LinkError {
    let link = link.to_owned();
    match error {
        WireError::Kernel(source) => LinkError::Netlink { action, link, source },
        WireError::Socket(source) => LinkError::Io { action, path: link.into(), source },
        WireError::Timeout => LinkError::Timeout { action, link, waited_ms: REQUEST_MS_MAX },
    }
}

type Answers = Result<Vec<RouteNetlinkMessage>, LinkError>;

/// "No such device" as an answer: there is none.
fn absent_is_empty(answers: Answers) -> Answers {
    empty_where(answers, &[nix::libc::ENODEV])
}

/// The kernel's own default queue cannot be removed (ENOENT), and is not spoken of when asked for (EINVAL).
fn no_queue_is_empty(answers: Answers) -> Answers {
    empty_where(answers, &[nix::libc::ENOENT, nix::libc::EINVAL])
}

fn empty_where(answers: Answers, errnos: &[i32]) -> Answers {
    match answers {
        Err(LinkError::Netlink { source: Error::NetlinkError(error), .. }) if errnos.contains(&-error.raw_code()) => {
            Ok(Vec::new())
        }
        other => other,
    }
}
