//! Rules that name hosts: what the resolver has told a tenant is open to it, while that holds, and nothing else is.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tenantry::domain::Slot;
use tenantry::domain::firewall::{Ruleset, Told};
use tenantry::domain::slot::GATEWAY;
use tenantry::sys::netlink::Links;
use tenantry::sys::nft::{Firewall, NftFirewall};

use crate::support::daemon::{Client, Daemon, id_of, play_in_lab};
use crate::support::machine::{Machine, instance, policy, rules_of, subnet};
use crate::support::name_server::{MANY, NameServer, addresses, ask, question};
use crate::support::net::{
    Conversation, Echo, HOST, INTERNET, METADATA, Netns, PATIENCE, PRIVATE, nft, refused, rejected, talk,
};
use crate::support::proxies::{Kind, Proxy};

const CONFIG: &str = "[dns]\nupstreams = ['198.51.100.1']\n";
/// What a tenant is told of a host opens that long, with a TTL of a minute.
const OPEN_S: std::ops::RangeInclusive<u64> = 60..=90;

/// Nothing may be sent but by TCP to port 443 of these.
fn only(hosts: &[&str]) -> Arc<Ruleset> {
    let hosts: Vec<_> = hosts.iter().map(|host| format!("'{host}'")).collect();
    rules_of(&format!(
        "ingress.default = 'drop'\negress.default = 'drop'\n[[egress.rules]]\naction = 'allow'\nprotocol = 'tcp'\n\
         ports = ['443']\npeers = [{}]\n",
        hosts.join(",")
    ))
}

fn tell(machine: &Machine, slot: u16, name: &str, address: Ipv4Addr) {
    let told = Told { name: name.to_owned(), addresses: vec![address], ttl_s: 60 };
    machine.runtime.block_on(machine.firewall.tell(Slot(slot), told)).unwrap();
}

fn open(from: &Netns) -> Conversation {
    from.run(|| Conversation::open(INTERNET, 443, PATIENCE).unwrap())
}

fn is_closed(from: &Netns) -> bool {
    is_closed_to(from, INTERNET)
}

/// Dropped or rejected: somebody listens there.
fn is_closed_to(from: &Netns, address: Ipv4Addr) -> bool {
    matches!(refused(from, address, 443), ErrorKind::TimedOut | ErrorKind::ConnectionRefused)
}

/// What a set of the table holds: address and seconds left.
fn held(table: &str, set: &str) -> Vec<(String, u64)> {
    let listing: Value = serde_json::from_str(&nft(&format!("-j list set inet {table} {set}"))).unwrap();
    let set = listing["nftables"].as_array().unwrap().iter().find_map(|object| object.get("set")).unwrap();
    let read = |element: &Value| {
        let element = &element["elem"];
        (element["val"]["concat"][1].as_str().unwrap().to_owned(), element["expires"].as_u64().unwrap())
    };
    set["elem"].as_array().into_iter().flatten().map(read).collect()
}

#[test]
fn what_one_tenant_was_told_of_a_host_is_open_to_it_alone_and_by_its_rules_alone() {
    let machine = Machine::start();
    let _servers = [80, 443].map(|port| Echo::listen(&machine.lab.internet, port));
    let (one, two) = (machine.tenant(1, &only(&["shop.example"])), machine.tenant(2, &only(&["shop.example"])));
    assert!(is_closed(&one), "it may know the address from elsewhere");
    tell(&machine, 1, "other.example", INTERNET);
    assert!(is_closed(&one));
    tell(&machine, 1, "shop.example", INTERNET);
    assert_eq!(talk(&one, INTERNET, 443).unwrap(), HOST);
    assert_eq!(refused(&one, INTERNET, 80), ErrorKind::TimedOut, "another port");
    assert!(is_closed(&two), "another tenant");
    let held = held("lab", "hosts-0");
    assert!(held.len() == 1 && OPEN_S.contains(&held[0].1), "{held:?}");
    // Told what the base rules close, it gets no further.
    let _metadata = Echo::listen(&two, 443);
    for closed in [METADATA, subnet().address(Slot(2)).unwrap(), GATEWAY] {
        tell(&machine, 1, "shop.example", closed);
        assert_eq!(refused(&one, closed, 443), ErrorKind::TimedOut, "{closed}");
    }
}

