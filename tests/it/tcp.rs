//! Aliases of raw TCP on the real kernel: a port of the host that wakes a container, keeps it awake while it is used, and goes with it.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::daemon::{Client, id_of, patience, play_with};

const CONFIG: &str = "[proxy]\ntcp_ports = \"20000-20003\"\n";
/// Longer than a closed port may stay open.
const CLOSES_S_MAX: u64 = 10;

async fn tenant(client: &Client, settings: Value) -> Value {
    let project = client.create_project("acme").await;
    let template = client.create_template(&project, "crm").await;
    client.copy(&id_of(&template), settings).await
}

async fn make(client: &Client, tenant: &Value, more: Value) -> Value {
    let mut body = json!({ "container_id": id_of(tenant), "program": "tcp" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    client.post("/proxy/aliases", body).await.data(201)
}

async fn connect(alias: &Value) -> std::io::Result<TcpStream> {
    let port = alias["listen_port"].as_u64().unwrap();
    TcpStream::connect((Ipv4Addr::LOCALHOST, u16::try_from(port).unwrap())).await
}

/// What the web server inside says to a request that no proxy of HTTP has touched; nothing where it is let go.
async fn say(alias: &Value) -> String {
    let mut stream = connect(alias).await.unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await;
    let mut text = String::new();
    let _ = tokio::time::timeout(patience(20), stream.read_to_string(&mut text)).await.expect("no answer");
    text
}

async fn status(client: &Client, tenant: &Value) -> String {
    client.container(&id_of(tenant)).await["status"].as_str().unwrap().to_owned()
}

async fn until(what: &str, limit: Duration, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_port_of_the_host_leads_into_a_container_and_wakes_it() {
    play_with(CONFIG, async |daemon| {
        let client = daemon.client.clone();
        let tenant = tenant(&client, json!({})).await;
        let id = id_of(&tenant);
        let alias = make(&client, &tenant, json!({ "alias": "crm-db" })).await;
        // It is open as soon as it is told of.
        assert!(say(&alias).await.starts_with("HTTP/1."), "raw");
        client.verb(&id, "stop").await.data(200);
        assert!(say(&alias).await.starts_with("HTTP/1."), "it was woken");
        assert_eq!(client.container(&id).await["last_woken_by"], "request");
        assert!(client.container(&id).await["urls"].as_array().unwrap().contains(&alias["url"]), "{alias}");
        let log = format!("/containers/{id}/access-log");
        until("no line of the connections", patience(10), async || {
            let lines = client.get(&log).await.data(200);
            let lines: Vec<_> =
                lines["access_log"].as_array().unwrap().iter().filter(|line| line["method"] == "TCP").collect();
            let port = format!(":{}", alias["listen_port"]);
            lines.len() == 2 && lines.iter().all(|line| line["path"] == port && line["bytes"].as_u64() > Some(0))
        })
        .await;

        let path = format!("/proxy/aliases/{}", id_of(&alias));
        client.patch(&path, json!({ "wake": false })).await.data(200);
        client.verb(&id, "stop").await.data(200);
        assert_eq!(say(&alias).await, "", "nobody is woken");
        assert_eq!(status(&client, &tenant).await, "stopped");
        client.verb(&id, "start?wait=ready").await.data(200);
        assert!(say(&alias).await.starts_with("HTTP/1."), "it is awake");

        // By its name there is no page: it is no name of HTTP.
        let page = json!({ "url": "http://crm-db.node1.localhost:8080" });
        client.page(&page, "/").await.refused(404, "UNKNOWN_HOST");

        // The next daemon opens it again, and one that is killed keeps no port.
        daemon.kill9();
        daemon.restart().await;
        let client = daemon.client.clone();
        until("the port is not open", patience(20), async || connect(&alias).await.is_ok()).await;
        assert!(say(&alias).await.starts_with("HTTP/1."), "after a restart");

        client.patch(&path, json!({ "enabled": false })).await.data(200);
        let limit = Duration::from_secs(CLOSES_S_MAX);
        until("it stays open though it is off", limit, async || connect(&alias).await.is_err()).await;
        client.patch(&path, json!({ "enabled": true })).await.data(200);
        until("it stays closed though it is on", limit, async || connect(&alias).await.is_ok()).await;
        client.delete(&format!("/containers/{id}")).await.data(200);
        until("it outlives its container", limit, async || connect(&alias).await.is_err()).await;
    });
}

#[test]
fn an_open_connection_keeps_its_container_awake_and_silence_lets_it_sleep() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client, json!({ "idle_timeout": 1 })).await;
        let alias = make(client, &tenant, json!({})).await;
        let held = connect(&alias).await.unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(4) {
            assert_eq!(status(client, &tenant).await, "running");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(held);
        until("it stays awake though nobody is there", patience(20), async || {
            status(client, &tenant).await == "stopped"
        })
        .await;
        assert!(say(&alias).await.starts_with("HTTP/1."), "it was woken");
    });
}

#[test]
fn without_ports_there_are_no_such_aliases_and_a_port_of_another_program_is_not_given_out() {
    play_with(CONFIG, async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client, json!({})).await;
        let other = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 20_000)).unwrap();
        let alias = make(client, &tenant, json!({})).await;
        assert_eq!(alias["listen_port"], 20_001);
        let body = json!({ "container_id": id_of(&tenant), "program": "tcp", "listen_port": 20_000 });
        client.post("/proxy/aliases", body).await.refused(409, "LISTEN_PORT_IN_USE");
        drop(other);
        assert_eq!(make(client, &tenant, json!({})).await["listen_port"], 20_000);
    });
    play_with("", async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client, json!({})).await;
        let body = json!({ "container_id": id_of(&tenant), "program": "tcp" });
        client.post("/proxy/aliases", body).await.refused(422, "TCP_UNSUPPORTED");
    });
}
