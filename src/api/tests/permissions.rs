//! Who may open a URL: what is taken, shown, refused, carried over and told.

use super::*;

const TOKEN: &str = "a-token-of-some-length";
const KEY: &str = "0123456789abcdef0123456789abcdef";

async fn container(desk: &Desk) -> String {
    format!("{}/proxy/permissions", path_of(&desk.create(json!({})).await))
}

fn document() -> Value {
    json!({
        "default": "deny",
        "groups": {
            "staff": { "type": "password", "username": "ada", "password": "correct horse" },
            "ci": { "type": "token", "header": "Authorization", "value": TOKEN },
            "app": { "type": "jwt", "algorithm": "HS256", "secret": KEY, "sources": ["header:Authorization", "cookie:session"], "claims": { "aud": "acme", "admin": true } },
            "office": { "type": "ip", "range": "192.0.2.0/24" },
        },
        "permissions": { "ci": { "http": [8080, 9000] }, "office": { "http": "8000-8100" }, "app": { "http": false } },
    })
}

#[tokio::test]
async fn secrets_go_in_and_never_come_out() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    let none = desk.get(&path).await.data(200);
    assert_eq!((&none["default"], &none["groups"]), (&json!("allow"), &json!({})));
    let put = desk.put(&path, document()).await.data(200);
    let shown = desk.get(&path).await;
    let etag = shown.headers["etag"].to_str().unwrap().to_owned();
    let shown = shown.data(200);
    assert_eq!(shown, put);
    assert_eq!(shown["groups"]["staff"], json!({ "type": "password", "username": "ada" }));
    assert_eq!(shown["groups"]["ci"], json!({ "type": "token", "header": "authorization" }));
    assert_eq!(shown["groups"]["office"], json!({ "type": "ip", "range": ["192.0.2.0/24"] }));
    let app = &shown["groups"]["app"];
    assert_eq!((&app["algorithm"], &app["claims"]["aud"]), (&json!("HS256"), &json!("acme")));
    assert_eq!(
        shown["permissions"],
        json!({ "staff": { "http": true }, "ci": { "http": "8080,9000" }, "office": { "http": "8000-8100" }, "app": { "http": false } })
    );
    let page = desk.get(path.trim_end_matches("/proxy/permissions")).await.data(200);
    for answer in [&shown, &page] {
        let text = answer.to_string();
        assert!(!["correct horse", TOKEN, KEY, "argon2"].iter().any(|secret| text.contains(secret)), "{text}");
    }
    let stale = desk.call("DELETE", &path, &[("if-match", "\"1\"")], None).await;
    stale.refused(412, "PRECONDITION_FAILED");
    desk.call("DELETE", &path, &[("if-match", &etag)], None).await.data(200);
    assert_eq!(desk.get(&path).await.data(200)["groups"], json!({}));
}

#[tokio::test]
async fn groups_are_set_and_removed_one_by_one() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    let group = |name: &str| format!("{path}/groups/{name}");
    desk.put(&group("ci"), json!({ "type": "token", "cookie": "door", "value": TOKEN })).await.data(200);
    desk.put(&format!("{}/password", group("staff")), json!({ "username": "ada", "password": "correct horse" }))
        .await
        .data(200);
    let sha256 = "a".repeat(64);
    let hashed = json!({ "username": "bob", "password": sha256, "algorithm": "sha256", "salt": "pepper" });
    desk.put(&format!("{}/password", group("old")), hashed).await.data(200);
    desk.put(&format!("{}/ip", group("office")), json!({ "range": ["192.0.2.1", "2001:db8::/32"] })).await.data(200);
    let shown = desk.get(&path).await.data(200);
    assert_eq!(shown["default"], "deny", "with the first group it is closed to others");
    assert_eq!(shown["groups"].as_object().unwrap().len(), 4);
    let opened = desk.patch(&format!("{path}/default"), json!({ "default": "allow" })).await.data(200);
    assert_eq!(opened["default"], "allow");
    let left = desk.delete(&group("ci")).await.data(200);
    assert!(left["groups"].get("ci").is_none() && left["default"] == "allow", "{left}");
    desk.delete(&group("ci")).await.data(200);
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_field_and_without_repeating_it() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    let many: serde_json::Map<_, _> =
        (0..33).map(|n| (format!("g{n}"), json!({ "type": "ip", "range": "10.0.0.0/8" }))).collect();
    let group = |group: Value| json!({ "groups": { "g": group } });
    for (body, field) in [
        (json!({ "default": "maybe" }), "default"),
        (json!({ "group": {} }), "group"),
        (json!({ "groups": many }), "groups"),
        (json!({ "groups": { "no spaces": { "type": "ip", "range": "10.0.0.0/8" } } }), "groups"),
        (json!({ "permissions": { "g": { "http": true } } }), "permissions.g"),
        (json!({ "enable_proxy": false }), "enable_proxy"),
        (json!({ "container": "0".repeat(24) }), "container"),
        (group(json!({ "type": "retina" })), "groups.g.type"),
        (group(json!({})), "groups.g.type"),
        (group(json!({ "type": "ip", "range": "everywhere" })), "groups.g.range"),
        (group(json!({ "type": "ip", "range": [] })), "groups.g.range"),
        (group(json!({ "type": "ip", "range": "10.0.0.0/8", "value": TOKEN })), "groups.g.value"),
        (group(json!({ "type": "token", "value": TOKEN })), "groups.g.header"),
        (group(json!({ "type": "token", "header": "X-Key", "cookie": "k", "value": TOKEN })), "groups.g.header"),
        (group(json!({ "type": "token", "header": "Host", "value": TOKEN })), "groups.g.header"),
        (group(json!({ "type": "token", "param": "k", "value": "hunter2" })), "groups.g.value"),
        (group(json!({ "type": "password", "username": "a:b", "password": "hunter2hunter2" })), "groups.g.username"),
        (group(json!({ "type": "password", "username": "ada", "password": "hunter2" })), "groups.g.password"),
        (
            group(json!({ "type": "password", "username": "ada", "password": "hunter2hunter2", "algorithm": "md5" })),
            "groups.g.algorithm",
        ),
        (group(json!({ "type": "jwt", "algorithm": "none", "secret": KEY })), "groups.g.algorithm"),
        (group(json!({ "type": "jwt", "algorithm": "HS256", "secret": "hunter2" })), "groups.g.secret"),
        (group(json!({ "type": "jwt", "algorithm": "RS256", "secret": KEY })), "groups.g.secret"),
        (
            group(json!({ "type": "jwt", "algorithm": "HS256", "secret": KEY, "sources": ["body:x"] })),
            "groups.g.sources",
        ),
        (group(json!({ "type": "jwt", "algorithm": "HS256", "secret": KEY, "sources": [] })), "groups.g.sources"),
        (
            group(json!({ "type": "jwt", "algorithm": "HS256", "secret": KEY, "claims": { "a": [] } })),
            "groups.g.claims",
        ),
        (group(json!({ "type": "jwt", "algorithm": "HS256", "secret": KEY, "issuer": "x" })), "groups.g.issuer"),
    ] {
        let reply = desk.put(&path, body.clone()).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}: {}", reply.json);
        assert_eq!(reply.json["data"]["field"], field, "{body}: {}", reply.json);
        let text = reply.json.to_string();
        assert!(!text.contains("hunter2") && !text.contains(KEY) && !text.contains(TOKEN), "{text}");
    }
    assert_eq!(desk.get(&path).await.data(200)["groups"], json!({}), "nothing was changed");
}

