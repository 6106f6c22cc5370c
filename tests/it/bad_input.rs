//! Bad input of every kind, against the real daemon: the named error, and nothing made, changed or left.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::daemon::{API, Client, Daemon, Reply, answer, id_of, patience, play, play_with};

/// An id that nothing has.
const NOBODY: &str = "0123456789abcdef01234567";

/// What there is: containers by the API, folders in the pool, images, projects, tokens.
async fn inventory(daemon: &Daemon) -> (u64, BTreeSet<String>, Vec<Value>) {
    let client = &daemon.client;
    let names = |dir: &str| {
        let entries = fs::read_dir(daemon.data_dir().join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().path().display().to_string()).collect::<Vec<_>>()
    };
    let folders = ["pool/containers", "pool/images", "bundles", "uploads"].iter().flat_map(|dir| names(dir)).collect();
    let mut totals = Vec::new();
    for list in ["/projects/", "/images", "/auth/tokens"] {
        totals.push(client.get(list).await.data(200)["pagination"]["total"].clone());
    }
    (client.containers_total().await, folders, totals)
}

fn many(key: &str, count: usize) -> Value {
    (0..count).map(|n| (format!("{key}{n}"), json!(""))).collect::<serde_json::Map<_, _>>().into()
}

/// Settings that cannot be, whether a container is created, copied or changed: field, value, status, code.
fn bad_settings() -> Vec<(&'static str, Value, u16, &'static str)> {
    let invalid = |field, value| (field, value, 400, "VALIDATION_ERROR");
    let env = |value, code| ("environment_vars", value, 400, code);
    let mut cases: Vec<_> = ["ab", "a b", "acmé", "a/b", "..", "a\u{0}b", &"x".repeat(101)]
        .map(|name| ("name", json!(name), 400, "INVALID_CONTAINER_NAME"))
        .into();
    cases.extend([
        invalid("name", json!(7)),
        invalid("color", json!("blue")),
        invalid("color", json!("#12345")),
        invalid("color", json!("#gggggg")),
        invalid("comment", json!("x".repeat(16_001))),
        env(json!({ "A-B": "" }), "INVALID_ENV_KEY"),
        env(json!({ "": "" }), "INVALID_ENV_KEY"),
        env(json!({ "2A": "" }), "INVALID_ENV_KEY"),
        env(json!({ "A=B": "" }), "INVALID_ENV_KEY"),
        env(json!({ "A".repeat(129): "" }), "INVALID_ENV_KEY"),
        env(json!({ "TENANTRY_ID": "1" }), "RESERVED_ENV_PREFIX"),
        env(json!({ "A": "x".repeat(65_537) }), "INVALID_ENV_VALUE"),
        env(json!({ "A": "nul\u{0}" }), "INVALID_ENV_VALUE"),
        env(many("K", 257), "TOO_MANY_ENV_VARS"),
        env(json!({ "A": 1 }), "VALIDATION_ERROR"),
        env(json!(["A"]), "VALIDATION_ERROR"),
        invalid("command", json!("sh")),
        invalid("command", json!([""])),
        invalid("command", json!(["a\u{0}"])),
        invalid("command", json!(vec!["x"; 1_025])),
        invalid("command", json!(["x".repeat(70_000)])),
        invalid("idle_timeout", json!(0)),
        invalid("idle_timeout", json!(-1)),
        invalid("external_id", json!("")),
        invalid("external_id", json!("a\nb")),
        invalid("external_id", json!("x".repeat(256))),
        invalid("labels", json!({ "a:b": "" })),
        invalid("labels", json!({ "": "" })),
        invalid("labels", json!({ "a": "x".repeat(256) })),
        invalid("labels", many("k", 65)),
        invalid("ssh_public_key", json!("hello")),
        invalid("ssh_public_key", json!("ssh-ed25519 AAAA\nssh-rsa BBBB")),
        invalid("firewall_policy", json!("../etc")),
        ("firewall_policy", json!("no-such-policy"), 404, "FIREWALL_POLICY_NOT_FOUND"),
        invalid("template", json!("yes")),
        invalid("deletion_protection", json!(1)),
        invalid("autostart", json!("no")),
        invalid("ramdisk", json!(64)),
        invalid("colour", json!("#ffffff")),
    ]);
    cases.extend([json!(0), json!(65_536), json!(-1), json!("80"), json!(1.5)].map(|port| invalid("port", port)));
    let limits = [
        json!({ "cpu": 0 }),
        json!({ "cpu": -1 }),
        json!({ "cpu": "1" }),
        json!({ "cpu": 1e9 }),
        json!({ "memory": 1 }),
        json!({ "memory": -1 }),
        json!({ "memory": 1.5 }),
        json!({ "memory": "1GiB" }),
        json!({ "disk": 0 }),
        json!({ "ramdisk": 0 }),
        json!({ "pids": 0 }),
        json!({ "pids": 1u64 << 40 }),
        json!({ "disk_read_bps": 0 }),
        json!({ "disk_write_bps": u64::MAX }),
        json!({ "cores": 1 }),
        json!(7),
        json!([]),
    ];
    cases.extend(limits.map(|limits| invalid("limits", limits)));
    cases
}

