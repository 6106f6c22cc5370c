//! What keeps a tenant awake and how it sleeps, on the real kernel: frozen, by its own call, by connections; in herds; within a budget.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::daemon::{Client, PROXY, id_of, patience, play, play_with};

/// The shortest that the API takes.
const IDLE_TIMEOUT_S: u32 = 1;

async fn template(client: &Client) -> String {
    let project = client.create_project("acme").await;
    id_of(&client.create_template(&project, "crm").await)
}

async fn status(client: &Client, id: &str) -> String {
    client.container(id).await["status"].as_str().unwrap().to_owned()
}

async fn comes_to(client: &Client, id: &str, wanted: &str) -> Value {
    let deadline = Instant::now() + patience(15);
    while status(client, id).await != wanted {
        assert!(Instant::now() < deadline, "not {wanted}: {}", client.container(id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    client.container(id).await
}

/// Events of a container, oldest first.
async fn events(client: &Client, id: &str) -> Vec<(String, String)> {
    let page = client.get(&format!("/events?container_id={id}&limit=100&sort_order=asc")).await.data(200);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    page["events"].as_array().unwrap().iter().map(|one| (text(&one["type"]), text(&one["reason"]))).collect()
}

/// What a tenant's memory holds of the disk, in bytes.
fn cache(daemon: &crate::support::daemon::Daemon, id: &str) -> u64 {
    let stat = daemon.cgroup_file(id, "memory.stat").unwrap();
    let field = |key: &str| stat.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok());
    let (active, inactive) = match field("total_active_file ") {
        Some(active) => (active, field("total_inactive_file ").unwrap()),
        None => (field("active_file ").unwrap(), field("inactive_file ").unwrap()),
    };
    active + inactive
}

#[test]
fn a_tenant_that_is_frozen_for_silence_goes_on_at_a_request_also_under_another_daemon() {
    play(async |daemon| {
        let template = template(&daemon.client).await;
        let settings = json!({ "idle_timeout": IDLE_TIMEOUT_S, "idle_action": "pause" });
        let tenant = daemon.client.copy(&template, settings).await;
        let id = id_of(&tenant);
        // Something to give back.
        daemon.client.exec(&id, &["sh", "-c", "dd if=/dev/zero of=/root/big bs=1M count=16 2>/dev/null; sync"]).await;
        let asleep = comes_to(&daemon.client, &id, "paused").await;
        assert!(asleep["status_reason"].as_str().unwrap().starts_with("asleep"), "{asleep}");
        assert_eq!((&asleep["desired"], &asleep["why_awake"]), (&json!("running"), &Value::Null));
        let deadline = Instant::now() + patience(10);
        while cache(daemon, &id) > 4 << 20 {
            assert!(Instant::now() < deadline, "{} bytes of page cache are kept", cache(daemon, &id));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        let began = Instant::now();
        let page = daemon.client.page(&tenant, "/").await;
        let took = began.elapsed();
        assert_eq!(page.status, 200);
        let timing = page.headers["server-timing"].to_str().unwrap().to_owned();
        assert!(timing.contains("thaw;dur=") && timing.contains("queue;dur=0.0"), "{timing}");
        eprintln!("a frozen tenant answered after {took:?} (debug build): {timing}");
        let awake = daemon.client.container(&id).await;
        assert_eq!((&awake["started_at"], &awake["last_woken_by"]), (&asleep["started_at"], &json!("request")));

        let asleep = comes_to(&daemon.client, &id, "paused").await;
        // Longer than the store keeps a change that it need not flush at once.
        tokio::time::sleep(Duration::from_millis(500)).await;
        daemon.kill9();
        daemon.restart().await;
        assert_eq!(daemon.client.container(&id).await["status_reason"], asleep["status_reason"]);
        assert_eq!(daemon.client.page(&tenant, "/").await.status, 200);
        assert_eq!(daemon.client.container(&id).await["started_at"], asleep["started_at"]);
        let told: Vec<_> = events(&daemon.client, &id).await.into_iter().map(|(kind, _)| kind).collect();
        let times = |kind: &str| told.iter().filter(|one| *one == kind).count();
        assert_eq!((times("container.woken"), times("container.started")), (2, 1));
        assert!(times("container.slept") >= 2, "it may have fallen asleep again: {told:?}");

        // By hand it stays as it is, whoever asks; and it can be deleted as it is.
        comes_to(&daemon.client, &id, "paused").await;
        daemon.client.verb(&id, "pause").await.data(200);
        daemon.client.page(&tenant, "/").await.refused(503, "CONTAINER_NOT_RUNNING");
        assert_eq!(daemon.client.container(&id).await["status"], "paused");
        daemon.client.delete(&format!("/containers/{id}?wait=erased")).await.data(200);
        assert_eq!(daemon.cgroup_file(&id, "cgroup.procs"), None);
    });
}

/// Asks from inside to be kept awake; what was answered.
async fn keep(client: &Client, id: &str, query: &str) -> String {
    let call = format!("printf 'GET /keepalive{query} HTTP/1.0\\r\\n\\r\\n' | nc -w 2 169.254.1.1 80");
    let body = json!({ "command": ["sh", "-c", call] });
    let done = client.post(&format!("/containers/{id}/exec"), body).await.data(200);
    format!("{}{} exit {}", done["stdout"].as_str().unwrap(), done["stderr"].as_str().unwrap(), done["exit_code"])
}

#[test]
fn a_tenants_own_call_keeps_it_awake_and_no_other_whatever_its_rules_say() {
    play(async |daemon| {
        let client = &daemon.client;
        let template = template(client).await;
        let copy = async |settings: Value| id_of(&client.copy(&template, settings).await);
        let closed = copy(json!({ "firewall_policy": "no-egress" })).await;
        let locked = copy(json!({ "firewall_policy": "locked-down" })).await;
        let blocked = copy(json!({})).await;
        client.put(&format!("/containers/{blocked}/network"), json!({ "type": "block" })).await.data(200);
        let relayed = copy(json!({})).await;
        let proxy = json!({ "type": "socks5", "proxy": "socks5://198.51.100.9:1080" });
        let set = client.put(&format!("/containers/{relayed}/network"), proxy).await;
        assert_eq!(set.status, 200, "{}", set.text);
        let off = copy(json!({ "activity": { "keepalive": false } })).await;
        let silent = copy(json!({})).await;

        let callers = [&closed, &locked, &blocked, &relayed];
        for id in callers {
            let said = keep(client, id, "?seconds=6").await;
            assert!(said.contains("kept awake"), "{id}: {said}");
        }
        let kept = Instant::now();
        assert!(keep(client, &off, "?seconds=6").await.contains("403"), "switched off");
        assert!(keep(client, &off, "?seconds=0").await.contains("400"));
        for id in callers.into_iter().chain([&off, &silent]) {
            client.patch(&format!("/containers/{id}"), json!({ "idle_timeout": IDLE_TIMEOUT_S })).await.data(200);
        }
        let why = client.container(&closed).await["why_awake"].clone();
        assert!(why.as_str().unwrap().starts_with("it asked for another"), "{why}");
        comes_to(client, &silent, "stopped").await;
        comes_to(client, &off, "stopped").await;
        if kept.elapsed() < Duration::from_secs(5) {
            for id in callers {
                assert_eq!(status(client, id).await, "running", "{id}");
            }
        }
        for id in callers {
            comes_to(client, id, "stopped").await;
        }
        assert!(kept.elapsed() >= Duration::from_secs(6));
    });
}

/// An upgraded connection to the program that [`parrot`] puts there.
async fn connect(tenant: &Value) -> TcpStream {
    let url = tenant["urls"][1].as_str().unwrap();
    let host = url.trim_start_matches("http://").trim_end_matches('/').replace("-http-8080", "-http-9000");
    let deadline = Instant::now() + patience(10);
    loop {
        let mut stream = TcpStream::connect(PROXY).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: parrot\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        if head.starts_with(b"HTTP/1.1 101") {
            return stream;
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&head));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Puts a program into a tenant that answers upgrades and says everything again.
async fn parrot(client: &Client, id: &str) {
    let handler = "#!/bin/sh\nwhile read -r line; do [ \"$line\" = \"$(printf '\\r')\" ] && break; done\n\
        printf 'HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: parrot\\r\\n\\r\\n'\nexec cat\n";
    let start = "cat >/root/up && chmod 755 /root/up && (nc -ll -p 9000 -e /root/up >/dev/null 2>&1 &)";
    let body = json!({ "command": ["sh", "-c", start], "stdin": handler });
    let done = client.post(&format!("/containers/{id}/exec"), body).await.data(200);
    assert_eq!(done["exit_code"], 0, "{done}");
}

#[test]
fn an_open_connection_keeps_a_tenant_awake_for_as_long_as_it_says() {
    play(async |daemon| {
        let client = &daemon.client;
        let template = template(client).await;
        let activities = [json!({}), json!({ "connection_idle": 2 }), json!({ "connections": false })];
        let tenants =
            join_all(activities.into_iter().map(|activity| client.copy(&template, json!({ "activity": activity }))))
                .await;
        let mut streams = Vec::new();
        for tenant in &tenants {
            parrot(client, &id_of(tenant)).await;
            streams.push(connect(tenant).await);
        }
        let [leased, limited, ignored] = [0, 1, 2].map(|n| id_of(&tenants[n]));
        // Only now, as it takes its time to come so far.
        for id in [&leased, &limited, &ignored] {
            client.patch(&format!("/containers/{id}"), json!({ "idle_timeout": IDLE_TIMEOUT_S })).await.data(200);
        }
        let opened = Instant::now();
        // A byte now and then is enough.
        while opened.elapsed() < Duration::from_secs(5) {
            streams[1].write_all(b"x").await.unwrap();
            assert_eq!(streams[1].read_u8().await.unwrap(), b'x');
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(status(client, &ignored).await, "stopped");
        assert_eq!(status(client, &limited).await, "running");
        assert_eq!(client.container(&leased).await["why_awake"], "open: 1 connection");
        comes_to(client, &limited, "stopped").await;
        assert_eq!(status(client, &leased).await, "running");
        drop(streams);
        comes_to(client, &leased, "stopped").await;
    });
}

#[test]
fn what_comes_by_an_open_connection_thaws_a_tenant_that_was_frozen_meanwhile() {
    play(async |daemon| {
        let client = &daemon.client;
        let template = template(client).await;
        let settings = json!({ "idle_action": "pause", "activity": { "connection_idle": 1 } });
        let tenant = client.copy(&template, settings).await;
        let id = id_of(&tenant);
        parrot(client, &id).await;
        let mut stream = connect(&tenant).await;
        // Only now, as it takes its time to come so far.
        client.patch(&format!("/containers/{id}"), json!({ "idle_timeout": IDLE_TIMEOUT_S })).await.data(200);
        for _ in 0..3 {
            comes_to(client, &id, "paused").await;
            stream.write_all(b"hello").await.unwrap();
            let mut said = [0; 5];
            tokio::time::timeout(patience(10), stream.read_exact(&mut said)).await.expect("it stays frozen").unwrap();
            assert_eq!(&said, b"hello");
            assert_eq!(client.container(&id).await["last_woken_by"], "request");
        }
        // One that is not woken by requests is not by this either.
        client.patch(&format!("/containers/{id}"), json!({ "wake_on_request": false })).await.data(200);
        comes_to(client, &id, "paused").await;
        stream.write_all(b"hello").await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(status(client, &id).await, "paused");
    });
}

#[test]
fn the_longest_unused_tenant_makes_room_for_one_that_wakes() {
    play_with("[awake]\nmemory = '60MiB'\n", async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let make = async |name: &str, idle: Value| {
            let body = json!({ "name": name, "start": false, "idle_timeout": idle });
            client.post(&format!("/projects/{project}/containers"), body).await.data(201)
        };
        let fill = async |tenant: &Value| {
            assert_eq!(client.page(tenant, "/").await.status, 200);
            client.exec(&id_of(tenant), &["dd", "if=/dev/zero", "of=/ramdisk/held", "bs=1M", "count=24"]).await;
            // Until it is counted.
            tokio::time::sleep(Duration::from_millis(3_000)).await;
        };
        let (first, second, third) =
            (make("first", json!(600)).await, make("second", json!(600)).await, make("third", json!(600)).await);
        fill(&first).await;
        fill(&second).await;
        assert_eq!(client.page(&third, "/").await.status, 200);
        let asleep = client.container(&id_of(&first)).await;
        assert_eq!(asleep["status"], "stopped");
        assert!(asleep["status_reason"].as_str().unwrap().contains("made room"), "{asleep}");
        let (kind, reason) = events(client, &id_of(&first)).await.pop().unwrap();
        assert!(kind == "container.slept" && reason.contains("made room"), "{kind} {reason}");
        assert_eq!(status(client, &id_of(&second)).await, "running");
        // Those that never sleep make no room, and who finds none is told.
        for tenant in [&second, &third] {
            client.patch(&format!("/containers/{}", id_of(tenant)), json!({ "idle_timeout": null })).await.data(200);
        }
        fill(&third).await;
        let refused = client.page(&first, "/").await;
        refused.refused(503, "NO_ROOM_TO_WAKE");
        assert!(refused.headers.contains_key("retry-after"));
        // By hand it starts all the same.
        client.verb(&id_of(&first), "start").await.data(200);
    });
}

#[test]
fn a_herd_of_two_projects_is_woken_each_once_while_the_api_answers() {
    const TENANTS: usize = 24;
    play(async |daemon| {
        let client = &daemon.client;
        let mut tenants = Vec::new();
        for name in ["acme", "globex"] {
            let project = client.create_project(name).await;
            for _ in 0..TENANTS / 2 {
                let body = json!({ "start": false });
                tenants.push(client.post(&format!("/projects/{project}/containers"), body).await.data(201));
            }
        }
        let project = tenants[0]["project_id"].as_str().unwrap().to_owned();
        let herd = join_all(tenants.iter().map(|tenant| client.page(tenant, "/")));
        let verbs = async {
            let began = Instant::now();
            client.post(&format!("/projects/{project}/containers?wait=started"), json!({})).await.data(201);
            began.elapsed()
        };
        let began = Instant::now();
        let (pages, create) = tokio::join!(herd, verbs);
        let all = began.elapsed();
        for page in &pages {
            assert_eq!(page.status, 200, "{}", page.text);
        }
        eprintln!("{TENANTS} woken in {all:?}, a create meanwhile in {create:?} (debug build)");
        assert!(create < all, "the API waited for the herd: {create:?} of {all:?}");
        for tenant in &tenants {
            let started = events(client, &id_of(tenant)).await;
            assert_eq!(started.iter().filter(|(kind, _)| kind == "container.started").count(), 1);
        }
        let waited = pages.iter().filter(|page| {
            let timing = page.headers["server-timing"].to_str().unwrap();
            let queue = timing.split("queue;dur=").nth(1).unwrap().split(',').next().unwrap();
            queue.parse::<f64>().unwrap() > 1.0
        });
        assert!(waited.count() > 0, "nobody waited in the line");
    });
}

#[test]
fn a_full_line_is_refused_and_says_when_to_come_back() {
    let config = "[starts]\nat_once = 1\nwakes_at_once = 1\nwakes_per_second = 1\nqueue = 2\n";
    play_with(config, async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let mut tenants = Vec::new();
        for _ in 0..5 {
            let body = json!({ "start": false });
            tenants.push(client.post(&format!("/projects/{project}/containers"), body).await.data(201));
        }
        let pages = join_all(tenants.iter().map(|tenant| client.page(tenant, "/"))).await;
        let refused: Vec<_> = pages.iter().filter(|page| page.status != 200).collect();
        assert!(!refused.is_empty() && refused.len() < 5);
        for page in refused {
            page.refused(503, "WAKE_QUEUE_FULL");
            assert!(page.headers.contains_key("retry-after"));
        }
    });
}
