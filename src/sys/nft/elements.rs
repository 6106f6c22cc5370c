//! Opening hosts' addresses in the sets of the table, as messages: pure, apart from the sending. By netlink and not by nft(8), since
//! tenants decide how often it happens.

use std::net::Ipv4Addr;

use netlink_packet_netfilter::nftables::{
    DataAttribute, ListAttribute, NfTablesMessage, SetElementAttribute, SetElementList, SetElementMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};

use super::render::{comment_of, set_name};
use crate::domain::firewall::{HostPattern, Step};

/// Length of an interface's name with its final zero (`IFNAMSIZ`); a concatenation has it in full.
const LINK_BYTES: usize = 16;
/// Type of the comment in what nft keeps beside an element (`NFTNL_UDATA_SET_ELEM_COMMENT`).
const COMMENT: u8 = 0;
/// In the header of a batch: which subsystem it is for (`NFNL_SUBSYS_NFTABLES`).
const SUBSYSTEM: u16 = 10;

/// The transaction that takes these steps for the tenant of a link, whose rules name `hosts`. Each step holds whether or not its value
/// is there: one that ends is taken away and put in again, since most kernels do not change how long one lasts.
pub(super) fn transaction(table: &str, link: &str, hosts: &[HostPattern], steps: &[Step]) -> Vec<NetfilterMessage> {
    let bound =
        |message| NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM), message);
    let mut messages = vec![bound(ControlMessage::BatchBegin)];
    for step in steps {
        let (host, address, duration) = match step {
            Step::Open { host, address, duration } => (host, *address, Some(*duration)),
            Step::Close { host, address } => (host, *address, None),
        };
        // A host that the rules name no more has no set.
        let Ok(place) = hosts.binary_search(host) else { continue };
        let list = |element| SetElementMessage {
            attributes: vec![
                SetElementList::Table(table.to_owned()),
                SetElementList::Set(set_name(place)),
                SetElementList::Elements(vec![ListAttribute::Element(element)]),
            ],
        };
        let key = || vec![SetElementAttribute::Key(DataAttribute::Value(key(link, address)))];
        let put = |ms: u64| {
            let mut element = key();
            element.push(SetElementAttribute::Timeout(ms));
            element.push(SetElementAttribute::UserData(comment(host)));
            NfTablesMessage::NewSetElement(list(element))
        };
        let ms = duration.map_or(1, |duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let taken = NfTablesMessage::DeleteSetElement(list(key()));
        let put_again = duration.map(|_| put(ms));
        let all = [put(ms), taken].into_iter().chain(put_again);
        messages.extend(all.map(inet));
    }
    messages.push(bound(ControlMessage::BatchEnd));
    messages
}

fn inet(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}

fn key(link: &str, address: Ipv4Addr) -> Vec<u8> {
    let mut bytes = link.as_bytes().to_vec();
    bytes.resize(LINK_BYTES, 0);
    bytes.extend(address.octets());
    bytes
}

fn comment(host: &HostPattern) -> Vec<u8> {
    let text = comment_of(host);
    // A length of one byte; the text is shorter than that.
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[COMMENT, length], text.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_transaction_has_both_its_ends_and_takes_each_step_whatever_is_there() {
        let hosts = ["a.test", "b.test"].map(|name| name.parse::<HostPattern>().unwrap());
        let address = Ipv4Addr::new(198, 51, 100, 1);
        let steps = [
            Step::Close { host: hosts[0].clone(), address },
            Step::Open { host: hosts[1].clone(), address, duration: Duration::from_secs(90) },
            Step::Open { host: "gone.test".parse().unwrap(), address, duration: Duration::from_secs(90) },
        ];
        let messages = transaction("lab", "lab-7", &hosts, &steps);
        assert_eq!(messages.len(), 2 + 2 + 3);
        let text = format!("{messages:?}");
        assert!(text.contains("hosts-0") && text.contains("hosts-1") && text.contains("Timeout(90000)"), "{text}");
    }

    #[test]
    fn a_key_is_the_links_name_in_full_and_the_address() {
        assert_eq!(key("lab-7", Ipv4Addr::new(1, 2, 3, 4)), b"lab-7\0\0\0\0\0\0\0\0\0\0\0\x01\x02\x03\x04");
        assert_eq!(comment(&"a.test".parse().unwrap()), b"\0\x07a.test\0");
    }
}