/// Holds that a reply is a refusal that names the field.
#[track_caller]
fn names(reply: &Reply, field: &str, status: u16, code: &str, case: &str) {
    let found = (reply.status, reply.json["error"].as_str().unwrap_or_default());
    assert_eq!(found, (status, code), "{case}: {}", reply.text);
    reply.refused(status, code);
    let named = reply.field().is_some_and(|name| name == field || name.starts_with(&format!("{field}.")));
    // A thing that is not there is named itself.
    assert!(
        named || status == 404 || reply.json["message"].as_str().unwrap().contains(field),
        "{case}: {}",
        reply.text
    );
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(80).collect()
}

#[test]
fn settings_that_cannot_be_are_refused_by_their_field_and_nothing_is_made() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let (before, objects) = (inventory(daemon).await, daemon.objects());
        let record = client.container(&template).await;
        let (create, copy, change) = (
            format!("/projects/{project}/containers"),
            format!("/containers/{template}/copy"),
            format!("/containers/{template}"),
        );
        for (field, value, status, code) in bad_settings() {
            let body = json!({ field: value });
            let case = |how: &str| format!("{how} {field} {}", short(&value));
            names(&client.post(&create, body.clone()).await, field, status, code, &case("create"));
            names(&client.post(&copy, body.clone()).await, field, status, code, &case("copy"));
            names(&client.patch(&change, body.clone()).await, field, status, code, &case("patch"));
            names(&client.put(&change, body).await, field, status, code, &case("put"));
        }
        for (field, value, status, code) in [
            ("container_image", json!("a b"), 400, "VALIDATION_ERROR"),
            ("container_image", json!("nope"), 404, "IMAGE_NOT_FOUND"),
            ("server_id", json!("elsewhere"), 404, "SERVER_NOT_FOUND"),
            ("start", json!("x"), 400, "VALIDATION_ERROR"),
        ] {
            names(&client.post(&create, json!({ field: value })).await, field, status, code, field);
        }
        for (field, value, status, code) in [
            ("target_project_id", json!("shop"), 400, "INVALID_ID"),
            ("target_project_id", json!(NOBODY), 404, "PROJECT_NOT_FOUND"),
            ("target_server_id", json!("elsewhere"), 404, "SERVER_NOT_FOUND"),
            ("source_snapshot", json!("monday"), 404, "SNAPSHOT_NOT_FOUND"),
            ("container_image", json!("base"), 400, "VALIDATION_ERROR"),
        ] {
            names(&client.post(&copy, json!({ field: value })).await, field, status, code, field);
        }
        for field in ["port", "limits", "template", "environment_vars", "firewall_policy"] {
            names(&client.patch(&change, json!({ field: null })).await, field, 400, "VALIDATION_ERROR", field);
        }
        for body in [json!({ "A": 1 }), json!({ "A-B": "x" }), json!({ "TENANTRY_X": "x" }), json!(["A"])] {
            assert_eq!(client.put(&format!("{change}/env"), body.clone()).await.status, 400, "{body}");
        }
        client.put(&format!("{change}/env/A-B"), json!({ "value": "x" })).await.refused(400, "INVALID_ENV_KEY");
        client
            .put(&format!("{change}/env/TENANTRY_X"), json!({ "value": "x" }))
            .await
            .refused(400, "RESERVED_ENV_PREFIX");
        client.put(&format!("{change}/env/A"), json!({ "value": 1 })).await.refused(400, "VALIDATION_ERROR");
        client.put(&format!("{change}/env/A"), json!({})).await.refused(400, "VALIDATION_ERROR");
        for body in [
            json!({}),
            json!({ "command": ["sh"], "timeout": 0 }),
            json!({ "command": ["sh"], "user": "root" }),
            json!({ "command": ["sh"], "cwd": "tmp" }),
        ] {
            client.post(&format!("{change}/exec"), body).await.refused(400, "VALIDATION_ERROR");
        }
        assert_eq!(client.container(&template).await, record, "no refused change has changed anything");
        assert_eq!(inventory(daemon).await, before);
        daemon.settles_to(&objects);
    });
}

