//! What a project gives its containers.

use super::*;

#[tokio::test]
async fn containers_begin_with_their_projects_policy_and_limits() {
    let desk = Desk::new().await;
    let path = format!("/projects/{}", desk.project);
    let before = desk.create(json!({})).await;
    let body = json!({ "firewall_policy": "no-egress", "limits": {"memory": 67_108_864, "pids": 50} });
    let project = desk.patch(&path, body).await.data(200);
    assert_eq!((&project["firewall_policy"], &project["limits"]["pids"]), (&json!("no-egress"), &json!(50)));
    assert_eq!(project["limits"]["cpu"], Value::Null, "the host's");
    let made = desk.create(json!({ "limits": {"pids": 7} })).await;
    assert_eq!(made["firewall_policy"], "no-egress");
    let limits = &made["limits"];
    assert_eq!((&limits["memory"], &limits["pids"]), (&json!(67_108_864), &json!(7)), "its own over the project's");
    assert_eq!(limits["cpu"], before["limits"]["cpu"], "the host's beneath");
    let unchanged = desk.get(&path_of(&before)).await.data(200);
    assert_eq!((&unchanged["firewall_policy"], &unchanged["limits"]), (&json!("web"), &before["limits"]));
    let own = desk.create(json!({ "firewall_policy": "open" })).await;
    assert_eq!(own["firewall_policy"], "open");
    let desk = desk.restarted().await;
    assert_eq!(desk.get(&path).await.data(200)["limits"], project["limits"]);
    let reset = desk.patch(&path, json!({ "firewall_policy": null, "limits": null })).await.data(200);
    assert_eq!((&reset["firewall_policy"], &reset["limits"]["memory"]), (&Value::Null, &Value::Null));
    assert_eq!(desk.create(json!({})).await["limits"], before["limits"]);
}

#[tokio::test]
async fn a_copy_keeps_its_sources_limits_and_without_its_rules_takes_the_projects() {
    let desk = Desk::new().await;
    let source = desk.create(json!({ "firewall_policy": "open", "limits": {"pids": 7} })).await;
    let body = json!({ "alias": "strict", "firewall_policy": "no-egress", "limits": {"pids": 9} });
    let strict = desk.post("/projects/", body).await.data(201);
    let copy = |rules: bool| json!({ "target_project_id": strict["id"], "start": false, "copy_firewall_rules": rules });
    let path = format!("{}/copy", path_of(&source));
    let with = desk.post(&path, copy(true)).await.data(201);
    let without = desk.post(&path, copy(false)).await.data(201);
    assert_eq!((&with["firewall_policy"], &without["firewall_policy"]), (&json!("open"), &json!("no-egress")));
    assert_eq!(without["limits"]["pids"], 7);
}

#[tokio::test]
async fn a_policy_that_is_not_there_and_a_limit_that_cannot_be_are_refused() {
    let desk = Desk::new().await;
    let path = format!("/projects/{}", desk.project);
    let unknown = json!({ "alias": "x", "firewall_policy": "nope" });
    desk.post("/projects/", unknown.clone()).await.refused(404, "FIREWALL_POLICY_NOT_FOUND");
    desk.patch(&path, json!({ "firewall_policy": "nope" })).await.refused(404, "FIREWALL_POLICY_NOT_FOUND");
    desk.patch(&path, json!({ "limits": {"memory": 1} })).await.refused(400, "VALIDATION_ERROR");
    assert_eq!(desk.get("/projects/").await.data(200)["pagination"]["total"], 1);
}
