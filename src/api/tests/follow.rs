//! A log that is followed.

use super::stream::Stream;
use super::*;
use crate::domain::ContainerId;

async fn container(desk: &Desk) -> (String, ContainerId) {
    let path = path_of(&desk.create(json!({})).await);
    let id = path.rsplit('/').next().unwrap().parse().unwrap();
    (path, id)
}

#[tokio::test]
async fn a_follower_gets_the_last_lines_and_then_what_is_written_until_the_container_is_deleted() {
    let desk = Desk::new().await;
    let (path, id) = container(&desk).await;
    desk.lab.host.write_log(id, b"one\ntwo\nthree\n");
    let mut stream = Stream::of(&desk, &format!("{path}/logs?follow=true&tail=2")).await;
    assert_eq!(stream.next().await.unwrap(), "data: two\ndata: three\ndata: \n\n");
    desk.lab.host.write_log(id, b"fo");
    assert_eq!(stream.next().await.unwrap(), "data: fo\n\n");
    desk.lab.host.write_log(id, b"ur\r\n");
    assert_eq!(stream.next().await.unwrap(), "data: ur\ndata: \n\n");
    desk.delete(&path).await.data(200);
    assert_eq!(stream.next().await.unwrap(), "event: end\ndata: container_deleted\n\n");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_shutdown_and_a_lost_token_end_a_stream() {
    let desk = Desk::new().await;
    let (path, _) = container(&desk).await;
    let made = desk.post("/auth/tokens", json!({ "alias": "ci" })).await.data(201);
    let headers = [("authorization", made["token"].as_str().unwrap())];
    let response = desk.send("GET", &format!("{path}/logs?follow=true"), &headers, None).await;
    let mut of_token = Stream(response.into_body());
    let mut of_admin = Stream::of(&desk, &format!("{path}/logs?follow=true")).await;
    desk.delete(&format!("/auth/tokens/{}", made["id"].as_str().unwrap())).await.data(200);
    assert_eq!(of_token.next().await.unwrap(), "event: end\ndata: token_refused\n\n");
    desk.shutdown.cancel();
    assert_eq!(of_admin.next().await.unwrap(), "event: end\ndata: shutting_down\n\n");
    assert_eq!(of_admin.next().await, None);
}

#[tokio::test]
async fn more_followers_than_may_be_are_told_to_come_again() {
    let desk = Desk::new().await;
    let (path, _) = container(&desk).await;
    let follow = format!("{path}/logs?follow=true");
    let mut streams = Vec::new();
    let refused = loop {
        let response = desk.send("GET", &follow, &[], None).await;
        if response.status() != StatusCode::OK {
            break response;
        }
        streams.push(response);
        assert!(streams.len() < 10_000);
    };
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key("retry-after"));
    streams.clear();
    Stream::of(&desk, &follow).await;
}

#[tokio::test]
async fn a_log_that_is_not_followed_is_text_and_knows_no_times() {
    let desk = Desk::new().await;
    let (path, id) = container(&desk).await;
    desk.lab.host.write_log(id, b"one\ntwo\n");
    let response = desk.send("GET", &format!("{path}/logs?tail=1"), &[], None).await;
    assert_eq!(axum::body::to_bytes(response.into_body(), 100).await.unwrap(), "two\n");
    let since = desk.get(&format!("{path}/logs?since=1h")).await;
    since.refused(400, "INVALID_PARAMETER");
    assert_eq!(since.json["data"]["field"], "since");
}
