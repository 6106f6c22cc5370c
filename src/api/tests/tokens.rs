//! Tokens: rotated, used.

use jiff::{SignedDuration, Timestamp};

use super::*;

async fn get_with(desk: &Desk, token: &str) -> Reply {
    desk.call("GET", "/projects/", &[("authorization", token)], None).await
}

#[tokio::test]
async fn a_rotated_token_is_the_same_token_with_another_secret() {
    let desk = Desk::new().await;
    let made = desk.post("/auth/tokens", json!({ "alias": "ci" })).await.data(201);
    let (id, first) = (made["id"].as_str().unwrap(), made["token"].as_str().unwrap());
    let rotate = format!("/auth/tokens/{id}/rotate");
    let headers = [("idempotency-key", "r1")];
    let body = json!({ "grace": 60 });
    let rotated = desk.call("POST", &rotate, &headers, Some(&body)).await.data(200);
    let second = rotated["token"].as_str().unwrap();
    assert_eq!((&rotated["id"], rotated["alias"].as_str()), (&made["id"], Some("ci")));
    for secret in [first, second] {
        get_with(&desk, secret).await.data(200);
    }
    // Asked again, the secret is not told again; nor is it made anew.
    let again = desk.call("POST", &rotate, &headers, Some(&body)).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.data(200)["token"], Value::Null);
    get_with(&desk, second).await.data(200);
    let third = desk.call("POST", &rotate, &[], None).await.data(200);
    for secret in [first, second] {
        get_with(&desk, secret).await.refused(401, "INVALID_TOKEN");
    }
    let desk = desk.restarted().await;
    get_with(&desk, third["token"].as_str().unwrap()).await.data(200);
    desk.post(&rotate, json!({ "grace": 86_401 })).await.refused(400, "VALIDATION_ERROR");
    desk.post("/auth/tokens/0123456789abcdef01234567/rotate", json!({})).await.refused(404, "TOKEN_NOT_FOUND");
}

#[tokio::test]
async fn nobody_gets_a_token_that_may_manage_scripts_who_may_not() {
    let desk = Desk::new().await;
    let body = json!({ "alias": "deploy", "scripts": true });
    desk.post("/auth/tokens", body.clone()).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    let new = NewToken { scripts: true, ..NewToken::new("root", Permissions::FullAccess) };
    let root = desk.service.create_token(new).await.unwrap();
    let headers = [("authorization", root.secret.reveal())];
    let made = desk.call("POST", "/auth/tokens", &headers, Some(&body)).await.data(201);
    assert_eq!(made["scripts"], true);
    let rotate = format!("/auth/tokens/{}/rotate", made["id"].as_str().unwrap());
    desk.post(&rotate, json!({})).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    desk.call("POST", &rotate, &headers, None).await.data(200);
}

#[tokio::test]
async fn the_admin_tokens_rotation_is_written_to_its_file() {
    let desk = Desk::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("admin.token");
    let held = || std::fs::read_to_string(&file).unwrap().trim().to_owned();
    desk.service.ensure_admin_token(&file).await.unwrap();
    let first = held();
    let headers = [("authorization", first.as_str())];
    let tokens = desk.call("GET", "/auth/tokens", &headers, None).await.data(200);
    let admin = tokens["tokens"].as_array().unwrap().iter().find(|token| token["alias"] == "admin").unwrap();
    assert_eq!(admin["scripts"], true);
    let id = admin["id"].clone();
    let rotate = format!("/auth/tokens/{}/rotate", id.as_str().unwrap());
    let rotated = desk.call("POST", &rotate, &headers, None).await.data(200);
    assert_eq!((rotated["token"].as_str().unwrap(), first == held()), (held().as_str(), false));
    let desk = desk.restarted().await;
    desk.service.ensure_admin_token(&file).await.unwrap();
    assert_eq!(rotated["token"], held());
    assert_eq!(get_with(&desk, &held()).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_token_says_when_it_was_last_used_also_under_the_next_daemon() {
    let desk = Desk::new().await;
    let made = desk.post("/auth/tokens", json!({ "alias": "ci" })).await.data(201);
    assert_eq!(made["last_used_at"], Value::Null);
    get_with(&desk, made["token"].as_str().unwrap()).await.data(200);
    let used = async |desk: &Desk| {
        let all = desk.get("/auth/tokens").await.data(200);
        let one = all["tokens"].as_array().unwrap().iter().find(|token| token["alias"] == "ci").unwrap().clone();
        one["last_used_at"].as_str().unwrap().parse::<Timestamp>().unwrap()
    };
    let before = used(&desk).await;
    assert!(Timestamp::now().duration_since(before) < SignedDuration::from_secs(60));
    desk.service.keep_uses().await.unwrap();
    let desk = desk.restarted().await;
    assert_eq!(used(&desk).await, before);
}