#[test]
fn what_ends_opens_nothing_new_and_what_is_open_goes_on() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 443);
    let tenant = machine.tenant(1, &only(&["shop.example"]));
    tell(&machine, 1, "shop.example", INTERNET);
    let mut talking = open(&tenant);
    // As its time would do.
    nft("flush set inet lab hosts-0");
    assert!(is_closed(&tenant));
    talking.say(b"what was let out goes on").unwrap();
    machine.apply(1, &only(&["shop.example", "zoo.example"]));
    talking.say(b"also when rules change that still name it").unwrap();
    machine.apply(1, &only(&["zoo.example"]));
    assert!(talking.say(b"and no longer").is_err());
}

#[test]
fn rules_that_change_keep_what_they_still_name_open_and_close_the_rest() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 443);
    let tenant = machine.tenant(1, &only(&["shop.example"]));
    tell(&machine, 1, "shop.example", INTERNET);
    // Another place in the order, another set; a wildcard is another name, though it fits.
    for hosts in [&["a.example", "shop.example"][..], &["a.example", "b.example", "shop.example"], &["shop.example"]] {
        machine.apply(1, &only(hosts));
        assert_eq!(talk(&tenant, INTERNET, 443).unwrap(), HOST, "{hosts:?}");
    }
    machine.apply(1, &only(&["*.example.net"]));
    assert!(is_closed(&tenant) && held("lab", "hosts-0").is_empty());
    machine.apply(1, &only(&["shop.example"]));
    assert!(is_closed(&tenant), "what was closed is asked for again");
    tell(&machine, 1, "shop.example", INTERNET);
    assert_eq!(talk(&tenant, INTERNET, 443).unwrap(), HOST);
}

#[test]
fn a_slots_next_tenant_has_to_ask_itself() {
    let machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 443);
    let first = machine.tenant(1, &only(&["shop.example"]));
    tell(&machine, 1, "shop.example", INTERNET);
    assert!(talk(&first, INTERNET, 443).is_ok());
    machine.runtime.block_on(async {
        machine.links.detach(Slot(1)).await.unwrap();
        machine.firewall.remove(Slot(1)).await.unwrap();
    });
    drop(first);
    let next = machine.tenant(1, &only(&["shop.example"]));
    assert!(is_closed(&next) && held("lab", "hosts-0").is_empty());
}

#[test]
fn what_is_open_survives_another_programs_flush_and_the_daemon() {
    let mut machine = Machine::start();
    let _server = Echo::listen(&machine.lab.internet, 443);
    let tenant = machine.tenant(1, &only(&["b.example", "shop.example"]));
    tell(&machine, 1, "shop.example", INTERNET);
    let mut talking = open(&tenant);
    nft("flush ruleset");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !nft("list tables").contains("lab") {
        assert!(Instant::now() < deadline, "it is not mended");
        machine.wait(Duration::from_millis(10));
    }
    talking.say(b"through the mending").unwrap();
    assert_eq!(talk(&tenant, INTERNET, 443).unwrap(), HOST);
    // What is asked for while the table is missing mends it.
    nft("flush ruleset");
    tell(&machine, 1, "b.example", INTERNET);
    assert_eq!(held("lab", "hosts-1").len(), 1);
    // The next daemon knows what the kernel knows: not what had ended.
    nft("flush set inet lab hosts-0");
    machine.firewall = {
        let _entered = machine.runtime.enter();
        NftFirewall::new(instance(), subnet())
    };
    let rules = [(Slot(1), only(&["a.example", "b.example", "shop.example"]))];
    machine.runtime.block_on(machine.firewall.load(&rules)).unwrap();
    talking.say(b"through the restart").unwrap();
    assert_eq!(talk(&tenant, INTERNET, 443).unwrap(), HOST);
    let held = ["hosts-1", "hosts-2"].map(|set| held("lab", set).len());
    assert_eq!(held, [0, 1], "each with its own name, though in other places");
    machine.apply(1, &policy("no-egress"));
    assert!(is_closed(&tenant));
}

