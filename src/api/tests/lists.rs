//! Lists: pages, order, filters.

use super::*;

fn names(list: &Value) -> Vec<String> {
    let items = list["containers"].as_array().unwrap().iter();
    items.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

async fn list(desk: &Desk, query: &str) -> Value {
    desk.get(&format!("/containers/?{query}")).await.data(200)
}

#[tokio::test]
async fn pages_cover_a_list_once_in_the_order_that_was_asked_for() {
    let desk = Desk::new().await;
    for name in ["charlie", "alpha", "echo", "bravo", "delta"] {
        desk.create(json!({ "name": name })).await;
    }
    assert_eq!(names(&list(&desk, "").await), ["charlie", "alpha", "echo", "bravo", "delta"]);
    assert_eq!(names(&list(&desk, "sort_by=name&limit=2").await), ["alpha", "bravo"]);
    let last = list(&desk, "sort_by=name&limit=2&page=3").await;
    assert_eq!(names(&last), ["echo"]);
    assert_eq!(last["pagination"], json!({ "total": 5, "page": 3, "limit": 2, "totalPages": 3 }));
    assert_eq!(names(&list(&desk, "sort_by=name&sort_order=desc&limit=1").await), ["echo"]);
    assert!(names(&list(&desk, "page=9").await).is_empty());
    desk.get("/containers/?limit=101").await.refused(400, "INVALID_PARAMETER");
    desk.get("/containers/?sortby=name").await.refused(400, "UNKNOWN_PARAMETER");
}

#[tokio::test]
async fn filters_hold_together() {
    let desk = Desk::new().await;
    desk.create(json!({ "name": "pro-one", "labels": {"plan": "pro", "tier": "1"}, "external_id": "cus_1" })).await;
    desk.create(json!({ "name": "pro-two", "labels": {"plan": "pro", "tier": "2"}, "start": true })).await;
    desk.create(json!({ "name": "free", "labels": {"plan": "free"} })).await;
    assert_eq!(names(&list(&desk, "label=plan:pro").await), ["pro-one", "pro-two"]);
    assert_eq!(names(&list(&desk, "label=plan:pro&label=tier:2").await), ["pro-two"]);
    assert_eq!(names(&list(&desk, "label=plan:pro&status=stopped").await), ["pro-one"]);
    assert_eq!(names(&list(&desk, "status=running").await), ["pro-two"]);
    assert_eq!(names(&list(&desk, "external_id=cus_1").await), ["pro-one"]);
    assert!(names(&list(&desk, "external_id=cus_1&status=running").await).is_empty());
    let other = desk.post("/projects/", json!({ "alias": "other" })).await.data(201);
    let theirs = format!("/projects/{}/containers?label=plan:pro", other["id"].as_str().unwrap());
    assert_eq!(desk.get(&theirs).await.data(200)["pagination"]["total"], 0);
    let bare = list(&desk, "external_id=cus_1&include_proxy_domains=false").await;
    assert_eq!(bare["containers"][0]["proxy_domains"], json!([]));
}
