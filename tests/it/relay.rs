//! `network` as tenants and the internet see it: real containers, real proxies on the lab's internet.
//!
//! An [`Echo`] says whom it sees: a connection by a proxy comes from the internet's own address, a direct one from the host's.

use std::io::ErrorKind;
use std::net::SocketAddr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tenantry::domain::slot::GATEWAY;

use crate::support::daemon::{Client, id_of, play_in_lab};
use crate::support::name_server::{NameServer, addresses, ask, question};
use crate::support::net::{
    Conversation, Echo, HOST, INTERNET, METADATA, Netns, PATIENCE, PRIVATE, SILENCE, Sink, refused, rejected, send,
    talk,
};
use crate::support::proxies::{Kind, Proxy};

const CONFIG: &str = "[dns]\nupstreams = ['198.51.100.1']\n";
const SOCKS: u16 = 1080;
const HTTP: u16 = 3128;
const USER: Option<(&str, &str)> = Some(("acme", "hunter2"));

fn socks() -> Value {
    json!({ "type": "socks5", "proxy": "socks5://acme:hunter2@198.51.100.1:1080" })
}

fn http() -> Value {
    json!({ "type": "http", "proxy": "http://acme:hunter2@198.51.100.1:3128" })
}

/// A running container of the base image with this policy.
async fn container(client: &Client, policy: &str) -> Value {
    let projects = client.get("/projects/").await.data(200);
    let project = match projects["projects"][0]["id"].as_str() {
        Some(id) => id.to_owned(),
        None => client.create_project("acme").await,
    };
    let body = json!({ "firewall_policy": policy });
    client.post(&format!("/projects/{project}/containers"), body).await.data(201)
}

fn network_of(container: &Value) -> String {
    format!("/containers/{}/network", id_of(container))
}

fn at(port: u16) -> SocketAddr {
    (INTERNET, port).into()
}

#[test]
fn a_running_containers_connections_go_through_its_proxy_from_one_moment_to_the_next() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _server = Echo::listen(&lab.internet, 80);
        let by_socks = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, USER);
        let by_http = Proxy::listen(&lab.internet, Kind::Http, HTTP, USER);
        let client = &daemon.client;
        let one = container(client, "web").await;
        let (netns, network) = (daemon.netns(&one), network_of(&one));
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), HOST, "directly, before");
        client.put(&network, socks()).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), INTERNET);
        assert_eq!(by_socks.targets(), [at(80)]);
        client.put(&network, http()).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), INTERNET);
        assert_eq!((by_socks.targets().len(), by_http.targets()), (1, vec![at(80)]));
        client.post(&format!("{network}/stop"), json!(null)).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), HOST);
        client.post(&format!("{network}/start"), json!(null)).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), INTERNET);
        client.delete(&network).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), HOST);
        assert_eq!((by_socks.refused(), by_http.refused()), (vec![], vec![]));
        let page = client.page(&one, "/").await;
        assert_eq!(page.status, 200, "visitors come all the same: {}", page.text);
        assert!(!daemon.log().contains("hunter2"));
    });
}

#[test]
fn a_connection_does_not_outlive_the_way_it_was_made_by() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _server = Echo::listen(&lab.internet, 80);
        let _socks = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, USER);
        let _http = Proxy::listen(&lab.internet, Kind::Http, HTTP, USER);
        let client = &daemon.client;
        let one = container(client, "web").await;
        let neighbour = container(client, "web").await;
        let (netns, network) = (daemon.netns(&one), network_of(&one));
        let open = |from: &Netns| from.run(|| Conversation::open(INTERNET, 80, PATIENCE).unwrap());
        let mut others = open(&daemon.netns(&neighbour));
        for (step, body) in [socks(), http(), json!({ "type": null, "proxy": null })].into_iter().enumerate() {
            let mut before = open(&netns);
            before.say(b"hello").unwrap();
            client.put(&network, body).await.data(200);
            assert!(before.say(b"still there").is_err(), "step {step}");
        }
        others.say(b"nobody's business").unwrap();
        // Nor the container.
        client.put(&network, socks()).await.data(200);
        let mut left = open(&netns);
        left.say(b"hello").unwrap();
        client.verb(&id_of(&one), "stop").await.data(200);
        assert!(left.say(b"still there").is_err());
    });
}

