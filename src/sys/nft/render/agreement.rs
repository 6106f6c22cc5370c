//! What is rendered means what the rules say: nft takes it, rules that read the same are the same, and a chain decides as
//! [`Ruleset::verdict`] does.

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::tenant::direction_rules;
use super::*;
use crate::domain::firewall::{
    Action, Direction, HostPattern, OwnRule, OwnRules, Packet, Payload, Rule, Ruleset, Side, State,
};
use crate::domain::policy::Policy;

/// Renderings that nft is asked about; each takes it some 20 ms.
const NFT_CASES: u32 = 24;

const ADDRESSES: [Ipv4Addr; 4] = [
    Ipv4Addr::new(10, 1, 2, 3),
    Ipv4Addr::new(10, 9, 0, 1),
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(198, 51, 100, 7),
];
const HOSTS: [&str; 3] = ["*.a.test", "x.a.test", "b.test"];
const NETWORKS: [&str; 6] = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "192.0.2.0/24", "192.0.2.1", "0.0.0.0/0"];

/// Rules over few ports and addresses, so that packets meet them.
fn rule() -> impl Strategy<Value = Value> {
    (written_rule(), proptest::collection::vec(0..HOSTS.len(), 0..3)).prop_map(|(mut rule, hosts)| {
        if rule["action"] == "allow" {
            let peers = rule["peers"].as_array_mut().unwrap();
            peers.extend(hosts.iter().map(|n| Value::from(HOSTS[*n])));
        }
        rule
    })
}

fn ingress_rule() -> impl Strategy<Value = Value> {
    written_rule()
}

fn written_rule() -> impl Strategy<Value = Value> {
    let ports = || proptest::collection::vec((1u16..8, 0u16..3), 0..3);
    let peers = proptest::collection::vec(0..NETWORKS.len(), 0..4);
    let icmp = proptest::option::of((prop_oneof![Just(0u8), Just(8), Just(13)], proptest::option::of(0u8..2)));
    (0..3usize, 0..4usize, peers, ports(), ports(), icmp, proptest::option::of("[a-zé\"\\\\ ]{0,90}")).prop_map(
        |(action, protocol, peers, ports, source_ports, icmp, description)| {
            let ranges = |ports: &[(u16, u16)]| {
                ports.iter().map(|(first, more)| format!("{first}-{}", first + more)).collect::<Vec<_>>()
            };
            let mut rule = json!({
                "action": (["allow", "reject", "drop"][action]),
                "peers": peers.iter().map(|n| NETWORKS[*n]).collect::<Vec<_>>(),
            });
            if let Some(text) = description {
                rule["description"] = text.into();
            }
            match protocol {
                0 => {}
                1 | 2 => {
                    rule["protocol"] = ["tcp", "udp"][protocol - 1].into();
                    rule["ports"] = ranges(&ports).into();
                    rule["source_ports"] = ranges(&source_ports).into();
                }
                _ => {
                    rule["protocol"] = "icmp4".into();
                    if let Some((kind, code)) = icmp {
                        rule["icmp_type"] = kind.into();
                        rule["icmp_code"] = json!(code);
                    }
                }
            }
            rule
        },
    )
}

fn action() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("allow"), Just("reject"), Just("drop")]
}

fn policy() -> impl Strategy<Value = Policy> {
    let direction = |(default, rules): (&str, Vec<Value>)| json!({ "default": default, "rules": rules });
    let ingress = (action(), proptest::collection::vec(ingress_rule(), 0..5)).prop_map(direction);
    let egress = (action(), proptest::collection::vec(rule(), 0..5)).prop_map(direction);
    (ingress, egress)
        .prop_map(|(ingress, egress)| serde_json::from_value(json!({ "ingress": ingress, "egress": egress })).unwrap())
}

fn own() -> impl Strategy<Value = OwnRules> {
    let of = |side, rule| (Just(side), any::<bool>(), rule);
    let one = prop_oneof![of(Side::Ingress, ingress_rule().boxed()), of(Side::Egress, rule().boxed())];
    proptest::collection::vec(one, 0..4).prop_map(|rules| {
        let mut own = OwnRules::default();
        for (side, enabled, rule) in rules {
            let state = if enabled { State::Enabled } else { State::Disabled };
            own.add(side, OwnRule { rule: serde_json::from_value(rule).unwrap(), state }).unwrap();
        }
        own
    })
}

