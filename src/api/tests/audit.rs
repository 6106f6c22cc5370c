//! Who wrote what, from where.

use super::stream::Stream;
use super::*;

async fn notes(desk: &Desk) -> Vec<Value> {
    desk.get("/events?type=audit.*").await.data(200)["events"].as_array().unwrap().clone()
}

#[tokio::test]
async fn each_write_is_noted_apart_from_what_happened() {
    let desk = Desk::new().await;
    let body = json!({ "name": "acme", "env_vars": { "KEY": "s3cret" } });
    let made = desk.create(body).await;
    let path = path_of(&made);
    desk.patch(&path, json!({ "comment": "x" })).await.data(200);
    desk.patch(&path, json!({ "nonsense": "x" })).await.refused(400, "VALIDATION_ERROR");
    desk.get(&path).await.data(200);
    let viewer = desk.token_of("viewer", Permissions::ReadOnly, None).await;
    let headers = [("authorization", viewer.as_str())];
    desk.call("DELETE", &path, &headers, None).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    let notes = notes(&desk).await;
    let told: Vec<_> = notes.iter().map(|note| note["audit"]["method"].as_str().unwrap()).collect();
    assert_eq!(told, ["POST", "PATCH", "DELETE"]);
    let (create, refused) = (&notes[0], &notes[2]);
    assert_eq!((&create["container_id"], &create["project_id"]), (&made["id"], &json!(desk.project)));
    assert_eq!(create["audit"]["route"], "/projects/{id}/containers");
    assert_eq!((&create["audit"]["status"], &create["audit"]["token_alias"]), (&json!(201), &json!("test")));
    assert_eq!(
        (&refused["audit"]["status"], &refused["audit"]["token_alias"], &refused["container_id"]),
        (&json!(403), &json!("viewer"), &made["id"])
    );
    assert!(!format!("{notes:?}").contains("s3cret"));
    let all = desk.get("/events").await.data(200)["events"].to_string();
    assert!(!all.contains("audit."), "{all}");
    // For those with full access, and of their project.
    for events in ["/events?type=audit.write", "/events/stream?type=audit.*"] {
        desk.call("GET", events, &headers, None).await.refused(403, "INSUFFICIENT_PERMISSIONS");
    }
    desk.post("/projects/", json!({ "alias": "other" })).await.data(201);
    let bound = desk.token_of("bound", Permissions::FullAccess, Some(desk.project)).await;
    let headers = [("authorization", bound.as_str())];
    let seen = desk.call("GET", "/events?type=audit.*", &headers, None).await.data(200);
    assert_eq!(seen["pagination"]["total"], 3);
    assert_eq!(self::notes(&desk).await[3]["project_id"], Value::Null);
    let desk = desk.restarted().await;
    assert_eq!(self::notes(&desk).await.len(), 4);
}

#[tokio::test]
async fn an_app_follows_what_its_scripts_did() {
    let mut desk = Desk::new().await;
    let template = desk.create(json!({ "template": true })).await;
    let mut stream = Stream::of(&desk, "/events/stream?type=audit.write").await;
    let runs = Runs::default();
    let key = runs.open("shop/signup.js", "run-1", None).unwrap();
    let headers = [("authorization", key.secret().reveal())];
    let tokens = desk.router.clone();
    desk.router = desk.api.router_for_scripts(runs.clone());
    let copy = format!("{}/copy?wait=started", path_of(&template));
    let made = desk.call("POST", &copy, &headers, Some(&json!({ "start": false }))).await.data(201);
    desk.router = tokens;
    let frame = stream.next().await.unwrap();
    let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let note: Value = serde_json::from_str(data).unwrap();
    assert_eq!((&note["container_id"], &note["audit"]["object_id"]), (&made["id"], &template["id"]));
    assert_eq!(note["audit"]["script"], "shop/signup.js");
    assert_eq!((&note["audit"]["run"], &note["audit"]["client"]), (&json!("run-1"), &json!("unix")));
    assert_eq!(note["reason"], "POST /containers/{id}/copy by script shop/signup.js from unix: 201");
}