#[test]
fn its_own_rules_come_first_and_nothing_leaves_but_by_the_proxy() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _servers = [80, 25, 22].map(|port| Echo::listen(&lab.internet, port));
        let _own = Echo::listen(&Netns::current(), 22);
        let names = NameServer::listen(&lab.internet);
        let sink = Sink::listen(&lab.internet, 9000);
        let proxy = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, USER);
        let client = &daemon.client;
        let one = container(client, "locked-down").await;
        let neighbour = container(client, "open").await;
        let neighbours_address = neighbour["ip"].as_str().unwrap().parse().unwrap();
        let netns = daemon.netns(&one);
        client.put(&network_of(&one), socks()).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), INTERNET);
        for (address, port) in [(INTERNET, 25), (PRIVATE, 80)] {
            assert!(rejected(&netns, address, port), "{address}:{port}, by its policy");
        }
        for (address, port) in [(GATEWAY, 22), (HOST, 22), (METADATA, 80), (neighbours_address, 8080)] {
            assert_eq!(refused(&netns, address, port), ErrorKind::TimedOut, "{address}:{port}, by the base rules");
        }
        let own = one["ip"].as_str().unwrap().parse().unwrap();
        send(&netns, own, INTERNET, 9000, "by UDP").unwrap();
        assert_eq!(sink.waits_for("by UDP", SILENCE), None);
        assert!(
            ask(&netns, INTERNET, &question("shop.example.", RecordType::A), SILENCE).is_none(),
            "nor names by UDP"
        );
        assert_eq!((proxy.targets(), names.asked().len()), (vec![at(80)], 0));
        // Names are asked for through it too, and by nobody else.
        let answer = ask(&netns, GATEWAY, &question("shop.example.", RecordType::A), PATIENCE).unwrap();
        assert_eq!((addresses(&answer), names.asked()), (vec![INTERNET], vec!["tcp shop.example.".to_owned()]));
        assert_eq!(proxy.targets(), [at(80), at(53)]);
    });
}

#[test]
fn a_proxy_that_is_gone_or_refuses_leaves_no_way_out() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _server = Echo::listen(&lab.internet, 80);
        let names = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let one = container(client, "web").await;
        let (netns, network) = (daemon.netns(&one), network_of(&one));
        let closed = |why: &str| {
            let connected = netns.run(|| Conversation::open(INTERNET, 80, PATIENCE));
            assert!(connected.is_err(), "{why}");
            let answer = ask(&netns, GATEWAY, &question("shop.example.", RecordType::A), PATIENCE).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::ServFail, "{why}");
        };
        client.put(&network, socks()).await.data(200);
        closed("nobody listens");
        let strict = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, Some(("acme", "another password")));
        closed("it does not know us");
        assert!(!strict.refused().is_empty() && strict.targets().is_empty());
        drop(strict);
        let proxy = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, USER);
        let mut open = netns.run(|| Conversation::open(INTERNET, 80, PATIENCE).unwrap());
        open.say(b"hello").unwrap();
        drop(proxy);
        assert!(open.say(b"still there").is_err());
        closed("it was killed");
        client.put(&network, http()).await.data(200);
        let strict = Proxy::listen(&lab.internet, Kind::Http, HTTP, Some(("acme", "another password")));
        closed("407");
        assert!(strict.targets().is_empty());
        assert_eq!(names.asked(), Vec::<String>::new());
        assert!(!daemon.log().contains("hunter2"));
    });
}

