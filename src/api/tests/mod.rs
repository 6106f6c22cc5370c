//! The handlers over a machine in memory: what a request does, as a client sees it.

mod access;
mod access_log;
mod audit;
mod changes;
mod domains;
mod events;
mod follow;
mod lists;
mod metrics;
mod network;
mod once;
mod permissions;
mod projects;
mod provisioner;
mod scripts;
mod stream;
mod tcp;
mod tokens;

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU16;
use std::sync::Mutex;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::*;
use crate::domain::ProjectId;
use crate::domain::alias::TcpPorts;
use crate::domain::token::Permissions;
use crate::lifecycle::tests::Lab;
use crate::lifecycle::{NamesError, NewToken};

/// An answer.
#[derive(Debug)]
struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    json: Value,
}

impl Reply {
    #[track_caller]
    fn data(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.json);
        self.json["data"].clone()
    }

    #[track_caller]
    fn refused(&self, status: u16, code: &str) {
        assert_eq!((self.status.as_u16(), self.json["error"].as_str()), (status, Some(code)), "{}", self.json);
    }
}

/// An API over a machine in memory, and a token of an admin.
struct Desk {
    lab: Lab,
    service: Service,
    project: ProjectId,
    token: String,
    api: Api,
    router: Router,
    shutdown: CancellationToken,
    zone: Arc<Zone>,
}

/// What the DNS says: `name TXT` and `name CNAME`, and with `None` nothing at all.
#[derive(Debug, Default)]
pub(super) struct Zone(Mutex<HashMap<String, Option<String>>>);

impl Zone {
    fn say(&self, name: &str, kind: &str, text: Option<&str>) {
        self.0.lock().unwrap().insert(format!("{name} {kind}"), text.map(str::to_owned));
    }

    fn ask(&self, name: &str, kind: &str) -> Result<Option<String>, NamesError> {
        match self.0.lock().unwrap().get(&format!("{name} {kind}")) {
            Some(None) => Err(NamesError("silence".into())),
            Some(Some(text)) => Ok(Some(text.clone())),
            None => Ok(None),
        }
    }
}

#[async_trait::async_trait]
impl Names for Zone {
    async fn texts(&self, name: &str) -> Result<Vec<String>, NamesError> {
        self.ask(name, "TXT").map(|text| text.into_iter().collect())
    }

    async fn canonical(&self, name: &str) -> Result<Option<String>, NamesError> {
        self.ask(name, "CNAME")
    }
}

/// A port that another program of the host has.
const TAKEN_PORT: u16 = 20_001;

impl HostPorts for Zone {
    fn range(&self) -> Option<TcpPorts> {
        "20000-20003".parse().ok()
    }

    fn claim(&self, port: NonZeroU16) -> io::Result<()> {
        if port.get() == TAKEN_PORT { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(()) }
    }

    fn release(&self, _port: NonZeroU16) {}

    fn is_open(&self, port: NonZeroU16) -> bool {
        port.get() != TAKEN_PORT
    }

    fn look(&self) {}
}

impl Desk {
    async fn new() -> Self {
        let (lab, service, project) = Lab::new().await;
        let shutdown = CancellationToken::new();
        let zone = Arc::new(Zone::default());
        let api = Api::new(service.clone(), zone.clone(), zone.clone(), Monitoring::default(), shutdown.clone());
        let router = api.router();
        let mut desk = Self { lab, service, project, token: String::new(), api, router, shutdown, zone };
        desk.token = desk.token_of("test", Permissions::FullAccess, None).await;
        desk
    }

    /// The next daemon on the same machine.
    async fn restarted(mut self) -> Self {
        self.service.close(Duration::ZERO).await;
        self.service = self.lab.daemon().await;
        let monitoring = Monitoring::default();
        let (names, ports) = (self.zone.clone(), self.zone.clone());
        self.api = Api::new(self.service.clone(), names, ports, monitoring, self.shutdown.clone());
        self.router = self.api.router();
        self
    }

    async fn token_of(&self, alias: &str, permissions: Permissions, project: Option<ProjectId>) -> String {
        let new = NewToken { project, ..NewToken::new(alias, permissions) };
        self.service.create_token(new).await.unwrap().secret.reveal().to_owned()
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Response {
        let mut request = Request::builder().method(method).uri(format!("{BASE}{path}"));
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", &self.token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            None => Body::empty(),
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
        };
        self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap()
    }

    async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Reply {
        let (parts, body) = self.send(method, path, headers, body).await.into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        Reply { status: parts.status, headers: parts.headers, json: serde_json::from_slice(&bytes).unwrap_or_default() }
    }

    async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], None).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        self.call("POST", path, &[], Some(&body)).await
    }

    async fn patch(&self, path: &str, body: Value) -> Reply {
        self.call("PATCH", path, &[], Some(&body)).await
    }

    async fn put(&self, path: &str, body: Value) -> Reply {
        self.call("PUT", path, &[], Some(&body)).await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, &[], None).await
    }

    /// Where the project's containers are made.
    fn containers(&self) -> String {
        format!("/projects/{}/containers", self.project)
    }

    /// A container that is not started, unless the body says so.
    async fn create(&self, mut body: Value) -> Value {
        if body["start"].is_null() {
            body["start"] = json!(false);
        }
        self.post(&format!("{}?wait=started", self.containers()), body).await.data(201)
    }
}

/// The path of what an answer holds.
fn path_of(container: &Value) -> String {
    format!("/containers/{}", container["id"].as_str().unwrap())
}
