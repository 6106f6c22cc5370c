//! Sleeping and waking by the URL, on the real kernel: nobody gets an error because a tenant was asleep.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::daemon::{Client, Reply, answer, id_of, patience, play, play_with};

/// The shortest that the API takes.
const IDLE_TIMEOUT_S: u32 = 1;

async fn tenant(client: &Client, settings: Value) -> Value {
    let project = client.create_project("acme").await;
    let template = client.create_template(&project, "crm").await;
    client.copy(&id_of(&template), settings).await
}

async fn status(client: &Client, id: &str) -> String {
    client.container(id).await["status"].as_str().unwrap().to_owned()
}

async fn falls_asleep(client: &Client, id: &str) {
    let deadline = Instant::now() + patience(15);
    while status(client, id).await != "stopped" {
        assert!(Instant::now() < deadline, "still awake: {}", client.container(id).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How often it was started, and by what.
async fn starts(client: &Client, id: &str) -> Vec<String> {
    let log = client.get(&format!("/containers/{id}/status-logs?limit=100")).await.data(200);
    let log = log["status_logs"].as_array().unwrap();
    let started = log.iter().filter(|one| one["to_status"] == "running");
    started.map(|one| one["triggered_by"].as_str().unwrap().to_owned()).collect()
}

async fn browse(client: &Client, container: &Value, path: &str, header: (&str, &str)) -> Reply {
    let url = format!("{}{path}", container["url"].as_str().unwrap());
    answer(client.open(Method::GET, &url).header(header.0, header.1)).await
}

#[test]
fn the_first_request_wakes_a_stopped_tenant_once_for_all_who_wait() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client, json!({})).await;
        let id = id_of(&tenant);
        client.send_page(&tenant, "/cgi-bin/notes", "kept").await;
        client.verb(&id, "stop").await.data(200);
        let pages = join_all((0..50).map(|_| client.page(&tenant, "/cgi-bin/notes"))).await;
        for page in &pages {
            assert_eq!((page.status, page.text.as_str()), (200, "kept\n"));
        }
        let timing = pages[0].headers["server-timing"].to_str().unwrap();
        for step in ["create-init;dur=", "ready;dur=", "wake;dur="] {
            assert!(timing.contains(step), "{timing}");
        }
        assert_eq!(starts(client, &id).await, ["create", "request"]);
        let container = client.container(&id).await;
        assert_eq!((&container["last_woken_by"], &container["desired"]), (&json!("request"), &json!("running")));
        assert!(container["last_activity_at"].is_string() && container["why_awake"].is_string(), "{container}");
        assert!(!client.page(&tenant, "/").await.headers.contains_key("server-timing"), "it was awake");
    });
}

#[test]
fn silence_puts_a_tenant_to_sleep_and_what_is_open_keeps_it_awake() {
    play(async |daemon| {
        let client = &daemon.client;
        let before = daemon.objects();
        let tenant = tenant(client, json!({ "idle_timeout": IDLE_TIMEOUT_S })).await;
        let id = id_of(&tenant);
        let slow = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nsleep 4\necho done\n";
        let path = "/var/www/cgi-bin/slow";
        let put = json!({ "command": ["sh", "-c", format!("cat >{path} && chmod 755 {path}")], "stdin": slow });
        client.post(&format!("/containers/{id}/exec"), put).await.data(200);

        let started = client.container(&id).await["started_at"].clone();
        let page = client.page(&tenant, "/cgi-bin/slow").await;
        assert_eq!((page.status, page.text.as_str()), (200, "done\n"));
        assert_eq!(client.container(&id).await["started_at"], started, "a request was open all the while");
        client.exec(&id, &["sleep", "3"]).await;
        assert_eq!(client.container(&id).await["started_at"], started, "a command ran all the while");

        falls_asleep(client, &id).await;
        let asleep = client.container(&id).await;
        assert!(asleep["status_reason"].as_str().unwrap().starts_with("asleep"), "{asleep}");
        assert_eq!((&asleep["desired"], &asleep["why_awake"]), (&json!("running"), &Value::Null));
        let files: BTreeSet<String> =
            daemon.objects().into_iter().filter(|line| line.contains(&id) && !line.starts_with("cgroup")).collect();
        let template = client.get("/containers/?status=running").await.data(200)["containers"][0].clone();
        client.delete(&format!("/containers/{}?wait=erased", id_of(&template))).await.data(200);
        daemon.settles_to(&before.union(&files).cloned().collect());

        assert_eq!(client.page(&tenant, "/").await.status, 200);
        assert_eq!(starts(client, &id).await, ["create", "request"]);
    });
}

