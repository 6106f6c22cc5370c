//! What a provisioner may, and what scripts may, who are one.

use std::collections::BTreeSet;

use axum::http::Method;

use super::*;
use crate::api::auth::deed_of;
use crate::api::openapi::document_for_tests;
use crate::domain::may::Deed;
use crate::exec::runs::RunKey;

/// A desk with a provisioner's token and two containers: a template and one that it did not make.
struct Shop {
    desk: Desk,
    token: String,
    template: Value,
    foreign: Value,
}

impl Shop {
    async fn new() -> Self {
        let desk = Desk::new().await;
        let template = desk.create(json!({ "name": "base-app", "template": true })).await;
        let foreign = desk.create(json!({ "name": "foreign" })).await;
        let token = desk.token_of("shop", Permissions::Provisioner, Some(desk.project)).await;
        Self { desk, token, template, foreign }
    }

    async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        self.desk.call(method, path, &[("authorization", &self.token)], body).await
    }

    async fn copy(&self, of: &Value, body: Value) -> Reply {
        let mut body = body;
        body["start"] = json!(false);
        self.call("POST", &format!("{}/copy?wait=started", path_of(of)), Some(&body)).await
    }
}

/// Every documented request below [`BASE`]: its method and its route.
fn requests() -> Vec<(Method, String)> {
    let document = document_for_tests();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(route) = path.strip_prefix(BASE) else { continue };
        let methods = item.as_object().unwrap().keys();
        found.extend(methods.map(|method| (method.to_uppercase().parse().unwrap(), route.to_owned())));
    }
    found
}

#[test]
fn every_request_is_judged_as_what_it_is() {
    let of = |deed: Deed| {
        let told = requests().into_iter().filter(|(method, route)| deed_of(method, route) == deed);
        told.map(|(method, route)| format!("{method} {route}")).collect::<Vec<_>>()
    };
    assert_eq!(of(Deed::Copy), ["POST /containers/{id}/copy"]);
    let of_no_container: Vec<_> =
        of(Deed::Change).into_iter().filter(|told| !told.contains(" /containers/{id}")).collect();
    assert_eq!(
        of_no_container,
        [
            "POST /proxy/aliases",
            "DELETE /proxy/aliases/{id}",
            "PATCH /proxy/aliases/{id}",
            "PATCH /proxy/aliases/{id}/state",
            "POST /proxy/aliases/{id}/verify",
        ]
    );
    for told in of(Deed::Read) {
        assert!(told.starts_with("GET "), "{told}");
    }
    assert_eq!(
        of(Deed::Govern),
        [
            "POST /auth/tokens",
            "DELETE /auth/tokens/{id}",
            "POST /auth/tokens/{id}/rotate",
            "POST /images",
            "DELETE /images/{id}",
            "POST /projects/",
            "DELETE /projects/{id}",
            "PATCH /projects/{id}",
            "PUT /projects/{id}",
            "POST /projects/{id}/containers",
        ]
    );
    assert_eq!(deed_of(&Method::GET, "/exec/scripts/{*file}"), Deed::Scripts);
    assert_eq!(deed_of(&Method::POST, "/what/there/is/not/yet"), Deed::Govern);
}

#[tokio::test]
async fn no_request_changes_what_a_provisioner_did_not_make() {
    let shop = Shop::new().await;
    let alias = json!({ "container_id": shop.foreign["id"], "alias": "shop-page" });
    let alias_id = shop.desk.post("/proxy/aliases", alias.clone()).await.data(201)["id"].as_str().unwrap().to_owned();
    let before = shop.desk.get(&path_of(&shop.foreign)).await.data(200);
    // What a script does for whoever asks is the script's to say.
    let writes = requests().into_iter().filter(|(method, route)| *method != Method::GET && route != "/exec/{path}");
    for (method, route) in writes {
        let id = if route.starts_with("/proxy/aliases/") { &alias_id } else { shop.foreign["id"].as_str().unwrap() };
        let path = route.replace("{id}", id).replace("{key}", "PLAN").replace("{name}", "staff");
        let path = path.replace("{type}", "ip");
        let body = if route == "/proxy/aliases" { alias.clone() } else { json!({}) };
        let reply = shop.call(method.as_str(), &path, Some(&body)).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json["error"]),
            (403, &json!("INSUFFICIENT_PERMISSIONS")),
            "{method} {path}"
        );
    }
    assert_eq!(shop.desk.get(&path_of(&shop.foreign)).await.data(200)["generation"], before["generation"]);
    assert_eq!(shop.desk.service.containers().len(), 2);
}

