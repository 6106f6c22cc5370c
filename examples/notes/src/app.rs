//! What each route answers. Knows no sockets, so that it can be tested without them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};

use crate::store::{Note, Store, StoreError};
use crate::{form, html};

/// Characters of one note.
const NOTE_CHARS_MAX: usize = 2_000;

/// The parts of a request that matter here.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub content_type: &'a str,
    pub host: &'a str,
    pub origin: &'a str,
    pub body: &'a [u8],
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: &'static str,
    /// Empty for none.
    pub location: &'static str,
    pub body: Vec<u8>,
}

impl Reply {
    fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, content_type, location: "", body: body.into() }
    }

    fn json(status: u16, value: &Value) -> Self {
        Self::new(status, "application/json", value.to_string())
    }

    pub fn error(status: u16, message: &str) -> Self {
        Self::json(status, &json!({ "error": message }))
    }

    pub fn too_large() -> Self {
        Self::error(413, "the body is too large")
    }
}

/// The app of one customer.
pub struct App {
    store: Mutex<Store>,
    customer: String,
    plan: String,
}

impl App {
    pub fn new(store: Store, customer: String, plan: String) -> Self {
        Self { store: Mutex::new(store), customer, plan }
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // SQLite undoes what was not committed; the connection is good after a panic.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the log back into the file, so that the file alone is whole.
    pub fn close(&self) {
        if let Err(error) = self.store().checkpoint() {
            eprintln!("notes: checkpoint failed: {error}");
        }
    }

    pub fn answer(&self, request: &Request<'_>) -> Reply {
        self.route(request).unwrap_or_else(|error| match error {
            StoreError::Full => Reply::error(507, "there is no room for more notes"),
            StoreError::Sqlite(error) => {
                eprintln!("notes: {} {}: {error}", request.method, request.path);
                Reply::error(500, "the notes cannot be read or written")
            }
        })
    }

    fn route(&self, request: &Request<'_>) -> Result<Reply, StoreError> {
        let id = request.path.strip_prefix("/notes/").and_then(|id| id.parse::<i64>().ok());
        Ok(match (request.method, request.path, id) {
            ("GET" | "HEAD", "/", _) => {
                let page = html::page(&self.customer, &self.plan, &self.store().list()?);
                Reply::new(200, "text/html; charset=utf-8", page)
            }
            ("GET" | "HEAD", "/notes", _) => {
                let notes: Vec<Value> = self.store().list()?.iter().map(as_json).collect();
                Reply::json(200, &json!({ "customer": self.customer, "notes": notes }))
            }
            ("GET" | "HEAD", "/healthz", _) => {
                self.store().ping()?;
                Reply::new(200, "text/plain", "ok\n")
            }
            ("POST", "/notes", _) => self.add(request)?,
            ("DELETE", _, Some(_)) if is_foreign(request) => foreign(),
            ("DELETE", _, Some(id)) if self.store().delete(id)? => Reply::new(204, "", ""),
            ("DELETE", _, Some(_)) => Reply::error(404, "no such note"),
            (_, "/" | "/notes" | "/healthz", _) | (_, _, Some(_)) => Reply::error(405, "not with this method"),
            _ => Reply::error(404, "no such page"),
        })
    }

    fn add(&self, request: &Request<'_>) -> Result<Reply, StoreError> {
        if is_foreign(request) {
            return Ok(foreign());
        }
        let kind = request.content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let is_form = kind == "application/x-www-form-urlencoded";
        let text = match kind.as_str() {
            "application/json" => serde_json::from_slice::<Value>(request.body)
                .ok()
                .and_then(|value| value.get("text").and_then(Value::as_str).map(str::to_owned)),
            _ if is_form => form::value(request.body, "text"),
            _ => return Ok(Reply::error(415, "JSON or a form is wanted")),
        };
        let Some(text) = text else { return Ok(Reply::error(400, "`text` is missing")) };
        let text = text.trim();
        if text.is_empty() || text.chars().count() > NOTE_CHARS_MAX {
            return Ok(Reply::error(422, "`text` must have 1 to 2000 characters"));
        }
        let note = self.store().add(text)?;
        Ok(if is_form {
            // So that reloading the page does not send the form again.
            Reply { location: "/", ..Reply::new(303, "", "") }
        } else {
            Reply::json(201, &as_json(&note))
        })
    }
}

fn as_json(note: &Note) -> Value {
    json!({ "id": note.id, "text": note.text, "created_at": note.created_at })
}

/// Whether another site's page sent this. Browsers always name the origin of a page that writes.
fn is_foreign(request: &Request<'_>) -> bool {
    let own = request.origin.split_once("://").is_some_and(|(_, host)| host.eq_ignore_ascii_case(request.host));
    !request.origin.is_empty() && !own
}

fn foreign() -> Reply {
    Reply::error(403, "this came from another site's page")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app() -> App {
        App::new(Store::open(":memory:".as_ref()).unwrap(), "Acme <& Sons>".into(), "pro".into())
    }

    fn request<'a>(method: &'a str, path: &'a str, content_type: &'a str, body: &'a str) -> Request<'a> {
        Request { method, path, content_type, host: "acme.localhost", origin: "", body: body.as_bytes() }
    }

    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

    fn text(reply: &Reply) -> &str {
        std::str::from_utf8(&reply.body).unwrap()
    }

    #[test]
    fn a_note_is_added_listed_and_deleted() {
        let app = app();
        let added = app.answer(&request("POST", "/notes", JSON, r#"{"text":" buy milk "}"#));
        assert_eq!(added.status, 201);
        let note: Value = serde_json::from_slice(&added.body).unwrap();
        assert_eq!(note["text"], "buy milk");
        let listed: Value = serde_json::from_slice(&app.answer(&request("GET", "/notes", "", "")).body).unwrap();
        assert_eq!(listed["notes"], json!([note]));
        let path = format!("/notes/{}", note["id"]);
        assert_eq!(app.answer(&request("DELETE", &path, "", "")).status, 204);
        assert_eq!(app.answer(&request("DELETE", &path, "", "")).status, 404);
    }

    #[test]
    fn a_form_is_taken_and_leads_back_to_the_page() {
        let app = app();
        let reply = app.answer(&request("POST", "/notes", FORM, "x=1&text=caf%C3%A9+%26+bar"));
        assert_eq!((reply.status, reply.location), (303, "/"));
        assert!(text(&app.answer(&request("GET", "/", "", ""))).contains("café &amp; bar"));
    }

    #[test]
    fn what_people_write_is_never_markup() {
        let app = app();
        app.answer(&request("POST", "/notes", JSON, r#"{"text":"<script>alert(\"1\")</script>"}"#));
        let page = app.answer(&request("GET", "/", "", ""));
        assert!(!text(&page).contains("<script>"), "{}", text(&page));
        assert!(text(&page).contains("Acme &lt;&amp; Sons&gt;"));
        assert!(text(&page).contains("pro"));
    }

    #[test]
    fn bad_input_is_named_and_adds_nothing() {
        let app = app();
        let long = format!(r#"{{"text":"{}"}}"#, "x".repeat(NOTE_CHARS_MAX + 1));
        for (kind, body, status) in [
            (JSON, "{", 400),
            (JSON, "{}", 400),
            (JSON, r#"{"text":1}"#, 400),
            (JSON, r#"{"text":"  "}"#, 422),
            (JSON, long.as_str(), 422),
            (FORM, "other=1", 400),
            (FORM, "text=%FF", 400),
            ("text/plain", "hi", 415),
        ] {
            assert_eq!(app.answer(&request("POST", "/notes", kind, body)).status, status, "{kind} {body}");
        }
        let listed: Value = serde_json::from_slice(&app.answer(&request("GET", "/notes", "", "")).body).unwrap();
        assert_eq!(listed["notes"], json!([]));
    }

    #[test]
    fn a_page_of_another_site_cannot_write() {
        let app = app();
        let from = |origin| Request { origin, ..request("POST", "/notes", JSON, r#"{"text":"hi"}"#) };
        assert_eq!(app.answer(&from("https://evil.example")).status, 403);
        assert_eq!(app.answer(&from("null")).status, 403);
        assert_eq!(app.answer(&from("http://acme.localhost")).status, 201);
        assert_eq!(
            app.answer(&Request { method: "DELETE", path: "/notes/1", ..from("https://evil.example") }).status,
            403
        );
    }

    #[test]
    fn other_pages_and_methods_are_refused() {
        let app = app();
        for (method, path, status) in [
            ("GET", "/healthz", 200),
            ("GET", "/nothing", 404),
            ("GET", "/notes/abc", 404),
            ("PUT", "/notes", 405),
            ("GET", "/notes/1", 405),
            ("DELETE", "/", 405),
        ] {
            assert_eq!(app.answer(&request(method, path, "", "")).status, status, "{method} {path}");
        }
    }
}
