//! Rules that change while tenants talk, with real packets: what goes on, what is cut, what is mended.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tenantry::domain::Slot;
use tenantry::domain::firewall::Ruleset;
use tenantry::domain::slot::GATEWAY;
use tenantry::sys::netlink::Links;
use tenantry::sys::nft::Firewall;

use crate::support::machine::{Machine, address, policy, rules_of};
use crate::support::net::{
    Conversation, Echo, HOST, INTERNET, METADATA, Netns, PATIENCE, PRIVATE, SILENCE, Sink, ip, nft, refused, rejected,
    talk,
};

/// The default policy of egress that a test changes, and nothing let in.
fn egress(default: &str, rules: &str) -> Arc<Ruleset> {
    rules_of(&format!("[ingress]\ndefault = 'drop'\n[egress]\ndefault = '{default}'\n{rules}"))
}

fn egress_rule(action: &str, rest: &str) -> String {
    format!("[[egress.rules]]\naction = '{action}'\n{rest}\n")
}

fn open(from: &Netns, port: u16) -> Conversation {
    from.run(|| Conversation::open(INTERNET, port, PATIENCE).unwrap())
}

/// Flows of an address that the kernel tracks.
fn flows_of(address: Ipv4Addr) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    let word = format!("={address} ");
    table.lines().filter(|line| line.contains(&word)).map(str::to_owned).collect()
}

#[test]
fn new_rules_cut_the_flows_they_forbid_and_no_others() {
    let machine = Machine::start();
    let _servers = [80, 443].map(|port| Echo::listen(&machine.lab.internet, port));
    let (tenant, other) = (machine.tenant(1, &policy("open")), machine.tenant(2, &policy("open")));
    let (mut forbidden, mut allowed) = (open(&tenant, 80), open(&tenant, 443));
    let mut neighbours = open(&other, 80);
    machine.apply(1, &egress("allow", &egress_rule("reject", "protocol = 'tcp'\nports = ['80']")));
    for round in 0..20 {
        allowed.say(format!("round {round}").as_bytes()).unwrap();
        neighbours.say(b"not mine").unwrap();
    }
    let cut = forbidden.say(b"still there?").unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::ConnectionReset, "a refusal says so: {cut}");
    assert!(rejected(&tenant, INTERNET, 80));
    assert!(flows_of(address(1)).iter().all(|flow| !flow.contains("dport=80 ")), "{:#?}", flows_of(address(1)));
}

#[test]
fn a_flow_that_stays_allowed_loses_no_byte_while_rules_change_around_it() {
    const BYTES: usize = 8 << 20;
    const CHANGES: u16 = 10;
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("open"));
    let listener = machine.lab.internet.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 443)).unwrap());
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    });
    let target = SocketAddr::from((INTERNET, 443));
    let mut stream = tenant.run(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
    let wanted: Vec<u8> = (0..BYTES).map(|n| (n % 251) as u8).collect();
    let (sent, made) = (wanted.clone(), Arc::new(AtomicU16::new(0)));
    let changes = Arc::clone(&made);
    let sender = std::thread::spawn(move || {
        let (first, last) = sent.split_at(BYTES - BYTES / 200);
        for part in first.chunks(BYTES / 200) {
            stream.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(4));
        }
        // It is not over before there were enough of them, however long each takes.
        let deadline = Instant::now() + PATIENCE;
        while made.load(Ordering::Relaxed) < CHANGES && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(4));
        }
        stream.write_all(last).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    while !sender.is_finished() {
        let port = 1000 + changes.load(Ordering::Relaxed) % 7;
        machine
            .apply(1, &egress("drop", &egress_rule("allow", &format!("protocol = 'tcp'\nports = ['443', '{port}']"))));
        changes.fetch_add(1, Ordering::Relaxed);
    }
    sender.join().unwrap();
    let received = receiver.join().unwrap();
    assert!(changes.load(Ordering::Relaxed) >= CHANGES, "{changes:?} changes");
    assert!(received == wanted, "{} of {} bytes", received.len(), wanted.len());
}

