//! The API as a script reaches it: over a unix socket that belongs to it, or by a URL where a developer tries a script.

use std::time::Duration;

use reqwest::{Client, Method, header};

use crate::domain::Secret;
use crate::sys::worker::Api;

/// Where the API begins.
const BASE: &str = "/api/v1";
/// What the socket's requests name as their host.
const HOST_ON_SOCKET: &str = "http://tenantry";
/// An answer's largest size, in bytes.
const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long a connection may take to be made, in milliseconds; the answer has as long as the run.
const CONNECT_MS_MAX: u64 = 2_000;

/// The way there, kept from run to run.
#[derive(Debug)]
pub struct Way {
    client: Client,
    base: String,
}

/// A call that the API did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// There is no way.
    #[error("tenantry: there is no API to call: give --url and --token")]
    Nowhere,
    /// The run has no token.
    #[error("tenantry: this script may not call the API: it has no token")]
    NoKey,
    /// Not a call.
    #[error("tenantry.request: {0}")]
    Call(String),
    /// The answer is too large.
    #[error("tenantry: the answer to {0} is larger than {ANSWER_BYTES_MAX} bytes")]
    TooLarge(String),
    /// Nobody answered.
    #[error("tenantry: the API does not answer {path}: {}", deepest(source))]
    Unreachable {
        /// What was asked for.
        path: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
}

fn deepest(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl Way {
    /// As the setup has it; `None`: there is none.
    pub fn new(api: &Api) -> Option<Self> {
        let builder = Client::builder().connect_timeout(Duration::from_millis(CONNECT_MS_MAX)).no_proxy();
        let (builder, base) = match api {
            Api::Nowhere => return None,
            Api::Socket(path) => (builder.unix_socket(path.as_path()), HOST_ON_SOCKET.to_owned()),
            Api::Url(url) => (builder, url.trim_end_matches('/').trim_end_matches(BASE).to_owned()),
        };
        Some(Self { client: builder.build().ok()?, base: base + BASE })
    }

    /// Calls, where it says so only if the object's generation is still this one; the answer is its status and text, whatever it says.
    ///
    /// # Errors
    /// There was none.
    pub async fn call(
        &self,
        key: &Secret,
        method: &str,
        path: &str,
        body: Option<String>,
        if_match: Option<&str>,
    ) -> Result<(u16, String), ApiError> {
        if !path.starts_with('/') {
            return Err(ApiError::Call(format!("`{path}` does not begin with /")));
        }
        let path = path.strip_prefix(BASE).filter(|rest| rest.starts_with('/')).unwrap_or(path);
        let method =
            Method::from_bytes(method.as_bytes()).map_err(|_| ApiError::Call(format!("`{method}` is no method")))?;
        let mut request = self.client.request(method, format!("{}{path}", self.base)).bearer_auth(key.reveal());
        if let Some(body) = body {
            request = request.header(header::CONTENT_TYPE, "application/json").body(body);
        }
        if let Some(generation) = if_match {
            request = request.header(header::IF_MATCH, generation);
        }
        let unreachable = |source| ApiError::Unreachable { path: path.to_owned(), source };
        let mut answer = request.send().await.map_err(unreachable)?;
        let (status, mut bytes) = (answer.status().as_u16(), Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(ApiError::TooLarge(path.to_owned()));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok((status, String::from_utf8_lossy(&bytes).into_owned()))
    }
}
