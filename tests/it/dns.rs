//! The resolver as tenants meet it: real containers ask, a name server on the lab's internet answers.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tenantry::domain::slot::GATEWAY;
use tenantry::domain::{Instance, Slot, Subnet};
use tenantry::sys::gateway::GatewaySockets;
use tenantry::sys::netlink::{Links, Rates, VethLinks};
use tenantry::sys::nft::{Firewall, NftFirewall};

use crate::support::daemon::{Client, id_of, play_in_lab};
use crate::support::machine::policy;
use crate::support::name_server::{LONG_TEXTS, NameServer, addresses, ask, ask_by_tcp, question};
use crate::support::net::{
    Echo, HOST, INTERNET, NetLab, Netns, PATIENCE, SILENCE, UPLINK_GATEWAY, ip, refused, send, talk,
};

/// Where the daemon of most of these tests listens, so that a test can knock there.
const PORT: u16 = 5399;
const CONFIG: &str = "[dns]\nupstreams = ['198.51.100.1']\nport = 5399\n";

/// A container of the base image with this policy.
async fn container(client: &Client, project: &str, policy: &str) -> Value {
    let body = json!({ "firewall_policy": policy });
    client.post(&format!("/projects/{project}/containers"), body).await.data(201)
}

fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

#[test]
fn a_container_resolves_where_its_egress_is_closed() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let server = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let closed = container(client, &project, "no-egress").await;
        let found = client.exec(&id_of(&closed), &["nslookup", "-type=a", "shop.example"]).await;
        assert!(found.contains(&INTERNET.to_string()), "{found}");
        assert_eq!(client.exec(&id_of(&closed), &["cat", "/etc/resolv.conf"]).await, "nameserver 169.254.1.1\n");
        let netns = daemon.netns(&closed);
        assert!(ask(&netns, INTERNET, &question("shop.example.", RecordType::A), SILENCE).is_none(), "by itself");
        let unknown = ask(&netns, GATEWAY, &question("nowhere.test.", RecordType::A), PATIENCE).unwrap();
        assert_eq!(code(&unknown), ResponseCode::NXDomain);
        assert!(server.asked().iter().all(|asked| asked.starts_with("udp ")), "{:?}", server.asked());
        // Names of its own never leave the host.
        let before = server.asked().len();
        let own = ask(&netns, GATEWAY, &question("localhost.", RecordType::A), PATIENCE).unwrap();
        assert_eq!(addresses(&own), [Ipv4Addr::LOCALHOST]);
        let neighbour = ask(&netns, GATEWAY, &question("2.0.201.10.in-addr.arpa.", RecordType::PTR), PATIENCE).unwrap();
        assert_eq!((code(&neighbour), server.asked().len()), (ResponseCode::NXDomain, before));
    });
}

#[test]
fn a_containers_own_name_servers_are_asked_instead_from_the_moment_they_are_set() {
    // Where the daemon's own are, nobody answers.
    play_in_lab("[dns]\nupstreams = ['203.0.113.1']\n", async |daemon, lab| {
        let server = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let (one, other) = (container(client, &project, "no-egress").await, container(client, &project, "web").await);
        let asks = |container: &Value, name: &str| {
            let asked = question(name, RecordType::A);
            ask(&daemon.netns(container), GATEWAY, &asked, Duration::from_secs(6)).unwrap()
        };
        assert_eq!(code(&asks(&one, "before.example.")), ResponseCode::ServFail);
        let network = format!("/containers/{}/network", id_of(&one));
        client.put(&network, json!({ "dns_servers": ["198.51.100.1"] })).await.data(200);
        assert_eq!(addresses(&asks(&one, "after.example.")), [INTERNET]);
        assert_eq!(code(&asks(&other, "other.example.")), ResponseCode::ServFail);
        assert_eq!(server.asked(), ["udp after.example."], "nobody else's questions come there");
        // Whoever may call the API may not point the daemon at what listens on this host for itself; not by a detour either.
        client.put(&network, json!({ "dns_servers": [HOST.to_string()] })).await.refused(400, "VALIDATION_ERROR");
        client.put(&network, json!({ "dns_servers": ["203.0.113.9"] })).await.data(200);
        ip("address add 203.0.113.9/32 dev uplink");
        let own = NameServer::listen_at(&Netns::current(), Ipv4Addr::new(203, 0, 113, 9));
        assert_eq!(code(&asks(&one, "inward.example.")), ResponseCode::ServFail);
        assert_eq!(own.asked(), [""; 0]);
    });
}

