//! PATCH, PUT, the environment's own routes, and If-Match.

use super::*;

#[tokio::test]
async fn a_patch_is_a_merge_and_a_put_replaces_maps() {
    let desk = Desk::new().await;
    let body = json!({ "labels": {"a": "1", "b": "2"}, "environment_vars": {"A": "1", "B": "2"}, "comment": "c" });
    let path = path_of(&desk.create(body).await);
    let body = json!({ "labels": {"a": null, "c": "3"}, "environment_vars": {"A": null, "C": "3"} });
    let patched = desk.patch(&path, body).await.data(200);
    assert_eq!(patched["labels"], json!({"b": "2", "c": "3"}));
    assert_eq!(patched["environment_vars"], json!({"B": "2", "C": "3"}));
    assert_eq!(patched["comment"], "c", "what is left out stays");
    let put = desk.put(&path, json!({ "labels": {"x": "9"}, "env_vars": {"X": "9"}, "comment": null })).await.data(200);
    assert_eq!((&put["labels"], &put["environment_vars"]), (&json!({"x": "9"}), &json!({"X": "9"})));
    assert_eq!(put["comment"], Value::Null);
    assert_eq!(desk.patch(&path, json!({ "labels": null })).await.data(200)["labels"], json!({}));
    let limits = desk.patch(&path, json!({ "limits": {"pids": 9, "memory": null} })).await.data(200)["limits"].clone();
    assert_eq!((&limits["pids"], &limits["memory"]), (&json!(9), &Value::Null));
    assert!(limits["cpu"].is_number(), "limits change one by one");
    desk.patch(&path, json!({ "port": null })).await.refused(400, "VALIDATION_ERROR");
}

#[tokio::test]
async fn patches_of_labels_at_once_lose_nothing() {
    let desk = Desk::new().await;
    let path = path_of(&desk.create(json!({})).await);
    let bodies: Vec<_> = (0..20).map(|n| json!({ "labels": { format!("k{n}"): "v" } })).collect();
    let patches = bodies.iter().map(|body| desk.call("PATCH", &path, &[], Some(body)));
    let mut made = 0;
    for reply in futures_util::future::join_all(patches).await {
        // A container's queue is bounded; what does not fit is told to come again.
        if reply.status != StatusCode::OK {
            reply.refused(409, "CONTAINER_OPERATION_IN_PROGRESS");
            continue;
        }
        made += 1;
    }
    assert!(made > 1);
    assert_eq!(desk.get(&path).await.data(200)["labels"].as_object().unwrap().len(), made);
}

#[tokio::test]
async fn labels_stay_within_their_bound_by_merges_too() {
    let desk = Desk::new().await;
    let many = |from: usize, to: usize| -> Value {
        (from..to).map(|n| (format!("k{n}"), json!("v"))).collect::<serde_json::Map<_, _>>().into()
    };
    let path = path_of(&desk.create(json!({ "labels": many(0, 60) })).await);
    let reply = desk.patch(&path, json!({ "labels": many(60, 65) })).await;
    reply.refused(400, "VALIDATION_ERROR");
    assert_eq!(reply.json["data"]["field"], "labels");
    desk.patch(&path, json!({ "labels": many(60, 64) })).await.data(200);
}

#[tokio::test]
async fn an_environment_is_changed_as_a_whole_and_by_its_keys() {
    let desk = Desk::new().await;
    let container = desk.create(json!({ "environment_vars": {"A": "1"}, "start": true })).await;
    let path = format!("{}/env", path_of(&container));
    let shown = desk.get(&path).await.data(200);
    assert_eq!((&shown["environment_vars"], &shown["env_sync"]["pending"]), (&json!({"A": "1"}), &json!(false)));
    let set = desk.put(&format!("{path}/B"), json!({ "value": "2" })).await.data(200);
    assert_eq!(set["environment_vars"], json!({"A": "1", "B": "2"}));
    assert_eq!((&set["synced"], &set["env_sync"]["pending"]), (&json!(false), &json!(true)), "at the next start");
    desk.patch(&format!("{path}/B"), json!({ "value": "3" })).await.data(200);
    let unset = desk.delete(&format!("{path}/A")).await.data(200);
    assert_eq!(unset["environment_vars"], json!({"B": "3"}));
    desk.delete(&format!("{path}/A")).await.refused(404, "ENV_KEY_NOT_FOUND");
    desk.put(&format!("{path}/1A"), json!({ "value": "" })).await.refused(400, "INVALID_ENV_KEY");
    desk.put(&format!("{path}/TENANTRY_X"), json!({ "value": "" })).await.refused(400, "RESERVED_ENV_PREFIX");
    desk.put(&path, json!({ "A": null })).await.refused(400, "VALIDATION_ERROR");
    let replaced = desk.put(&path, json!({ "Z": "26" })).await.data(200);
    assert_eq!(replaced["environment_vars"], json!({"Z": "26"}));
}

#[tokio::test]
async fn a_change_that_was_meant_for_another_generation_is_refused() {
    let desk = Desk::new().await;
    let path = path_of(&desk.create(json!({})).await);
    let etag = desk.get(&path).await.headers["etag"].to_str().unwrap().to_owned();
    let body = json!({ "comment": "x" });
    let changed = desk.call("PATCH", &path, &[("if-match", &etag)], Some(&body)).await;
    let newer = changed.headers["etag"].to_str().unwrap().to_owned();
    changed.data(200);
    assert_ne!(newer, etag);
    for method in ["PATCH", "PUT", "DELETE"] {
        let stale = desk.call(method, &path, &[("if-match", &etag)], Some(&body)).await;
        stale.refused(412, "PRECONDITION_FAILED");
    }
    let env = desk.call("PUT", &format!("{path}/env/A"), &[("if-match", &etag)], Some(&json!({ "value": "1" }))).await;
    env.refused(412, "PRECONDITION_FAILED");
    assert_eq!(desk.get(&path).await.data(200)["status"], "stopped", "a refused DELETE deletes nothing");
    let receipt = desk.call("DELETE", &path, &[("if-match", &newer)], None).await.data(200);
    let again = desk.call("DELETE", &path, &[("if-match", &etag)], None).await.data(200);
    assert_eq!(again["receipt_id"], receipt["receipt_id"], "what is deleted is not changed by deleting it again");
}
