//! Messages: what a tenant asks, what it is told. Pure.
//!
//! Everything is read and written anew, in both directions: a tenant's packet never reaches a name server as it came, nor the
//! other way round. EDNS options (a client's subnet, cookies) are of one hop and are not passed on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnetwork::Ipv4Network;

use crate::domain::Subnet;
use crate::domain::firewall::{METADATA, Told};
use crate::sys::gateway::is_public;

/// The longest question that is read, in bytes. A name has at most 255, and this leaves room for EDNS options.
pub(super) const QUESTION_BYTES_MAX: usize = 1_232;
/// The longest answer over UDP to whoever does not say more (RFC 1035, 4.2.1), in bytes.
const UDP_BYTES_MIN: u16 = 512;
/// The longest answer over UDP to anybody, and from a name server: fits any link without fragments (1280 less the headers of IPv6
/// and UDP), in bytes.
pub(super) const UDP_BYTES_MAX: u16 = 1_232;
/// The longest answer over TCP (RFC 1035, 4.2.2), in bytes.
pub(super) const TCP_BYTES_MAX: usize = 65_535;

/// Names that lead from the one that was asked for to its addresses, at most.
const ALIASES_MAX: usize = 16;

/// Length of a header, in bytes (RFC 1035, 4.1.1).
const HEADER_BYTES: usize = 12;
/// In the third byte of a header: this is an answer.
const IS_ANSWER: u8 = 0x80;
/// Of addresses that are made here, in seconds; they never change.
const LOCAL_TTL_S: u32 = 86_400;
/// Link-local addresses: the gateway, and the metadata services of clouds.
const LINK_LOCAL: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::new(169, 254, 0, 0), 16) {
    Some(network) => network,
    None => unreachable!(),
};

/// What came.
#[derive(Debug, PartialEq)]
pub(super) enum Packet {
    /// A question.
    Question(Box<Question>),
    /// Something else, and how it is answered.
    Refused(Box<Message>),
    /// What must not be answered: too short to say to whom, or itself an answer.
    Noise,
}

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Question {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    query: Query,
    edns: Option<Extension>,
}

/// What a tenant says by EDNS (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extension {
    udp_bytes_max: u16,
    wants_dnssec: bool,
}

/// Reads a packet of a tenant's.
pub(super) fn read(packet: &[u8]) -> Packet {
    let Some(&[high, low, flags, ..]) = packet.first_chunk::<HEADER_BYTES>() else { return Packet::Noise };
    if flags & IS_ANSWER != 0 {
        return Packet::Noise;
    }
    let (id, op_code) = (u16::from_be_bytes([high, low]), OpCode::from_u8((flags >> 3) & 0xf));
    let refused = |code| Packet::Refused(Box::new(Message::error_msg(id, op_code, code)));
    if op_code != OpCode::Query {
        return refused(ResponseCode::NotImp);
    }
    let Ok(message) = Message::from_vec(packet) else { return refused(ResponseCode::FormErr) };
    let others = message.answers.len() + message.authorities.len();
    let [query] = message.queries.as_slice() else { return refused(ResponseCode::FormErr) };
    if others > 0 || message.signature.is_some() {
        return refused(ResponseCode::FormErr);
    }
    let extension = |edns: &Edns| Extension {
        udp_bytes_max: edns.max_payload().clamp(UDP_BYTES_MIN, UDP_BYTES_MAX),
        wants_dnssec: edns.flags().dnssec_ok,
    };
    let question = Question {
        id,
        recursion_desired: message.metadata.recursion_desired,
        checking_disabled: message.metadata.checking_disabled,
        query: query.clone(),
        edns: message.edns.as_ref().map(extension),
    };
    let version = message.edns.as_ref().map_or(0, Edns::version);
    let code = match query.query_type {
        _ if version != 0 => ResponseCode::BADVERS,
        _ if query.query_class != DNSClass::IN => ResponseCode::Refused,
        // Zone transfers are no business of a tenant's, and ANY is asked for its long answers (RFC 8482).
        RecordType::AXFR | RecordType::IXFR => ResponseCode::Refused,
        RecordType::ANY => ResponseCode::NotImp,
        _ => return Packet::Question(Box::new(question)),
    };
    Packet::Refused(Box::new(question.reply(code)))
}

impl Question {
    /// One of the daemon's own.
    pub(super) fn own(name: Name, kind: RecordType) -> Self {
        let query = Query::query(name, kind);
        Self { id: 0, recursion_desired: true, checking_disabled: false, query, edns: None }
    }

    /// How many bytes an answer over UDP may have.
    pub(super) fn udp_bytes_max(&self) -> usize {
        self.edns.map_or(UDP_BYTES_MIN, |edns| edns.udp_bytes_max).into()
    }