#[test]
fn a_copy_has_a_name_of_its_own_and_the_same_resolver() {
    play_in_lab(CONFIG, async |daemon, _lab| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "template").await);
        let copy = id_of(&client.copy(&template, json!({ "name": "customer-a" })).await);
        let hosts = client.exec(&copy, &["cat", "/etc/hosts"]).await;
        assert!(hosts.ends_with("\n127.0.1.1\tcustomer-a\n") && !hosts.contains("template"), "{hosts}");
        assert_eq!(client.exec(&copy, &["cat", "/etc/resolv.conf"]).await, "nameserver 169.254.1.1\n");
        client.exec(&copy, &["sh", "-c", "echo nameserver 192.0.2.53 >/etc/resolv.conf"]).await;
        let second = id_of(&client.copy(&copy, json!({})).await);
        assert_eq!(client.exec(&second, &["cat", "/etc/resolv.conf"]).await, "nameserver 192.0.2.53\n", "its owner's");
    });
}

#[test]
fn an_answer_too_long_for_udp_comes_by_tcp() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let server = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let netns = daemon.netns(&container(client, &project, "no-egress").await);
        let asked = question("long.example.", RecordType::TXT);
        let short = ask(&netns, GATEWAY, &asked, PATIENCE).unwrap();
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(ask_by_tcp(&netns, GATEWAY, &asked).unwrap().answers.len(), LONG_TEXTS);
        assert!(server.asked().contains(&"tcp long.example.".to_owned()), "{:?}", server.asked());
    });
}

#[test]
fn a_tenant_reaches_dns_on_the_gateway_and_nothing_else_on_the_host() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _server = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let netns = daemon.netns(&container(client, &project, "open").await);
        let _others = [22, 53].map(|port| Echo::listen(&Netns::current(), port));
        let asked = question("shop.example.", RecordType::A);
        assert!(ask(&netns, GATEWAY, &asked, PATIENCE).is_some());
        // The daemon's own port, where the tenant was not led; other ports; the host's other addresses.
        for (address, port) in [(GATEWAY, PORT), (GATEWAY, 22), (HOST, 53), (HOST, PORT), (HOST, 22), (GATEWAY, 7070)] {
            assert_eq!(refused(&netns, address, port), ErrorKind::TimedOut, "{address}:{port}");
        }
        assert!(ask(&netns, HOST, &asked, SILENCE).is_none());
        let knock = |from: &Netns, port: u16| {
            from.run(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket.set_read_timeout(Some(SILENCE)).unwrap();
                socket.send_to(&asked.to_vec().unwrap(), (GATEWAY, port)).unwrap();
                socket.recv(&mut [0; 512]).is_ok()
            })
        };
        assert!(!knock(&netns, PORT));
        // Nor do strangers, and the host itself is no tenant.
        lab.internet.ip("route add 169.254.1.1 via 203.0.113.2");
        assert!(!knock(&lab.internet, PORT) && !knock(&Netns::current(), PORT));
        assert_eq!(talk(&lab.internet, HOST, 22).unwrap(), UPLINK_GATEWAY, "others do reach the host");
    });
}

#[test]
fn addresses_of_tenants_and_of_the_metadata_service_are_not_handed_out() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let server = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let netns = daemon.netns(&container(client, &project, "open").await);
        let answer = ask(&netns, GATEWAY, &question("metadata.example.", RecordType::A), PATIENCE).unwrap();
        assert_eq!((code(&answer), addresses(&answer)), (ResponseCode::NoError, vec![]));
        assert_eq!(server.asked(), ["udp metadata.example."]);
    });
}

/// Sends as fast as it can; how many were answered with REFUSED, and with anything else.
fn flood(netns: &Netns, duration: Duration) -> (usize, usize) {
    netns.run(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.connect((GATEWAY, 53)).unwrap();
        socket.set_nonblocking(true).unwrap();
        let packet = question("flood.example.", RecordType::A).to_vec().unwrap();
        let (deadline, mut refused, mut answered) = (Instant::now() + duration, 0, 0);
        let mut buffer = [0; 512];
        while Instant::now() < deadline {
            let _ = socket.send(&packet);
            while let Ok(length) = socket.recv(&mut buffer) {
                let answer = Message::from_vec(&buffer[..length]).unwrap();
                if code(&answer) == ResponseCode::Refused { refused += 1 } else { answered += 1 }
            }
        }
        (refused, answered)
    })
}