#[test]
fn a_long_lived_stream_into_the_tenant_stops_when_a_rule_forbids_it() {
    let machine = Machine::start();
    machine.lab.internet.ip("route add 10.201.0.0/16 via 203.0.113.2");
    let tenant = machine.tenant(1, &policy("open"));
    let _server = Echo::listen(&tenant, 8080);
    let mut stranger = machine.lab.internet.run(|| Conversation::open(address(1), 8080, PATIENCE).unwrap());
    let mut proxy = Conversation::open(address(1), 8080, PATIENCE).unwrap();
    stranger.say(b"hello").unwrap();
    machine.apply(1, &policy("web"));
    assert!(stranger.say(b"still here").is_err());
    proxy.say(b"the proxy's flows go on").unwrap();
}

#[test]
fn datagrams_that_new_rules_forbid_stop_though_their_flow_was_open() {
    let machine = Machine::start();
    let sink = Sink::listen(&machine.lab.internet, 9000);
    let tenant = machine.tenant(1, &policy("open"));
    let socket = tenant.run(|| UdpSocket::bind((address(1), 7000)).unwrap());
    let say = |text: &str| {
        // A refusal comes back as an error of the next call.
        let _ = socket.send_to(text.as_bytes(), (INTERNET, 9000));
    };
    say("before");
    assert!(sink.waits_for("before", PATIENCE).is_some());
    machine.apply(1, &egress("drop", ""));
    say("after");
    assert_eq!(sink.waits_for("after", SILENCE), None);
    machine.apply(1, &policy("open"));
    say("again");
    assert!(sink.waits_for("again", PATIENCE).is_some());
}

#[test]
fn a_slots_next_tenant_does_not_inherit_a_flow() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let sink = Sink::listen(&machine.lab.internet, 9000);
    let first = machine.tenant(1, &policy("open"));
    let _talking = open(&first, 80);
    first.run(|| UdpSocket::bind((address(1), 7000)).unwrap().send_to(b"first", (INTERNET, 9000)).unwrap());
    let seen_as = sink.waits_for("first", PATIENCE).unwrap();
    assert!(flows_of(address(1)).len() >= 2);
    machine.runtime.block_on(async {
        machine.links.detach(Slot(1)).await.unwrap();
        machine.firewall.remove(Slot(1)).await.unwrap();
    });
    assert_eq!(flows_of(address(1)), [] as [String; 0], "gone with the slot's link and rules");
    drop(first);
    // What the host itself sends to the address in between leaves a flow as well.
    ip("route add 10.201.0.1/32 dev lo");
    let _ = UdpSocket::bind((GATEWAY, 0))
        .or_else(|_| UdpSocket::bind((HOST, 0)))
        .unwrap()
        .send_to(b"x", (address(1), 7000));
    ip("route del 10.201.0.1/32 dev lo");
    let second = machine.tenant(1, &policy("no-egress"));
    assert_eq!(flows_of(address(1)), [] as [String; 0]);
    // The server answers the first one, late.
    let inbox = second.run(|| UdpSocket::bind((address(1), 7000)).unwrap());
    inbox.set_read_timeout(Some(SILENCE)).unwrap();
    machine.lab.internet.run(|| UdpSocket::bind((INTERNET, 9001)).unwrap().send_to(b"late", seen_as).unwrap());
    assert!(inbox.recv_from(&mut [0; 16]).is_err());
}

