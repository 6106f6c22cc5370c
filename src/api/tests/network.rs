//! Network settings: what is taken, shown, refused, and carried over.

use super::*;

const URL: &str = "socks5://user:hunter2@192.0.2.7:1080";

async fn container(desk: &Desk) -> String {
    format!("{}/network", path_of(&desk.create(json!({})).await))
}

#[tokio::test]
async fn credentials_go_in_and_never_come_out() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    let none = desk.get(&path).await.data(200);
    assert_eq!((&none["type"], &none["enabled"], &none["dns_servers"]), (&Value::Null, &json!(false), &json!([])));
    let put = desk.put(&path, json!({ "type": "socks5", "proxy": URL, "dns_servers": ["192.0.2.53"] })).await.data(200);
    let merged = desk.patch(&path, json!({ "comment": "to the office" })).await.data(200);
    assert_eq!(merged["comment"], "to the office");
    let shown = desk.get(&path).await.data(200);
    assert_eq!((&shown["type"], &shown["proxy"]), (&json!("socks5"), &json!("socks5://192.0.2.7:1080")));
    assert_eq!((&shown["proxy_credentials"], &shown["dns_servers"]), (&json!(true), &json!(["192.0.2.53"])));
    let page = desk.get(path.trim_end_matches("/network")).await.data(200);
    for answer in [put, merged, shown, page] {
        assert!(!answer.to_string().contains("hunter2"), "{answer}");
    }
}

#[tokio::test]
async fn it_is_switched_off_and_on_and_removed() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    for verb in ["start", "stop"] {
        desk.post(&format!("{path}/{verb}"), json!(null)).await.refused(409, "NETWORK_NOT_CONFIGURED");
    }
    assert_eq!(desk.put(&path, json!({ "type": "block" })).await.data(200)["enabled"], true);
    let off = desk.post(&format!("{path}/stop"), json!(null)).await.data(200);
    assert_eq!((&off["type"], &off["enabled"]), (&json!("block"), &json!(false)));
    assert_eq!(desk.post(&format!("{path}/start"), json!(null)).await.data(200)["enabled"], true);
    assert_eq!(desk.delete(&path).await.data(200)["type"], Value::Null);
    desk.delete(&path).await.data(200);
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_field_and_without_repeating_it() {
    let desk = Desk::new().await;
    let path = container(&desk).await;
    for (body, field) in [
        (json!({ "type": "carrier pigeon" }), "type"),
        (json!({ "type": "socks5" }), "proxy"),
        (json!({ "type": "http", "proxy": URL }), "proxy"),
        (json!({ "type": "block", "proxy": URL }), "proxy"),
        (json!({ "type": "socks5", "proxy": "socks5://user:hunter2@127.0.0.1:1080" }), "proxy"),
        (json!({ "type": "socks5", "proxy": "socks5://user:hunter2@169.254.169.254:80" }), "proxy"),
        (json!({ "type": "socks5", "proxy": "socks5://user:hunter2@proxy.example:1080/x" }), "proxy"),
        (json!({ "dns_servers": ["resolver.example"] }), "dns_servers"),
        (json!({ "dns_servers": ["127.0.0.1"] }), "dns_servers"),
        (json!({ "dns_servers": ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"] }), "dns_servers"),
        (json!({ "comment": "x".repeat(16_001) }), "comment"),
        (json!({ "proxies": [] }), "proxies"),
    ] {
        for method in ["PUT", "PATCH"] {
            let reply = desk.call(method, &path, &[], Some(&body)).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{method} {body}: {}", reply.json);
            assert_eq!(reply.json["data"]["field"], field, "{method} {body}: {}", reply.json);
            assert!(!reply.json.to_string().contains("hunter2"), "{}", reply.json);
        }
    }
    assert_eq!(desk.get(&path).await.data(200)["type"], Value::Null, "nothing was changed");
    desk.call("PUT", &path, &[("if-match", "\"99\"")], Some(&json!({ "type": "block" })))
        .await
        .refused(412, "PRECONDITION_FAILED");
}

#[tokio::test]
async fn a_copy_takes_them_along_from_a_template_or_where_it_is_told_to() {
    let desk = Desk::new().await;
    for (template, flag, taken) in
        [(true, None, true), (true, Some(false), false), (false, None, false), (false, Some(true), true)]
    {
        let source = path_of(&desk.create(json!({ "template": template })).await);
        desk.put(&format!("{source}/network"), json!({ "type": "socks5", "proxy": URL })).await.data(200);
        let body = json!({ "start": false, "copy_network_rules": flag });
        let copy = desk.post(&format!("{source}/copy?wait=started"), body).await.data(201);
        let network = desk.get(&format!("{}/network", path_of(&copy))).await.data(200);
        assert_eq!(network["proxy_credentials"], taken, "{template} {flag:?}");
    }
}
