//! Netlink requests as values: what is asked of the kernel, apart from the asking.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use rtnetlink::packet_core::{
    DefaultNla, NLA_F_NESTED, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecUnspec, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage, Stats64,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::domain::Slot;
use crate::domain::slot::GATEWAY;

/// What the container's end is called inside.
pub(super) const INSIDE_NAME: &str = "eth0";

/// Index of the loopback device: the first device of every network namespace (`LOOPBACK_IFINDEX`, net/flow.h).
const LOOPBACK_INDEX: u32 = 1;

/// Length of a prefix that is one address.
const HOST_PREFIX: u8 = 32;

/// `IFLA_INET_CONF` of linux/if_link.h.
const IFLA_INET_CONF: u16 = 1;

/// Settings of the host's end, with the indexes of `enum IPV4_DEVCONF_*` in linux/ip.h: they are what
/// `net.ipv4.conf.<link>.*` would be written with.
const HOST_SETTINGS: [(u16, u32); 9] = [
    (1, 1),  // forwarding
    (3, 0),  // proxy_arp
    (4, 0),  // accept_redirects
    (5, 0),  // secure_redirects
    (6, 0),  // send_redirects
    (8, 1),  // rp_filter: strict, a source that is not routed to this link is dropped
    (11, 0), // log_martians: a tenant shall not fill the host's log
    (19, 8), // arp_ignore: answer no ARP request (the link has ARP off as well)
    (26, 0), // route_localnet: 127.0.0.0/8 of the host is not reachable
];

/// The hardware addresses of a slot's two ends, fixed so that neither end has to ask for the other's: locally
/// administered (`02`), then "tn", the end, the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Macs {
    pub(super) host: [u8; 6],
    pub(super) tenant: [u8; 6],
}

impl Macs {
    pub(super) fn of(slot: Slot) -> Self {
        let [high, low] = slot.0.to_be_bytes();
        Self { host: [0x02, b't', b'n', 0, high, low], tenant: [0x02, b't', b'n', 1, high, low] }
    }
}

/// A request, and the words that name it in an error.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) action: &'static str,
    pub(super) message: NetlinkMessage<RouteNetlinkMessage>,
}

pub(super) fn request(action: &'static str, flags: u16, message: RouteNetlinkMessage) -> Request {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    Request { action, message }
}

/// The pair: the host's end down and without ARP, its peer inside `netns`, down too.
///
/// Without ARP on the host's end the tenant can neither ask nor tell it anything: both ends have a permanent
/// neighbour entry instead.
pub(super) fn make_pair(link: &str, macs: Macs, netns: RawFd) -> Request {
    let peer = LinkMessageBuilder::<LinkUnspec>::default()
        .name(INSIDE_NAME)
        .address(macs.tenant.to_vec())
        .setns_by_fd(netns)
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(link)
        .address(macs.host.to_vec())
        .arp(false)
        .multicast(false)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    request("make the veth pair", NLM_F_CREATE | NLM_F_EXCL, RouteNetlinkMessage::NewLink(pair))
}

/// The settings of the host's end, in one request where sysctl would take nine.
pub(super) fn settings(link: &str) -> Request {
    let mut values = Vec::with_capacity(HOST_SETTINGS.len() * 8);
    for (index, value) in HOST_SETTINGS {
        // One attribute of a header (length, type) and a u32; no padding is needed.
        values.extend_from_slice(&8u16.to_ne_bytes());
        values.extend_from_slice(&index.to_ne_bytes());
        values.extend_from_slice(&value.to_ne_bytes());
    }
    // The crate's own type leaves zeros out, and zeros are what matters here.
    let inet = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, values));
    let message = LinkUnspec::new_with_name(link)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![inet])]))
        .build();
    request("set the IPv4 settings", 0, RouteNetlinkMessage::SetLink(message))
}

/// Takes a link up by its name.
pub(super) fn up(link: &str) -> Request {
    let message = LinkUnspec::new_with_name(link).up().build();
    request("take up the host's end", 0, RouteNetlinkMessage::SetLink(message))
}

/// Takes the loopback device up.
pub(super) fn loopback_up() -> Request {
    up_inside("take up the loopback device behind", LOOPBACK_INDEX)
}