fn ruleset() -> impl Strategy<Value = Ruleset> {
    (policy(), own()).prop_map(|(policy, own)| Ruleset::new(&policy, &own).unwrap())
}

fn packet() -> impl Strategy<Value = Packet> {
    let payload = prop_oneof![
        (1u16..10, 1u16..10).prop_map(|(source, destination)| Payload::Tcp { source, destination }),
        (1u16..10, 1u16..10).prop_map(|(source, destination)| Payload::Udp { source, destination }),
        (prop_oneof![Just(0u8), Just(8), Just(13)], 0u8..2).prop_map(|(kind, code)| Payload::Icmp { kind, code }),
        Just(Payload::Other(47)),
    ];
    (any::<bool>(), 0..ADDRESSES.len(), payload).prop_map(|(ingress, peer, payload)| Packet {
        side: if ingress { Side::Ingress } else { Side::Egress },
        peer: ADDRESSES[peer],
        payload,
    })
}

/// Which address was given for which host; each for at most one, and one for none.
fn was_given(host: &HostPattern, address: Ipv4Addr) -> bool {
    HOSTS.iter().zip(&ADDRESSES[1..]).any(|(name, given)| host.as_str() == *name && address == *given)
}

/// What a chain as it is rendered does with the first packet of a flow: nft's own semantics, as nft(8) has them.
fn decide(rules: &Ruleset, packet: &Packet) -> Action {
    for (statements, _) in chain_rules(rules, packet.side) {
        for statement in statements {
            let value = serde_json::to_value(&statement).unwrap();
            let (name, body) = value.as_object().unwrap().iter().next().unwrap();
            match name.as_str() {
                "match" if matches_packet(body, packet, rules.hosts()) => {}
                // No flow is one too many here.
                "match" | "ct count" => break,
                "accept" => return Action::Allow,
                "drop" => return Action::Drop,
                "reject" => return Action::Reject,
                other => panic!("{other} is not known here"),
            }
        }
    }
    panic!("a chain has no end")
}

fn matches_packet(body: &Value, packet: &Packet, hosts: &[HostPattern]) -> bool {
    assert_eq!(body["op"], "==");
    if let Some(place) = body["right"].as_str().and_then(|set| set.strip_prefix("@hosts-")) {
        assert!(body["left"]["concat"].is_array() && packet.side == Side::Egress);
        return was_given(&hosts[place.parse::<usize>().unwrap()], packet.peer);
    }
    let number = match left(&body["left"]).as_str() {
        "meta l4proto" => return body["right"] == protocol(packet),
        "ip saddr" if packet.side == Side::Ingress => packet.peer.to_bits(),
        "ip daddr" if packet.side == Side::Egress => packet.peer.to_bits(),
        field => match field_of(field, packet.payload) {
            Some(number) => number,
            None => return false,
        },
    };
    in_range(number, &body["right"])
}

fn left(value: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    match value.get("payload") {
        Some(payload) => format!("{} {}", text(&payload["protocol"]), text(&payload["field"])),
        None => format!("meta {}", text(&value["meta"]["key"])),
    }
}

const fn protocol(packet: &Packet) -> &'static str {
    match packet.payload {
        Payload::Tcp { .. } => "tcp",
        Payload::Udp { .. } => "udp",
        Payload::Icmp { .. } => "icmp",
        Payload::Other(_) => "gre",
    }
}

fn field_of(field: &str, payload: Payload) -> Option<u32> {
    match (field, payload) {
        ("tcp sport", Payload::Tcp { source, .. }) | ("udp sport", Payload::Udp { source, .. }) => Some(source.into()),
        ("tcp dport", Payload::Tcp { destination, .. }) | ("udp dport", Payload::Udp { destination, .. }) => {
            Some(destination.into())
        }
        ("icmp type", Payload::Icmp { kind, .. }) => Some(kind.into()),
        ("icmp code", Payload::Icmp { code, .. }) => Some(code.into()),
        ("tcp sport" | "tcp dport" | "udp sport" | "udp dport" | "icmp type" | "icmp code", _) => None,
        other => panic!("{other:?} is not known here"),
    }
}