#[test]
fn a_blocked_container_sends_nothing_and_is_visited_all_the_same() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _server = Echo::listen(&lab.internet, 80);
        let names = NameServer::listen(&lab.internet);
        let sink = Sink::listen(&lab.internet, 9000);
        let client = &daemon.client;
        let one = container(client, "open").await;
        let (netns, network) = (daemon.netns(&one), network_of(&one));
        let mut before = netns.run(|| Conversation::open(INTERNET, 80, PATIENCE).unwrap());
        client.put(&network, json!({ "type": "block" })).await.data(200);
        assert!(before.say(b"still there").is_err());
        assert_eq!(refused(&netns, INTERNET, 80), ErrorKind::TimedOut);
        send(&netns, one["ip"].as_str().unwrap().parse().unwrap(), INTERNET, 9000, "out").unwrap();
        assert_eq!(sink.waits_for("out", SILENCE), None);
        assert!(ask(&netns, GATEWAY, &question("shop.example.", RecordType::A), SILENCE).is_none());
        assert_eq!(names.asked(), Vec::<String>::new());
        assert_eq!(client.page(&one, "/").await.status, 200);
        client.post(&format!("{network}/stop"), json!(null)).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), HOST);
    });
}

#[test]
fn a_copy_of_a_template_never_sends_but_by_the_templates_proxy() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let sink = Echo::listen(&lab.internet, 80);
        let proxy = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, USER);
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let template = client.create_template(&project, "template").await;
        client.put(&network_of(&template), socks()).await.data(200);
        // It tries from its first moment on.
        let body =
            json!({ "command": ["sh", "-c", "while :; do nc -w 2 198.51.100.1 80 </dev/null; sleep 0.02; done"] });
        let copy = client.post(&format!("/containers/{}/copy?wait=started", id_of(&template)), body).await.data(201);
        let log = format!("/containers/{}/logs", id_of(&copy));
        let deadline = std::time::Instant::now() + PATIENCE;
        let seen = loop {
            let text = client.get(&log).await.text;
            if text.lines().count() > 5 || std::time::Instant::now() > deadline {
                break text;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        };
        assert!(!seen.is_empty() && seen.lines().all(|line| line == INTERNET.to_string()), "{seen}");
        assert!(!proxy.targets().is_empty());
        drop(sink);
    });
}

#[test]
fn without_a_daemon_nothing_leaves_and_the_next_one_leads_on() {
    play_in_lab(CONFIG, async |daemon, lab| {
        let _server = Echo::listen(&lab.internet, 80);
        let _proxy = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, USER);
        let one = container(&daemon.client, "web").await;
        let netns = daemon.netns(&one);
        daemon.client.put(&network_of(&one), socks()).await.data(200);
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), INTERNET);
        daemon.kill9();
        assert!(netns.run(|| Conversation::open(INTERNET, 80, SILENCE)).is_err());
        daemon.restart().await;
        assert_eq!(talk(&netns, INTERNET, 80).unwrap(), INTERNET);
    });
}

#[test]
fn one_tenants_connections_are_bounded_and_its_neighbours_are_not_touched() {
    play_in_lab("[relay]\nconnections = 8\n", async |daemon, lab| {
        let _server = Echo::listen(&lab.internet, 80);
        let _proxy = Proxy::listen(&lab.internet, Kind::Socks5, SOCKS, USER);
        let client = &daemon.client;
        let (one, two) = (container(client, "web").await, container(client, "web").await);
        for container in [&one, &two] {
            client.put(&network_of(container), socks()).await.data(200);
        }
        let netns = daemon.netns(&one);
        let held: Vec<_> = netns.run(|| (0..8).map(|_| Conversation::open(INTERNET, 80, PATIENCE).unwrap()).collect());
        assert!(netns.run(|| Conversation::open(INTERNET, 80, PATIENCE)).is_err(), "the ninth");
        assert_eq!(talk(&daemon.netns(&two), INTERNET, 80).unwrap(), INTERNET);
        drop(held);
    });
}
