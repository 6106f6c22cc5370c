//! Scripts: answered, and managed.

use super::*;
use crate::exec::testing::{Root, Stage, records};

/// A desk with scripts before an engine that evaluates nothing.
struct Office {
    desk: Desk,
    stage: Stage,
    manager: String,
}

impl Office {
    async fn new() -> Self {
        let mut desk = Desk::new().await;
        let root = Root::default();
        let records = records(&root.path().join("db")).await;
        let stage = Stage::over(root, records, desk.project).await;
        desk.router = desk.api.clone().with_scripts(stage.scripts.clone()).router();
        let new = NewToken { scripts: true, ..NewToken::new("manager", Permissions::FullAccess) };
        let manager = desk.service.create_token(new).await.unwrap().secret.reveal().to_owned();
        Self { desk, stage, manager }
    }

    async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(format!("{BASE}/exec{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let (parts, body) = self.desk.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn manage(&self, method: &str, path: &str, body: &str) -> Reply {
        let bearer = format!("Bearer {}", self.manager);
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let (status, headers, text) = self.open(method, path, &headers, body).await;
        Reply { status, headers, json: serde_json::from_str(&text).unwrap_or_default() }
    }
}

fn code_of(text: &str) -> String {
    serde_json::from_str::<Value>(text).unwrap()["error"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_script_answers_anyone_as_it_likes() {
    let office = Office::new().await;
    office.stage.file("shop/[id].js", "return 1");
    office.stage.file("index.js", "fake: 418");
    let (status, headers, text) = office.open("POST", "/shop/7?a=%20b", &[], "raw").await;
    assert_eq!((status.as_u16(), text.as_str()), (200, "POST /shop/7?a=%20b id=7 raw"));
    assert_eq!(
        (&headers["content-type"], headers.contains_key("x-request-id")),
        (&"text/plain".parse().unwrap(), true)
    );
    assert_eq!(office.open("DELETE", "/", &[], "").await.0.as_u16(), 418);
    assert_eq!(office.open("HEAD", "/shop/7", &[], "").await.0.as_u16(), 200);
    let (status, _, text) = office.open("GET", "/nothing", &[], "").await;
    assert_eq!((status.as_u16(), code_of(&text).as_str()), (404, "SCRIPT_NOT_FOUND"));
    let long = "x".repeat((10 << 20) + 1);
    assert_eq!(office.open("POST", "/shop/7", &[], &long).await.0.as_u16(), 413);
}

#[tokio::test]
async fn a_script_that_fails_harms_its_own_request_and_tells_visitors_little() {
    let office = Office::new().await;
    for (word, status, code) in [
        ("syntax", 500, "SCRIPT_SYNTAX"),
        ("throw", 500, "SCRIPT_FAILED"),
        ("time", 504, "SCRIPT_TIMEOUT"),
        ("worker", 502, "SCRIPT_WORKER"),
        ("busy", 503, "SCRIPT_BUSY"),
    ] {
        office.stage.file("a.js", &format!("fake: {word}"));
        let (found, headers, text) = office.open("GET", "/a", &[], "").await;
        assert_eq!((found.as_u16(), code_of(&text).as_str()), (status, code));
        assert!(!text.contains("oops") && !text.contains("SIGKILL"), "{text}");
        assert_eq!(headers.contains_key("retry-after"), status == 503);
    }
    office.stage.file("a.js", "// @timeout soon");
    let (_, _, text) = office.open("GET", "/a", &[], "").await;
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&body["error"], &body["data"]["field"]), (&"SCRIPT_COMMENT".into(), &"a.js:1".into()));
    office.stage.file("a.js", "fake: syntax");
    let body: Value = serde_json::from_str(&office.open("GET", "/a", &[], "").await.2).unwrap();
    assert_eq!(body["data"]["field"], "a.js:3:7");
}

#[tokio::test]
async fn a_script_lets_in_whom_it_says() {
    let office = Office::new().await;
    let bound = office.desk.token_of("bound", Permissions::ReadOnly, Some(office.desk.project)).await;
    office.stage.file("any.js", "// @token");
    office.stage.file("mine.js", "// @token\n// @scope project=shop");
    office.stage.file("secret.js", "// @token secret:HOOK");
    let ask = async |path: &str, token: &str| {
        let headers = [("authorization", token)];
        office.open("GET", path, if token.is_empty() { &[] } else { &headers }, "").await.0.as_u16()
    };
    assert_eq!((ask("/any", "").await, ask("/any", "nonsense").await), (401, 401));
    assert_eq!((ask("/any", &office.desk.token).await, ask("/any", &bound).await), (200, 403));
    assert_eq!((ask("/mine", &office.desk.token).await, ask("/mine", &bound).await), (200, 200));
    assert_eq!((ask("/secret", "").await, ask("/secret", "s3cret").await), (401, 401));
    office.manage("PUT", "/secrets/HOOK", r#"{"value":"s3cret"}"#).await.data(200);
    assert_eq!((ask("/secret", "Bearer s3cret").await, ask("/secret", "Bearer s3creT").await), (200, 401));
    office.manage("PUT", "/secrets/HOOK", r#"{"value":""}"#).await.data(200);
    assert_eq!(ask("/secret", "Bearer").await, 401);
}

#[tokio::test]
async fn a_page_of_another_origin_reads_what_the_script_lets_it() {
    let office = Office::new().await;
    office.stage.file("a.js", "// @cors https://shop.example\n// @token");
    let origin = ("origin", "https://shop.example");
    let preflight = [origin, ("access-control-request-method", "POST"), ("access-control-request-headers", "x-a")];
    let (status, headers, _) = office.open("OPTIONS", "/a", &preflight, "").await;
    assert_eq!((status.as_u16(), &headers["access-control-allow-headers"]), (204, &"x-a".parse().unwrap()));
    // Also what is refused can be read.
    let (status, headers, _) = office.open("GET", "/a", &[origin], "").await;
    assert_eq!((status.as_u16(), &headers["access-control-allow-origin"]), (401, &origin.1.parse().unwrap()));
    let bearer = ("authorization", office.desk.token.as_str());
    let (status, headers, _) = office.open("GET", "/a", &[("origin", "https://evil.example"), bearer], "").await;
    assert_eq!((status.as_u16(), headers.contains_key("access-control-allow-origin")), (200, false));
    office.stage.file("b.js", "return 1");
    let (status, headers, text) = office.open("OPTIONS", "/b", &preflight, "").await;
    assert_eq!((status.as_u16(), text.as_str()), (200, "OPTIONS /b  "));
    assert!(!headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_delivery_that_comes_twice_gets_the_first_answer() {
    let office = Office::new().await;
    office.stage.file("hook.js", "// @idempotency header.x-id\n// fake: 201");
    let (status, headers, _) = office.open("POST", "/hook", &[("x-id", "1")], "").await;
    assert_eq!((status.as_u16(), headers.contains_key("idempotent-replayed")), (201, false));
    let (status, headers, text) = office.open("POST", "/hook", &[("x-id", "1")], "").await;
    assert_eq!((status.as_u16(), headers.contains_key("idempotent-replayed"), text.as_str()), (201, true, "x"));
    assert_eq!(headers["content-type"], "text/plain");
    let (status, _, text) = office.open("POST", "/hook", &[], "").await;
    assert_eq!((status.as_u16(), code_of(&text).as_str()), (400, "DELIVERY_KEY_MISSING"));
    assert_eq!(office.stage.engine.runs(), 1);
}

#[tokio::test]
async fn scripts_are_managed_by_tokens_that_may() {
    let office = Office::new().await;
    let other = [("authorization", office.desk.token.as_str())];
    for (method, path) in [
        ("GET", "/scripts"),
        ("PUT", "/scripts/a.js"),
        ("GET", "/secrets"),
        ("GET", "/logs/a.js"),
        ("DELETE", "/secrets/A"),
    ] {
        let (status, _, text) = office.open(method, path, &other, "{}").await;
        assert_eq!((status.as_u16(), code_of(&text).as_str()), (403, "INSUFFICIENT_PERMISSIONS"), "{method} {path}");
        assert_eq!(office.open(method, path, &[], "").await.0.as_u16(), 401);
    }
    let text = "// @description Makes tenants\nreturn 1";
    let made = office.manage("PUT", "/scripts/shop/[id].js", text).await.data(201);
    assert_eq!((&made["route"], &made["settings"]["description"]), (&"/shop/[id]".into(), &"Makes tenants".into()));
    assert_eq!(office.open("GET", "/shop/7", &[], "").await.2, "GET /shop/7 id=7 ");
    office.manage("PUT", "/scripts/shop/[id].js", "fake: throw").await.data(200);
    assert_eq!(office.open("GET", "/shop/7", &[], "").await.0.as_u16(), 500);
    assert_eq!(office.manage("GET", "/scripts/shop/[id].js", "").await.data(200)["source"], "fake: throw");
    let log = office.manage("GET", "/logs/shop/[id].js?tail=2", "").await.data(200);
    assert_eq!(log["log"].as_array().unwrap().len(), 2);
    assert!(log.to_string().contains("Error: oops"), "{log}");
    let listed = office.manage("GET", "/scripts", "").await.data(200);
    assert_eq!((listed["scripts"].as_array().unwrap().len(), listed["scripts"][0].get("source")), (1, None));
    office.manage("DELETE", "/scripts/shop/[id].js", "").await.data(200);
    office.manage("DELETE", "/scripts/shop/[id].js", "").await.refused(404, "SCRIPT_NOT_FOUND");
}

#[tokio::test]
async fn what_cannot_be_is_not_written() {
    let office = Office::new().await;
    office.manage("PUT", "/scripts/a.js", "return 1").await.data(201);
    for (text, code, place) in [("syntax", "SCRIPT_SYNTAX", "a.js:3:7"), ("\n// @cors x", "SCRIPT_COMMENT", "line 2")] {
        let refused = office.manage("PUT", "/scripts/a.js", text).await;
        refused.refused(422, code);
        assert_eq!(refused.json["data"]["field"], place);
    }
    assert_eq!(office.manage("GET", "/scripts/a.js", "").await.data(200)["source"], "return 1");
    for bad in ["a.txt", ".a.js", "%2e%2e/a.js", "a/%2e%2e/%2e%2e/b.js"] {
        office.manage("PUT", &format!("/scripts/{bad}"), "return 1").await.refused(400, "INVALID_SCRIPT_NAME");
    }
    let long = " ".repeat((1 << 20) + 1);
    office.manage("PUT", "/scripts/b.js", &long).await.refused(413, "BODY_TOO_LARGE");
}

#[tokio::test]
async fn a_secret_is_never_shown() {
    let office = Office::new().await;
    let set = office.manage("PUT", "/secrets/KEY", r#"{"value":"hunter2"}"#).await.data(200);
    assert_eq!((&set["name"], set.get("value")), (&"KEY".into(), None));
    let list = office.manage("GET", "/secrets", "").await.data(200);
    assert_eq!((list["secrets"][0]["origin"].as_str(), list.to_string().contains("hunter2")), (Some("api"), false));
    office.manage("PUT", "/secrets/key", r#"{"value":"x"}"#).await.refused(400, "INVALID_SECRET_NAME");
    let long = json!({ "value": "x".repeat(9_000) }).to_string();
    office.manage("PUT", "/secrets/KEY", &long).await.refused(400, "VALIDATION_ERROR");
    office.manage("DELETE", "/secrets/KEY", "").await.data(200);
    office.manage("DELETE", "/secrets/KEY", "").await.refused(404, "SECRET_NOT_FOUND");
}

#[tokio::test]
async fn without_an_engine_there_are_no_scripts() {
    let desk = Desk::new().await;
    desk.get("/exec/a").await.refused(404, "SCRIPTS_DISABLED");
}

#[tokio::test]
async fn at_their_own_host_a_path_is_a_scripts_from_its_beginning() {
    let office = Office::new().await;
    office.stage.file("shop/[id].js", "return 1");
    let router = office.desk.api.clone().with_scripts(office.stage.scripts.clone()).router_for_host();
    let ask = async |path: &str| {
        let request = Request::builder().uri(path).header("x-forwarded-for", "192.0.2.7").body(Body::empty()).unwrap();
        let (parts, body) = router.clone().oneshot(request).await.unwrap().into_parts();
        (parts.status.as_u16(), axum::body::to_bytes(body, 1 << 20).await.unwrap())
    };
    assert_eq!(ask("/shop/7?x=1").await, (200, "GET /shop/7?x=1 id=7 from 192.0.2.7".into()));
    for not_there in ["/api/v1/exec/shop/7", "/api/v1/projects", "/healthz"] {
        assert_eq!(ask(not_there).await.0, 404, "{not_there}");
    }
}