#[tokio::test]
async fn what_does_not_go_together_is_refused_by_its_field() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    let rules = |rule: Value| json!({ "groups": { "g": { "type": "ip", "range": "10.0.0.0/8" } }, "permissions": { "g": rule } });
    for (rule, field) in [
        (json!({ "ssh": true }), "permissions.g"),
        (json!({ "http": 0 }), "permissions.g.http"),
        (json!({ "http": [] }), "permissions.g.http"),
        (json!({ "http": "90-80" }), "permissions.g.http"),
    ] {
        let reply = desk.put(&path, rules(rule.clone())).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json["data"]["field"]),
            (400, &json!(field)),
            "{rule}: {}",
            reply.json
        );
    }
    let twice = json!({ "groups": {
        "a": { "type": "password", "username": "ada", "password": "correct horse" },
        "b": { "type": "password", "username": "ada", "password": "battery staple" },
    } });
    assert_eq!(desk.put(&path, twice).await.json["data"]["field"], "username");
    let named = desk.put(&format!("{path}/groups/g/ip"), json!({ "type": "token" })).await;
    assert_eq!((named.status.as_u16(), &named.json["data"]["field"]), (400, &json!("type")));
    assert_eq!(desk.put(&format!("{path}/groups/a%20b"), json!({ "type": "ip" })).await.status, 400);
    assert_eq!(desk.get(&path).await.data(200)["groups"], json!({}), "nothing was changed");
}

#[tokio::test]
async fn a_copy_is_behind_the_same_door_and_a_change_is_told_as_one() {
    let desk = Desk::new().await;
    for template in [true, false] {
        let source = path_of(&desk.create(json!({ "template": template })).await);
        desk.put(&format!("{source}/proxy/permissions"), document()).await.data(200);
        let copy = desk.post(&format!("{source}/copy?wait=started"), json!({ "start": false })).await.data(201);
        let copied = desk.get(&format!("{}/proxy/permissions", path_of(&copy))).await.data(200);
        assert_eq!(copied["groups"].as_object().unwrap().len(), 4, "{template}");
    }
    let path = container(&desk).await;
    desk.patch(&format!("{path}/default"), json!({ "default": "deny" })).await.data(200);
    let id = path.split('/').nth(2).unwrap();
    let told = desk.get(&format!("/events?container_id={id}")).await.data(200);
    let kinds: Vec<_> = told["events"].as_array().unwrap().iter().map(|event| event["type"].clone()).collect();
    assert!(
        kinds.contains(&json!("proxy.permissions.changed")) && !kinds.contains(&json!("container.updated")),
        "{told}"
    );
}

#[tokio::test]
async fn it_outlives_the_daemon_and_goes_with_the_container() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    desk.put(&path, document()).await.data(200);
    let before = desk.get(&path).await.data(200);
    let desk = desk.restarted().await;
    assert_eq!(desk.get(&path).await.data(200), before);
    desk.delete(&format!("{}?wait=erased", path.trim_end_matches("/proxy/permissions"))).await.data(200);
    assert_eq!(desk.get(&path).await.status, 404);
}
