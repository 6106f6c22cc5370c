//! The network, by what a program inside can do: the host's ports, packets made by hand, other senders' addresses, the protocols by
//! which machines find and configure each other. What the rules do with packets that get out is in `it/network.rs`.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use libc::*;
use tenantry::domain::slot::GATEWAY;

use super::{Stage, attack, attack_with};
use crate::call;
use crate::support::attacker::{Answer, Arg, Order};
use crate::support::name_server::{ask, question};
use crate::support::net::{HOST, Netns, PATIENCE, SILENCE, Sink, nft};

/// `struct sockaddr_in`.
fn socket_address(address: Ipv4Addr, port: u16) -> Arg {
    Arg::Bytes([&(AF_INET as u16).to_ne_bytes()[..], &port.to_be_bytes(), &address.octets(), &[0; 8]].concat())
}

const ADDRESS_BYTES: i32 = 16;

async fn address_of(stage: &Stage<'_>, id: &str) -> Ipv4Addr {
    stage.daemon.client.container(id).await["ip"].as_str().unwrap().parse().unwrap()
}

/// The gateway, as the container sees it.
async fn gateway(stage: &Stage<'_>) -> Ipv4Addr {
    let routes = stage.villain.sh("cat /proc/net/route").await;
    let default = routes
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .find(|gateway| *gateway != "00000000" && *gateway != "Gateway");
    Ipv4Addr::from(u32::from_str_radix(default.unwrap(), 16).unwrap().to_be())
}

#[test]
fn no_port_of_the_host_answers() {
    attack(async |stage| {
        let neighbour = address_of(stage, &stage.neighbour.id).await;
        // What a gateway has for its tenants: names, and calls that keep the caller awake.
        const SERVICES: [u16; 2] = [53, 80];
        for (what, address) in [("gateway", gateway(stage).await), ("uplink", HOST), ("neighbour", neighbour)] {
            // In parts, each well below an exec's time.
            for (first, last) in [(1, 21_999), (22_000, 43_999), (44_000, 65_535)] {
                let answer = stage.villain.try_to(Order::knock(address, first, last)).await;
                let ports: Vec<_> = answer.rooms.iter().flatten().copied().collect::<Vec<u8>>();
                let ports: Vec<u16> = ports.chunks(2).map(|port| u16::from_be_bytes([port[0], port[1]])).collect();
                let unknown: Vec<_> =
                    ports.iter().filter(|port| what != "gateway" || !SERVICES.contains(port)).collect();
                assert!(unknown.is_empty(), "the {what} answers at {unknown:?}");
            }
        }
        // The knocking itself works: its own server answers, and refuses elsewhere.
        let own = stage.villain.try_to(Order::knock(Ipv4Addr::LOCALHOST, 8079, 8081)).await;
        assert_eq!(own.result, 3);
    });
}

/// Flows that an address has opened and the kernel tracks: its packets are named first.
fn flows_of(address: Ipv4Addr) -> usize {
    let opened_by = format!("{address} ");
    let table = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap();
    table.lines().filter(|line| line.split("src=").nth(1).is_some_and(|rest| rest.starts_with(&opened_by))).count()
}

/// Flows that one tenant may have open by its rules, and as many to the resolver.
const FLOWS_MAX: usize = 4_096;

/// Orders that send one datagram from a port of its own each, to ports of an address: a flow each.
fn datagrams(target: Ipv4Addr, port: impl Fn(u16) -> u16, count: u16) -> Vec<Order> {
    let send = |n| {
        let sent = |socket| {
            let (text, name) = (Arg::Bytes(b"x".to_vec()), socket_address(target, port(n)));
            Order::call(SYS_sendto, &[socket, text, 1.into(), 0.into(), name, ADDRESS_BYTES.into()])
        };
        let (socket, place) = (call!(SYS_socket, AF_INET, SOCK_DGRAM, 0), usize::from(n) * 3);
        [socket, sent(Arg::Result(place)), Order::call(SYS_close, &[Arg::Result(place)])]
    };
    (0..count).flat_map(send).collect()
}

#[test]
fn flows_without_end_fill_neither_the_kernels_table_nor_the_resolver() {
    const DATAGRAMS: u16 = 6_000;
    attack_with("[dns]\nupstreams = ['198.51.100.1']\n", async |stage| {
        let villain = address_of(stage, &stage.villain.id).await;
        stage.villain.obey(&datagrams(Ipv4Addr::new(198, 51, 100, 1), |n| 10_000 + n, DATAGRAMS)).await;
        let outwards = flows_of(villain);
        assert!((1_000..=FLOWS_MAX).contains(&outwards), "{outwards} flows");
        // The resolver is another way, with a bound of its own; it takes 500 a second at most, so it takes a while.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(12) {
            stage.villain.obey(&datagrams(GATEWAY, |_| 53, 2_000)).await;
        }
        let all = flows_of(villain);
        assert!((outwards + 1_000..=2 * FLOWS_MAX).contains(&all), "{all} flows, {outwards} outwards");
        println!("{outwards} flows outwards, {all} in all");
        // The neighbour's first connection, and its first question.
        let asked = question("localhost.", RecordType::A);
        let inside = Netns::of_process(u32::try_from(stage.init_of(&stage.neighbour)).unwrap()).unwrap();
        assert!(ask(&inside, GATEWAY, &asked, PATIENCE).is_some());
    });
}

