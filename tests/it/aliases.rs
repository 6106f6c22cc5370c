//! Further names of a container: where they lead, for how long, and that they go with it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::daemon::{Client, answer, id_of, patience, play, play_in_lab};
use crate::support::name_server::NameServer;
use crate::support::net::INTERNET;

async fn tenant(client: &Client) -> Value {
    let project = client.create_project("acme").await;
    let tenant = client.create_template(&project, "crm").await;
    let page = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\necho \"$REQUEST_URI\"\n";
    let put = "cat >/var/www/cgi-bin/where && chmod 755 /var/www/cgi-bin/where && cp /var/www/cgi-bin/where /var/www/cgi-bin/other";
    let body = json!({ "command": ["sh", "-c", put], "stdin": page });
    client.post(&format!("/containers/{}/exec", id_of(&tenant)), body).await.data(200);
    tenant
}

async fn make(client: &Client, body: Value) -> Value {
    client.post("/proxy/aliases", body).await.data(201)
}

#[test]
fn an_alias_leads_to_its_container_its_port_and_its_path() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        let id = id_of(&tenant);
        let plain = make(client, json!({ "container_id": id, "alias": "acme-crm" })).await;
        assert_eq!(client.page(&plain, "/cgi-bin/where?a=1").await.text, "/cgi-bin/where?a=1\n");
        let urls = client.container(&id).await["urls"].clone();
        assert!(urls.as_array().unwrap().contains(&plain["url"]), "{urls}");

        let path = json!({ "container_id": id, "target_path": "/cgi-bin/where" });
        let fixed = make(client, path.clone()).await;
        assert_eq!(fixed["alias"].as_str().unwrap().len(), 48, "nobody can guess it");
        assert_eq!(client.page(&fixed, "/").await.text, "/cgi-bin/where\n");
        assert_eq!(client.page(&fixed, "/cgi-bin/other?b=2").await.text, "/cgi-bin/where?b=2\n");
        let free = json!({ "allow_path_override": true });
        client.patch(&format!("/proxy/aliases/{}", id_of(&fixed)), free).await.data(200);
        assert_eq!(client.page(&fixed, "/").await.text, "/cgi-bin/where\n");
        assert_eq!(client.page(&fixed, "/cgi-bin/other").await.text, "/cgi-bin/other\n");

        // One of its own wakes it as the container's does.
        client.verb(&id, "stop").await.data(200);
        assert_eq!(client.page(&plain, "/cgi-bin/where").await.status, 200);

        let elsewhere = json!({ "container_id": id, "alias": "elsewhere", "port": 9 });
        let elsewhere = make(client, elsewhere).await;
        client.page(&elsewhere, "/").await.refused(502, "CONTAINER_UNREACHABLE");
    });
}

#[test]
fn an_alias_is_switched_off_expires_and_goes_with_its_container() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        let id = id_of(&tenant);
        let alias = make(client, json!({ "container_id": id, "alias": "acme-crm" })).await;
        let path = format!("/proxy/aliases/{}", id_of(&alias));
        client.patch(&format!("{path}/state"), json!({ "enabled": false })).await.data(200);
        client.page(&alias, "/").await.refused(404, "ALIAS_DISABLED");
        client.patch(&format!("{path}/state"), json!({ "enabled": true })).await.data(200);
        assert_eq!(client.page(&alias, "/").await.status, 200);

        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
        client.patch(&path, json!({ "expires_at": soon.to_string() })).await.data(200);
        let deadline = Instant::now() + patience(10);
        while client.page(&alias, "/").await.status == 200 {
            assert!(Instant::now() < deadline, "it never expires");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        client.page(&alias, "/").await.refused(410, "ALIAS_EXPIRED");
        client.patch(&path, json!({ "expires_at": null })).await.data(200);
        assert_eq!(client.page(&alias, "/").await.status, 200);

        client.delete(&format!("/containers/{id}?wait=erased")).await.data(200);
        client.page(&alias, "/").await.refused(404, "UNKNOWN_HOST");
        client.get(&path).await.refused(404, "PROXY_ALIAS_NOT_FOUND");
        assert_eq!(client.get("/proxy/aliases").await.data(200)["pagination"]["total"], 0);
    });
}

