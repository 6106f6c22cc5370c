//! Two hundred tenants with rules of their own, and packets between all of them and outwards: each gets where the rules say.
//!
//! The tenants are namespaces with the real links and the real firewall; containers would add nothing to that but time.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tenantry::domain::Slot;
use tenantry::domain::firewall::{Action, Base, Packet, Payload, Ruleset, Side};
use tenantry::domain::slot::GATEWAY;
use tenantry::sys::netlink::{Links, Rates};
use tenantry::sys::nft::Firewall;

use crate::support::machine::{Machine, address, rules_of, subnet};
use crate::support::net::{
    Conversation, Echo, HOST, INTERNET, METADATA, Netns, PATIENCE, PRIVATE, SILENCE, UPLINK_GATEWAY,
};

const TENANTS: u16 = 200;
/// Tenants that are set up at once.
const AT_ONCE: usize = 8;
/// Datagrams and connections of the test.
const DATAGRAMS: usize = 3_000;
const CONNECTIONS: usize = 60;
/// The same choices each time.
const SEED: u64 = 20_260;
/// The last source port that a rule may name: the kernel takes ports on both sides of it (32768 to 60999, `ip_local_port_range` of ip(7)).
const SOURCE_MAX: u16 = 40_000;
const PORTS: [u16; 4] = [7001, 7002, 7003, 7004];
const PEERS: [&str; 7] =
    ["198.51.100.1", "198.51.100.0/24", "10.99.0.0/16", "10.0.0.0/8", "203.0.113.1/32", "0.0.0.0/0", "169.254.0.0/16"];

fn one_of<T: Copy>(random: &mut StdRng, items: &[T]) -> T {
    items[random.random_range(0..items.len())]
}

fn some_rule(random: &mut StdRng, side: &str) -> String {
    let action = one_of(random, &["allow", "allow", "reject", "drop"]);
    let mut text = format!("[[{side}.rules]]\naction = '{action}'\n");
    match random.random_range(0..5) {
        0 => {}
        1 => text += "protocol = 'icmp4'\n",
        n => {
            text += &format!("protocol = '{}'\n", if n < 4 { "udp" } else { "tcp" });
            if random.random_bool(0.7) {
                let first = one_of(random, &PORTS);
                text += &format!("ports = ['{first}-{}']\n", first + random.random_range(0..2));
            }
            if random.random_bool(0.2) {
                text += &format!("source_ports = ['1024-{SOURCE_MAX}']\n");
            }
        }
    }
    if random.random_bool(0.7) {
        text += &format!("peers = ['{}', '{}']\n", one_of(random, &PEERS), one_of(random, &PEERS));
    }
    text
}

fn some_rules(random: &mut StdRng) -> Arc<Ruleset> {
    let mut text = String::new();
    for side in ["ingress", "egress"] {
        text += &format!("[{side}]\ndefault = '{}'\n", one_of(random, &["allow", "allow", "reject", "drop"]));
        for _ in 0..random.random_range(0..6) {
            text += &some_rule(random, side);
        }
    }
    rules_of(&text)
}

struct Tenant {
    netns: Netns,
    rules: Arc<Ruleset>,
    /// What it hears, at each of the ports.
    ears: Vec<UdpSocket>,
}

fn ears(netns: &Netns, addresses: &[Ipv4Addr]) -> Vec<UdpSocket> {
    netns.run(|| {
        let sockets = addresses.iter().flat_map(|address| PORTS.map(|port| UdpSocket::bind((*address, port)).unwrap()));
        let sockets: Vec<_> = sockets.collect();
        sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        sockets
    })
}

/// The numbers of the datagrams that have come, without waiting.
fn heard(ears: &[UdpSocket]) -> BTreeSet<usize> {
    let mut numbers = BTreeSet::new();
    for ear in ears {
        let mut buffer = [0; 32];
        while let Ok((length, _)) = ear.recv_from(&mut buffer) {
            numbers.insert(std::str::from_utf8(&buffer[..length]).unwrap().parse().unwrap());
        }
    }
    numbers
}

/// Sends a datagram; the port it came from. What the kernel says of it is not of interest: it may be a late refusal.
fn cast(from: &Netns, source: Ipv4Addr, to: SocketAddrV4, number: usize) -> u16 {
    from.run(|| {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        let _ = socket.send_to(number.to_string().as_bytes(), to);
        socket.local_addr().unwrap().port()
    })
}

fn settle(machine: &Machine, random: &mut StdRng) -> Vec<Tenant> {
    let made: Vec<_> = (1..=TENANTS).map(|slot| (Slot(slot), Netns::new(), some_rules(random))).collect();
    machine.runtime.block_on(async {
        let start = |(slot, netns, rules): &(Slot, Netns, Arc<Ruleset>)| {
            let (slot, path, rules) = (*slot, netns.path(), rules.clone());
            async move {
                let (attached, applied) = tokio::join!(
                    machine.links.attach(slot, &path, Rates::default()),
                    machine.firewall.apply(slot, &rules)
                );
                attached.unwrap();
                applied.unwrap();
                machine.links.up(slot).await.unwrap();
            }
        };
        futures_util::stream::iter(made.iter().map(start)).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    });
    let tenant = |(slot, netns, rules): (Slot, Netns, Arc<Ruleset>)| {
        let ears = ears(&netns, &[address(slot.0)]);
        Tenant { netns, rules, ears }
    };
    made.into_iter().map(tenant).collect()
}

