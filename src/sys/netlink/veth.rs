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
use super::wire::{Inside, REQUEST_MS_MAX, Wire, WireError};
use super::{LinkError, LinkUsage, Links};
use crate::domain::slot::GATEWAY;
use crate::domain::{Instance, Slot, Subnet};

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
        let ask = |request: Request| async move {
            let action = request.action;
            inside.ask(request).await.map_err(|error| named(action, link, error))
        };
        try_join_all(requests.map(ask)).await.map(drop)
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

    async fn attach(&self, slot: Slot, netns: &Path) -> Result<(), LinkError> {
        self.address(slot)?;
        let link = slot.link_name(&self.instance);
        let failed = |(action, source)| LinkError::Io { action, path: netns.to_owned(), source };
        let file = File::open(netns).map_err(|error| failed(("open", error)))?;
        // First, so that the new device never has IPv6.
        let inside = self.wire.enter(netns, &file).await.map_err(failed)?;
        let make = self.host(&link, message::make_pair(&link, Macs::of(slot), file.as_raw_fd()));
        let (_, facts) = tokio::try_join!(make, self.find(&link))?;
        let Some(peer) = facts.peer_index else { return Err(LinkError::Missing { link }) };
        let outside = self.configure_host(&link, slot, facts.index);
        tokio::try_join!(outside, self.configure_inside(&link, &inside, slot, peer)).map(drop)
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

fn named(action: &'static str, link: &str, error: WireError) -> LinkError {
    let link = link.to_owned();
    match error {
        WireError::Kernel(source) => LinkError::Netlink { action, link, source },
        WireError::Socket(source) => LinkError::Io { action, path: link.into(), source },
        WireError::Timeout => LinkError::Timeout { action, link, waited_ms: REQUEST_MS_MAX },
    }
}

/// "No such device" as an answer: there is none.
fn absent_is_empty(
    answers: Result<Vec<RouteNetlinkMessage>, LinkError>,
) -> Result<Vec<RouteNetlinkMessage>, LinkError> {
    match answers {
        Err(LinkError::Netlink { source: Error::NetlinkError(error), .. })
            if error.raw_code() == -nix::libc::ENODEV =>
        {
            Ok(Vec::new())
        }
        other => other,
    }
}
