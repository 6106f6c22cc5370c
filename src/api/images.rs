//! `/images`. An upload is streamed to a file, never held in memory; the file is removed whatever comes of it.

use std::convert::Infallible;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tracing::Instrument;

use super::Api;
use super::auth::Caller;
use super::envelope::{Answer, Success};
use super::error::{ApiError, ErrorBody};
use super::extract::{FromQuery, Pairs, Path, Query, wrong};
use super::idempotency::{self, Entry, InFlight, digest, key_of};
use super::page::Page;
use super::request::RequestId;
use super::wire::Deleted;
use super::wire::image::{ImageList, ImageView, ProgressView, image_name};
use crate::domain::{Bytes, ImageId};
use crate::lifecycle::{Error, ImportProgress, Imported, NewImage};

/// Bytes of an uploaded archive, at most.
pub const UPLOAD_MAX: Bytes = Bytes::gib(16);
/// How long an upload may be silent, in milliseconds.
const UPLOAD_SILENCE_MS_MAX: u64 = 30_000;
/// Between two progress events, in milliseconds: a watcher needs no more.
const PROGRESS_EVERY_MS: u64 = 100;

/// Query of an import.
#[derive(Debug)]
pub struct ImportQuery {
    name: String,
}

impl FromQuery for ImportQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        let name = pairs.one("name")?.ok_or_else(|| wrong("name", "is missing"))?;
        Ok(Self { name: image_name(name)? })
    }
}

/// Query of the list of images.
#[derive(Debug)]
pub struct ImagesQuery(Page);

impl FromQuery for ImagesQuery {
    fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
        Page::take(pairs, &["created_at", "name", "size"]).map(Self)
    }
}

/// Removes the uploaded file when dropped: one `unlink(2)`, which blocks no longer than any other.
#[derive(Debug)]
struct Upload(PathBuf);

impl Drop for Upload {
    fn drop(&mut self) {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "an uploaded file could not be removed");
            }
            _ => {}
        }
    }
}

/// Import an image from an uploaded archive
///
/// The body is the archive: a rootfs tar, an OCI layout or a docker archive, plain or compressed by gzip or zstd. With
/// `Accept: text/event-stream` the answer is a stream of `progress` events and one `done` or `error`.
#[utoipa::path(post, path = "/api/v1/images", tag = "images", operation_id = "import_image",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    params(("name" = String, Query, description = "What containers will name it by"),
           ("Idempotency-Key" = Option<String>, Header, description = "The same key and body: the first answer again")),
    responses((status = 201, description = "Imported", body = Success<ImageView>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn import(
    State(api): State<Api>,
    caller: Caller,
    Query(query): Query<ImportQuery>,
    axum::Extension(id): axum::Extension<RequestId>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    caller.host_wide()?;
    let key = key_of(&headers)?;
    refuse_json(&headers)?;
    let (upload, hash) = receive(api.service.upload_dir(), body).await?;
    let hash = digest(&[query.name.as_bytes(), hash.as_bytes()]);
    let mark = match key {
        None => None,
        Some(key) => match idempotency::enter_for(&api, &caller, key, &hash).await? {
            Entry::Again(response) => return Ok(response),
            // An import makes no container, so that none can stand for its answer.
            Entry::First(mark) | Entry::Made(mark, _) => Some((mark, hash)),
        },
    };
    let streams = headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes().starts_with(b"text/event-stream"));
    let (watcher, outcome) = start(api, query.name, upload, mark);
    Ok(if streams {
        Sse::new(events(watcher, outcome, id.0)).keep_alive(KeepAlive::default()).into_response()
    } else {
        outcome.await
    })
}

/// Registry references are JSON when they come; a JSON file taken for an archive would give a puzzling error.
fn refuse_json(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().starts_with(b"application/json")) {
        Some(true) => Err(ApiError::bad(
            "INVALID_CONTENT_TYPE",
            "the archive itself is wanted as the body (application/octet-stream); registries are not spoken to yet",
        )),
        _ => Ok(()),
    }
}

fn cannot_write(error: &std::io::Error) -> ApiError {
    if error.kind() == std::io::ErrorKind::StorageFull {
        return ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "POOL_FULL", "no room for the upload");
    }
    tracing::error!(%error, "an upload could not be written");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", "the upload could not be written")
}

