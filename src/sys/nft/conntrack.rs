//! The kernel's table of flows, as messages: pure, apart from the asking.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, ConntrackMessageType, IPTuple, ProtoTuple, Protocol, Status, Tuple,
};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use rtnetlink::packet_core::{DefaultNla, NLA_F_NESTED, Nla};

use super::flows::{Flow, Way};
use crate::domain::firewall::Payload;

/// Attributes of linux/netfilter/nfnetlink_conntrack.h that the crate does not name.
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
const CTA_PROTO_ICMP_TYPE: u16 = 5;
const CTA_PROTO_ICMP_CODE: u16 = 6;
/// In a filter's flags: the source address has to be the one that is given.
const FILTER_BY_SOURCE: u32 = 1;
/// Attributes' types without the bits for their form.
const TYPE_MASK: u16 = 0x3fff;

/// An entry of the table: what it says, and what it is deleted by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) flow: Flow,
    key: Vec<ConntrackAttribute>,
}

/// Which entries are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// All of IPv4.
    All,
    /// Those that an address opened.
    OpenedBy(Ipv4Addr),
    /// Those that an address answers.
    AnsweredBy(Ipv4Addr),
}

fn message(inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0), inner)
}

/// Asks for entries. The kernel does the sieving (since 5.8): it walks its whole table either way, but copies out a few.
pub(super) fn list(wanted: Wanted) -> NetfilterMessage {
    let source = |address: Ipv4Addr| vec![Tuple::Ip(vec![IPTuple::SourceAddress(IpAddr::V4(address))])];
    let (tuple, opened, answered) = match wanted {
        Wanted::All => return message(ConntrackMessage::Get(Vec::new())),
        Wanted::OpenedBy(address) => (ConntrackAttribute::CtaTupleOrig(source(address)), FILTER_BY_SOURCE, 0),
        Wanted::AnsweredBy(address) => (ConntrackAttribute::CtaTupleReply(source(address)), 0, FILTER_BY_SOURCE),
    };
    // The crate's attribute for what it does not know is never marked as nested, which the kernel insists on.
    let attributes = vec![nested(&tuple), filter(opened, answered)];
    message(ConntrackMessage::Other { message_type: ConntrackMessageType::Get.into(), attributes })
}

fn nested(attribute: &ConntrackAttribute) -> DefaultNla {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    DefaultNla::new(attribute.kind() | NLA_F_NESTED, value)
}

fn filter(opened: u32, answered: u32) -> DefaultNla {
    let mut flags = Vec::new();
    for (kind, value) in [(CTA_FILTER_ORIG_FLAGS, opened), (CTA_FILTER_REPLY_FLAGS, answered)] {
        // An attribute of a header (length, type) and a u32; no padding is needed.
        flags.extend_from_slice(&8u16.to_ne_bytes());
        flags.extend_from_slice(&kind.to_ne_bytes());
        flags.extend_from_slice(&value.to_ne_bytes());
    }
    DefaultNla::new(CTA_FILTER | NLA_F_NESTED, flags)
}

/// Deletes an entry, and no other one that may have taken its place since.
pub(super) fn delete(entry: &Entry) -> NetfilterMessage {
    message(ConntrackMessage::Delete(entry.key.clone()))
}

/// Reads an answer; `None` for what is no flow between two IPv4 addresses.
pub(super) fn read(answer: NetfilterMessage) -> Option<Entry> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = answer.inner else { return None };
    let (mut opened, mut answered, mut status) = (None, None, Status::empty());
    let mut key = Vec::new();
    for attribute in attributes {
        match &attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => {
                opened = way(tuple);
                key.push(attribute);
            }
            ConntrackAttribute::CtaTupleReply(tuple) => answered = way(tuple),
            ConntrackAttribute::CtaStatus(bits) => status = *bits,
            ConntrackAttribute::Other(other) if matches!(other.kind() & TYPE_MASK, CTA_ID | CTA_ZONE) => {
                key.push(attribute);
            }
            _ => {}
        }
    }
    let flow = Flow {
        opened: opened?,
        answered: answered?,
        masqueraded: status.contains(Status::SrcNat),
        redirected: status.contains(Status::DstNat),
    };
    Some(Entry { flow, key })
}

