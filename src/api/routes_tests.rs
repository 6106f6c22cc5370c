use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::api::Monitoring;
use crate::api::openapi::document_for_tests;
use crate::lifecycle::tests::Lab;

/// Over a machine in memory.
async fn api() -> (Lab, Api) {
    let (lab, service, _) = Lab::new().await;
    let zone = std::sync::Arc::new(super::super::tests::Zone::default());
    (lab, Api::new(service, zone.clone(), zone, Monitoring::default(), CancellationToken::new()))
}

async fn send(method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (_lab, api) = api().await;
    build(api).oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn json(response: Response) -> Value {
    serde_json::from_slice(&axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap()).unwrap()
}

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

fn filled(path: &str) -> String {
    let path = path.replace("{id}", "0123456789abcdef01234567").replace("{key}", "PLAN");
    path.replace("{*file}", "shop/a.js").replace("{name}", "NAME")
}

#[tokio::test]
async fn every_route_is_in_the_document_and_every_documented_one_is_there() {
    let (_lab, api) = api().await;
    let paths =
        api_routes(&api).iter().chain(&managing_routes()).map(|(path, _)| format!("{BASE}{path}")).collect::<Vec<_>>();
    let mut found = BTreeSet::new();
    for path in &paths {
        for method in METHODS {
            let status = send(method, &filled(path), &[]).await.status();
            if status != StatusCode::METHOD_NOT_ALLOWED {
                // Which also says that none is open.
                assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
                found.insert(format!("{method} {}", path.replace("{*", "{")));
            }
        }
    }
    found.extend(open_routes().iter().map(|(path, _)| format!("GET {path}")));
    // Scripts answer to any method, and let in whom they like; the document says it of the one that webhooks have.
    found.insert(format!("POST {BASE}/exec/{{path}}"));
    let mut documented = BTreeSet::new();
    for (path, item) in document_for_tests()["paths"].as_object().unwrap() {
        documented.extend(item.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
    }
    assert_eq!(found, documented);
}

#[tokio::test]
async fn a_collection_is_there_with_and_without_its_slash() {
    for path in ["/api/v1/projects", "/api/v1/projects/", "/api/v1/containers", "/api/v1/containers/"] {
        assert_eq!(send("GET", path, &[]).await.status(), StatusCode::UNAUTHORIZED, "{path}");
    }
}

#[tokio::test]
async fn an_unknown_route_is_404_in_our_form() {
    for path in ["/", "/api/v2/projects", "/api/v1/event", "/api/v1/containers/0123456789abcdef01234567/snapshots"] {
        let response = send("GET", path, &[("x-request-id", "abc-1")]).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(response.headers()["x-request-id"], "abc-1");
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = json(response).await;
        assert_eq!((&body["statusCode"], &body["error"]), (&404.into(), &"ROUTE_NOT_FOUND".into()));
        assert_eq!((&body["retryable"], &body["request_id"]), (&false.into(), &"abc-1".into()));
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_and_says_which_are_right() {
    let response = send("PUT", "/healthz", &[]).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(response.headers()["allow"].to_str().unwrap().contains("GET"));
    assert_eq!(json(response).await["error"], "METHOD_NOT_ALLOWED");
    assert_eq!(send("DELETE", "/api/v1/projects/", &[]).await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn a_request_without_a_token_is_told_so_with_an_id() {
    let response = send("POST", "/api/v1/projects/", &[("x-request-id", "not sane")]).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(id.len(), 24);
    let body = json(response).await;
    assert_eq!((&body["error"], &body["request_id"]), (&"MISSING_TOKEN".into(), &id.into()));
}

#[tokio::test]
async fn the_open_routes_need_no_token() {
    for path in ["/healthz", "/openapi.json", "/docs"] {
        assert_eq!(send("GET", path, &[]).await.status(), StatusCode::OK, "{path}");
    }
    let body = json(send("GET", "/healthz", &[]).await).await;
    assert_eq!((&body["statusCode"], &body["data"]["status"]), (&200.into(), &"ok".into()));
    let body = json(send("GET", "/healthz?x=1", &[]).await).await;
    assert_eq!((&body["error"], &body["data"]["field"]), (&"UNKNOWN_PARAMETER".into(), &"x".into()));
}

#[tokio::test]
async fn a_refused_upload_gets_its_answer_and_a_shutdown_ends_the_server() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/api/v1/images?name=x", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let (_lab, api) = api().await;
    let server = tokio::spawn(crate::api::serve(listener, build(api), stop.clone()));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for _ in 0..20 {
        let response = client.post(&url).body(vec![0; 32 << 20]).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 401);
    }
    stop.cancel();
    server.await.unwrap();
}