#[test]
fn projects_and_tokens_that_cannot_be_are_refused_by_their_field() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let before = inventory(daemon).await;
        for (field, value, status, code) in [
            ("alias", json!(""), 400, "VALIDATION_ERROR"),
            ("alias", json!(" a"), 400, "VALIDATION_ERROR"),
            ("alias", json!("x".repeat(101)), 400, "VALIDATION_ERROR"),
            ("alias", json!("acme"), 409, "PROJECT_ALIAS_IN_USE"),
            ("color", json!("red"), 400, "VALIDATION_ERROR"),
            ("max_containers", json!(-1), 400, "VALIDATION_ERROR"),
            ("max_containers", json!("3"), 400, "VALIDATION_ERROR"),
            ("limits", json!({ "cpu": 0 }), 400, "VALIDATION_ERROR"),
            ("limits", json!({ "cores": 1 }), 400, "VALIDATION_ERROR"),
            ("firewall_policy", json!("../etc"), 400, "VALIDATION_ERROR"),
            ("firewall_policy", json!("no-such-policy"), 404, "FIREWALL_POLICY_NOT_FOUND"),
            ("name", json!("x"), 400, "VALIDATION_ERROR"),
        ] {
            let mut body = json!({ "alias": "other" });
            body[field] = value;
            let reply = client.post("/projects/", body).await;
            assert_eq!((reply.status, &reply.json["error"]), (status, &json!(code)), "{field}: {}", reply.text);
        }
        client.post("/projects/", json!({})).await.refused(400, "VALIDATION_ERROR");
        for (field, value) in [
            ("alias", json!("")),
            ("permission_template", json!("root")),
            ("project_id", json!("shop")),
            ("expires_at", json!("tomorrow")),
            ("expires_at", json!("1970-01-01T00:00:00Z")),
            ("scope", json!("x")),
        ] {
            let mut body = json!({ "alias": "ci" });
            body[field] = value;
            let reply = client.post("/auth/tokens", body).await;
            assert_eq!((reply.status, reply.field()), (400, Some(field)), "{}", reply.text);
        }
        client
            .post("/auth/tokens", json!({ "alias": "ci", "project_id": NOBODY }))
            .await
            .refused(404, "PROJECT_NOT_FOUND");
        client.post("/auth/tokens", json!({ "alias": "admin" })).await.refused(409, "TOKEN_ALIAS_IN_USE");
        assert_eq!(inventory(daemon).await, before);
        let shown = client.get(&format!("/projects/{project}")).await.data(200);
        assert_eq!((&shown["generation"], &shown["container_count"]), (&json!(1), &json!(0)));
    });
}