fn in_range(number: u32, right: &Value) -> bool {
    let address = |value: &Value| value.as_str().unwrap().parse::<Ipv4Addr>().unwrap().to_bits();
    let whole = |value: &Value| u32::try_from(value.as_u64().unwrap()).unwrap();
    if let Some(prefix) = right.get("prefix") {
        let shift = 32 - whole(&prefix["len"]);
        number.checked_shr(shift) == address(&prefix["addr"]).checked_shr(shift)
    } else if let Some(range) = right.get("range") {
        (whole(&range[0])..=whole(&range[1])).contains(&number)
    } else if right.is_string() {
        number == address(right)
    } else {
        number == whole(right)
    }
}

fn rendered(rules: &Ruleset) -> Batch {
    let renderer = Renderer::new("lab".parse().unwrap(), "10.201.0.0/16".parse().unwrap());
    let mut batch = Batch::default();
    renderer.base(&mut batch);
    renderer.tenant(&mut batch, Slot(7), rules, Before::Direct, &Moves::default()).unwrap();
    batch
}

/// Asks nft whether the kernel would take it, in a network namespace of its own; commits nothing.
fn nft_takes(batch: &Batch) -> Result<(), String> {
    let mut command = Command::new("unshare");
    command.args(["--net", "nft", "--check", "--json", "--file", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| e.to_string())?;
    child.stdin.take().unwrap().write_all(batch.to_json().as_bytes()).map_err(|error| error.to_string())?;
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// The same rule written otherwise: fields and items in another order, each item twice, addresses as networks.
fn otherwise(rule: &Value) -> String {
    let again = |items: &Value| {
        let items = items.as_array().unwrap().iter().rev().map(|item| match item.as_str().unwrap() {
            "192.0.2.1" => json!("192.0.2.1/32"),
            "10.1.2.3/32" => json!("10.1.2.3"),
            other => json!(other),
        });
        let items: Vec<_> = items.collect();
        Value::from([items.clone(), items].concat())
    };
    let fields = rule.as_object().unwrap().iter().map(|(name, value)| {
        let value = if value.is_array() { again(value) } else { value.clone() };
        format!("  {} :\t{}\n", Value::from(name.as_str()), value)
    });
    format!("{{ {} }}", fields.rev().collect::<Vec<_>>().join(","))
}

proptest! {
    #[test]
    fn a_chain_decides_as_the_rules_say(rules in ruleset(), packets in proptest::collection::vec(packet(), 1..12)) {
        for packet in packets {
            prop_assert_eq!(decide(&rules, &packet), rules.verdict(&packet, &was_given), "{:?}", packet);
        }
    }

    #[test]
    fn rules_that_read_the_same_render_the_same(rule in rule()) {
        let one: Rule = serde_json::from_value(rule.clone()).unwrap();
        let two: Rule = serde_json::from_str(&otherwise(&rule)).unwrap();
        for side in Side::BOTH {
            let chain = |rule: &Rule| {
                let direction = Direction { default: Action::Drop, rules: vec![rule.clone()] };
                direction_rules(&direction, side, &direction.hosts())
            };
            prop_assert_eq!(chain(&one), chain(&two));
        }
        prop_assert!(one.does_as(&two));
    }

    #[test]
    fn the_kernels_count_of_a_chain_is_known(rules in ruleset()) {
        let uses = rendered(&rules).uses();
        for side in Side::BOTH {
            let length = chain_length(rules.side(side));
            prop_assert_eq!(length, chain_rules(&rules, side).len());
            let wanted = u32::try_from(length + 1).unwrap();
            prop_assert_eq!(uses[&chain_name(side, Slot(7))], wanted);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(NFT_CASES))]
    #[test]
    fn nft_takes_every_rendering(rules in ruleset()) {
        prop_assert_eq!(nft_takes(&rendered(&rules)), Ok(()));
    }
}
