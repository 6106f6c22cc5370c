//! `/exec/{path}`: scripts answer here, whoever asks, unless they say no themselves.
//!
//! ```text
//!  path ─► script ─► preflight? answered here │ @token? ─► body, within bounds ─► run ─► its answer, as it is
//! ```
//!
//! No token stands before it: a webhook's sender has none. What all requests together hold in memory is bounded by their bytes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::audit::Peer;
use super::auth::{self, presented};
use super::error::{ApiError, ErrorBody};
use super::extract::read_body_within;
use super::idempotency::REPLAYED;
use super::{Api, BASE};
use crate::exec::Scripts;
use crate::exec::comments::{Cors, Door};
use crate::exec::headers::{preflight, with_cors};
use crate::exec::run::Asked;
use crate::exec::scripts::{Endpoint, Reply, ReplyBody, SCHEDULE};

/// Bytes of a request's body, at most.
const BODY_BYTES_MAX: usize = 10 << 20;
/// What requests count in, in bytes: less than one of these none does.
const UNIT_BYTES: usize = 64 << 10;
/// What all requests together may hold, in those: 256 MiB.
const UNITS_MAX: usize = 4_096;
/// In which the proxy says who asked.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// How long a request waits for room, in milliseconds.
const ROOM_WAIT_MS_MAX: u64 = 5_000;

/// The scripts that answer, and what requests for them may hold together.
#[derive(Debug, Clone)]
pub struct Hosted {
    scripts: Scripts,
    room: Arc<Semaphore>,
}

impl Hosted {
    /// With all of the room.
    pub fn new(scripts: Scripts) -> Self {
        Self { scripts, room: Arc::new(Semaphore::new(UNITS_MAX)) }
    }

    /// The scripts.
    pub const fn scripts(&self) -> &Scripts {
        &self.scripts
    }

    /// Reads a body. It takes room for what has come of it, and not for what it says will: who sends nothing holds next to nothing.
    async fn read(&self, body: Body) -> Result<(Vec<u8>, OwnedSemaphorePermit), ApiError> {
        let busy = || {
            let text = "too many requests for scripts are under way";
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "SCRIPT_BUSY", text).retry_after_s(1)
        };
        let wait = Duration::from_millis(ROOM_WAIT_MS_MAX);
        let first = tokio::time::timeout(wait, Arc::clone(&self.room).acquire_owned()).await;
        let mut held = first.ok().and_then(Result::ok).ok_or_else(busy)?;
        let body = read_body_within(body, BODY_BYTES_MAX, |bytes| {
            let missing = bytes.div_ceil(UNIT_BYTES).saturating_sub(held.num_permits());
            let more = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(missing).unwrap_or(u32::MAX));
            held.merge(more.map_err(|_| busy())?);
            Ok(())
        });
        let body = body.await?;
        Ok((body.to_vec(), held))
    }
}

/// A script answers
///
/// Any method; the answer is the script's own, whatever it is, and not in this API's form. `scripts/shop/[id].js` answers at
/// `/exec/shop/7`.
#[utoipa::path(post, path = "/api/v1/exec/{path}", tag = "scripts", operation_id = "run_script", security(()),
    params(("path" = String, Path, description = "The script's path, with any number of slashes")),
    responses((status = 200, description = "What the script says"),
              (status = "default", description = "The script has no answer", body = ErrorBody)))]
pub async fn answer(State(api): State<Api>, request: Request) -> Response {
    let below = request.uri().path().strip_prefix(BASE).and_then(|path| path.strip_prefix("/exec")).unwrap_or_default();
    let below = below.to_owned();
    framed(&api, &below, request).await
}

/// The same at scripts' own host, where a path is a script's from its beginning. The proxy alone comes here, and says who asked.
pub async fn answer_at_host(State(api): State<Api>, mut request: Request) -> Response {
    let said = request.headers().get_all(FORWARDED_FOR).iter().next_back();
    let peer = said.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    // Before the proxy, the loopback's own.
    request.extensions_mut().remove::<Peer>();
    if let Some(peer) = peer {
        request.extensions_mut().insert(Peer(peer));
    }
    let below = request.uri().path().to_owned();
    framed(&api, &below, request).await
}

async fn framed(api: &Api, below: &str, request: Request) -> Response {
    match answered(api, below, request).await {
        Ok(response) => response,
        Err((error, cors)) => {
            let mut response = error.into_response();
            put(response.headers_mut(), cors);
            response
        }
    }
}

/// An error, and what lets a page of another origin read it.
type Refusal = (ApiError, Vec<(String, String)>);