/// Streams a body into a new file; gives it and its SHA-256.
async fn receive(folder: &FilePath, body: Body) -> Result<(Upload, String), ApiError> {
    let path = folder.join(format!("upload-{}", hex::encode(rand::random::<[u8; 12]>())));
    let mut file = tokio::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .await
        .map_err(|error| cannot_write(&error))?;
    let upload = Upload(path);
    let mut chunks = body.into_data_stream();
    let mut hash = Sha256::new();
    let mut bytes: u64 = 0;
    loop {
        let silence = Duration::from_millis(UPLOAD_SILENCE_MS_MAX);
        let chunk = match tokio::time::timeout(silence, chunks.next()).await {
            Ok(None) => break,
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(error))) => {
                return Err(ApiError::bad("BODY_UNREADABLE", format!("the upload broke off: {error}")));
            }
            Err(_) => {
                let text = format!("the upload was silent for {UPLOAD_SILENCE_MS_MAX} ms");
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", text));
            }
        };
        bytes = bytes.saturating_add(chunk.len() as u64);
        if bytes > UPLOAD_MAX.0 {
            let text = format!("the archive is larger than {UPLOAD_MAX}");
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", text));
        }
        hash.update(&chunk);
        file.write_all(&chunk).await.map_err(|error| cannot_write(&error))?;
    }
    file.flush().await.map_err(|error| cannot_write(&error))?;
    if bytes == 0 {
        return Err(ApiError::bad("EMPTY_BODY", "the archive is wanted as the body, which is empty"));
    }
    Ok((upload, hex::encode(hash.finalize())))
}

/// Imports on a task of its own: whoever hangs up finds the image there, and no half of one.
fn start(
    api: Api,
    name: String,
    upload: Upload,
    mark: Option<(InFlight, String)>,
) -> (watch::Receiver<ImportProgress>, impl Future<Output = Response>) {
    let (progress, watcher) = watch::channel(ImportProgress { step: "uploaded".into(), done: Bytes(0), total: None });
    let work = async move {
        let new = NewImage { name, source: upload.0.clone() };
        let imported = api.service.import_image(new, progress).await;
        drop(upload);
        let response = answer(imported);
        match mark {
            None => response,
            Some((mark, hash)) => {
                idempotency::keep(&api, mark, hash, response).await.unwrap_or_else(IntoResponse::into_response)
            }
        }
    };
    let task = tokio::spawn(work.in_current_span());
    (watcher, async { task.await.unwrap_or_else(|_| failed().into_response()) })
}

fn failed() -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_ERROR", "the import's task failed")
}

fn answer(imported: Result<Imported, Error>) -> Response {
    match imported {
        Ok(Imported { image, warnings }) => {
            let view = ImageView { warnings, ..ImageView::from(&*image) };
            Answer::created("Image imported successfully", view).into_response()
        }
        Err(error) => ApiError::from(error).into_response(),
    }
}

/// `progress` as often as a watcher needs, then one `done` or `error` with what the answer would have been.
fn events(
    progress: watch::Receiver<ImportProgress>,
    outcome: impl Future<Output = Response>,
    request_id: String,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let steps = futures_util::stream::unfold(progress, |mut progress| async move {
        // Ends when the import drops its sender.
        progress.changed().await.ok()?;
        let event = Event::default().event("progress").json_data(ProgressView::from(&*progress.borrow_and_update()));
        tokio::time::sleep(Duration::from_millis(PROGRESS_EVERY_MS)).await;
        event.ok().map(|event| (Ok(event), progress))
    });
    steps.chain(futures_util::stream::once(async move { Ok(last_event(outcome.await, &request_id).await) }))
}

async fn last_event(mut response: Response, request_id: &str) -> Event {
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        // The request's own frame sees a stream that began well: the operator's part is logged here.
        if let Some(chain) = error.hidden_chain() {
            tracing::error!(request_id, error = chain, "the import failed");
        }
        return Event::default()
            .event("error")
            .data(serde_json::to_string(&error.body(request_id)).unwrap_or_default());
    }
    let bytes = super::extract::read_body(response.into_body()).await.unwrap_or_default();
    Event::default().event("done").data(String::from_utf8_lossy(&bytes))
}