#[tokio::test]
async fn a_provisioner_copies_templates_and_does_as_it_likes_with_the_copies() {
    let shop = Shop::new().await;
    let made = shop.copy(&shop.template, json!({ "external_id": "cus_1" })).await.data(201);
    let path = path_of(&made);
    shop.call("PATCH", &path, Some(&json!({ "environment_vars": { "PLAN": "pro" } }))).await.data(200);
    shop.call("POST", &format!("{path}/start?wait=started"), None).await.data(200);
    let alias = json!({ "container_id": made["id"], "alias": "acme-page" });
    let alias = shop.call("POST", "/proxy/aliases", Some(&alias)).await.data(201);
    let found = shop.call("GET", "/containers/?external_id=cus_1", None).await.data(200);
    assert_eq!(found["containers"][0]["id"], made["id"]);
    shop.copy(&made, json!({})).await.data(201);
    shop.copy(&shop.foreign, json!({})).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    shop.call("GET", &path_of(&shop.foreign), None).await.data(200);
    shop.call("DELETE", &format!("/proxy/aliases/{}", alias["id"].as_str().unwrap()), None).await.data(200);
    // What it opens to the container is for admins.
    shop.call("PATCH", &path, Some(&json!({ "confinement": "nested" }))).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    shop.call("DELETE", &path, None).await.data(200);
    shop.call("DELETE", &path, None).await.data(200);
    // Another provisioner made none of it.
    let other = shop.copy(&shop.template, json!({})).await.data(201);
    let stranger = shop.desk.token_of("other", Permissions::Provisioner, None).await;
    let headers = [("authorization", stranger.as_str())];
    shop.desk.call("DELETE", &path_of(&other), &headers, None).await.refused(403, "INSUFFICIENT_PERMISSIONS");
}

#[tokio::test]
async fn a_provisioner_with_templates_copies_those_and_knows_of_no_other_project() {
    let shop = Shop::new().await;
    let body = json!({ "alias": "named", "permission_template": "provisioner", "templates": ["foreign"],
                       "project_id": shop.desk.project.to_string() });
    let made = shop.desk.post("/auth/tokens", body).await.data(201);
    assert_eq!(made["templates"], json!(["foreign"]));
    let shop = Shop { token: made["token"].as_str().unwrap().to_owned(), ..shop };
    shop.copy(&shop.foreign, json!({})).await.data(201);
    shop.copy(&shop.template, json!({})).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    let other = shop.desk.post("/projects/", json!({ "alias": "other" })).await.data(201);
    let other = other["id"].as_str().unwrap();
    let far = shop.desk.post(&format!("/projects/{other}/containers"), json!({ "start": false })).await.data(201);
    shop.call("PATCH", &path_of(&far), Some(&json!({}))).await.refused(404, "CONTAINER_NOT_FOUND");
    shop.copy(&shop.foreign, json!({ "target_project_id": other })).await.refused(404, "PROJECT_NOT_FOUND");
}

