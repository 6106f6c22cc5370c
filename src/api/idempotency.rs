//! Idempotency keys: the first answer of a POST that creates is kept, and given again to the same request.
//!
//! ```text
//!  POST + Idempotency-Key ─► in flight? ─► 409
//!                            kept? ─► other body 422 │ container deleted since 410 │ else the first answer again
//!                            else ─► the handler, on a task of its own ─► success kept for 24 h, failure forgotten
//! ```
//!
//! What is in flight is known in memory alone: a killed daemon leaves no mark behind. One that is killed between making a
//! container and keeping the answer leaves the container, in whose record the request's digests are ([`MadeUnder`]): the next
//! daemon answers the same request with it. The handler runs on a task of its own
//! because a webhook's sender that hangs up comes again, and must then find the answer. A kept answer holds a tenant's
//! environment; an index by container lets DELETE take the copy along, and [`Keys::sweep`] finds what a crash left.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tracing::Instrument;

use super::audit::Object;
use super::auth::Caller;
use super::error::ApiError;
use super::extract::read_body;
use super::{Api, containers};
use crate::domain::container::MadeUnder;
use crate::domain::{Container, ContainerId};
use crate::exec::deliveries;
use crate::lifecycle::Service;
use crate::store::{Batch, ByContainer, Durability, Records, StoreError};

/// Names the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// On an answer that was given before.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// How long an answer is kept, in seconds.
const KEPT_S: i64 = 24 * 3_600;
/// Characters of a key, at most.
const KEY_CHARS_MAX: usize = 255;
/// Keys kept at once, at most.
const KEYS_MAX: usize = 100_000;
/// Between two sweeps of what has expired, in seconds.
const SWEEP_EVERY_S: u64 = 600;

const ANSWERS: &str = "idempotency/";
const BY_CONTAINER: ByContainer = ByContainer("idempotency-of/");

/// The request that is being carried out; in its extensions, for the record of what it makes.
#[derive(Debug, Clone)]
pub struct Under(pub Option<MadeUnder>);

impl<S: Send + Sync> FromRequestParts<S> for Under {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or(Self(None)))
    }
}

/// How an answer is kept, where not simply as it is. Travels in the response's extensions.
#[derive(Debug, Clone)]
pub enum Keep {
    /// It holds a container's data and goes when that goes.
    UntilDeleted(ContainerId),
    /// Keep this text: the answer holds a secret that is shown once.
    Instead(String),
}

/// A kept answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    request: String,
    status: u16,
    etag: Option<String>,
    /// `None`: erased with its container.
    body: Option<String>,
    container: Option<ContainerId>,
    expires_at: Timestamp,
}

/// The keys of all tokens.
#[derive(Debug, Default)]
pub struct Keys {
    in_flight: Mutex<HashSet<String>>,
    /// As of the last sweep, and counted on from there.
    count: AtomicUsize,
    swept: Mutex<Option<Instant>>,
    /// Containers by the key that made them, as an earlier daemon left them: their answers may not have been kept.
    left: HashMap<String, ContainerId>,
}