#[test]
fn requests_that_are_none_are_refused_in_the_same_form() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let create = format!("/projects/{project}/containers");
        let before = inventory(daemon).await;
        let raw = |kind: &'static str, body: Vec<u8>| {
            answer(client.request(Method::POST, &create).header("content-type", kind).body(body))
        };
        for (text, code) in [
            ("{", "INVALID_JSON"),
            ("", "INVALID_JSON"),
            ("{} {}", "INVALID_JSON"),
            ("[]", "VALIDATION_ERROR"),
            ("\"x\"", "VALIDATION_ERROR"),
        ] {
            raw("application/json", text.into()).await.refused(400, code);
        }
        raw("application/json", vec![b'{', 0xff, b'}']).await.refused(400, "INVALID_JSON");
        raw("text/plain", "{}".into()).await.refused(400, "INVALID_CONTENT_TYPE");
        raw("application/x-www-form-urlencoded", "name=abc".into()).await.refused(400, "INVALID_CONTENT_TYPE");
        raw("application/json", vec![b' '; (32 << 20) + 1]).await.refused(413, "BODY_TOO_LARGE");
        let deep = format!("{{\"labels\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(raw("application/json", deep.into()).await.status, 400);

        for (method, path, status, code) in [
            (Method::GET, "/nothing", 404, "ROUTE_NOT_FOUND"),
            (Method::GET, "/containers//", 404, "ROUTE_NOT_FOUND"),
            (Method::PATCH, "/projects/", 405, "METHOD_NOT_ALLOWED"),
            (Method::PUT, "/images", 405, "METHOD_NOT_ALLOWED"),
        ] {
            answer(client.request(method, path)).await.refused(status, code);
        }
        for kind in ["containers", "projects", "receipts"] {
            for id in [
                "x",
                "0123456789ABCDEF01234567",
                "0123456789abcdef0123456",
                "0123456789abcdef012345678",
                "..%2f..%2fetc",
            ] {
                client.get(&format!("/{kind}/{id}")).await.refused(400, "INVALID_ID");
            }
        }
        for path in ["", "/env", "/stats", "/logs", "/status-logs"] {
            client.get(&format!("/containers/{NOBODY}{path}")).await.refused(404, "CONTAINER_NOT_FOUND");
        }
        for verb in ["start", "stop", "force-stop", "restart", "pause", "resume"] {
            client.verb(NOBODY, verb).await.refused(404, "CONTAINER_NOT_FOUND");
        }
        client.post(&format!("/containers/{NOBODY}/copy"), json!({})).await.refused(404, "CONTAINER_NOT_FOUND");
        client
            .post(&format!("/containers/{NOBODY}/exec"), json!({ "command": ["sh"] }))
            .await
            .refused(404, "CONTAINER_NOT_FOUND");
        client.patch(&format!("/containers/{NOBODY}"), json!({})).await.refused(404, "CONTAINER_NOT_FOUND");
        client.delete(&format!("/containers/{NOBODY}")).await.refused(404, "CONTAINER_NOT_FOUND");
        client.post(&format!("/projects/{NOBODY}/containers"), json!({})).await.refused(404, "PROJECT_NOT_FOUND");
        client.get(&format!("/receipts/{NOBODY}")).await.refused(404, "RECEIPT_NOT_FOUND");
        client.delete(&format!("/images/{NOBODY}")).await.refused(404, "IMAGE_NOT_FOUND");
        client.delete(&format!("/auth/tokens/{NOBODY}")).await.refused(404, "TOKEN_NOT_FOUND");
        assert_eq!(inventory(daemon).await, before);
    });
}

#[test]
fn query_parameters_that_are_unknown_or_out_of_bounds_are_refused_by_their_name() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let id = id_of(&client.create_template(&project, "crm").await);
        let before = inventory(daemon).await;
        let lists = [
            "/projects/",
            "/containers/",
            &format!("/projects/{project}/containers"),
            "/images",
            "/auth/tokens",
            &format!("/containers/{id}/status-logs"),
        ];
        for list in lists {
            for (query, code) in [
                ("page=0", "INVALID_PARAMETER"),
                ("page=-1", "INVALID_PARAMETER"),
                ("page=x", "INVALID_PARAMETER"),
                ("limit=0", "INVALID_PARAMETER"),
                ("limit=101", "INVALID_PARAMETER"),
                ("limit=1&limit=2", "INVALID_PARAMETER"),
                ("sort_by=ip", "INVALID_PARAMETER"),
                ("sort_order=up", "INVALID_PARAMETER"),
                ("lable=a:b", "UNKNOWN_PARAMETER"),
            ] {
                let reply = client.get(&format!("{list}?{query}")).await;
                reply.refused(400, code);
                assert_eq!(reply.field(), query.split('=').next(), "{list} {}", reply.text);
            }
        }
        for query in ["status=gone", "label=plan", "include_deleting=maybe"] {
            client.get(&format!("/containers/?{query}")).await.refused(400, "INVALID_PARAMETER");
        }
        for query in ["wait=soon", "timeout=0", "timeout=301", "timeout=1s", "dry_run=true"] {
            for path in [format!("/projects/{project}/containers"), format!("/containers/{id}/copy")] {
                assert_eq!(client.post(&format!("{path}?{query}"), json!({})).await.status, 400, "{path} {query}");
            }
            assert_eq!(client.verb(&id, &format!("start?{query}")).await.status, 400, "{query}");
        }
        for path in ["stop?wait=ready", "stop?timeout=301", "stop?force=true", "logs?tail=x", "logs?lines=3"] {
            let method = if path.starts_with("logs") { Method::GET } else { Method::POST };
            assert_eq!(answer(client.request(method, &format!("/containers/{id}/{path}"))).await.status, 400, "{path}");
        }
        client.delete(&format!("/containers/{id}?wait=never")).await.refused(400, "INVALID_PARAMETER");
        client.delete(&format!("/containers/{id}?force=true")).await.refused(400, "UNKNOWN_PARAMETER");
        client.patch(&format!("/containers/{id}?reboot=true"), json!({})).await.refused(400, "UNKNOWN_PARAMETER");
        assert_eq!(client.container(&id).await["status"], "running");
        assert_eq!(inventory(daemon).await, before);
    });
}

