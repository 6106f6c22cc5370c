//! Customers' domains: who may take one, and what proves it.

use super::*;

async fn alias(desk: &Desk, body: Value) -> Value {
    desk.post("/proxy/aliases", body).await.data(201)
}

fn path(alias: &Value) -> String {
    format!("/proxy/aliases/{}", alias["id"].as_str().unwrap())
}

async fn verify(desk: &Desk, alias: &Value) -> Reply {
    desk.call("POST", &format!("{}/verify", path(alias)), &[], None).await
}

#[tokio::test]
async fn a_domain_is_verified_by_its_text_in_the_dns_and_not_by_anothers() {
    let desk = Desk::new().await;
    let id = desk.create(json!({})).await["id"].clone();
    let shop = alias(&desk, json!({ "container_id": id, "alias": "shop", "domain": "Shop.Example.com" })).await;
    assert_eq!((&shop["domain"], &shop["verified"]), (&json!("shop.example.com"), &json!(false)));
    let other = alias(&desk, json!({ "container_id": id, "alias": "other", "domain": "other.example.com" })).await;
    let wanted = &shop["verification"];
    assert_eq!(wanted["txt_name"], "_tenantry.shop.example.com");
    let proof = wanted["txt_value"].as_str().unwrap();
    assert!(wanted["cname_target"].as_str().unwrap().starts_with("shop."), "{wanted}");

    verify(&desk, &shop).await.refused(409, "DOMAIN_NOT_VERIFIED");
    desk.zone.say("_tenantry.shop.example.com", "TXT", other["verification"]["txt_value"].as_str());
    verify(&desk, &shop).await.refused(409, "DOMAIN_NOT_VERIFIED");
    desk.zone.say("_tenantry.shop.example.com", "TXT", None);
    let silent = verify(&desk, &shop).await;
    silent.refused(503, "DNS_UNAVAILABLE");
    assert_eq!(silent.json["retryable"], true);
    desk.zone.say("_tenantry.shop.example.com", "TXT", Some(proof));
    assert_eq!(verify(&desk, &shop).await.data(200)["verified"], true);
    // It stays so, also for the next daemon.
    desk.zone.say("_tenantry.shop.example.com", "TXT", None);
    let desk = desk.restarted().await;
    assert_eq!(verify(&desk, &shop).await.data(200)["verified"], true);
    assert_eq!(desk.get(&path(&other)).await.data(200)["verified"], false);
}

#[tokio::test]
async fn a_domain_that_is_another_name_of_its_alias_is_verified() {
    let desk = Desk::new().await;
    let id = desk.create(json!({})).await["id"].clone();
    let shop = alias(&desk, json!({ "container_id": id, "domain": "shop.example.com" })).await;
    let other = alias(&desk, json!({ "container_id": id, "alias": "other" })).await;
    desk.zone.say("shop.example.com", "CNAME", Some(other["url"].as_str().unwrap().trim_start_matches("http://")));
    verify(&desk, &shop).await.refused(409, "DOMAIN_NOT_VERIFIED");
    let target = format!("{}.", shop["verification"]["cname_target"].as_str().unwrap());
    desk.zone.say("shop.example.com", "CNAME", Some(&target));
    assert_eq!(verify(&desk, &shop).await.data(200)["verified"], true);
    verify(&desk, &other).await.refused(400, "PROXY_ALIAS_NO_DOMAIN");
}

#[tokio::test]
async fn another_domain_is_another_to_be_verified() {
    let desk = Desk::new().await;
    let id = desk.create(json!({})).await["id"].clone();
    let shop = alias(&desk, json!({ "container_id": id, "domain": "shop.example.com", "verified": true })).await;
    assert_eq!(shop["verified"], true);
    let same = desk.patch(&path(&shop), json!({ "domain": "SHOP.example.com", "enabled": false })).await.data(200);
    assert_eq!((&same["verified"], &same["verification"]), (&json!(true), &shop["verification"]));
    let moved = desk.patch(&path(&shop), json!({ "domain": "www.example.com" })).await.data(200);
    assert_eq!(moved["verified"], false);
    assert_ne!(moved["verification"]["txt_value"], shop["verification"]["txt_value"]);
    let none = desk.patch(&path(&shop), json!({ "domain": null })).await.data(200);
    assert_eq!((&none["domain"], &none["verification"]), (&Value::Null, &Value::Null));
    desk.patch(&path(&shop), json!({ "verified": true })).await.refused(400, "PROXY_ALIAS_NO_DOMAIN");
}

#[tokio::test]
async fn a_domain_is_one_aliass_and_none_of_this_hosts_own() {
    let desk = Desk::new().await;
    let id = desk.create(json!({})).await["id"].clone();
    let shop = alias(&desk, json!({ "container_id": id, "domain": "shop.example.com" })).await;
    let again = json!({ "container_id": id, "domain": "shop.example.com" });
    desk.post("/proxy/aliases", again.clone()).await.refused(409, "PROXY_ALIAS_IN_USE");
    let zone = shop["url"].as_str().unwrap().split_once("//").unwrap().1.split_once('.').unwrap().1;
    let zone = zone.split(':').next().unwrap();
    for own in [zone.to_owned(), format!("acme.{zone}"), format!("a.b.{zone}")] {
        desk.post("/proxy/aliases", json!({ "container_id": id, "domain": own })).await.refused(400, "INVALID_DOMAIN");
    }
    for bad in ["com", "10.0.0.1", "*.example.com", "a b.com", "https://a.com", "a.com/x"] {
        let refused = desk.post("/proxy/aliases", json!({ "container_id": id, "domain": bad })).await;
        refused.refused(400, "INVALID_DOMAIN");
        assert_eq!(refused.json["data"]["field"], "domain", "{}", refused.json);
    }
    desk.delete(&path(&shop)).await.data(200);
    desk.post("/proxy/aliases", again).await.data(201);
}

#[tokio::test]
async fn only_who_answers_for_the_host_may_vouch_for_a_domain() {
    let desk = Desk::new().await;
    let id = desk.create(json!({})).await["id"].clone();
    let shop = alias(&desk, json!({ "container_id": id, "domain": "shop.example.com" })).await;
    let bound = desk.token_of("bound", Permissions::FullAccess, Some(desk.project)).await;
    let as_bound = [("authorization", bound.as_str())];
    let vouch = json!({ "verified": true });
    desk.call("PATCH", &path(&shop), &as_bound, Some(&vouch)).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    let new = json!({ "container_id": id, "domain": "www.example.com", "verified": true });
    desk.call("POST", "/proxy/aliases", &as_bound, Some(&new)).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    // What the DNS says counts for anybody who may change the alias.
    desk.zone.say("_tenantry.shop.example.com", "TXT", shop["verification"]["txt_value"].as_str());
    let verified = desk.call("POST", &format!("{}/verify", path(&shop)), &as_bound, None).await.data(200);
    assert_eq!(verified["verified"], true);
    assert_eq!(desk.patch(&path(&shop), json!({ "verified": false })).await.data(200)["verified"], false);
}