/// Whether the rules let a datagram through.
fn allowed(rules: &Ruleset, side: Side, peer: Ipv4Addr, source: u16, destination: u16) -> bool {
    let packet = Packet { side, peer, payload: Payload::Udp { source, destination } };
    Base { subnet: subnet() }.verdict(rules, &packet, &|_, _| false) == Action::Allow
}

#[test]
fn packets_of_two_hundred_tenants_get_where_the_rules_say_and_nowhere_else() {
    let machine = Machine::start();
    machine.lab.internet.ip("route add 10.201.0.0/16 via 203.0.113.2");
    let mut random = StdRng::seed_from_u64(SEED);
    let began = Instant::now();
    let tenants = settle(&machine, &mut random);
    println!("{TENANTS} tenants after {:?}", began.elapsed());
    let outside = ears(&machine.lab.internet, &[INTERNET, PRIVATE, METADATA, UPLINK_GATEWAY]);
    let on_host = ears(&Netns::current(), &[HOST, GATEWAY]);
    let (mut wanted_outside, mut wanted_inside) = (BTreeSet::new(), BTreeSet::new());
    let (mut closed, mut between) = (0, 0);
    for number in 0..DATAGRAMS {
        let (slot, port) = (random.random_range(1..=TENANTS), one_of(&mut random, &PORTS));
        let tenant = &tenants[usize::from(slot) - 1];
        if random.random_bool(0.3) {
            let peer = one_of(&mut random, &[INTERNET, PRIVATE, UPLINK_GATEWAY]);
            let source = cast(&machine.lab.internet, peer, SocketAddrV4::new(address(slot), port), number);
            if allowed(&tenant.rules, Side::Ingress, peer, source, port) {
                wanted_inside.insert(number);
            } else {
                closed += 1;
            }
            continue;
        }
        let neighbour = address(random.random_range(1..=TENANTS));
        let peer =
            one_of(&mut random, &[INTERNET, PRIVATE, METADATA, UPLINK_GATEWAY, HOST, GATEWAY, neighbour, neighbour]);
        let source = cast(&tenant.netns, address(slot), SocketAddrV4::new(peer, port), number);
        let to_host = [HOST, GATEWAY].contains(&peer);
        // To itself it may speak: that never leaves it.
        if peer == address(slot) {
            wanted_inside.insert(number);
        } else if !to_host && allowed(&tenant.rules, Side::Egress, peer, source, port) {
            wanted_outside.insert(number);
        } else {
            closed += 1;
            between += usize::from(peer == neighbour);
        }
    }
    std::thread::sleep(SILENCE);
    let inside: BTreeSet<usize> = tenants.iter().flat_map(|tenant| heard(&tenant.ears)).collect();
    assert_eq!(heard(&outside), wanted_outside);
    assert_eq!(inside, wanted_inside);
    assert_eq!(heard(&on_host), BTreeSet::new());
    println!("{closed} closed, {between} of them between tenants; {:?}", began.elapsed());
    assert!(wanted_outside.len() > 300 && wanted_inside.len() > 100 && between > 300, "the choices say too little");
    connect(&machine, &tenants, &mut random);
    assert!(began.elapsed() < Duration::from_secs(120), "{:?}", began.elapsed());
}

/// Connections, by which a refusal is told from silence.
fn connect(machine: &Machine, tenants: &[Tenant], random: &mut StdRng) {
    let _servers = PORTS.map(|port| Echo::listen(&machine.lab.internet, port));
    let base = Base { subnet: subnet() };
    for _ in 0..CONNECTIONS {
        let tenant = &tenants[random.random_range(0..tenants.len())];
        let (peer, port) = (one_of(random, &[INTERNET, PRIVATE]), one_of(random, &PORTS));
        let verdicts: BTreeSet<&str> = [SOURCE_MAX, SOURCE_MAX + 1]
            .map(|source| {
                let payload = Payload::Tcp { source, destination: port };
                base.verdict(&tenant.rules, &Packet { side: Side::Egress, peer, payload }, &|_, _| false).as_str()
            })
            .into();
        // Which source port the kernel takes is not known before.
        if verdicts.len() > 1 {
            continue;
        }
        let patience = if verdicts.contains("drop") { SILENCE } else { PATIENCE };
        let got = tenant.netns.run(|| Conversation::open(peer, port, patience).map(drop).map_err(|error| error.kind()));
        let wanted = match verdicts.first().copied() {
            Some("allow") => Ok(()),
            Some("reject") => Err(ErrorKind::ConnectionRefused),
            _ => Err(ErrorKind::TimedOut),
        };
        assert_eq!(got, wanted, "{peer}:{port} under {:?}", tenant.rules);
    }
}
