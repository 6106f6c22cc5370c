//! A client of the API and of the proxy, which keeps its connections as a SaaS back end does.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

/// Longer than anything may take.
const TIMEOUT_S_MAX: u64 = 600;

/// Speaks to one daemon.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    token: String,
}

/// Steps of the daemon's own, in milliseconds.
pub type Steps = Vec<(String, f64)>;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    status: u16,
    body: Value,
    /// What `Server-Timing` says.
    pub timings: Steps,
    /// When its head was there.
    pub head_at: Instant,
}

impl Client {
    /// With the admin's token.
    pub fn new(token: String) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(TIMEOUT_S_MAX)).no_proxy().build()?;
        Ok(Self { http, token })
    }

    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.send(reqwest::Method::GET, path, Value::Null).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Result<Reply> {
        self.send(reqwest::Method::POST, path, body).await
    }

    pub async fn put(&self, path: &str, body: Value) -> Result<Reply> {
        self.send(reqwest::Method::PUT, path, body).await
    }

    /// A delivery to a script, by a sender without a token.
    pub async fn deliver(&self, script: &str, body: String, signature: &str) -> Result<Reply> {
        let request = self.http.post(format!("http://127.0.0.1:7070/api/v1/exec/{script}"));
        let request = request.header("content-type", "application/json").header("stripe-signature", signature);
        read(request.body(body)).await.with_context(|| script.to_owned())
    }

    pub async fn delete(&self, path: &str) -> Result<Reply> {
        self.send(reqwest::Method::DELETE, path, Value::Null).await
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: Value) -> Result<Reply> {
        let request = self.http.request(method, format!("http://127.0.0.1:7070/api/v1{path}")).bearer_auth(&self.token);
        let request = if body.is_null() { request } else { request.json(&body) };
        read(request).await.with_context(|| path.to_owned())
    }

    /// Opens a container's URL. Its name is not looked up: the proxy goes by the header.
    pub async fn open(&self, url: &str) -> Result<Reply> {
        let host = url.trim_start_matches("http://");
        read(self.http.get("http://127.0.0.1:8080/").header("host", host)).await.with_context(|| url.to_owned())
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<Reply> {
    let response = request.send().await?;
    let head_at = Instant::now();
    let status = response.status().as_u16();
    let header = response.headers().get("server-timing").and_then(|value| value.to_str().ok());
    let timings = header.map(steps).unwrap_or_default();
    let text = response.text().await?;
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Reply { status, body, timings, head_at })
}

/// `snapshot;dur=3.2, prepare;dur=4`.
fn steps(header: &str) -> Steps {
    let step = |part: &str| {
        let (name, took) = part.trim().split_once(";dur=")?;
        Some((name.to_owned(), took.parse().ok()?))
    };
    header.split(',').filter_map(step).collect()
}

impl Reply {
    /// Only with this status.
    pub fn expect(self, status: u16) -> Result<Self> {
        if self.status == status { Ok(self) } else { Err(anyhow!("answered {}: {}", self.status, self.body)) }
    }

    /// A text of `data`.
    pub fn text(&self, key: &str) -> Result<String> {
        let found = self.body["data"][key].as_str();
        found.map(str::to_owned).with_context(|| format!("the answer has no `{key}`: {}", self.body))
    }

    /// A list of `data`.
    pub fn list(&self, key: &str) -> Option<&Vec<Value>> {
        self.body["data"][key].as_array()
    }

    pub fn id(&self) -> Result<String> {
        self.text("id")
    }
}