/// Holds a key while its request runs.
#[derive(Debug)]
pub struct InFlight {
    keys: Arc<Keys>,
    key: String,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.keys.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// What to do with a request that bears a key.
#[derive(Debug)]
pub enum Entry {
    /// Carry it out; then [`Keys::keep`] or drop.
    First(InFlight),
    /// It was carried out, and its answer lost: answer with this container.
    Made(InFlight, Arc<Container>),
    /// Give this answer.
    Again(Response),
}

/// The key of a request, if it bears one.
///
/// # Errors
/// It is empty, too long or not printable.
pub fn key_of(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str() {
        Ok(text) if (1..=KEY_CHARS_MAX).contains(&text.len()) => Ok(Some(text)),
        _ => Err(ApiError::bad(
            "INVALID_HEADER",
            format!("Idempotency-Key: 1 to {KEY_CHARS_MAX} printable ASCII characters are wanted"),
        )
        .of("Idempotency-Key")),
    }
}

fn store_key(space: &str, key: &str) -> String {
    format!("{ANSWERS}{space}/{}", hex::encode(Sha256::digest(key.as_bytes())))
}

/// What makes two requests the same.
pub fn digest(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

/// Stands before a POST that creates and whose body is JSON.
pub async fn once(State(api): State<Api>, caller: Caller, request: Request, next: Next) -> Response {
    match key_of(request.headers()).map(|key| key.map(|key| store_key(&caller.key_space(), key))) {
        Err(error) => error.into_response(),
        Ok(None) => next.run(request).await,
        Ok(Some(key)) => keyed(api, key, request, next).await.unwrap_or_else(IntoResponse::into_response),
    }
}

async fn keyed(api: Api, key: String, request: Request, next: Next) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let body = read_body(body).await?;
    let path = parts.uri.path_and_query().map_or("", |whole| whole.as_str());
    let hash = digest(&[parts.method.as_str().as_bytes(), path.as_bytes(), &body]);
    match enter(&api, key, &hash).await? {
        Entry::Again(response) => Ok(response),
        Entry::Made(mark, container) => {
            let mut response = containers::made_before(&api.service, &container).into_response();
            response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            keep(&api, mark, hash, response).await
        }
        Entry::First(mark) => {
            let mut request = Request::from_parts(parts, Body::from(body));
            let under = MadeUnder { key: mark.key.clone(), request: hash.clone() };
            request.extensions_mut().insert(Under(Some(under)));
            let work = async move {
                let response = next.run(request).await;
                keep(&api, mark, hash, response).await
            };
            tokio::spawn(work.in_current_span()).await.unwrap_or_else(|_| {
                Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", "the request's task failed"))
            })
        }
    }
}

/// For a handler that reads its body itself: the same as [`once`], for this token's key.
///
/// # Errors
/// The key is in flight or was used for another request.
pub async fn enter_for(api: &Api, caller: &Caller, key: &str, hash: &str) -> Result<Entry, ApiError> {
    enter(api, store_key(&caller.key_space(), key), hash).await
}

async fn enter(api: &Api, key: String, hash: &str) -> Result<Entry, ApiError> {
    api.keys.sweep_when_due(api.service.clone());
    let mark = api.keys.mark(key)?;
    let records = api.service.records();
    let kept = records.get_at::<Kept>(&mark.key).await?.filter(|kept| kept.expires_at > Timestamp::now());
    let Some(kept) = kept else {
        if let Some(container) = api.keys.left_by(&api.service, &mark.key) {
            return if made_by(&container, hash) { Ok(Entry::Made(mark, container)) } else { Err(reused()) };
        }
        api.keys.room()?;
        return Ok(Entry::First(mark));
    };
    let gone = kept.container.is_some_and(|id| !is_alive(&api.service, id));
    replay(kept, hash, gone).map(Entry::Again)
}

fn is_alive(service: &Service, id: ContainerId) -> bool {
    service.container(id).is_ok_and(|container| container.receipt.is_none())
}

fn made_by(container: &Container, hash: &str) -> bool {
    container.made_under.as_ref().is_some_and(|under| under.request == hash)
}

fn reused() -> ApiError {
    let text = "this Idempotency-Key was used for another request within the last 24 hours";
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "IDEMPOTENCY_KEY_REUSED", text)
}

