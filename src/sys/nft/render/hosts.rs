//! Hosts by their names: sets of what is open, which the daemon fills as its resolver answers.
//!
//! ```text
//!  hosts-0   for each tenant, interface . address of the first host that its rules name
//!  hosts-1   …of the second; and so on: as many sets as one tenant's rules name hosts
//! ```
//!
//! So there are few sets however many tenants there are, and a tenant's rule says in its own place which one it asks. They hold single
//! values, which nft, unlike ranges, does not read before it changes something else: with 20 000 in them one more tenant takes no longer.
//! Each value ends by itself, also where no daemon lives to take it away.

use std::net::Ipv4Addr;
use std::time::Duration;

use nftables::expr::{Expression, MetaKey, NamedExpression};
use nftables::schema::{NfListObject, Set, SetFlag, SetType, SetTypeValue};
use nftables::stmt::{Operator, Statement};
use nftables::types::NfFamily;
use serde_json::{Value, json};

use super::words::{matches, meta, payload, text};
use super::{Batch, Renderer};
use crate::domain::Slot;
use crate::domain::firewall::{Given, HostPattern, Ruleset};

/// Values of one set: some dozens for each tenant of the largest subnet.
const SET_ELEMENTS_MAX: u32 = 1 << 21;
/// Length of a comment that nft keeps of an element (`NFTNL_UDATA_COMMENT_MAXLEN`, with its final zero). A longer name is cut.
const COMMENT_BYTES_MAX: usize = 127;
const SET_PREFIX: &str = "hosts-";

/// What a set holds for one tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sys::nft) struct Opening {
    /// The host's place among those that the rules name, and so the set.
    pub(in crate::sys::nft) place: usize,
    pub(in crate::sys::nft) address: Ipv4Addr,
    pub(in crate::sys::nft) host: HostPattern,
    /// How much longer.
    pub(in crate::sys::nft) left: Duration,
}

/// What becomes of a tenant's values when its rules become others: those of hosts that have another place now, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::sys::nft) struct Moves {
    pub(in crate::sys::nft) gone: Vec<Opening>,
    pub(in crate::sys::nft) come: Vec<Opening>,
}

impl Moves {
    /// From rules that name these hosts to rules that name those.
    pub(in crate::sys::nft) fn between(
        from: &[HostPattern],
        to: &[HostPattern],
        given: &Given,
        now: std::time::Instant,
    ) -> Self {
        if from == to {
            return Self::default();
        }
        let openings = |hosts: &[HostPattern]| -> Vec<Opening> {
            let opening = |(host, address, left): (&HostPattern, Ipv4Addr, Duration)| {
                let place = hosts.binary_search(host).ok()?;
                Some(Opening { place, address, host: host.clone(), left })
            };
            given.open(now).filter_map(opening).collect()
        };
        let (gone, come) = (openings(from), openings(to));
        let only =
            |these: &[Opening], those: &[Opening]| these.iter().filter(|one| !those.contains(one)).cloned().collect();
        Self { gone: only(&gone, &come), come: only(&come, &gone) }
    }
}

impl Renderer {
    /// The sets that these rules ask, there or not.
    pub(super) fn host_sets(&self, batch: &mut Batch, rules: &Ruleset) {
        for place in 0..rules.hosts().len() {
            batch.add(NfListObject::Set(Box::new(Set {
                family: NfFamily::INet,
                table: self.table().to_owned().into(),
                name: set_name(place).into(),
                set_type: SetTypeValue::Concatenated(vec![SetType::Ifname, SetType::Ipv4Addr].into()),
                flags: Some([SetFlag::Timeout].into()),
                size: Some(SET_ELEMENTS_MAX),
                ..Set::default()
            })));
        }
    }

    /// Takes values away, there or not, then puts others in.
    pub(super) fn host_moves(&self, batch: &mut Batch, slot: Slot, moves: &Moves) {
        let link = slot.link_name(&self.instance);
        let element = |opening: &Opening| {
            // One that ends within the second is as good as any: nft counts in seconds.
            let timeout = opening.left.as_secs().max(1);
            let value = json!({ "concat": [link, opening.address.to_string()] });
            let value = json!({ "elem": { "val": value, "timeout": timeout, "comment": comment_of(&opening.host) } });
            json!({ "family": "inet", "table": self.table(), "name": set_name(opening.place), "elem": [value] })
        };
        for gone in &moves.gone {
            // Adding what may have ended makes the deletion succeed.
            batch.raw(json!({ "add": { "element": element(gone) } }));
            batch.raw(json!({ "delete": { "element": element(gone) } }));
        }
        for come in &moves.come {
            batch.raw(json!({ "add": { "element": element(come) } }));
        }
    }
}

/// What the set of the host in this place is called.
pub(in crate::sys::nft) fn set_name(place: usize) -> String {
    format!("{SET_PREFIX}{place}")
}