/// Takes a link up by its index.
pub(super) fn up_inside(action: &'static str, index: u32) -> Request {
    request(action, 0, RouteNetlinkMessage::SetLink(LinkUnspec::new_with_index(index).up().build()))
}

/// Asks for a link by its name.
pub(super) fn get(link: &str) -> Request {
    request("look up the host's end", 0, RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(link).build()))
}

/// Asks for the peer of a link, in the namespace that the link's own description numbers.
///
/// The answer is thrown away; the question is what counts. When the host's end comes up its peer has a carrier at
/// once, but sends nothing until a worker of the kernel's (linkwatch) has noticed. Mostly that is sooner than the first
/// packet; when it is not, the first answer of the tenant is lost and a second goes by until TCP tries again. The
/// kernel (since 6.8) lets the worker finish before it answers this question.
pub(super) fn get_peer(index: u32, netns_id: i32) -> Request {
    let message = LinkUnspec::new_with_index(index).append_extra_attribute(LinkAttribute::IfNetnsId(netns_id)).build();
    request("look up the container's end of", 0, RouteNetlinkMessage::GetLink(message))
}

/// Asks for all links.
pub(super) fn list() -> Request {
    request("list the links", NLM_F_DUMP, RouteNetlinkMessage::GetLink(LinkMessage::default()))
}

/// Removes a link by its name.
pub(super) fn delete(link: &str) -> Request {
    let message = LinkUnspec::new_with_name(link).build();
    request("remove the veth pair", 0, RouteNetlinkMessage::DelLink(message))
}

/// Gives the link an address of its own, without a network around it.
pub(super) fn address(action: &'static str, index: u32, address: Ipv4Addr) -> Request {
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, HOST_PREFIX).build();
    request(action, NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewAddress(message))
}

/// A neighbour that is never asked for and never forgotten.
pub(super) fn neighbour(action: &'static str, index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = rtnetlink::packet_route::AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
    request(action, NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewNeighbour(message))
}

/// Inside: everything goes to the gateway, which is on the link though no network says so.
pub(super) fn default_route(index: u32) -> Request {
    let message = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(GATEWAY).onlink().build();
    request("add the default route behind", NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewRoute(message))
}

/// Outside: the container's address is behind its link, and what this host sends there comes from the gateway.
pub(super) fn tenant_route(index: u32, address: Ipv4Addr) -> Request {
    let message = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(index)
        .destination_prefix(address, HOST_PREFIX)
        .pref_source(GATEWAY)
        .scope(RouteScope::Link)
        .build();
    request("add the route to", NLM_F_CREATE | NLM_F_REPLACE, RouteNetlinkMessage::NewRoute(message))
}

/// What is read out of the kernel's description of a link.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct LinkFacts {
    pub(super) index: u32,
    pub(super) peer_index: Option<u32>,
    pub(super) peer_netns_id: Option<i32>,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
    pub(super) stats: Option<Stats64>,
}

impl LinkFacts {
    pub(super) fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewLink(message) = message else { return None };
        let mut facts = Self { index: message.header.index, ..Self::default() };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => facts.name = name,
                LinkAttribute::Address(mac) => facts.mac = mac,
                LinkAttribute::Link(index) => facts.peer_index = Some(index),
                LinkAttribute::LinkNetNsId(id) => facts.peer_netns_id = Some(id),
                LinkAttribute::Stats64(stats) => facts.stats = Some(stats),
                _ => {}
            }
        }
        Some(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_local_unicast_and_distinct() {
        let (one, other) = (Macs::of(Slot(1)), Macs::of(Slot(256)));
        let all = [one.host, one.tenant, other.host, other.tenant];
        for (index, mac) in all.iter().enumerate() {
            assert_eq!(mac[0] & 0b11, 0b10, "locally administered, not multicast");
            assert!(!all[..index].contains(mac));
        }
    }

    #[test]
    fn the_settings_are_one_attribute_each_with_zeros_kept() {
        let mut message = settings("tenantry-1").message;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let send_redirects_off = [8, 0, 6, 0, 0, 0, 0, 0];
        let strict = [8, 0, 8, 0, 1, 0, 0, 0];
        for wanted in [send_redirects_off, strict] {
            assert!(bytes.windows(8).any(|window| window == wanted), "{wanted:?}");
        }
    }
}