fn at(id: &str, end: &str) -> String {
    format!("/containers/{id}/firewall/{end}")
}

async fn container(client: &Client, body: Value) -> Value {
    let project = client.create_project("acme").await;
    client.post(&format!("/projects/{project}/containers"), body).await.data(201)
}

fn allow(hosts: &str) -> Value {
    json!({ "action": "allow", "protocol": "tcp", "destination": hosts, "destination_port": "443" })
}

fn asks(netns: &Netns, name: &str) -> Vec<Ipv4Addr> {
    let answer = ask(netns, GATEWAY, &question(name, RecordType::A), PATIENCE).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
    addresses(&answer)
}

fn says_it_agrees(effective: &Value) -> bool {
    effective["agrees"] == true && effective["kernel"]["egress"].to_string().contains("@hosts-0")
}

#[test]
fn a_container_reaches_the_hosts_that_its_rules_name_once_it_has_asked_for_them() {
    play_in_lab(CONFIG, async |daemon: &mut Daemon, lab| {
        let _names = NameServer::listen(&lab.internet);
        let _server = Echo::listen(&lab.internet, 443);
        let made = container(&daemon.client, json!({ "firewall_policy": "no-egress" })).await;
        let (id, netns) = (id_of(&made), daemon.netns(&made));
        let added = daemon.client.post(&at(&id, "egress"), allow("API.Shop.example,*.cdn.example")).await.data(201);
        assert_eq!(added["rule"]["destination"], "*.cdn.example,api.shop.example");
        assert!(is_closed(&netns));
        asks(&netns, "shop.example.");
        asks(&netns, "cdn.example.");
        assert!(is_closed(&netns), "neither is named");
        assert_eq!(asks(&netns, "a.b.CDN.example."), [INTERNET]);
        // The answer is there, so the way is open: no second try.
        assert_eq!(talk(&netns, INTERNET, 443).unwrap(), HOST);
        assert!(says_it_agrees(&daemon.client.get(&at(&id, "effective")).await.data(200)));
        let mut talking = open(&netns);
        daemon.kill9();
        talking.say(b"without a daemon").unwrap();
        daemon.restart().await;
        talking.say(b"and with the next one").unwrap();
        assert_eq!(talk(&netns, INTERNET, 443).unwrap(), HOST);
        let client = &daemon.client;
        assert!(says_it_agrees(&client.get(&at(&id, "effective")).await.data(200)));
        // It goes with its rule, and comes with a copy: a copy of its own.
        let copy = client.copy(&id, json!({ "copy_firewall_rules": true })).await;
        let copied = daemon.netns(&copy);
        assert!(is_closed(&copied));
        asks(&copied, "api.shop.example.");
        assert_eq!(talk(&copied, INTERNET, 443).unwrap(), HOST);
        client.post(&at(&id, "reset"), json!({})).await.data(200);
        assert!(is_closed(&netns) && talking.say(b"no more").is_err());
        assert_eq!(talk(&copied, INTERNET, 443).unwrap(), HOST);
    });
}

#[test]
fn a_name_that_leads_inside_opens_nothing() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _names = NameServer::listen(&lab.internet);
        let _server = Echo::listen(&lab.internet, 443);
        let client = &daemon.client;
        let made = container(client, json!({ "firewall_policy": "no-egress" })).await;
        let (id, netns) = (id_of(&made), daemon.netns(&made));
        client.post(&at(&id, "egress"), allow("*.example.org,inside.example,metadata.example")).await.data(201);
        for name in ["inside.example.", "metadata.example."] {
            asks(&netns, name);
        }
        for closed in [PRIVATE, METADATA, INTERNET] {
            assert!(is_closed_to(&netns, closed), "{closed}");
        }
        // A private network is for rules that say so.
        client.post(&at(&id, "egress"), allow("10.99.0.0/16")).await.data(201);
        assert!(talk(&netns, PRIVATE, 443).is_ok());
        assert!(is_closed_to(&netns, METADATA));
    });
}

