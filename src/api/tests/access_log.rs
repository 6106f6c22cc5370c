//! A container's access log.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::domain::{AccessLine, ContainerId};

fn access(at: Timestamp, path: &str) -> Vec<u8> {
    let access = AccessLine {
        at,
        client: "192.0.2.7".parse().unwrap(),
        method: "GET".into(),
        path: path.to_owned(),
        status: Some(200),
        bytes: 5,
        duration_us: 1_500,
        upstream_us: None,
        woken: true,
        request_id: "ab".into(),
    };
    let mut line = Vec::new();
    access.write_line(&mut line);
    line
}

#[tokio::test]
async fn its_end_is_read_by_number_and_by_time_and_goes_with_the_container() {
    let desk = Desk::new().await;
    let container = desk.create(json!({})).await;
    let id: ContainerId = container["id"].as_str().unwrap().parse().unwrap();
    let began = Timestamp::now();
    let at = |n: i64| began + SignedDuration::from_secs(n);
    let lines: Vec<u8> = (0..5).flat_map(|n| access(at(n), &format!("/{n}"))).collect();
    let logs = BTreeMap::from([(id, lines), (ContainerId::generate(), access(began, "/nobodys"))]);
    desk.service.append_access_logs(logs).await;
    let path = format!("{}/access-log", path_of(&container));
    let paths = |log: &Value| -> Vec<String> {
        let all = log["access_log"].as_array().unwrap();
        all.iter().map(|one| one["path"].as_str().unwrap().to_owned()).collect()
    };
    let all = desk.get(&path).await.data(200);
    assert_eq!(paths(&all), ["/0", "/1", "/2", "/3", "/4"]);
    let first = &all["access_log"][0];
    assert_eq!(
        (&first["duration_ms"], &first["upstream_ms"], &first["woken"]),
        (&json!(1.5), &Value::Null, &json!(true))
    );
    assert_eq!(paths(&desk.get(&format!("{path}?tail=2")).await.data(200)), ["/3", "/4"]);
    assert_eq!(paths(&desk.get(&format!("{path}?since={}", at(3))).await.data(200)), ["/3", "/4"]);
    desk.get(&format!("{path}?since=yesterday")).await.refused(400, "INVALID_PARAMETER");
    desk.get(&format!("{path}?follow=true")).await.refused(400, "UNKNOWN_PARAMETER");

    let stranger = desk.post("/projects/", json!({ "alias": "other" })).await.data(201);
    let stranger = stranger["id"].as_str().unwrap().parse().unwrap();
    let token = desk.token_of("bound", Permissions::ReadOnly, Some(stranger)).await;
    let refused = desk.call("GET", &path, &[("authorization", &token)], None).await;
    refused.refused(404, "CONTAINER_NOT_FOUND");

    desk.delete(&path_of(&container)).await.data(200);
    desk.get(&path).await.refused(404, "CONTAINER_NOT_FOUND");
}