#[tokio::test]
async fn the_door_for_scripts_takes_the_keys_of_runs_while_they_last_and_nothing_else() {
    let shop = Shop::new().await;
    let runs = Runs::default();
    let mut desk = shop.desk;
    let (key, bound) = (runs.open("a.js", "r1", None).unwrap(), runs.open("b.js", "r2", Some(ProjectId::NIL)).unwrap());
    let (secret, bound_secret) = (key.secret().reveal().to_owned(), bound.secret().reveal().to_owned());
    let run = [("authorization", secret.as_str())];
    desk.call("GET", "/containers/", &run, None).await.refused(401, "INVALID_TOKEN");
    desk.router = desk.api.router_for_scripts(runs.clone());
    for token in [&desk.token, &shop.token] {
        desk.call("GET", "/containers/", &[("authorization", token)], None).await.refused(401, "INVALID_TOKEN");
    }
    let copy = format!("{}/copy?wait=started", path_of(&shop.template));
    let body = json!({ "start": false });
    let made = desk.call("POST", &copy, &run, Some(&body)).await.data(201);
    desk.call("DELETE", &path_of(&shop.foreign), &run, None).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    desk.call("GET", "/auth/tokens", &run, None).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    // Another script may go on with what one made, within its scope.
    let narrow = [("authorization", bound_secret.as_str())];
    desk.call("DELETE", &path_of(&made), &narrow, None).await.refused(404, "CONTAINER_NOT_FOUND");
    let next = runs.open("c.js", "r3", None).unwrap();
    desk.call("DELETE", &path_of(&made), &[("authorization", next.secret().reveal())], None).await.data(200);
    drop(key);
    desk.call("GET", "/containers/", &run, None).await.refused(401, "INVALID_TOKEN");
    let request = Request::builder().uri("/metrics").body(Body::empty()).unwrap();
    assert_eq!(desk.router.clone().oneshot(request).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn of_two_scopes_neither_is_answered_what_the_other_one_was() {
    let shop = Shop::new().await;
    let runs = Runs::default();
    let mut desk = shop.desk;
    desk.router = desk.api.router_for_scripts(runs.clone());
    let copy = format!("{}/copy?wait=started", path_of(&shop.template));
    let body = json!({ "start": false });
    let whole = runs.open("a.js", "r1", None).unwrap();
    let other = runs.open("a.js", "r2", Some(ProjectId::NIL)).unwrap();
    let headers = |key: &str| [("authorization", key.to_owned()), ("idempotency-key", "evt_1".to_owned())];
    for (key, status) in [(&whole, 201), (&whole, 201), (&other, 404)] {
        let headers = headers(key.secret().reveal());
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(desk.call("POST", &copy, &headers, Some(&body)).await.status.as_u16(), status);
    }
    assert_eq!(desk.service.containers().len(), 3);
}

#[tokio::test]
async fn it_is_known_which_containers_a_run_was_told_of() {
    let shop = Shop::new().await;
    let runs = Runs::default();
    let mut desk = shop.desk;
    desk.router = desk.api.router_for_scripts(runs.clone());
    let known = |key: &RunKey| {
        let ids = key.told_of().ids().unwrap();
        ids.iter().map(ToString::to_string).collect::<BTreeSet<_>>()
    };
    let id_of = |container: &Value| container["id"].as_str().unwrap().to_owned();
    let maker = runs.open("a.js", "r1", None).unwrap();
    let as_maker = [("authorization", maker.secret().reveal())];
    let copy = format!("{}/copy?wait=started", path_of(&shop.template));
    let made = desk.call("POST", &copy, &as_maker, Some(&json!({ "start": false }))).await.data(201);
    assert!(known(&maker).contains(&id_of(&made)));
    let reader = runs.open("b.js", "r2", None).unwrap();
    let as_reader = [("authorization", reader.secret().reveal())];
    desk.call("GET", &path_of(&made), &as_reader, None).await.data(200);
    assert_eq!(known(&reader), BTreeSet::from([id_of(&made)]));
    desk.call("GET", "/containers/", &as_reader, None).await.data(200);
    assert!(known(&reader).is_superset(&BTreeSet::from([id_of(&shop.template), id_of(&shop.foreign)])));
}
