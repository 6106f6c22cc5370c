//! `/metrics`: who may read it, and what it counts.

use super::*;

async fn scrape(router: &Router, headers: &[(&str, &str)]) -> (StatusCode, String, String) {
    let mut request = Request::builder().uri("/metrics");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = answer.into_parts();
    let text = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let kind = parts.headers["content-type"].to_str().unwrap().to_owned();
    (parts.status, kind, String::from_utf8(text.to_vec()).unwrap())
}

#[tokio::test]
async fn whoever_may_read_the_whole_host_may_read_metrics() {
    let desk = Desk::new().await;
    let reader = desk.token_of("prometheus", Permissions::ReadOnly, None).await;
    let bound = desk.token_of("bound", Permissions::FullAccess, Some(desk.project)).await;
    assert_eq!(scrape(&desk.router, &[]).await.0, 401);
    assert_eq!(scrape(&desk.router, &[("authorization", &bound)]).await.0, 403);
    let (status, kind, text) = scrape(&desk.router, &[("authorization", &reader)]).await;
    assert_eq!((status.as_u16(), kind.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"), "{text}");
    let accept = ("accept", "application/openmetrics-text;version=1.0.0");
    let (_, kind, text) = scrape(&desk.router, &[("authorization", &reader), accept]).await;
    assert!(kind.starts_with("application/openmetrics-text") && text.ends_with("# EOF\n"), "{kind}: {text}");
}

#[tokio::test]
async fn an_operator_may_open_them() {
    let desk = Desk::new().await;
    let monitoring = Monitoring { open: true, sources: Vec::new() };
    let open = Api::new(desk.service.clone(), desk.zone.clone(), desk.zone.clone(), monitoring, desk.shutdown.clone());
    let open = open.router();
    assert_eq!(scrape(&open, &[]).await.0, 200);
}

#[tokio::test]
async fn what_is_done_is_counted_by_result_and_route() {
    let desk = Desk::new().await;
    let container = path_of(&desk.create(json!({})).await);
    desk.post(&format!("{container}/start"), json!({})).await.data(200);
    desk.post(&format!("{container}/start"), json!({})).await.refused(400, "INVALID_CONTAINER_STATE");
    desk.call("GET", "/nonsense/7", &[], None).await.refused(404, "ROUTE_NOT_FOUND");
    let (_, _, text) = scrape(&desk.router, &[("authorization", &desk.token)]).await;
    for line in [
        "tenantry_verbs_total{verb=\"create\",result=\"done\"} 1",
        "tenantry_verbs_total{verb=\"start\",result=\"done\"} 1",
        "tenantry_verb_duration_seconds_count{verb=\"start\"} 1",
        "tenantry_containers{status=\"running\"} 1",
        "tenantry_containers{status=\"failed\"} 0",
        "tenantry_wakes_total{result=\"done\"} 0",
        "tenantry_journal_open 1",
        "tenantry_events_lost_total 0",
        "tenantry_api_requests_total{method=\"POST\",route=\"/api/v1/containers/{id}/start\",status=\"200\"} 1",
        "tenantry_api_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} is not in {text}");
    }
    assert!(text.contains("\ntenantry_pool_available_bytes "), "{text}");
}