/// List images
#[utoipa::path(get, path = "/api/v1/images", tag = "images", operation_id = "list_images",
    params(("page" = Option<u64>, Query, description = "From 1"), ("limit" = Option<u64>, Query, description = "1–100 (50)"),
           ("sort_by" = Option<String>, Query, description = "created_at, name, size"),
           ("sort_order" = Option<String>, Query, description = "asc, desc")),
    responses((status = 200, description = "A page", body = Success<ImageList>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn list(State(api): State<Api>, Query(query): Query<ImagesQuery>) -> Answer<ImageList> {
    let page = query.0;
    let (images, pagination) = page.cut(api.service.images(), |a, b| match page.sort_by {
        "name" => a.name.cmp(&b.name),
        "size" => a.size.cmp(&b.size),
        _ => a.created_at.cmp(&b.created_at),
    });
    let images = images.iter().map(|image| ImageView::from(&**image)).collect();
    Answer::ok("Images retrieved successfully", ImageList { images, pagination })
}

/// Delete an image
#[utoipa::path(delete, path = "/api/v1/images/{id}", tag = "images", operation_id = "delete_image",
    params(("id" = String, Path, description = "The image's id")),
    responses((status = 200, description = "Deleted", body = Success<Deleted>),
              (status = "default", description = "Refused", body = ErrorBody)))]
pub async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Path(id): Path<ImageId>,
    _: Query<()>,
) -> Result<Answer<Deleted>, ApiError> {
    caller.host_wide()?;
    api.service.delete_image(id).await?;
    Ok(Answer::ok("Image deleted successfully", Deleted { id: id.to_string() }))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::api::extract::from_query;

    #[tokio::test]
    async fn an_upload_lies_in_a_file_of_its_own_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (upload, hash) = receive(folder.path(), Body::from("archive")).await.unwrap();
        assert_eq!(std::fs::read(&upload.0).unwrap(), b"archive");
        assert_eq!(hash, hex::encode(Sha256::digest(b"archive")));
        drop(upload);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn an_upload_that_breaks_off_or_is_empty_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let broken =
            futures_util::stream::iter([Ok(axum::body::Bytes::from("arch")), Err(std::io::Error::other("cut"))]);
        let error = receive(folder.path(), Body::from_stream(broken)).await.unwrap_err();
        assert_eq!(error.code(), "BODY_UNREADABLE");
        assert_eq!(receive(folder.path(), Body::empty()).await.unwrap_err().code(), "EMPTY_BODY");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_import_wants_a_name_and_an_archive() {
        let read = |query: &str| from_query::<ImportQuery>(&format!("/x?{query}").parse().unwrap());
        assert_eq!(read("name=base").unwrap().name, "base");
        for bad in ["", "name=", "name=../x", "name=a&name=b"] {
            assert_eq!(read(bad).unwrap_err().field(), Some("name"), "{bad}");
        }
        let json = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        assert_eq!(refuse_json(&json).unwrap_err().code(), "INVALID_CONTENT_TYPE");
        assert!(refuse_json(&HeaderMap::new()).is_ok());
    }

    #[tokio::test]
    async fn progress_is_told_and_the_answer_comes_last() {
        let (send, watcher) = watch::channel(ImportProgress { step: "uploaded".into(), done: Bytes(0), total: None });
        let outcome = async { answer(Err(Error::BadImage("torn".into()))) };
        send.send_replace(ImportProgress { step: "unpack".into(), done: Bytes(7), total: Some(Bytes(9)) });
        drop(send);
        let body = Sse::new(events(watcher, outcome, "r-1".into())).into_response().into_body();
        let text = String::from_utf8(axum::body::to_bytes(body, 10_000).await.unwrap().to_vec()).unwrap();
        let told = text.find("event: progress\ndata: {\"step\":\"unpack\",\"done\":7,\"total\":9}").unwrap();
        assert!(told < text.find("event: error\ndata: {\"statusCode\":422,\"error\":\"INVALID_IMAGE\"").unwrap());
    }
}