#[test]
fn changes_at_once_for_many_tenants_each_cut_their_own() {
    let machine = Machine::start();
    let _servers = [80, 443].map(|port| Echo::listen(&machine.lab.internet, port));
    let tenants: Vec<_> = (1..=12).map(|slot| machine.tenant(slot, &policy("open"))).collect();
    let mut talks: Vec<_> = tenants.iter().map(|tenant| (open(tenant, 80), open(tenant, 443))).collect();
    let before = machine.firewall.transactions();
    machine.runtime.block_on(async {
        let closed = |slot: u16| {
            let port = if slot.is_multiple_of(2) { 80 } else { 443 };
            egress("allow", &egress_rule("reject", &format!("protocol = 'tcp'\nports = ['{port}']")))
        };
        let applies = (1..=12).map(|slot| {
            let rules = closed(slot);
            let firewall = machine.firewall.clone();
            async move { firewall.apply(Slot(slot), &rules).await.unwrap() }
        });
        futures_util::future::join_all(applies).await;
    });
    assert!(machine.firewall.transactions() - before <= 2, "merged");
    for (slot, (web, tls)) in (1..).zip(&mut talks) {
        let (mine, gone) = if u16::is_multiple_of(slot, 2) { (tls, web) } else { (web, tls) };
        mine.say(b"goes on").unwrap();
        assert!(gone.say(b"is cut").is_err(), "slot {slot}");
    }
}

/// Waits until the table has been mended so often, while the firewall's task works; how long that took.
fn mended(machine: &Machine, count: u64) -> Duration {
    let began = Instant::now();
    loop {
        machine.wait(Duration::from_millis(20));
        let seen = machine.runtime.block_on(machine.firewall.inspect(Slot(1))).unwrap();
        if seen.repairs.count == count && seen.agrees() {
            return began.elapsed();
        }
        assert!(began.elapsed() < Duration::from_secs(10), "never mended: {seen:#?}");
    }
}

#[test]
fn what_another_program_does_to_the_table_is_mended_within_two_seconds() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let tenant = machine.tenant(1, &policy("web"));
    // Some time passes in which nothing happens.
    machine.wait(Duration::from_millis(700));
    let vandalism = [
        "flush ruleset",
        "delete table inet lab",
        "flush table inet lab",
        "flush chain inet lab out-1",
        "flush chain inet lab forward",
    ];
    let mut took = Vec::new();
    for (count, words) in (1..).zip(vandalism) {
        nft(words);
        took.push(mended(&machine, count));
        assert_eq!(talk(&tenant, INTERNET, 80).unwrap(), HOST);
        assert!(rejected(&tenant, PRIVATE, 80));
        assert_eq!(refused(&tenant, METADATA, 80), ErrorKind::TimedOut);
    }
    // A busy machine may hold one of them up.
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_secs(2), "{took:?}");
}

#[test]
fn another_programs_own_tables_are_no_reason_to_mend() {
    let machine = Machine::start();
    let _tenant = machine.tenant(1, &policy("web"));
    for n in 0..5 {
        nft(&format!("add table inet other{n}"));
        machine.wait(Duration::from_millis(150));
    }
    machine.wait(Duration::from_millis(700));
    let seen = machine.runtime.block_on(machine.firewall.inspect(Slot(1))).unwrap();
    assert_eq!(seen.repairs.count, 0);
}

#[test]
fn flows_that_began_while_the_table_was_missing_do_not_outlive_its_mending() {
    let machine = Machine::start();
    let host = Netns::current();
    let _servers = [Echo::listen(&host, 22), Echo::listen(&machine.lab.internet, 80)];
    let tenant = machine.tenant(1, &policy("open"));
    machine.lab.internet.ip("route add 10.201.0.0/16 via 203.0.113.2");
    let mut honest = open(&tenant, 80);
    // Another program's table keeps flows tracked in the meantime.
    nft("add table inet other");
    nft("add chain inet other track { type filter hook prerouting priority 0 ; }");
    nft("add rule inet other track ct state established counter");
    nft("delete table inet lab");
    let mut to_host = tenant.run(|| Conversation::open(HOST, 22, PATIENCE).unwrap());
    let mut to_metadata = tenant.run(|| Conversation::open(METADATA, 80, PATIENCE).unwrap());
    to_host.say(b"inside").unwrap();
    to_metadata.say(b"inside").unwrap();
    mended(&machine, 1);
    assert!(to_host.say(b"still?").is_err() && to_metadata.say(b"still?").is_err());
    honest.say(b"and I").unwrap();
}