#[test]
fn a_flood_of_one_leaves_its_neighbour_its_answers() {
    const QUESTIONS: usize = 40;
    play_in_lab(CONFIG, async |daemon, lab| {
        let server = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let loud = daemon.netns(&container(client, &project, "open").await);
        let quiet = daemon.netns(&container(client, &project, "open").await);
        let flooding = std::thread::spawn(move || flood(&loud, Duration::from_secs(3)));
        let asked = question("quiet.example.", RecordType::A);
        let answered = (0..QUESTIONS).filter(|_| {
            std::thread::sleep(Duration::from_millis(50));
            // Twice, as every resolver does: a datagram may be lost on a busy machine.
            (0..2)
                .find_map(|_| ask(&quiet, GATEWAY, &asked, Duration::from_secs(1)))
                .is_some_and(|answer| code(&answer) == ResponseCode::NoError)
        });
        assert_eq!(answered.count(), QUESTIONS);
        let (refused, answered) = flooding.join().unwrap();
        assert!(refused > 0, "who asks too much is told");
        // 300 at once and 100 a second; what waited for a place among its own is refused too.
        assert!(answered <= 700, "{answered}");
        let forwarded = server.asked().iter().filter(|asked| asked.ends_with("flood.example.")).count();
        assert!(forwarded <= 700, "{forwarded}");
    });
}

#[test]
fn packets_of_nonsense_do_no_harm() {
    const PACKETS: usize = 400;
    play_in_lab(CONFIG, async |daemon, lab| {
        let _server = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let netns = daemon.netns(&container(client, &project, "open").await);
        let whole = question("a.rather.long.name.example.", RecordType::A).to_vec().unwrap();
        netns.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            for n in 0..PACKETS {
                let mut packet = whole.clone();
                for _ in 0..n % 5 {
                    let place = rand::random_range(0..packet.len());
                    packet[place] = rand::random();
                }
                packet.truncate(rand::random_range(0..=packet.len()));
                packet.extend((0..n % 3 * 700).map(|_| rand::random::<u8>()));
                socket.send_to(&packet, (GATEWAY, 53)).unwrap();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        // Connections that say nothing, or the wrong length, are held no longer than their bound and are few.
        let silent: Vec<_> =
            (0..20).filter_map(|_| netns.run(|| std::net::TcpStream::connect((GATEWAY, 53)).ok())).collect();
        assert!(!silent.is_empty());
        let answer = ask(&netns, GATEWAY, &question("shop.example.", RecordType::A), PATIENCE).unwrap();
        assert_eq!(addresses(&answer), [INTERNET]);
        drop(silent);
        let log = daemon.log();
        assert!(!log.contains("panicked") && !log.contains("rather.long.name"), "{log}");
    });
}

#[test]
fn the_next_daemon_goes_on_resolving_for_what_runs() {
    play_in_lab("[dns]\nupstreams = ['198.51.100.1']\n", async |daemon, lab| {
        let _server = NameServer::listen(&lab.internet);
        let project = daemon.client.create_project("acme").await;
        let netns = daemon.netns(&container(&daemon.client, &project, "no-egress").await);
        let asked = question("shop.example.", RecordType::A);
        daemon.kill9();
        assert!(ask(&netns, GATEWAY, &asked, SILENCE).is_none(), "nobody is there");
        daemon.restart().await;
        assert_eq!(addresses(&ask(&netns, GATEWAY, &asked, PATIENCE).unwrap()), [INTERNET]);
    });
}

#[test]
fn daemons_that_share_a_host_each_hear_their_own_tenants() {
    let _lab = NetLab::enter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut heard = Vec::new();
        for (instance, subnet) in [("red", "10.201.0.0/24"), ("blue", "10.202.0.0/24")] {
            let (instance, subnet): (Instance, Subnet) = (instance.parse().unwrap(), subnet.parse().unwrap());
            let sockets = GatewaySockets::bind(0, 0).unwrap();
            let links = VethLinks::new(instance.clone(), subnet).unwrap();
            let firewall = NftFirewall::of_daemon(instance.clone(), subnet, sockets.doors().unwrap(), None);
            let netns = Netns::new();
            links.prepare_host().await.unwrap();
            firewall.load(&[]).await.unwrap();
            links.attach(Slot(1), &netns.path(), Rates::default()).await.unwrap();
            firewall.apply(Slot(1), &policy("no-egress")).await.unwrap();
            links.up(Slot(1)).await.unwrap();
            heard.push((instance, subnet.address(Slot(1)).unwrap(), sockets, firewall, links, netns));
        }
        for (instance, address, .., netns) in &heard {
            send(netns, *address, GATEWAY, 53, instance.as_str()).unwrap();
        }
        for (instance, address, sockets, ..) in &heard {
            let mut buffer = [0; 64];
            let received = tokio::time::timeout(PATIENCE, sockets.dns_udp.recv_from(&mut buffer)).await.unwrap();
            let (length, from) = received.unwrap();
            assert_eq!((&buffer[..length], from.ip()), (instance.as_str().as_bytes(), (*address).into()));
            assert!(sockets.dns_udp.try_recv_from(&mut buffer).is_err(), "and nobody else");
        }
        assert!(ip("address").contains("169.254.1.1"));
    });
}