/// The condition that a packet goes where the tenant was told that a host is.
pub(super) fn is_open_to(hosts: &[HostPattern], host: &HostPattern) -> Statement<'static> {
    // What is in no list is in no set either: a name without a place opens nothing.
    let place = hosts.binary_search(host).unwrap_or(hosts.len());
    let pair = Expression::Named(NamedExpression::Concat(vec![meta(MetaKey::Iifname), payload("ip", "daddr")]));
    matches(pair, Operator::EQ, text(format!("@{}", set_name(place))))
}

/// A host's name as it lies beside its addresses, for people and for the next daemon.
pub(in crate::sys::nft) fn comment_of(host: &HostPattern) -> &str {
    // ASCII, so that it can be cut anywhere.
    let name = host.as_str();
    name.get(..name.len().min(COMMENT_BYTES_MAX)).unwrap_or(name)
}

/// What the sets hold, as nft lists them: interface, name, address, and how much longer.
pub(in crate::sys::nft) fn hosts_in(listing: &Value) -> Vec<(String, HostPattern, Ipv4Addr, Duration)> {
    let sets = listing["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("set"));
    let ours = sets.filter(|set| set["name"].as_str().is_some_and(|name| name.starts_with(SET_PREFIX)));
    let elements = ours.filter_map(|set| set["elem"].as_array()).flatten().filter_map(|value| value.get("elem"));
    let read = |element: &Value| {
        let pair = &element["val"]["concat"];
        let host = element["comment"].as_str()?.parse().ok()?;
        let left = Duration::from_secs(element["expires"].as_u64()?);
        Some((pair[0].as_str()?.to_owned(), host, pair[1].as_str()?.parse().ok()?, left))
    };
    elements.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::domain::firewall::Told;

    fn hosts(names: &[&str]) -> Vec<HostPattern> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn given(names: &[HostPattern], told: &[(&str, u8)], now: Instant) -> Given {
        let tell = |given: Given, (name, last): &(&str, u8)| {
            let addresses = vec![Ipv4Addr::new(198, 51, 100, *last)];
            given.tell(names, &Told { name: (*name).to_owned(), addresses, ttl_s: 300 }, now).0
        };
        told.iter().fold(Given::default(), tell)
    }

    #[test]
    fn what_is_open_moves_with_its_host() {
        let now = Instant::now();
        let before = hosts(&["a.test", "b.test", "c.test"]);
        let given = given(&before, &[("a.test", 1), ("b.test", 2), ("c.test", 3)], now);
        let places =
            |openings: &[Opening]| openings.iter().map(|one| (one.place, one.host.to_string())).collect::<Vec<_>>();
        let moves = Moves::between(&before, &hosts(&["a.test", "c.test", "d.test"]), &given, now);
        assert_eq!(places(&moves.gone), [(1, "b.test".into()), (2, "c.test".into())]);
        assert_eq!(places(&moves.come), [(1, "c.test".into())]);
        assert_eq!(Moves::between(&before, &before, &given, now), Moves::default());
        let removed = Moves::between(&before, &[], &given, now);
        assert_eq!((removed.gone.len(), removed.come.len()), (3, 0));
        let long_after = now + Duration::from_secs(4_000);
        assert_eq!(Moves::between(&before, &[], &given, long_after), Moves::default());
    }

    #[test]
    fn a_move_as_nft_reads_it() {
        let renderer = Renderer::new("lab".parse().unwrap(), "10.201.0.0/16".parse().unwrap());
        let now = Instant::now();
        let before = hosts(&["a.test", "b.test"]);
        let given = given(&before, &[("a.test", 1), ("b.test", 2)], now);
        let mut batch = Batch::default();
        renderer.host_moves(&mut batch, Slot(7), &Moves::between(&before, &before[1..], &given, now));
        insta::assert_snapshot!(batch.lines());
    }

    #[test]
    fn what_nft_lists_is_read_and_other_sets_are_not() {
        let element = |name: &str| json!({ "elem": { "val": { "concat": ["lab-7", "198.51.100.1"] }, "timeout": 600, "expires": 599, "comment": name } });
        let listing = json!({ "nftables": [
            { "metainfo": { "version": "1.0.6" } },
            { "set": { "name": "hosts-0", "elem": [element("*.a.test"), element("cut off."), element("b.test")] } },
            { "set": { "name": "hosts-1" } },
            { "set": { "name": "sources", "elem": [{ "concat": ["lab-7", "10.201.0.7"] }, element("c.test")] } }
        ] });
        let read = hosts_in(&listing);
        let found: Vec<_> = read.iter().map(|(link, host, ..)| (link.as_str(), host.as_str())).collect();
        assert_eq!(found, [("lab-7", "*.a.test"), ("lab-7", "b.test")]);
        assert_eq!((read[0].2, read[0].3.as_secs()), (Ipv4Addr::new(198, 51, 100, 1), 599));
    }
}
