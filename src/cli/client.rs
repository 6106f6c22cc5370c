//! The REST API from the other side.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use super::failure::Failure;
use super::{Environment, configuration};
use crate::domain::Secret;

/// How long a connection may take to be made, in milliseconds.
const CONNECT_MS_MAX: u64 = 5_000;
/// How long an answer may take where a command says nothing else, in seconds: longer than the API's own longest wait.
const ANSWER_S_MAX: u64 = 400;
/// Items of a page when a whole list is read.
const PAGE: u64 = 100;

/// A daemon, and the token to present to it.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<Secret>,
}

/// Finds the daemon: by what was given, else by the environment, else by the local configuration.
///
/// # Errors
/// Nothing says where it is, or its token cannot be read.
pub fn find(
    url: Option<&str>,
    token: Option<&str>,
    config: Option<&Path>,
    env: &Environment,
) -> anyhow::Result<Client> {
    let given = |flag: Option<&str>, name: &str| flag.map(str::to_owned).or_else(|| env.get(name).cloned());
    let url = given(url, "TENANTRY_URL");
    let token = given(token, "TENANTRY_TOKEN").map(Secret::new);
    let (base, token) = match (url, token) {
        // The local admin token is for the local daemon: it is not sent to any other.
        (Some(url), token) => (url, token),
        (None, token) => {
            let config = configuration::load(config, env)?;
            let token = match token {
                Some(token) => token,
                None => read_token(&config.admin_token_path())?,
            };
            (local_url(config.api.listen), Some(token))
        }
    };
    Client::new(&base, token)
}

fn read_token(path: &Path) -> Result<Secret, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::Usage(format!(
            "there is no --token and no TENANTRY_TOKEN, and the local admin token {} cannot be read: {error} (the first `tenantry serve` writes it)",
            path.display()
        ))
    })?;
    Ok(Secret::new(text.trim()))
}

/// A daemon that listens everywhere is spoken to by the loopback address.
fn local_url(listen: SocketAddr) -> String {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, listen.port()))
}

impl Client {
    fn new(url: &str, token: Option<Secret>) -> anyhow::Result<Self> {
        let base = url.trim_end_matches('/').trim_end_matches("/api/v1").to_owned();
        if !base.starts_with("http://") {
            return Err(Failure::Usage(format!("`{url}` is not a URL that begins with http://")).into());
        }
        let http = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
            .build()
            .context("cannot set the HTTP client up")?;
        Ok(Self { http, base, token })
    }

    /// A request below `/api/v1`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v1{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        }
    }

    /// Sends a request as it is; an answer that is no success is an error.
    ///
    /// # Errors
    /// Refused, or unreachable.
    pub async fn send_raw(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let unreachable = |source| Failure::Unreachable { url: self.base.clone(), source };
        let response = request.send().await.map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.text().await.map_err(unreachable)?;
        Err(refusal(status.as_u16(), &text).into())
    }

    /// Sends a request; gives the answer's `data`.
    ///
    /// # Errors
    /// Refused, or unreachable.
    pub async fn send(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = self.send_raw(request.timeout(Duration::from_secs(ANSWER_S_MAX))).await?;
        let unreachable = |source| Failure::Unreachable { url: self.base.clone(), source };
        let text = response.text().await.map_err(unreachable)?;
        let mut body: Value = serde_json::from_str(&text).context("the daemon's answer is not JSON")?;
        Ok(body["data"].take())
    }

    /// GET.
    ///
    /// # Errors
    /// Refused, or unreachable.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.request(Method::GET, path)).await
    }

    /// A whole list, page by page; `items` is where its items lie.
    ///
    /// # Errors
    /// Refused, or unreachable.
    pub async fn list(&self, path: &str, items: &str, query: &[(String, String)]) -> anyhow::Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut page = 1;
        loop {
            let request = self.request(Method::GET, path).query(query).query(&[("page", page), ("limit", PAGE)]);
            let mut data = self.send(request).await?;
            if let Value::Array(found) = data[items].take() {
                all.extend(found);
            }
            if page >= data["pagination"]["totalPages"].as_u64().unwrap_or(0) {
                return Ok(all);
            }
            page += 1;
        }
    }
}

/// What the API's error says, or what stands where one should.
pub fn refusal(status: u16, text: &str) -> Failure {
    let body: Value = serde_json::from_str(text).unwrap_or_default();
    let field = |name: &str| body[name].as_str().map(str::to_owned);
    Failure::Refused {
        code: field("error").unwrap_or_else(|| format!("HTTP {status}")),
        message: field("message").unwrap_or_else(|| "the daemon's answer is not one of tenantry's".to_owned()),
        request_id: field("request_id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_flag_wins_over_the_environment() {
        let env = env(&[("TENANTRY_URL", "http://env:1"), ("TENANTRY_TOKEN", "env")]);
        let client = find(Some("http://flag:1/api/v1/"), None, None, &env).unwrap();
        assert_eq!((client.base.as_str(), client.token.unwrap().reveal()), ("http://flag:1", "env"));
        assert_eq!(find(None, Some("flag"), None, &env).unwrap().token.unwrap().reveal(), "flag");
    }

    #[test]
    fn the_local_daemon_is_found_by_its_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.toml");
        std::fs::write(&file, format!("data_dir = '{}'\n[api]\nlisten = '0.0.0.0:7171'", folder.path().display()))
            .unwrap();
        let error = find(None, None, Some(&file), &env(&[])).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Failure::Usage(text)) if text.contains("admin.token")));
        std::fs::write(folder.path().join("admin.token"), "tnt_1\n").unwrap();
        let client = find(None, None, Some(&file), &env(&[])).unwrap();
        assert_eq!((client.base.as_str(), client.token.unwrap().reveal()), ("http://127.0.0.1:7171", "tnt_1"));
        // Another daemon does not get this one's token.
        assert!(find(Some("http://other:1"), None, Some(&file), &env(&[])).unwrap().token.is_none());
    }

    #[test]
    fn a_url_of_another_kind_is_a_usage_error() {
        for bad in ["https://x", "x:1", "ftp://x"] {
            let error = find(Some(bad), None, None, &env(&[])).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_what_the_api_said() {
        let text = refusal(409, r#"{"error":"CONTAINER_NAME_IN_USE","message":"taken","request_id":"r1"}"#).to_string();
        assert_eq!(text, "taken [CONTAINER_NAME_IN_USE, request r1]");
        assert!(refusal(502, "<html>").to_string().contains("HTTP 502"));
    }
}