/// A token of these properties.
async fn token(client: &Client, body: Value) -> Client {
    let made = client.post("/auth/tokens", body).await.data(201);
    client.with_token(made["token"].as_str().unwrap())
}

#[test]
fn who_has_no_token_for_it_learns_and_changes_nothing() {
    play(async |daemon| {
        let admin = &daemon.client;
        let (ours, theirs) = (admin.create_project("ours").await, admin.create_project("theirs").await);
        let (mine, other) =
            (id_of(&admin.create_template(&ours, "crm").await), id_of(&admin.create_template(&theirs, "crm").await));
        let gone = id_of(&admin.copy(&other, json!({ "start": false })).await);
        let receipt =
            admin.delete(&format!("/containers/{gone}")).await.data(200)["receipt_id"].as_str().unwrap().to_owned();
        let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
        let expired = token(admin, json!({ "alias": "late", "expires_at": soon.to_string() })).await;
        let reader = token(admin, json!({ "alias": "reader", "permission_template": "read_only" })).await;
        let bound = token(admin, json!({ "alias": "bound", "project_id": ours })).await;
        tokio::time::sleep(Duration::from_millis(3_100)).await;
        let before = inventory(daemon).await;

        for path in ["/projects/", "/containers/", &format!("/containers/{mine}"), "/images", "/auth/tokens"] {
            admin.with_token("").get(path).await.refused(401, "MISSING_TOKEN");
            admin.with_token("tnt_nobody").get(path).await.refused(401, "INVALID_TOKEN");
            expired.get(path).await.refused(401, "TOKEN_EXPIRED");
        }
        assert_eq!(answer(reqwest::Client::new().get(format!("{API}/healthz"))).await.status, 200);

        reader.get(&format!("/containers/{mine}")).await.data(200);
        for reply in [
            reader.post("/projects/", json!({ "alias": "x" })).await,
            reader.post(&format!("/containers/{mine}/copy"), json!({})).await,
            reader.post(&format!("/containers/{mine}/exec"), json!({ "command": ["true"] })).await,
            reader.patch(&format!("/containers/{mine}"), json!({ "comment": "x" })).await,
            reader.verb(&mine, "stop").await,
            reader.delete(&format!("/containers/{mine}")).await,
            reader.get("/auth/tokens").await,
            bound.get("/auth/tokens").await,
            bound.post("/auth/tokens", json!({ "alias": "more" })).await,
            bound.post("/projects/", json!({ "alias": "x" })).await,
            bound.post("/images?name=x", json!({})).await,
        ] {
            reply.refused(403, "INSUFFICIENT_PERMISSIONS");
        }

        bound.get(&format!("/containers/{mine}")).await.data(200);
        assert_eq!(bound.containers_total().await, 1);
        assert_eq!(bound.get("/projects/").await.data(200)["pagination"]["total"], 1);
        for path in ["", "/env", "/stats", "/logs", "/status-logs"] {
            bound.get(&format!("/containers/{other}{path}")).await.refused(404, "CONTAINER_NOT_FOUND");
        }
        let others = format!("/containers/{other}");
        for reply in [
            bound.delete(&others).await,
            bound.delete(&format!("/containers/{gone}")).await,
            bound.verb(&other, "stop").await,
            bound.post(&format!("{others}/copy"), json!({})).await,
            bound.post(&format!("{others}/exec"), json!({ "command": ["true"] })).await,
            bound.patch(&others, json!({ "comment": "x" })).await,
            bound.put(&format!("{others}/env"), json!({})).await,
        ] {
            reply.refused(404, "CONTAINER_NOT_FOUND");
        }
        bound.get(&format!("/receipts/{receipt}")).await.refused(404, "RECEIPT_NOT_FOUND");
        for path in ["", "/containers", "/stats"] {
            bound.get(&format!("/projects/{theirs}{path}")).await.refused(404, "PROJECT_NOT_FOUND");
        }
        bound.post(&format!("/projects/{theirs}/containers"), json!({})).await.refused(404, "PROJECT_NOT_FOUND");
        bound.delete(&format!("/projects/{theirs}")).await.refused(404, "PROJECT_NOT_FOUND");
        let copy = format!("/containers/{mine}/copy");
        bound.post(&copy, json!({ "target_project_id": theirs })).await.refused(404, "PROJECT_NOT_FOUND");
        assert_eq!(inventory(daemon).await, before);

        let tokens = admin.get("/auth/tokens").await.data(200);
        let reader_id =
            tokens["tokens"].as_array().unwrap().iter().find(|one| one["alias"] == "reader").map(id_of).unwrap();
        assert!(!tokens.to_string().contains("tnt_"), "secrets are shown once");
        admin.delete(&format!("/auth/tokens/{reader_id}")).await.data(200);
        reader.get("/projects/").await.refused(401, "INVALID_TOKEN");
    });
}