fn way(tuple: &[Tuple]) -> Option<Way> {
    let (mut from, mut to, mut payload) = (None, None, None);
    for part in tuple {
        match part {
            Tuple::Ip(addresses) => {
                for address in addresses {
                    match address {
                        IPTuple::SourceAddress(IpAddr::V4(address)) => from = Some(*address),
                        IPTuple::DestinationAddress(IpAddr::V4(address)) => to = Some(*address),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => payload = payload_of(parts),
            _ => {}
        }
    }
    Some(Way { from: from?, to: to?, payload: payload? })
}

fn payload_of(parts: &[ProtoTuple]) -> Option<Payload> {
    let (mut protocol, mut source, mut destination, mut kind, mut code) = (None, 0, 0, 0, 0);
    for part in parts {
        match part {
            ProtoTuple::Protocol(number) => protocol = Some(*number),
            ProtoTuple::SourcePort(port) => source = *port,
            ProtoTuple::DestinationPort(port) => destination = *port,
            ProtoTuple::Other(other) if other.kind() & TYPE_MASK == CTA_PROTO_ICMP_TYPE => kind = byte(other),
            ProtoTuple::Other(other) if other.kind() & TYPE_MASK == CTA_PROTO_ICMP_CODE => code = byte(other),
            _ => {}
        }
    }
    Some(match protocol? {
        Protocol::Tcp => Payload::Tcp { source, destination },
        Protocol::Udp => Payload::Udp { source, destination },
        Protocol::Icmp => Payload::Icmp { kind, code },
        other => Payload::Other(other.into()),
    })
}

fn byte(attribute: &DefaultNla) -> u8 {
    let mut value = vec![0; attribute.value_len()];
    attribute.emit_value(&mut value);
    value.first().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 7);
    const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
    const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    fn tuple(from: Ipv4Addr, to: Ipv4Addr, protocol: Vec<ProtoTuple>) -> Vec<Tuple> {
        let addresses = vec![IPTuple::SourceAddress(from.into()), IPTuple::DestinationAddress(to.into())];
        vec![Tuple::Ip(addresses), Tuple::Proto(protocol)]
    }

    fn answer(attributes: Vec<ConntrackAttribute>) -> NetfilterMessage {
        message(ConntrackMessage::New(attributes))
    }

    #[test]
    fn an_entry_is_read_and_deleted_by_its_key_alone() {
        let ports = |from, to| {
            vec![ProtoTuple::Protocol(Protocol::Tcp), ProtoTuple::SourcePort(from), ProtoTuple::DestinationPort(to)]
        };
        let opened = ConntrackAttribute::CtaTupleOrig(tuple(TENANT, SERVER, ports(40_000, 443)));
        let id = ConntrackAttribute::Other(DefaultNla::new(CTA_ID, vec![1, 2, 3, 4]));
        let entry = read(answer(vec![
            opened.clone(),
            ConntrackAttribute::CtaTupleReply(tuple(SERVER, HOST, ports(443, 50_000))),
            ConntrackAttribute::CtaStatus(Status::SrcNat | Status::Confirmed),
            ConntrackAttribute::CtaTimeout(9),
            id.clone(),
        ]))
        .unwrap();
        let payload = Payload::Tcp { source: 443, destination: 50_000 };
        assert_eq!(entry.flow.answered, Way { from: SERVER, to: HOST, payload });
        assert_eq!(entry.flow.opened.payload, Payload::Tcp { source: 40_000, destination: 443 });
        assert!(entry.flow.masqueraded && !entry.flow.redirected);
        assert_eq!(delete(&entry), message(ConntrackMessage::Delete(vec![opened, id])));
    }

    #[test]
    fn an_echo_is_read_with_its_type() {
        let echo = |kind| {
            let part = |kind, value| ProtoTuple::Other(DefaultNla::new(kind, vec![value]));
            vec![ProtoTuple::Protocol(Protocol::Icmp), part(CTA_PROTO_ICMP_TYPE, kind), part(CTA_PROTO_ICMP_CODE, 0)]
        };
        let entry = read(answer(vec![
            ConntrackAttribute::CtaTupleOrig(tuple(TENANT, SERVER, echo(8))),
            ConntrackAttribute::CtaTupleReply(tuple(SERVER, TENANT, echo(0))),
        ]));
        assert_eq!(entry.unwrap().flow.opened.payload, Payload::Icmp { kind: 8, code: 0 });
    }

    #[test]
    fn what_is_no_flow_is_no_entry() {
        assert_eq!(read(answer(vec![])), None);
        assert_eq!(read(list(Wanted::All)), None);
    }
}
