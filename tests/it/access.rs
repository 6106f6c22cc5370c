//! Who may open a tenant's URL, on the real kernel: nobody who may not gets it to wake, or learns whether it is awake.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::Method;
use ring::hmac;
use serde_json::{Value, json};

use crate::support::daemon::{Client, Reply, answer, id_of, play};

const PASSWORD: &str = "correct horse";
const TOKEN: &str = "a-token-of-some-length";
const KEY: &str = "0123456789abcdef0123456789abcdef";

fn groups() -> Value {
    json!({
        "groups": {
            "staff": { "type": "password", "username": "ada", "password": PASSWORD },
            "preview": { "type": "token", "param": "key", "value": TOKEN },
            "app": { "type": "jwt", "algorithm": "HS256", "secret": KEY, "claims": { "aud": "acme" } },
        },
    })
}

async fn stopped_tenant(client: &Client) -> Value {
    let project = client.create_project("acme").await;
    let template = client.create_template(&project, "crm").await;
    let path = format!("/containers/{}/proxy/permissions", id_of(&template));
    client.put(&path, groups()).await.data(200);
    let tenant = client.copy(&id_of(&template), json!({})).await;
    client.verb(&id_of(&tenant), "stop").await.data(200);
    tenant
}

async fn open(client: &Client, url: &str, header: (&str, &str)) -> Reply {
    answer(client.open(Method::GET, url).header(header.0, header.1)).await
}

fn basic(password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("ada:{password}"));
    format!("Basic {text}")
}

/// A token signed by HMAC-SHA256, whatever its header says.
fn signed(algorithm: &str, key: &str, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&json!({ "alg": algorithm })), part(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), message.as_bytes());
    format!("Bearer {message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// How often it was started.
async fn starts(client: &Client, id: &str) -> usize {
    let log = client.get(&format!("/containers/{id}/status-logs?limit=100")).await.data(200);
    log["status_logs"].as_array().unwrap().iter().filter(|one| one["to_status"] == "running").count()
}

#[test]
fn who_may_not_open_a_url_wakes_nobody_and_who_may_does() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = stopped_tenant(client).await;
        let (id, url) = (id_of(&tenant), tenant["url"].as_str().unwrap().to_owned());
        let canonical = tenant["urls"][1].as_str().unwrap().to_owned();
        let started = starts(client, &id).await;
        // What goes behind the answer of a stop is gone by then.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let objects = daemon.objects();
        let claims = json!({ "aud": "acme", "exp": jiff::Timestamp::now().as_second() + 600 });
        for (url, header) in [
            (url.as_str(), ("accept", "*/*")),
            (canonical.as_str(), ("accept", "*/*")),
            (&url, ("authorization", "Bearer nonsense")),
            (&url, ("authorization", &signed("none", KEY, &claims))),
            (&url, ("authorization", &signed("HS512", KEY, &claims))),
            (&url, ("authorization", &signed("HS256", "another key of more than 32 bytes", &claims))),
            (&url, ("authorization", &signed("HS256", KEY, &json!({ "aud": "acme", "exp": 1 })))),
            (&format!("{url}/?key=not-the-right-token-at-all"), ("accept", "*/*")),
        ] {
            let reply = open(client, url, header).await;
            reply.refused(401, "UNAUTHORIZED");
            assert_eq!(reply.headers.get_all("www-authenticate").iter().count(), 2);
        }
        // A moment for anything that a wake would have begun behind.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(client.container(&id).await["status"], "stopped");
        assert_eq!(starts(client, &id).await, started);
        assert_eq!(daemon.objects(), objects, "not a process, not a namespace");

        assert_eq!(open(client, &format!("{url}/?key={TOKEN}"), ("accept", "*/*")).await.status, 200);
        assert_eq!(starts(client, &id).await, started + 1);
        assert_eq!(open(client, &url, ("authorization", &basic(PASSWORD))).await.status, 200);
        assert_eq!(open(client, &canonical, ("authorization", &signed("HS256", KEY, &claims))).await.status, 200);
        open(client, &url, ("accept", "*/*")).await.refused(401, "UNAUTHORIZED");

        let told = client.get(&format!("/containers/{id}/proxy/permissions")).await;
        assert!(
            !told.text.contains(PASSWORD) && !told.text.contains(TOKEN) && !told.text.contains(KEY),
            "{}",
            told.text
        );
        let changed = client.get("/events?type=proxy.permissions.changed").await.data(200);
        assert_eq!(changed["events"].as_array().unwrap().len(), 1, "{changed}");
        client.delete(&format!("/containers/{id}/proxy/permissions")).await.data(200);
        assert_eq!(open(client, &url, ("accept", "*/*")).await.status, 200, "open to everybody again");
    });
}

#[test]
fn guessing_a_password_ends_in_429_and_leaves_a_tenant_asleep() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = stopped_tenant(client).await;
        let (id, url) = (id_of(&tenant), tenant["url"].as_str().unwrap().to_owned());
        let mut statuses = Vec::new();
        for n in 0..20 {
            statuses.push(open(client, &url, ("authorization", &basic(&format!("guess number {n}")))).await.status);
        }
        assert_eq!(statuses[..10], [401; 10]);
        assert!(statuses.iter().filter(|status| **status == 429).count() >= 7, "{statuses:?}");
        while open(client, &url, ("authorization", &basic("one more guess"))).await.status == 401 {}
        let late = open(client, &url, ("authorization", &basic(PASSWORD))).await;
        late.refused(429, "TOO_MANY_TRIES");
        assert!(late.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
        assert_eq!(client.container(&id).await["status"], "stopped");
    });
}