async fn answered(api: &Api, below: &str, request: Request) -> Result<Response, Refusal> {
    let bare = |error: ApiError| (error, Vec::new());
    if request.method().as_str() == SCHEDULE {
        let text = format!("the method {SCHEDULE} is the clock's: a script knows by it that nobody has asked");
        return Err(bare(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", text)));
    }
    let hosted = api.hosted().map_err(bare)?;
    let scripts = hosted.scripts();
    let (parts, body) = request.into_parts();
    let endpoint = scripts.find(below).await.map_err(|fault| bare(fault.into()))?;
    let origin = text_of(&parts.headers, &header::ORIGIN);
    let mut cors_headers = Vec::new();
    if let Some(cors) = &endpoint.settings.cors {
        if let Some(response) = asked_before(cors, origin, &parts) {
            return Ok(response);
        }
        with_cors(&mut cors_headers, cors, origin);
    }
    let cors = endpoint.settings.cors.clone();
    let run = async {
        admit(api, scripts, &endpoint, &parts.headers)?;
        let (body, room) = hosted.read(body).await?;
        let asked = asked(&parts, below, &endpoint, body);
        Ok::<_, ApiError>(scripts.answer(endpoint, asked, room).await?)
    };
    let mut reply = run.await.map_err(|error| (error, cors_headers))?;
    if let Some(cors) = cors {
        with_cors(&mut reply.headers, &cors, origin);
    }
    Ok(sent(reply))
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A browser asks whether a page of another origin may ask.
fn asked_before(cors: &Cors, origin: Option<&str>, parts: &Parts) -> Option<Response> {
    let origin = origin.filter(|_| parts.method == Method::OPTIONS)?;
    parts.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let wanted = text_of(&parts.headers, &header::ACCESS_CONTROL_REQUEST_HEADERS);
    let mut response = StatusCode::NO_CONTENT.into_response();
    put(response.headers_mut(), preflight(cors, origin, wanted));
    Some(response)
}

/// `@token`: whether whoever asks may.
fn admit(api: &Api, scripts: &Scripts, endpoint: &Endpoint, headers: &HeaderMap) -> Result<(), ApiError> {
    match &endpoint.settings.door {
        Door::Open => Ok(()),
        Door::Token => {
            let caller = auth::admit(api, headers)?;
            // A token of one project is for scripts that are held to it.
            match scripts.scope(&endpoint.settings)? {
                Some(project) if caller.sees(project) => Ok(()),
                Some(_) => Err(auth::insufficient("this token is bound to another project than the script")),
                None => caller.host_wide(),
            }
        }
        Door::Secret(name) => {
            let presented = presented(headers)?;
            let secrets = scripts.secrets().all()?;
            // A secret that is not set, or empty, is nobody's.
            let secret = secrets.get(name).filter(|secret| !secret.reveal().is_empty());
            let fits = secret.is_some_and(|secret| bool::from(secret.reveal().as_bytes().ct_eq(presented.as_bytes())));
            if fits { Ok(()) } else { Err(auth::unknown()) }
        }
    }
}

fn asked(parts: &Parts, below: &str, endpoint: &Endpoint, body: Vec<u8>) -> Asked {
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = if below.is_empty() { "/" } else { below };
    // What was shown at the door is not the script's: it may be an admin's token.
    let is_shown = endpoint.settings.door != Door::Open;
    let passed = |(name, _): &(&HeaderName, &HeaderValue)| !(is_shown && **name == header::AUTHORIZATION);
    // As bytes of Latin-1 where they are no UTF-8, as browsers read them.
    let text = |value: &HeaderValue| match value.to_str() {
        Ok(text) => text.to_owned(),
        Err(_) => String::from_utf8(value.as_bytes().to_vec())
            .unwrap_or_else(|_| value.as_bytes().iter().map(|byte| char::from(*byte)).collect()),
    };
    Asked {
        method: parts.method.as_str().to_owned(),
        url: format!("{path}{query}"),
        params: endpoint.params.clone(),
        headers: parts
            .headers
            .iter()
            .filter(passed)
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect(),
        body,
        client: parts.extensions.get::<Peer>().map(|peer| peer.0.to_canonical()),
    }
}

/// Appends headers, so that several of one name stay several.
fn put(headers: &mut HeaderMap, pairs: Vec<(String, String)>) {
    for (name, value) in pairs {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
}

fn sent(reply: Reply) -> Response {
    let body = match reply.body {
        ReplyBody::Whole(body) => Body::from(body),
        ReplyBody::Stream(pieces) => Body::from_stream(futures_util::stream::unfold(pieces, |mut pieces| async {
            let piece = pieces.recv().await?;
            Some((piece, pieces))
        })),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    put(response.headers_mut(), reply.headers);
    if reply.replayed {
        response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}