    /// The same question, as a name server is asked it.
    pub(super) fn for_name_server(&self, id: u16) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(self.query.clone());
        message.set_edns(extension(UDP_BYTES_MAX, self.edns.is_some_and(|edns| edns.wants_dnssec)));
        message
    }

    /// Whether a message is a name server's answer to this question under that id.
    pub(super) fn is_answered_by(&self, message: &Message, id: u16) -> bool {
        message.metadata.id == id
            && message.metadata.message_type == MessageType::Response
            && message.queries.as_slice() == [self.query.clone()]
    }

    /// An answer without records.
    pub(super) fn reply(&self, code: ResponseCode) -> Message {
        let mut reply = Message::response(self.id, OpCode::Query);
        // Codes above 15 have their upper bits in EDNS.
        let sayable = code.high() == 0 || self.edns.is_some();
        reply.metadata.response_code = if sayable { code } else { ResponseCode::ServFail };
        reply.metadata.recursion_desired = self.recursion_desired;
        reply.metadata.checking_disabled = self.checking_disabled;
        reply.metadata.recursion_available = true;
        reply.add_query(self.query.clone());
        if let Some(edns) = self.edns {
            reply.set_edns(extension(UDP_BYTES_MAX, edns.wants_dnssec));
        }
        reply
    }

    /// A name server's answer, as this tenant gets it: without addresses that no tenant reaches.
    pub(super) fn pass_on(&self, answer: Message, subnet: Subnet) -> Message {
        let mut reply = self.reply(answer.metadata.response_code);
        let open = |record: &Record| !address_in(record).is_some_and(|address| is_closed(address, subnet));
        reply.answers = answer.answers.into_iter().filter(open).collect();
        reply.authorities = answer.authorities;
        reply.additionals = answer.additionals.into_iter().filter(open).collect();
        reply
    }

    /// What an answer, as it is passed on, tells about the host that was asked for: its addresses, be it under other names (CNAME). `None`
    /// where none of them is public, or where the name is none that a rule could have.
    pub(super) fn told(&self, reply: &Message) -> Option<Told> {
        let (mut name, mut ttl_s) = (&self.query.name, u32::MAX);
        for _ in 0..ALIASES_MAX {
            let alias =
                reply.answers.iter().filter(|record| record.name == *name).find_map(|record| match &record.data {
                    RData::CNAME(CNAME(target)) => Some((target, record.ttl)),
                    _ => None,
                });
            let Some((target, ttl)) = alias else { break };
            (name, ttl_s) = (target, ttl_s.min(ttl));
        }
        let mut addresses = Vec::new();
        for record in reply.answers.iter().filter(|record| record.name == *name) {
            if let RData::A(A(address)) = &record.data
                && is_public((*address).into())
            {
                addresses.push(*address);
                ttl_s = ttl_s.min(record.ttl);
            }
        }
        let asked = self.query.name.to_ascii().to_ascii_lowercase();
        let asked = asked.strip_suffix('.').unwrap_or(&asked);
        // A dot within a label would look like one between two.
        let is_plain = !asked.contains('\\');
        (is_plain && !addresses.is_empty()).then(|| Told { name: asked.to_owned(), addresses, ttl_s })
    }

    /// The answer to a question that nobody outside is to be asked: names of the tenant itself (RFC 6761, 6.3), and who is behind an
    /// address of a tenant or of a link.
    pub(super) fn answer_here(&self, subnet: Subnet) -> Option<Message> {
        let name = &self.query.name;
        if name.is_localhost() {
            let mut reply = self.reply(ResponseCode::NoError);
            let address = match self.query.query_type {
                RecordType::A => Some(RData::A(A(Ipv4Addr::LOCALHOST))),
                RecordType::AAAA => Some(RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))),
                _ => None,
            };
            reply.answers.extend(address.map(|data| Record::from_rdata(name.clone(), LOCAL_TTL_S, data)));
            return Some(reply);
        }
        let behind = name.parse_arpa_name().ok()?;
        let IpAddr::V4(address) = behind.addr() else { return None };
        let within = |network: Ipv4Network| network.contains(address) && behind.prefix_len() >= network.prefix();
        (within(LINK_LOCAL) || within(subnet.network())).then(|| self.reply(ResponseCode::NXDomain))
    }
}

fn extension(udp_bytes_max: u16, wants_dnssec: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(udp_bytes_max);
    edns.set_dnssec_ok(wants_dnssec);
    edns
}

fn address_in(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(A(address)) => Some((*address).into()),
        RData::AAAA(AAAA(address)) => Some((*address).into()),
        _ => None,
    }
}

/// Whether an address is one that the firewall closes to every tenant: other tenants, and a cloud's metadata service. A public name
/// that leads there is an attack (DNS rebinding) or a slip. Private networks are not among them: names of the operator's own
/// lead there, and whether a tenant may follow them the firewall's rules say.
pub(super) fn is_closed(address: IpAddr, subnet: Subnet) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            LINK_LOCAL.contains(address) || METADATA.contains(&address) || subnet.network().contains(address)
        }
        IpAddr::V6(_) => false,
    }
}

/// The bytes of a message, at most so many: one that is longer says so and comes without records, so that the tenant asks by TCP.
/// `None` where it cannot be written at all.
pub(super) fn encode(message: &Message, bytes_max: usize) -> Option<Vec<u8>> {
    match message.to_vec() {
        Ok(bytes) if bytes.len() <= bytes_max => Some(bytes),
        _ => message.truncate().to_vec().ok().filter(|bytes| bytes.len() <= bytes_max),
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