#[test]
fn what_is_in_force_reads_as_what_should_be() {
    let machine = Machine::start();
    let every_kind = rules_of(
        r#"
        [ingress]
        default = "reject"
        [[ingress.rules]]
        action = "allow"
        protocol = "tcp"
        peers = ["203.0.113.0/24", "192.0.2.7"]
        ports = ["22", "8000-8100"]
        source_ports = ["1024-65535"]
        description = "ssh, \"quoted\""
        [[ingress.rules]]
        action = "reject"
        peers = ["0.0.0.0/0"]
        protocol = "udp"
        ports = ["53"]
        [egress]
        default = "drop"
        [[egress.rules]]
        action = "allow"
        protocol = "icmp4"
        icmp_type = 8
        icmp_code = 0
        [[egress.rules]]
        action = "drop"
        protocol = "icmp4"
        icmp_type = 13
        [[egress.rules]]
        action = "drop"
        protocol = "icmp4"
        icmp_type = 42
        peers = ["192.0.2.0/24"]
        [[egress.rules]]
        action = "reject"
        protocol = "icmp4"
        [[egress.rules]]
        action = "reject"
        peers = ["10.0.0.0/8"]
        [[egress.rules]]
        action = "allow"
        protocol = "tcp"
        "#,
    );
    let _tenant = machine.tenant(1, &every_kind);
    let inspect = || machine.runtime.block_on(machine.firewall.inspect(Slot(1))).unwrap();
    let seen = inspect();
    assert_eq!((&seen.ingress.kernel, &seen.egress.kernel), (&seen.ingress.desired, &seen.egress.desired));
    assert!(seen.agrees() && seen.egress.kernel.len() > 6, "{seen:#?}");
    assert!(seen.ingress.kernel.iter().any(|line| line.contains("tcp sport 1024-65535 tcp dport 22 accept")));
    nft("insert rule inet lab out-1 accept");
    let seen = inspect();
    assert!(!seen.agrees() && !seen.table && seen.egress.kernel[0] == "accept", "{seen:#?}");
    let nobody = machine.runtime.block_on(machine.firewall.inspect(Slot(9))).unwrap();
    assert!(nobody.ingress.kernel.is_empty() && nobody.egress.desired.is_empty());
}

#[test]
fn a_translated_destination_does_not_lead_to_another_tenant() {
    let machine = Machine::start();
    let (one, two) = (machine.tenant(1, &policy("open")), machine.tenant(2, &policy("open")));
    let _server = Echo::listen(&two, 8080);
    // The operator publishes tenant 2 on the host's address.
    nft("add table ip published");
    nft("add chain ip published in { type nat hook prerouting priority -100 ; }");
    nft("add rule ip published in ip daddr 203.0.113.2 tcp dport 8443 dnat to 10.201.0.2:8080");
    assert!(talk(&machine.lab.internet, HOST, 8443).is_ok(), "strangers get there");
    assert_eq!(refused(&one, HOST, 8443), ErrorKind::TimedOut);
    assert_eq!(refused(&two, HOST, 8443), ErrorKind::TimedOut, "not even itself");
    // And one that leads to a private network is judged by where it leads.
    let _private = Echo::listen(&machine.lab.internet, 80);
    nft("add rule ip published in ip daddr 203.0.113.2 tcp dport 8444 dnat to 10.99.0.1:80");
    assert!(talk(&one, HOST, 8444).is_ok());
    machine.apply(1, &policy("web"));
    assert!(rejected(&one, HOST, 8444));
}

#[test]
fn the_address_of_a_tenant_that_does_not_run_is_not_sought_elsewhere() {
    let machine = Machine::start();
    let tenant = machine.tenant(1, &policy("open"));
    machine.lab.internet.ip("address add 10.201.0.9/32 dev lo");
    let _server = Echo::listen(&machine.lab.internet, 80);
    assert_eq!(refused(&tenant, address(9), 80), ErrorKind::TimedOut);
    // Nor by this host, which has a route to it.
    assert_eq!(refused(&Netns::current(), address(9), 80), ErrorKind::TimedOut);
}