#[test]
fn a_change_for_another_state_of_the_container_is_refused() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let id = id_of(&client.create_template(&project, "crm").await);
        let url = format!("/containers/{id}");
        let if_match = |method: Method, path: &str, tag: &str, body: Value| {
            answer(client.request(method, path).header("if-match", tag).json(&body))
        };
        let etag = client.get(&url).await.headers["etag"].to_str().unwrap().to_owned();
        if_match(Method::PATCH, &url, &etag, json!({ "comment": "first" })).await.data(200);
        if_match(Method::PATCH, &url, &etag, json!({ "comment": "late" })).await.refused(412, "PRECONDITION_FAILED");
        if_match(Method::PUT, &format!("{url}/env"), &etag, json!({ "A": "late" }))
            .await
            .refused(412, "PRECONDITION_FAILED");
        if_match(Method::DELETE, &url, &etag, json!({})).await.refused(412, "PRECONDITION_FAILED");
        for bad in ["\"x\"", "W/\"1\"", "\"1\", \"2\""] {
            if_match(Method::PATCH, &url, bad, json!({ "comment": "x" })).await.refused(400, "INVALID_HEADER");
        }
        let now = client.get(&url).await;
        assert_ne!(now.headers["etag"].to_str().unwrap(), etag);
        assert_eq!(
            (&now.json["data"]["comment"], &now.json["data"]["environment_vars"]),
            (&json!("first"), &json!({}))
        );
        if_match(Method::PATCH, &url, "*", json!({ "comment": "any" })).await.data(200);
    });
}