#[test]
fn a_container_that_asks_for_names_without_end_has_a_bounded_number_open_and_keeps_nobody_waiting() {
    const NAMES: u32 = 600;
    play_in_lab("[dns]\nupstreams = ['198.51.100.1']\nqueries_per_second = 300\n", async |daemon, lab| {
        let _names = NameServer::listen(&lab.internet);
        let _server = Echo::listen(&lab.internet, 443);
        let client = &daemon.client;
        let rules = |host: &str| json!({ "firewall_policy": "no-egress", "name": host });
        let greedy = container(client, rules("greedy")).await;
        let project = greedy["project_id"].as_str().unwrap().to_owned();
        let neighbour = client.post(&format!("/projects/{project}/containers"), rules("neighbour")).await.data(201);
        for (made, host) in [(&greedy, "*.many.example"), (&neighbour, "shop.example")] {
            client.post(&at(&id_of(made), "egress"), allow(host)).await.data(201);
        }
        let flooding = daemon.netns(&greedy);
        let asking = std::thread::spawn(move || {
            let begin = Instant::now();
            for n in 0..NAMES {
                let found = asks(&flooding, &format!("{n}.many.example."));
                assert_eq!(found, [Ipv4Addr::from_bits(MANY.to_bits() + n)]);
            }
            begin.elapsed()
        });
        let netns = daemon.netns(&neighbour);
        assert_eq!(asks(&netns, "shop.example."), [INTERNET]);
        assert_eq!(talk(&netns, INTERNET, 443).unwrap(), HOST);
        println!("{NAMES} names, each an address of its own, in {:?}", asking.join().unwrap());
        let held = held(&daemon.instance, "hosts-0");
        // The neighbour's one among them.
        assert_eq!(held.len(), 256 + 1, "{held:?}");
        assert_eq!(talk(&netns, INTERNET, 443).unwrap(), HOST);
    });
}

#[test]
fn a_container_with_a_proxy_reaches_by_it_the_hosts_that_its_rules_name() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _names = NameServer::listen(&lab.internet);
        let _server = Echo::listen(&lab.internet, 443);
        let proxy = Proxy::listen(&lab.internet, Kind::Socks5, 1080, None);
        let client = &daemon.client;
        let made = container(client, json!({ "firewall_policy": "no-egress" })).await;
        let (id, netns) = (id_of(&made), daemon.netns(&made));
        client.post(&at(&id, "egress"), allow("shop.example")).await.data(201);
        let network = json!({ "type": "socks5", "proxy": "socks5://198.51.100.1:1080" });
        client.put(&format!("/containers/{id}/network"), network).await.data(200);
        assert!(is_closed(&netns), "its rules come first");
        assert_eq!(asks(&netns, "shop.example."), [INTERNET]);
        assert_eq!(talk(&netns, INTERNET, 443).unwrap(), INTERNET, "by the proxy");
        assert!(proxy.targets().contains(&(INTERNET, 53).into()), "and so was the name: {:?}", proxy.targets());
    });
}

#[test]
fn a_policys_file_names_hosts_too() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _names = NameServer::listen(&lab.internet);
        let _server = Echo::listen(&lab.internet, 443);
        let policies = daemon.scratch().join("policies");
        std::fs::create_dir_all(&policies).unwrap();
        let text = "ingress.default = 'drop'\negress.default = 'reject'\n[[egress.rules]]\naction = 'allow'\npeers = ['*.shop.example']\n";
        std::fs::write(policies.join("shop.toml"), text).unwrap();
        daemon.kill9();
        daemon.restart().await;
        let made = container(&daemon.client, json!({ "firewall_policy": "shop" })).await;
        let netns = daemon.netns(&made);
        assert!(rejected(&netns, INTERNET, 443));
        asks(&netns, "api.shop.example.");
        assert_eq!(talk(&netns, INTERNET, 443).unwrap(), HOST);
    });
}