#[test]
fn no_flow_is_open_with_an_address_that_is_nobodys() {
    let machine = Machine::start();
    let internet = &machine.lab.internet;
    internet.ip(&format!("route add 10.201.0.0/16 via {HOST}"));
    internet.ip("address add 10.201.0.8/32 dev lo");
    internet.run(|| {
        let send =
            |from: Ipv4Addr, to: Ipv4Addr| UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (to, 7000)).unwrap();
        send(INTERNET, HOST);
        // To one, and from one, to this host and beyond.
        send(INTERNET, address(9));
        send(address(8), HOST);
        send(address(8), address(9));
    });
    let flows = || flows_of(INTERNET);
    let arrived = || flows().iter().any(|flow| flow.contains(&HOST.to_string()));
    let deadline = Instant::now() + PATIENCE;
    while !arrived() {
        assert!(Instant::now() < deadline, "they did not arrive: {:?}", flows());
        std::thread::sleep(Duration::from_millis(10));
    }
    // The others were sent right behind it.
    std::thread::sleep(SILENCE);
    for slot in [8, 9] {
        assert_eq!(flows_of(address(slot)), [] as [String; 0]);
    }
}

#[test]
fn a_tenant_that_opens_flows_without_end_leaves_room_for_the_others() {
    const DATAGRAMS: u16 = 9_000;
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 80);
    let (greedy, neighbour) = (machine.tenant(1, &policy("open")), machine.tenant(2, &policy("open")));
    let began = Instant::now();
    greedy.run(|| {
        let socket = UdpSocket::bind((address(1), 0)).unwrap();
        for port in 1..=DATAGRAMS {
            // Nobody listens: what comes back is an error of a later call.
            let _ = socket.send_to(b"x", (INTERNET, 10_000 + port));
        }
    });
    let open = flows_of(address(1)).len();
    println!("{open} flows after {DATAGRAMS} datagrams in {:?}", began.elapsed());
    assert!((1_000..=4_096).contains(&open), "{open} flows");
    assert_eq!(talk(&neighbour, INTERNET, 80).unwrap(), HOST);
    assert_eq!(refused(&greedy, INTERNET, 80), ErrorKind::TimedOut, "it has had its share");
    // New rules begin a new count, and cut what they forbid.
    machine.apply(1, &policy("no-egress"));
    assert_eq!(flows_of(address(1)), [] as [String; 0]);
    machine.apply(1, &policy("open"));
    assert_eq!(talk(&greedy, INTERNET, 80).unwrap(), HOST);
}

#[test]
fn forged_arp_changes_nobodys_neighbours() {
    let machine = Machine::start();
    let (one, two) = (machine.tenant(1, &policy("open")), machine.tenant(2, &policy("open")));
    let _server = Echo::listen(&two, 8080);
    let neighbours = || [ip("neighbour show"), two.ip("neighbour show")];
    let before = neighbours();
    assert!(before[0].contains("PERMANENT") && before[1].contains("PERMANENT"), "{before:?}");
    one.run(|| {
        // Answers and announcements for the gateway and for another tenant, from somebody whom nobody asked.
        for forged in [address(2), GATEWAY] {
            ip(&format!("address add {forged}/32 dev eth0"));
            for kind in ["-A", "-U"] {
                let words = [
                    "arping",
                    kind,
                    "-c",
                    "3",
                    "-w",
                    "1",
                    "-I",
                    "eth0",
                    "-s",
                    &forged.to_string(),
                    &forged.to_string(),
                ]
                .map(str::to_owned);
                let output = std::process::Command::new("busybox").args(words).output().unwrap();
                assert!(String::from_utf8_lossy(&output.stdout).contains("Sent"), "{output:?}");
            }
        }
    });
    assert_eq!(neighbours(), before);
    assert!(Conversation::open(address(2), 8080, PATIENCE).is_ok(), "the host still finds the right one");
}