#[test]
fn a_webhook_that_is_delivered_twice_makes_one_tenant() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let copy = format!("/containers/{template}/copy");
        let keyed = |key: &str, path: &str, body: Value| {
            answer(client.request(Method::POST, path).header("idempotency-key", key).json(&body))
        };
        let first = keyed("evt_1", &copy, json!({ "name": "one" })).await;
        let again = keyed("evt_1", &copy, json!({ "name": "one" })).await;
        assert_eq!((again.status, &again.text), (201, &first.text));
        assert_eq!(again.headers["idempotent-replayed"], "true");
        assert!(!first.headers.contains_key("idempotent-replayed"));
        assert_eq!(client.containers_total().await, 2);
        keyed("evt_1", &copy, json!({ "name": "two" })).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
        keyed("evt_1", &format!("{copy}?wait=none"), json!({ "name": "one" }))
            .await
            .refused(422, "IDEMPOTENCY_KEY_REUSED");
        for bad in ["", &"x".repeat(256)] {
            keyed(bad, &copy, json!({})).await.refused(400, "INVALID_HEADER");
        }
        // A refusal is not kept: the same event may come again when it can be met.
        keyed("evt_2", &copy, json!({ "name": "one" })).await.refused(409, "CONTAINER_NAME_IN_USE");
        // It never listens, so that the answer takes its time.
        let slow = json!({ "name": "slow", "command": ["sleep", "600"] });
        let path = format!("{copy}?timeout=1");
        let both = join_all([keyed("evt_3", &path, slow.clone()), keyed("evt_3", &path, slow.clone())]).await;
        let (made, refused) = if both[0].status == 201 { (&both[0], &both[1]) } else { (&both[1], &both[0]) };
        refused.refused(409, "IDEMPOTENCY_KEY_IN_FLIGHT");
        assert_eq!((made.status, refused.headers.contains_key("retry-after")), (201, true));
        assert!(made.json["data"]["warnings"][0].as_str().unwrap().contains("8080"), "{}", made.text);
        assert_eq!(keyed("evt_3", &path, slow).await.text, made.text);
        assert_eq!(client.containers_total().await, 3);
        // Another token's key is another key.
        let other = token(client, json!({ "alias": "other" })).await;
        let theirs = answer(
            other.request(Method::POST, &copy).header("idempotency-key", "evt_1").json(&json!({ "name": "theirs" })),
        )
        .await;
        assert_eq!(theirs.status, 201, "{}", theirs.text);
        // A late delivery brings no deleted tenant back.
        client.delete(&format!("/containers/{}", id_of(&first.json["data"]))).await.data(200);
        keyed("evt_1", &copy, json!({ "name": "one" })).await.refused(410, "CONTAINER_DELETED");
    });
}

#[test]
fn names_limits_and_protection_are_held() {
    play(async |daemon| {
        let client = &daemon.client;
        let project =
            id_of(&client.post("/projects/", json!({ "alias": "acme", "max_containers": 2 })).await.data(201));
        let template = id_of(&client.create_template(&project, "crm").await);
        let (create, copy) = (format!("/projects/{project}/containers"), format!("/containers/{template}/copy"));
        let second = json!({ "name": "second", "external_id": "cus_1", "deletion_protection": true });
        let id = id_of(&client.post(&copy, second).await.data(201));
        let (before, objects) = (inventory(daemon).await, daemon.objects());
        for path in [&create, &copy] {
            client.post(path, json!({ "name": "third" })).await.refused(400, "PROJECT_CONTAINER_LIMIT");
        }
        client.patch(&format!("/projects/{project}"), json!({ "max_containers": 3 })).await.data(200);
        for path in [&create, &copy] {
            client.post(path, json!({ "name": "second" })).await.refused(409, "CONTAINER_NAME_IN_USE");
            client.post(path, json!({ "external_id": "cus_1" })).await.refused(409, "EXTERNAL_ID_IN_USE");
        }
        client
            .patch(&format!("/containers/{template}"), json!({ "name": "second" }))
            .await
            .refused(409, "CONTAINER_NAME_IN_USE");
        client.delete(&format!("/containers/{id}")).await.refused(423, "CONTAINER_PROTECTED");
        client.delete(&format!("/projects/{project}")).await.refused(423, "CONTAINER_PROTECTED");
        assert_eq!(client.container(&id).await["status"], "running");
        assert_eq!(inventory(daemon).await, before);
        daemon.settles_to(&objects);
        // Eight ask for the one place that is left: one gets it.
        let races = join_all((0..8).map(|n| client.post(&create, json!({ "name": format!("race-{n}") })))).await;
        let made = races.iter().filter(|reply| reply.status == 201).count();
        assert_eq!(made, 1);
        races
            .iter()
            .filter(|reply| reply.status != 201)
            .for_each(|reply| reply.refused(400, "PROJECT_CONTAINER_LIMIT"));
        assert_eq!(client.containers_total().await, 3);
        client.patch(&format!("/containers/{id}"), json!({ "deletion_protection": false })).await.data(200);
        client.delete(&format!("/projects/{project}")).await.data(200);
        assert_eq!(client.containers_total().await, 0);
    });
}