#[test]
fn a_port_that_is_published_for_a_neighbour_leads_no_tenant_there() {
    attack(async |stage| {
        let neighbour = address_of(stage, &stage.neighbour.id).await;
        // As an operator might, beside the proxy; a container that runs there answers strangers if its policy lets them in.
        nft("add table ip published");
        nft("add chain ip published in { type nat hook prerouting priority -100 ; }");
        nft(&format!("add rule ip published in ip daddr {HOST} tcp dport 8443 dnat to {neighbour}:8080"));
        let knocked = stage.villain.try_to(Order::knock(HOST, 8443, 8443)).await;
        assert_eq!(knocked.result, 0, "{knocked:?}");
        let own = stage.neighbour.try_to(Order::knock(HOST, 8443, 8443)).await;
        assert_eq!(own.result, 0, "not even itself: {own:?}");
        nft("delete table ip published");
    });
}

#[test]
fn nobody_speaks_from_an_address_that_is_not_its_own() {
    attack(async |stage| {
        let neighbour = address_of(stage, &stage.neighbour.id).await;
        let inside = Netns::of_process(u32::try_from(stage.init_of(&stage.neighbour)).unwrap()).unwrap();
        let (here, there) = (Sink::listen(&Netns::current(), 67), Sink::listen(&inside, 6767));
        let mut orders = Vec::new();
        for (source, target, port) in [
            (neighbour, HOST, 67),
            (HOST, neighbour, 6767),
            (Ipv4Addr::new(8, 8, 8, 8), neighbour, 6767),
            // As a client of DHCP, that a host's server would answer.
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 67),
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(224, 0, 0, 1), 6767),
        ] {
            let socket = orders.len();
            orders.push(call!(SYS_socket, AF_INET, SOCK_DGRAM, 0));
            for (level, option) in [(SOL_SOCKET, SO_BROADCAST), (IPPROTO_IP, IP_FREEBIND), (IPPROTO_IP, IP_TRANSPARENT)]
            {
                let one = 1i32.to_ne_bytes().to_vec();
                orders.push(Order::call(
                    SYS_setsockopt,
                    &[Arg::Result(socket), level.into(), option.into(), Arg::Bytes(one), 4.into()],
                ));
            }
            orders.push(Order::call(SYS_bind, &[Arg::Result(socket), socket_address(source, 0), ADDRESS_BYTES.into()]));
            let text = Arg::Bytes(b"forged".to_vec());
            let target = socket_address(target, port);
            orders.push(Order::call(
                SYS_sendto,
                &[Arg::Result(socket), text, 6.into(), 0.into(), target, ADDRESS_BYTES.into()],
            ));
        }
        let answers = stage.villain.obey(&orders).await;
        let transparent: Vec<&Answer> = answers.iter().skip(3).step_by(6).collect();
        assert!(transparent.iter().all(|answer| answer.errno() == Some(EPERM)), "{transparent:?}");
        std::thread::sleep(SILENCE);
        assert!(here.received().is_empty(), "{:?}", here.received());
        assert!(there.received().is_empty(), "{:?}", there.received());
    });
}

#[test]
fn neighbours_tables_and_routes_of_its_own_stack_cannot_be_changed() {
    attack(async |stage| {
        let before =
            (stage.villain.sh("cat /proc/net/arp /proc/net/route").await, crate::support::net::ip("neigh show"));
        let tries = "ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:66 dev eth0; ip route add 203.0.113.0/24 dev eth0; \
                     ip addr add 10.201.0.77/32 dev eth0; ip link set eth0 address 02:00:00:00:00:66; ip link set eth0 down; \
                     ip link add dummy0 type dummy; ip rule add from all lookup 7; arp -s 169.254.1.1 02:00:00:00:00:66; \
                     ifconfig eth0 10.201.0.78; route add default gw 10.201.0.1; ip tuntap add tap0 mode tap";
        stage.villain.sh(&format!("({tries}) 2>/dev/null")).await;
        let after =
            (stage.villain.sh("cat /proc/net/arp /proc/net/route").await, crate::support::net::ip("neigh show"));
        assert_eq!(after, before);
        // Straight to the kernel, since busybox may lack a word: a link down, by netlink (RTM_SETLINK) and by ioctl (SIOCSIFFLAGS).
        let mut flags = [0u8; 40];
        flags[..4].copy_from_slice(b"eth0");
        let message = [
            &32u32.to_ne_bytes()[..],
            &19u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &[0; 8],
            &[0; 4],
            &2i32.to_ne_bytes(),
            &[0; 4],
            &1u32.to_ne_bytes(),
        ]
        .concat();
        let orders = [
            call!(SYS_socket, AF_INET, SOCK_DGRAM, 0),
            Order::call(SYS_ioctl, &[Arg::Result(0), 0x8914.into(), Arg::Bytes(flags.to_vec())]),
            call!(SYS_socket, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE),
            Order::call(SYS_sendto, &[Arg::Result(2), Arg::Bytes(message), 32.into(), 0.into(), 0.into(), 0.into()]),
        ];
        let answers = stage.villain.obey(&orders).await;
        assert_eq!(answers[1].errno(), Some(EPERM), "{answers:?}");
        assert!(stage.villain.sh("cat /sys/class/net/eth0/operstate").await.starts_with("up"));
    });
}