#[test]
fn names_are_unique_and_outlive_the_daemon() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let tenant = tenant(&client).await;
        let id = id_of(&tenant);
        let alias = make(&client, json!({ "container_id": id, "alias": "acme-crm" })).await;
        let again = json!({ "container_id": id, "alias": "acme-crm" });
        client.post("/proxy/aliases", again).await.refused(409, "PROXY_ALIAS_IN_USE");
        let own = tenant["url"].as_str().unwrap().trim_start_matches("http://").split('.').next().unwrap();
        let stolen = json!({ "container_id": id, "alias": own });
        client.post("/proxy/aliases", stolen).await.refused(409, "PROXY_ALIAS_IN_USE");
        for (body, field) in [
            (json!({ "container_id": id, "alias": "No" }), "alias"),
            (json!({ "container_id": id, "target_path": "no" }), "target_path"),
            (json!({ "container_id": id, "port": 0 }), "port"),
            (json!({ "container_id": id, "program": "ssh" }), "program"),
            (json!({ "container_id": id, "expires_at": "2001-01-01T00:00:00Z" }), "expires_at"),
            (json!({ "container_id": "x" }), "container_id"),
            (json!({ "alias": "acme-two" }), "container_id"),
            (json!({ "container_id": id, "nonsense": 1 }), "nonsense"),
        ] {
            let reply = client.post("/proxy/aliases", body).await;
            assert_eq!((reply.status, reply.field()), (400, Some(field)), "{}", reply.text);
        }
        let nobody = json!({ "container_id": "0".repeat(24) });
        client.post("/proxy/aliases", nobody).await.refused(404, "CONTAINER_NOT_FOUND");
        daemon.stop();
        daemon.restart().await;
        assert_eq!(client.page(&alias, "/").await.status, 200);
        client.delete(&format!("/proxy/aliases/{}", id_of(&alias))).await.data(200);
        client.page(&alias, "/").await.refused(404, "UNKNOWN_HOST");
    });
}

#[test]
fn a_customers_domain_leads_to_its_container_once_the_dns_says_so() {
    play_in_lab(&format!("[dns]\nupstreams = ['{INTERNET}']"), async |daemon, lab| {
        let names = NameServer::listen(&lab.internet);
        let client = &daemon.client;
        let tenant = tenant(client).await;
        let id = id_of(&tenant);
        let alias = make(client, json!({ "container_id": id, "alias": "shop", "domain": "shop.acme.example" })).await;
        let path = format!("/proxy/aliases/{}", id_of(&alias));
        let visit = async |path: &str| {
            answer(client.open(reqwest::Method::GET, &format!("http://shop.acme.example{path}"))).await
        };
        visit("/").await.refused(404, "UNKNOWN_HOST");
        client.post(&format!("{path}/verify"), json!({})).await.refused(409, "DOMAIN_NOT_VERIFIED");
        names.say("_tenantry.shop.acme.example.", alias["verification"]["txt_value"].as_str().unwrap());
        let verified = client.post(&format!("{path}/verify"), json!({})).await.data(200);
        assert_eq!(verified["verified"], true);
        // A host name is one whatever its case, and wakes as any other.
        client.verb(&id, "stop").await.data(200);
        assert_eq!(visit("/cgi-bin/where?a=1").await.text, "/cgi-bin/where?a=1\n");
        let other_case = client.open(reqwest::Method::GET, "http://SHOP.acme.example:8080/cgi-bin/where");
        assert_eq!(answer(other_case).await.status, 200);
        client.patch(&format!("{path}/state"), json!({ "enabled": false })).await.data(200);
        visit("/").await.refused(404, "ALIAS_DISABLED");
        client.patch(&path, json!({ "enabled": true, "verified": false })).await.data(200);
        visit("/").await.refused(404, "UNKNOWN_HOST");
        client.patch(&path, json!({ "verified": true })).await.data(200);
        assert_eq!(visit("/cgi-bin/where").await.status, 200);
        // Who may open the container's URL may open it by this name, and nobody else.
        let staff =
            json!({ "groups": { "staff": { "type": "password", "username": "ada", "password": "correct horse" } } });
        client.put(&format!("/containers/{id}/proxy/permissions"), staff).await.data(200);
        assert_eq!(visit("/cgi-bin/where").await.status, 401);
        client.delete(&format!("/containers/{id}?wait=erased")).await.data(200);
        visit("/").await.refused(404, "UNKNOWN_HOST");
    });
}