#[test]
fn one_verb_at_a_time_and_only_delete_overtakes_it() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        // It catches SIGTERM and goes on; one that ignores it is killed at once.
        let stubborn = json!({ "command": ["sh", "-c", "trap : TERM; while :; do sleep 1; done"] });
        let create = format!("/projects/{project}/containers?wait=started");
        let id = id_of(&client.post(&create, stubborn).await.data(201));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let stop = client.verb(&id, "stop?timeout=60");
        let others = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            for verb in ["stop", "restart", "pause", "force-stop"] {
                let busy = client.verb(&id, verb).await;
                busy.refused(409, "CONTAINER_OPERATION_IN_PROGRESS");
                assert_eq!((&busy.json["retryable"], busy.headers.contains_key("retry-after")), (&json!(true), true));
            }
            let began = Instant::now();
            let receipt = client.delete(&format!("/containers/{id}?wait=erased")).await.data(200);
            assert_eq!(receipt["state"], "complete");
            began.elapsed()
        };
        let (stopped, deletion) = join(stop, others).await;
        assert!(deletion < patience(10), "the deletion did not wait for the grace: {deletion:?}");
        // The stop was carried out, or the tombstone came first; never an internal error.
        assert!(stopped.status < 500, "{}", stopped.text);
        client.get(&format!("/containers/{id}")).await.refused(404, "CONTAINER_NOT_FOUND");
    });
}

#[test]
fn a_template_that_is_deleted_while_it_is_copied_gives_a_whole_copy_or_a_named_error() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let before = daemon.objects();
        let (mut made, mut refused) = (0, 0);
        for round in 0..16u64 {
            let template = id_of(&client.create_template(&project, &format!("crm-{round}")).await);
            client.exec(&template, &["sh", "-c", "for i in $(seq 200); do echo $i >/root/file-$i; done; sync"]).await;
            // In turn the one and the other comes first, by more and more.
            let pause = |first: bool| {
                let ms = if (round % 2 == 0) == first { 0 } else { 2 * round };
                tokio::time::sleep(Duration::from_millis(ms))
            };
            let remove = async {
                pause(true).await;
                client.delete(&format!("/containers/{template}")).await.data(200)
            };
            let copy = async {
                pause(false).await;
                client.post(&format!("/containers/{template}/copy"), json!({})).await
            };
            let (_receipt, copy) = join(remove, copy).await;
            match (copy.status, copy.json["error"].as_str()) {
                (201, _) => {
                    let id = id_of(&copy.json["data"]);
                    assert_eq!(client.exec(&id, &["sh", "-c", "cat /root/file-* | wc -l"]).await.trim(), "200");
                    assert_eq!(client.page(&copy.json["data"], "/").await.status, 200);
                    client.delete(&format!("/containers/{id}")).await.data(200);
                    made += 1;
                }
                (409, Some("SOURCE_CONTAINER_DELETED" | "CONTAINER_NOT_COPYABLE"))
                | (404, Some("CONTAINER_NOT_FOUND")) => refused += 1,
                other => panic!("round {round}: {other:?} {}", copy.text),
            }
        }
        assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
        daemon.settles_to(&before);
        assert_eq!(client.containers_total().await, 0);
    });
}

#[test]
fn a_full_pool_refuses_what_is_new_leaves_nothing_and_lets_go() {
    play_with("[pool]\nsize = '256MiB'\n", async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let hog = id_of(&client.copy(&template, json!({ "limits": { "disk": null } })).await);
        let fill = json!({ "command": ["dd", "if=/dev/urandom", "of=/root/big", "bs=1M"], "timeout": 300 });
        let full = client.post(&format!("/containers/{hog}/exec"), fill).await.data(200);
        assert!(full["stderr"].as_str().unwrap().contains("No space left"), "{full}");
        let (before, objects) = (inventory(daemon).await, daemon.objects());
        for _ in 0..3 {
            client.post(&format!("/containers/{template}/copy"), json!({})).await.refused(507, "POOL_FULL");
            client.post(&format!("/projects/{project}/containers"), json!({})).await.refused(507, "POOL_FULL");
        }
        assert_eq!(inventory(daemon).await, before);
        daemon.settles_to(&objects);
        // Verbs go on, and DELETE makes room.
        client.verb(&template, "restart").await.data(200);
        assert_eq!(client.delete(&format!("/containers/{hog}?wait=erased")).await.data(200)["state"], "complete");
        let again = client.copy(&template, json!({})).await;
        assert_eq!(client.page(&again, "/").await.status, 200);
    });
}
