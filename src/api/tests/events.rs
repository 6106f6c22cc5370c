//! What happened, by page and as it happens.

use super::stream::Stream;
use super::*;
use crate::domain::Bytes;
use crate::domain::token::Permissions;
use crate::sys::cgroup::Alarms;

/// Looks at the counters until the disks have been looked at, too.
const LOOKS: usize = 5;

/// The types of the events that a query gives.
async fn types(desk: &Desk, query: &str) -> Vec<String> {
    let data = desk.get(&format!("/events{query}")).await.data(200);
    let events = data["events"].as_array().unwrap();
    assert_eq!(data["pagination"]["total"], events.len());
    events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_containers_life_is_told_and_outlives_it_and_the_daemon() {
    let desk = Desk::new().await;
    let container = desk.create(json!({ "start": true, "name": "acme" })).await;
    let path = path_of(&container);
    for verb in ["pause", "resume", "stop"] {
        desk.post(&format!("{path}/{verb}"), json!({})).await.data(200);
    }
    desk.patch(&path, json!({ "comment": "a secret" })).await.data(200);
    desk.delete(&path).await.data(200);
    let wanted = ["created", "started", "paused", "resumed", "stopped", "updated", "deleted"];
    let wanted = wanted.map(|word| format!("container.{word}"));
    assert_eq!(types(&desk, "").await, wanted);
    let desk = desk.restarted().await;
    let query = format!("?container_id={}&project_id={}", container["id"].as_str().unwrap(), desk.project);
    assert_eq!(types(&desk, &query).await, wanted);
    assert_eq!(types(&desk, "?type=container.stopped").await, ["container.stopped"]);
    assert_eq!(types(&desk, "?type=container.*&sort_order=desc").await[0], "container.deleted");
    assert_eq!(types(&desk, "?container_id=000000000000000000000000").await, [""; 0]);
    let all = desk.get("/events").await.json.to_string();
    assert!(!all.contains("secret") && !all.contains("acme"), "a tenant's text is in it: {all}");
}

#[tokio::test]
async fn changes_of_firewall_rules_are_told_as_such_and_what_changes_nothing_is_not() {
    let desk = Desk::new().await;
    let path = path_of(&desk.create(json!({})).await);
    let rule = json!({ "action": "allow", "protocol": "tcp", "destination_port": "443" });
    let ingress = format!("{path}/firewall/ingress");
    desk.post(&ingress, rule.clone()).await.data(201);
    desk.post(&ingress, rule).await.data(200);
    desk.post(&format!("{path}/firewall/reset"), json!({})).await.data(200);
    assert_eq!(types(&desk, "?type=firewall.*").await, ["firewall.rule.added", "firewall.rule.reset"]);
    assert_eq!(types(&desk, "?type=container.updated").await, [""; 0]);
}

#[tokio::test]
async fn a_token_sees_the_events_of_its_project_alone() {
    let desk = Desk::new().await;
    desk.create(json!({})).await;
    let other = desk.post("/projects/", json!({ "alias": "other" })).await.data(201);
    let other = other["id"].as_str().unwrap().parse().unwrap();
    let token = desk.token_of("bound", Permissions::ReadOnly, Some(other)).await;
    let headers = [("authorization", token.as_str())];
    let seen = desk.call("GET", "/events", &headers, None).await.data(200);
    assert_eq!(seen["events"], json!([]));
    assert_eq!(types(&desk, "").await, ["container.created"]);
}

#[tokio::test]
async fn limits_that_are_reached_are_told_once_and_for_the_last_time_at_the_end() {
    let desk = Desk::new().await;
    let path = path_of(&desk.create(json!({ "start": true, "limits": { "disk": 1 << 30 } })).await);
    let id = path.rsplit('/').next().unwrap().parse().unwrap();
    desk.service.look_for_alarms().await;
    desk.lab.host.alarm(id, Alarms { oom_kills: 2, pids_refused: 5 });
    desk.lab.host.fill_disks(Bytes::gib(1));
    for _ in 0..2 * LOOKS {
        desk.service.look_for_alarms().await;
    }
    let told = ["container.oom", "container.pids_limit", "container.disk_full"];
    let data = desk.get("/events").await.data(200);
    let events: Vec<_> = data["events"].as_array().unwrap().iter().skip(2).collect();
    assert_eq!(events.iter().map(|event| event["type"].as_str().unwrap()).collect::<Vec<_>>(), told);
    assert_eq!(events[0]["data"], json!({ "count": 2, "since_start": 2 }));
    assert_eq!(events[2]["data"], json!({ "used_bytes": 1 << 30, "limit_bytes": 1 << 30 }));
    // The next daemon knows what was told.
    let desk = desk.restarted().await;
    desk.service.look_for_alarms().await;
    assert_eq!(types(&desk, "?type=container.oom").await.len(), 1);
    // A kill that no look has seen yet is told when the container stops; the next start counts anew.
    desk.lab.host.alarm(id, Alarms { oom_kills: 3, pids_refused: 5 });
    desk.post(&format!("{path}/stop"), json!({})).await.data(200);
    assert_eq!(types(&desk, "?type=container.oom").await.len(), 2);
    desk.post(&format!("{path}/start?wait=started"), json!({})).await.data(200);
    desk.lab.host.alarm(id, Alarms { oom_kills: 1, pids_refused: 0 });
    desk.service.look_for_alarms().await;
    assert_eq!(types(&desk, "?type=container.oom").await.len(), 3);
}

#[tokio::test]
async fn a_stream_goes_on_behind_the_last_event_that_its_client_saw() {
    let desk = Desk::new().await;
    let path = path_of(&desk.create(json!({})).await);
    let mut stream = Stream::of(&desk, "/events/stream").await;
    desk.post(&format!("{path}/start?wait=started"), json!({})).await.data(200);
    let first = stream.next().await.unwrap();
    assert!(first.starts_with("event: container.started\n"), "{first}");
    let id = first.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    drop(stream);
    desk.post(&format!("{path}/stop"), json!({})).await.data(200);
    let response = desk.send("GET", "/events/stream?type=container.*", &[("last-event-id", &id)], None).await;
    let mut stream = Stream(response.into_body());
    assert!(stream.next().await.unwrap().starts_with("event: container.stopped\n"));
    desk.post(&format!("{path}/start?wait=started"), json!({})).await.data(200);
    assert!(stream.next().await.unwrap().starts_with("event: container.started\n"));
    let mut all = Stream::of(&desk, "/events/stream?last_event_id=0").await;
    assert!(all.next().await.unwrap().starts_with("event: container.created\n"));
    let desk = desk.restarted().await;
    let mut lost = Stream::of(&desk, "/events/stream?last_event_id=1").await;
    assert!(lost.next().await.unwrap().starts_with("event: gap\n"), "what was before the oldest is not known");
    assert!(lost.next().await.unwrap().starts_with("event: container.created\n"));
    desk.shutdown.cancel();
    assert_eq!(stream.next().await.unwrap(), "event: end\ndata: shutting_down\n\n");
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_a_place_that_cannot_be_is_refused() {
    let desk = Desk::new().await;
    let made = desk.post("/auth/tokens", json!({ "alias": "ci" })).await.data(201);
    let headers = [("authorization", made["token"].as_str().unwrap())];
    let mut stream = Stream(desk.send("GET", "/events/stream", &headers, None).await.into_body());
    desk.delete(&format!("/auth/tokens/{}", made["id"].as_str().unwrap())).await.data(200);
    assert_eq!(stream.next().await.unwrap(), "event: end\ndata: token_refused\n\n");
    desk.call("GET", "/events/stream", &[("last-event-id", "x")], None).await.refused(400, "INVALID_PARAMETER");
}