fn replay(kept: Kept, hash: &str, gone: bool) -> Result<Response, ApiError> {
    if kept.request != hash {
        return Err(reused());
    }
    let Some(body) = kept.body.filter(|_| !gone) else {
        return Err(ApiError::new(
            StatusCode::GONE,
            "CONTAINER_DELETED",
            "what this Idempotency-Key made has been deleted, and the answer with it",
        ));
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = StatusCode::from_u16(kept.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if let Some(etag) = kept.etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
        headers.insert(header::ETAG, etag);
    }
    if let Some(container) = kept.container {
        response.extensions_mut().insert(Object(container.to_string()));
    }
    Ok(response)
}

/// Keeps a success; a failure releases the key.
///
/// # Errors
/// The answer's body cannot be read, which no answer of ours has.
pub async fn keep(api: &Api, mark: InFlight, hash: String, response: Response) -> Result<Response, ApiError> {
    if !response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let bytes = body
        .collect()
        .await
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", error.to_string()))?
        .to_bytes();
    let mut kept = Kept {
        request: hash,
        status: parts.status.as_u16(),
        etag: parts.headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned),
        body: Some(String::from_utf8_lossy(&bytes).into_owned()),
        container: None,
        expires_at: Timestamp::now() + jiff::SignedDuration::from_secs(KEPT_S),
    };
    match parts.extensions.get::<Keep>() {
        Some(Keep::UntilDeleted(id)) => kept.container = Some(*id),
        Some(Keep::Instead(text)) => kept.body = Some(text.clone()),
        None => {}
    }
    // The thing is made: that its answer could not be kept is no reason to call it failed.
    match write(api.service.records(), &mark.key, &kept).await {
        Ok(()) => drop(api.keys.count.fetch_add(1, Ordering::Relaxed)),
        Err(error) => tracing::error!(%error, "an idempotent answer could not be kept"),
    }
    drop(mark);
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

async fn write(records: &Records, key: &str, kept: &Kept) -> Result<(), StoreError> {
    let mut batch = Batch::default().put_at(key.to_owned(), kept)?;
    if let Some(container) = kept.container {
        batch = batch.put_at(BY_CONTAINER.entry(container, key), &key)?;
    }
    records.commit(batch, Durability::Flushed).await
}

/// Erases the kept answers that hold a container's data, those of scripts' deliveries too. Their keys stay, so that a late webhook makes no new
/// tenant.
///
/// # Errors
/// The store's.
pub async fn forget(records: &Records, container: ContainerId) -> Result<(), StoreError> {
    deliveries::forget(records, container).await?;
    BY_CONTAINER.erase(records, container, |kept: Kept| Kept { body: None, ..kept }).await
}

impl Keys {
    /// Of a daemon that takes over what an earlier one left.
    pub fn new(service: &Service) -> Self {
        let key = |one: &Arc<Container>| Some((one.made_under.as_ref()?.key.clone(), one.id));
        Self { left: service.containers().iter().filter_map(key).collect(), ..Self::default() }
    }

    /// What a key made under an earlier daemon, where that is still there and the key still stands for it.
    fn left_by(&self, service: &Service, key: &str) -> Option<Arc<Container>> {
        let container = service.container(*self.left.get(key)?).ok()?;
        let oldest = Timestamp::now() - jiff::SignedDuration::from_secs(KEPT_S);
        (container.receipt.is_none() && container.created_at > oldest).then_some(container)
    }

    fn mark(self: &Arc<Self>, key: String) -> Result<InFlight, ApiError> {
        let fresh = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
        if fresh {
            Ok(InFlight { keys: Arc::clone(self), key })
        } else {
            Err(ApiError::new(
                StatusCode::CONFLICT,
                "IDEMPOTENCY_KEY_IN_FLIGHT",
                "a request with this Idempotency-Key is being carried out",
            )
            .retry_after_s(1))
        }
    }

    fn room(&self) -> Result<(), ApiError> {
        if self.count.load(Ordering::Relaxed) < KEYS_MAX {
            return Ok(());
        }
        Err(ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "TOO_MANY_IDEMPOTENCY_KEYS",
            format!("{KEYS_MAX} idempotency keys are kept, as many as may be"),
        )
        .retry_after_s(SWEEP_EVERY_S))
    }

    fn sweep_when_due(self: &Arc<Self>, service: Service) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_some_and(|at| at.elapsed() < Duration::from_secs(SWEEP_EVERY_S)) {
            return;
        }
        *swept = Some(Instant::now());
        let keys = Arc::clone(self);
        tokio::spawn(async move {
            let alive = |id| is_alive(&service, id);
            if let Err(error) = keys.sweep(service.records(), Timestamp::now(), alive).await {
                tracing::warn!(%error, "expired idempotency keys could not be swept");
            }
        });
    }

    /// Removes what has expired, and the data of containers that are gone.
    async fn sweep(
        &self,
        records: &Records,
        now: Timestamp,
        alive: impl Fn(ContainerId) -> bool,
    ) -> Result<(), StoreError> {
        let mut left = 0;
        for (key, kept) in records.all_at::<Kept>(ANSWERS).await? {
            let mut batch = Batch::default();
            if kept.expires_at <= now {
                batch = batch.remove_at(key.clone());
            } else {
                left += 1;
                if kept.body.is_none() || kept.container.is_none_or(&alive) {
                    continue;
                }
                batch = batch.put_at(key.clone(), &Kept { body: None, ..kept.clone() })?;
            }
            if let Some(container) = kept.container {
                batch = batch.remove_at(BY_CONTAINER.entry(container, &key));
            }
            records.commit(batch, Durability::Lazy).await?;
        }
        self.count.store(left, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sled::SledStore;

    async fn records(folder: &std::path::Path) -> Records {
        // The one before lets go of its lock when its last thread has ended, a moment after it was dropped.
        for _ in 0..500 {
            match SledStore::open(folder) {
                Ok(store) => return Records::open(Arc::new(Arc::new(store))).await.unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
        panic!("{} stays locked", folder.display());
    }

    fn kept(hash: &str, container: Option<ContainerId>, expires_in_s: i64) -> Kept {
        Kept {
            request: hash.into(),
            status: 201,
            etag: Some("\"1\"".into()),
            body: Some("{\"data\":1}".into()),
            container,
            expires_at: Timestamp::now() + jiff::SignedDuration::from_secs(expires_in_s),
        }
    }

    #[tokio::test]
    async fn the_first_answer_is_given_again_to_the_same_request() {
        let response = replay(kept("h", None, 60), "h", false).unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        assert_eq!(
            (&response.headers()[REPLAYED], &response.headers()[header::ETAG]),
            (&"true".parse().unwrap(), &"\"1\"".parse().unwrap())
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&body[..], b"{\"data\":1}");
    }

    #[test]
    fn another_body_or_a_deleted_container_gets_no_answer_again() {
        let error = replay(kept("h", None, 60), "other", false).unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (422, "IDEMPOTENCY_KEY_REUSED"));
        let error = replay(kept("h", None, 60), "h", true).unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (410, "CONTAINER_DELETED"));
    }

    #[test]
    fn a_key_is_in_flight_until_its_mark_is_dropped() {
        let keys = Arc::new(Keys::default());
        let mark = keys.mark("k".into()).unwrap();
        let error = keys.mark("k".into()).unwrap_err();
        assert_eq!((error.status().as_u16(), error.code()), (409, "IDEMPOTENCY_KEY_IN_FLIGHT"));
        assert!(keys.mark("other".into()).is_ok());
        drop(mark);
        assert!(keys.mark("k".into()).is_ok());
    }

    #[tokio::test]
    async fn a_kept_answer_outlives_the_daemon_and_is_erased_with_its_container() {
        let folder = tempfile::tempdir().unwrap();
        let id = ContainerId::generate();
        let key = store_key("one", "evt_1");
        {
            let records = records(folder.path()).await;
            write(&records, &key, &kept("h", Some(id), 60)).await.unwrap();
        }
        let records = records(folder.path()).await;
        assert!(records.get_at::<Kept>(&key).await.unwrap().unwrap().body.is_some());
        forget(&records, id).await.unwrap();
        assert_eq!(records.get_at::<Kept>(&key).await.unwrap().unwrap().body, None);
        assert!(records.all_at::<String>(BY_CONTAINER.0).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_sweep_removes_what_expired_and_the_data_of_containers_that_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let records = records(folder.path()).await;
        let (gone, there) = (ContainerId::generate(), ContainerId::generate());
        for (name, kept) in [
            ("expired", kept("h", Some(there), -1)),
            ("gone", kept("h", Some(gone), 60)),
            ("there", kept("h", Some(there), 60)),
        ] {
            write(&records, &format!("{ANSWERS}{name}"), &kept).await.unwrap();
        }
        let keys = Keys::default();
        keys.sweep(&records, Timestamp::now(), |id| id == there).await.unwrap();
        let bodies: Vec<_> = records.all_at::<Kept>(ANSWERS).await.unwrap();
        let bodies: Vec<_> = bodies.iter().map(|(key, kept)| (key.as_str(), kept.body.is_some())).collect();
        assert_eq!(bodies, [("idempotency/gone", false), ("idempotency/there", true)]);
        assert_eq!(records.all_at::<String>(BY_CONTAINER.0).await.unwrap().len(), 1);
        assert_eq!(keys.count.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn keys_are_bounded_and_scoped_to_their_token() {
        let with = |value: HeaderValue| HeaderMap::from_iter([(IDEMPOTENCY_KEY, value)]);
        assert_eq!(key_of(&with(HeaderValue::from_static("evt_1"))).unwrap(), Some("evt_1"));
        assert!(key_of(&with(HeaderValue::from_static(""))).is_err());
        assert!(key_of(&with(HeaderValue::try_from("x".repeat(KEY_CHARS_MAX + 1)).unwrap())).is_err());
        let (a, b) = ("one", "two");
        assert_ne!(store_key(a, "k"), store_key(b, "k"));
        assert_ne!(digest(&[b"a", b"bc"]), digest(&[b"ab", b"c"]));
    }
}
