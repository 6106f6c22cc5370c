//! Idempotency keys.

use super::*;

async fn keyed(desk: &Desk, key: &str, body: &Value) -> Reply {
    desk.call("POST", &desk.containers(), &[("idempotency-key", key)], Some(body)).await
}

fn named(name: &str) -> Value {
    json!({ "name": name, "start": false })
}

#[tokio::test]
async fn a_webhook_delivered_twice_makes_one_container() {
    let desk = Desk::new().await;
    let first = keyed(&desk, "evt_1", &named("acme")).await;
    assert!(first.headers.get("idempotent-replayed").is_none());
    let etag = first.headers["etag"].clone();
    let first = first.data(201);
    let again = keyed(&desk, "evt_1", &named("acme")).await;
    assert_eq!((&again.headers["idempotent-replayed"], &again.headers["etag"]), (&"true".parse().unwrap(), &etag));
    assert_eq!(again.data(201), first);
    assert_eq!(desk.service.containers().len(), 1);
}

#[tokio::test]
async fn a_key_is_for_one_request_of_one_token() {
    let desk = Desk::new().await;
    keyed(&desk, "evt_1", &named("acme")).await.data(201);
    keyed(&desk, "evt_1", &named("globex")).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    let other_path = format!("{}?wait=started", desk.containers());
    let other_path = desk.call("POST", &other_path, &[("idempotency-key", "evt_1")], Some(&named("acme"))).await;
    other_path.refused(422, "IDEMPOTENCY_KEY_REUSED");
    let token = desk.token_of("other", Permissions::FullAccess, None).await;
    let headers = [("idempotency-key", "evt_1"), ("authorization", token.as_str())];
    desk.call("POST", &desk.containers(), &headers, Some(&named("globex"))).await.data(201);
    keyed(&desk, "", &named("initech")).await.refused(400, "INVALID_HEADER");
    assert_eq!(desk.service.containers().len(), 2);
}

#[tokio::test]
async fn of_two_at_once_one_is_carried_out_and_the_other_told_to_come_again() {
    let desk = Desk::new().await;
    let body = named("acme");
    let (one, two) = tokio::join!(keyed(&desk, "evt_1", &body), keyed(&desk, "evt_1", &body));
    let (done, told) = if one.status == StatusCode::CREATED { (one, two) } else { (two, one) };
    told.refused(409, "IDEMPOTENCY_KEY_IN_FLIGHT");
    assert_eq!(told.json["retryable"], true);
    assert!(told.headers.contains_key("retry-after"));
    let again = keyed(&desk, "evt_1", &body).await;
    assert_eq!(again.data(201), done.data(201));
}

#[tokio::test]
async fn a_failed_first_answer_releases_its_key() {
    let desk = Desk::new().await;
    let in_the_way = desk.create(named("acme")).await;
    keyed(&desk, "evt_1", &named("acme")).await.refused(409, "CONTAINER_NAME_IN_USE");
    desk.delete(&path_of(&in_the_way)).await.data(200);
    keyed(&desk, "evt_1", &named("acme")).await.data(201);
}

#[tokio::test]
async fn a_kept_answer_outlives_the_daemon() {
    let desk = Desk::new().await;
    let first = keyed(&desk, "evt_1", &named("acme")).await.data(201);
    let desk = desk.restarted().await;
    let again = keyed(&desk, "evt_1", &named("acme")).await;
    assert_eq!(again.headers["idempotent-replayed"], "true");
    assert_eq!(again.data(201), first);
}

#[tokio::test]
async fn a_late_webhook_does_not_bring_a_deleted_tenant_back() {
    let desk = Desk::new().await;
    let made = keyed(&desk, "evt_1", &json!({ "name": "acme", "start": false, "env_vars": {"KEY": "s3cret"} })).await;
    let made = made.data(201);
    desk.delete(&path_of(&made)).await.data(200);
    let late = keyed(&desk, "evt_1", &json!({ "name": "acme", "start": false, "env_vars": {"KEY": "s3cret"} })).await;
    late.refused(410, "CONTAINER_DELETED");
    assert!(desk.service.containers().is_empty());
    let desk = desk.restarted().await;
    let records = desk.service.records().all_at::<Value>("idempotency").await.unwrap();
    assert!(!records.is_empty() && !format!("{records:?}").contains("s3cret"), "the kept answer went along");
}

#[tokio::test]
async fn an_answer_that_was_lost_with_the_daemon_is_given_from_what_was_made() {
    let desk = Desk::new().await;
    let first = keyed(&desk, "evt_1", &named("acme")).await.data(201);
    // As if it had been killed between making and keeping.
    for (key, _) in desk.service.records().all_at::<Value>("idempotency").await.unwrap() {
        let gone = crate::store::Batch::default().remove_at(key);
        desk.service.records().commit(gone, crate::store::Durability::Flushed).await.unwrap();
    }
    let desk = desk.restarted().await;
    keyed(&desk, "evt_1", &named("globex")).await.refused(422, "IDEMPOTENCY_KEY_REUSED");
    for _ in 0..2 {
        let again = keyed(&desk, "evt_1", &named("acme")).await;
        assert_eq!(again.headers["idempotent-replayed"], "true");
        assert_eq!(again.data(201)["id"], first["id"]);
    }
    assert_eq!(desk.service.containers().len(), 1);
    desk.delete(&path_of(&first)).await.data(200);
    keyed(&desk, "evt_1", &named("acme")).await.refused(410, "CONTAINER_DELETED");
}
