//! Which token may do what.

use jiff::{SignedDuration, Timestamp};

use super::*;

async fn with(desk: &Desk, token: &str, method: &str, path: &str, body: Option<&Value>) -> Reply {
    desk.call(method, path, &[("authorization", token)], body).await
}

#[tokio::test]
async fn a_read_only_token_reads_and_changes_nothing() {
    let desk = Desk::new().await;
    let container = path_of(&desk.create(json!({})).await);
    let token = desk.token_of("viewer", Permissions::ReadOnly, None).await;
    for path in [container.as_str(), "/containers/", "/projects/", &format!("{container}/env")] {
        with(&desk, &token, "GET", path, None).await.data(200);
    }
    let body = json!({ "comment": "x" });
    for (method, path) in [
        ("PATCH", container.clone()),
        ("DELETE", container.clone()),
        ("POST", format!("{container}/start")),
        ("POST", format!("{container}/copy")),
        ("PUT", format!("{container}/env/A")),
        ("POST", desk.containers()),
        ("POST", "/auth/tokens".to_owned()),
    ] {
        with(&desk, &token, method, &path, Some(&body)).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    }
    assert_eq!(desk.service.containers().len(), 1);
}

#[tokio::test]
async fn a_token_of_one_project_knows_of_no_other() {
    let desk = Desk::new().await;
    let other = desk.post("/projects/", json!({ "alias": "other" })).await.data(201);
    let other_id = other["id"].as_str().unwrap();
    let mine = desk.create(json!({})).await;
    let body = json!({ "start": false });
    let theirs = desk.post(&format!("/projects/{other_id}/containers"), body.clone()).await.data(201);
    let token = desk.token_of("bound", Permissions::FullAccess, Some(desk.project)).await;
    let foreign = path_of(&theirs);
    for (method, path) in [
        ("GET", foreign.clone()),
        ("PATCH", foreign.clone()),
        ("DELETE", foreign.clone()),
        ("POST", format!("{foreign}/copy")),
        ("POST", format!("{foreign}/start")),
        ("GET", format!("{foreign}/logs")),
        ("GET", format!("{foreign}/logs?follow=true")),
    ] {
        let body = (method != "GET").then(|| json!({}));
        with(&desk, &token, method, &path, body.as_ref()).await.refused(404, "CONTAINER_NOT_FOUND");
    }
    let target = json!({ "target_project_id": other_id, "start": false });
    let copy = with(&desk, &token, "POST", &format!("{}/copy", path_of(&mine)), Some(&target)).await;
    copy.refused(404, "PROJECT_NOT_FOUND");
    for list in ["/containers/", "/projects/"] {
        assert_eq!(with(&desk, &token, "GET", list, None).await.data(200)["pagination"]["total"], 1);
    }
    let made = with(&desk, &token, "POST", "/projects/", Some(&json!({ "alias": "mine" }))).await;
    made.refused(403, "INSUFFICIENT_PERMISSIONS");
    let receipt = desk.delete(&foreign).await.data(200);
    // Neither what was deleted, nor its receipt.
    with(&desk, &token, "DELETE", &foreign, None).await.refused(404, "CONTAINER_NOT_FOUND");
    let receipt = format!("/receipts/{}", receipt["receipt_id"].as_str().unwrap());
    with(&desk, &token, "GET", &receipt, None).await.refused(404, "RECEIPT_NOT_FOUND");
    with(&desk, &token, "DELETE", &path_of(&mine), None).await.data(200);
}

#[tokio::test]
async fn a_token_that_is_over_is_refused() {
    let desk = Desk::new().await;
    let past = Timestamp::now() - SignedDuration::from_secs(1);
    let new = NewToken { expires_at: Some(past), ..NewToken::new("old", Permissions::FullAccess) };
    let old = desk.service.create_token(new).await.unwrap().secret;
    with(&desk, old.reveal(), "GET", "/projects/", None).await.refused(401, "TOKEN_EXPIRED");
    let made = desk.post("/auth/tokens", json!({ "alias": "ci" })).await.data(201);
    let secret = made["token"].as_str().unwrap().to_owned();
    with(&desk, &secret, "GET", "/projects/", None).await.data(200);
    desk.delete(&format!("/auth/tokens/{}", made["id"].as_str().unwrap())).await.data(200);
    with(&desk, &secret, "GET", "/projects/", None).await.refused(401, "INVALID_TOKEN");
    with(&desk, "tnt_0", "GET", "/projects/", None).await.refused(401, "INVALID_TOKEN");
}