#[test]
fn a_tenant_that_does_not_stay_up_is_left_alone_for_a_while() {
    play(async |daemon| {
        let client = &daemon.client;
        let command = json!(["sh", "-c", "exit 3"]);
        let project = client.create_project("acme").await;
        let body = json!({ "command": command, "start": false });
        let tenant = client.post(&format!("/projects/{project}/containers"), body).await.data(201);
        let id = id_of(&tenant);
        let first = client.page(&tenant, "/").await;
        first.refused(503, "CONTAINER_FAILING");
        assert!(first.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        let starts_before = starts(client, &id).await.len();
        // At once, as it is left alone for a second only.
        for page in join_all((0..20).map(|_| client.page(&tenant, "/"))).await {
            page.refused(503, "CONTAINER_FAILING");
        }
        assert_eq!(starts(client, &id).await.len(), starts_before, "it was left alone");
        // Mended and started by hand it is served again.
        let mend = json!({ "command": [] });
        client.patch(&format!("/containers/{id}"), mend).await.data(200);
        client.post(&format!("/containers/{id}/start?wait=ready"), json!({})).await.data(200);
        assert_eq!(client.page(&tenant, "/").await.status, 200);
    });
}

#[test]
fn probes_and_those_that_must_not_wake_it_leave_a_tenant_asleep() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client, json!({})).await;
        let id = id_of(&tenant);
        assert_eq!(client.page(&tenant, "/favicon.ico").await.status, 404, "awake, it is asked");
        client.verb(&id, "stop").await.data(200);
        let icon = client.page(&tenant, "/favicon.ico").await;
        assert_eq!((icon.status, icon.headers["tenantry-status"].to_str().unwrap()), (204, "asleep"));
        let probe = browse(client, &tenant, "/", ("user-agent", "Mozilla/5.0 (compatible; SomeBot/2.1)")).await;
        assert_eq!(probe.status, 204);
        assert_eq!(status(client, &id).await, "stopped");
        client.patch(&format!("/containers/{id}"), json!({ "wake_on_request": false })).await.data(200);
        client.page(&tenant, "/").await.refused(503, "CONTAINER_NOT_RUNNING");
        assert_eq!(status(client, &id).await, "stopped");
    });
}

#[test]
fn who_waits_too_long_gets_a_page_that_loads_itself_again() {
    play_with("[proxy]\nwake_timeout_s = 1\n", async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let body = json!({ "command": ["sh", "-c", "sleep 4; exec httpd -f -p 8080 -h /var/www"], "start": false });
        let tenant = client.post(&format!("/projects/{project}/containers"), body).await.data(201);
        let page = browse(client, &tenant, "/", ("accept", "text/html")).await;
        assert_eq!((page.status, page.headers["retry-after"].to_str().unwrap()), (503, "1"));
        assert!(page.text.contains("http-equiv=\"refresh\""), "{}", page.text);
        client.page(&tenant, "/").await.refused(503, "CONTAINER_NOT_READY");
        let deadline = Instant::now() + patience(15);
        while client.page(&tenant, "/").await.status != 200 {
            assert!(Instant::now() < deadline, "it went on waking");
        }
        assert_eq!(starts(client, &id_of(&tenant)).await, ["request"], "once");
    });
}

/// Every container is used in bursts with pauses about as long as its idle timeout, so that requests come before, within and
/// after each sleep.
#[test]
fn no_request_is_lost_while_tenants_sleep_and_wake() {
    const TENANTS: usize = 5;
    const ROUNDS: u32 = 20;
    const BURST: usize = 100;
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let settings = || json!({ "idle_timeout": IDLE_TIMEOUT_S });
        let tenants = join_all((0..TENANTS).map(|_| client.copy(&template, settings()))).await;
        let use_one = async |tenant: &Value, n: usize| {
            for round in 0..ROUNDS {
                let pages = join_all((0..BURST).map(|_| client.page(tenant, "/"))).await;
                for page in pages {
                    assert_eq!(page.status, 200, "round {round}: {}", page.text);
                }
                // From a little before the sleep to a little after it, another step for each tenant.
                let step = (u64::from(round) * 7 + n as u64 * 3) % 16;
                tokio::time::sleep(Duration::from_millis(900 + step * 50)).await;
            }
        };
        join_all(tenants.iter().enumerate().map(|(n, tenant)| use_one(tenant, n))).await;
        let mut wakes = 0;
        for tenant in &tenants {
            wakes += starts(client, &id_of(tenant)).await.iter().filter(|by| *by == "request").count();
        }
        assert!(wakes >= TENANTS * 5, "only {wakes} wakes: this proves little");
    });
}
