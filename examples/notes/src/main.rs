//! Notes: a small app as a SaaS ships it to one customer.
//!
//! Nothing in it knows of other customers: no tenant id in a table, no check in a query. There is one SQLite file,
//! and it is this customer's. It runs as process 1 of its container, so it handles SIGTERM itself.

mod app;
mod form;
mod html;
mod store;

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use app::{App, Reply, Request};
use signal_hook::consts::{SIGINT, SIGTERM};
use tiny_http::{Header, Response, Server};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Requests served at once. SQLite writes one at a time anyway.
const WORKERS: usize = 4;
/// Bytes of a request's body that are read.
const BODY_BYTES_MAX: usize = 64 * 1024;

fn main() -> Result<(), AnyError> {
    let var = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let port: u16 = var("PORT", "8080").parse().map_err(|_| "PORT is not a port number")?;
    let path = var("NOTES_DB", "/data/notes.db");
    let store = store::Store::open(path.as_ref()).map_err(|error| format!("cannot open {path}: {error}"))?;
    if std::env::args().nth(1).as_deref() == Some("check") {
        return check(&store);
    }
    let app = Arc::new(App::new(store, var("CUSTOMER", "our customer"), var("PLAN", "free")));
    // Before the server listens: a SIGTERM that comes early must not be lost.
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])?;
    let server = Arc::new(Server::http(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?);
    eprintln!("notes: listening on {}", server.server_addr());
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (app, server) = (Arc::clone(&app), Arc::clone(&server));
            std::thread::spawn(move || {
                // Unblocked at the end, with an error.
                while let Ok(request) = server.recv() {
                    serve(&app, request);
                }
            })
        })
        .collect();
    let signal = signals.forever().next();
    eprintln!("notes: signal {}, ending", signal.unwrap_or_default());
    (0..WORKERS).for_each(|_| server.unblock());
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")?;
    }
    app.close();
    Ok(())
}

/// `notes check`: whether the file is whole, and how many notes are in it.
fn check(store: &store::Store) -> Result<(), AnyError> {
    let found = store.check().map_err(|error| error.to_string())?;
    let count = store.count().map_err(|error| error.to_string())?;
    println!("{found}, {count} notes");
    if found == "ok" { Ok(()) } else { Err("the database is damaged".into()) }
}

fn serve(app: &App, mut request: tiny_http::Request) {
    let mut body = Vec::new();
    let limit = BODY_BYTES_MAX as u64 + 1;
    let reply = if request.body_length().is_some_and(|length| length > BODY_BYTES_MAX) {
        Reply::too_large()
    } else if request.as_reader().take(limit).read_to_end(&mut body).is_err() {
        Reply::error(400, "the body could not be read")
    } else if body.len() > BODY_BYTES_MAX {
        Reply::too_large()
    } else {
        let field = |name: &'static str| {
            let found = request.headers().iter().find(|header| header.field.equiv(name));
            found.map_or("", |header| header.value.as_str())
        };
        app.answer(&Request {
            method: request.method().as_str(),
            path: request.url().split('?').next().unwrap_or_default(),
            content_type: field("content-type"),
            host: field("host"),
            origin: field("origin"),
            body: &body,
        })
    };
    let mut response = Response::from_data(reply.body).with_status_code(reply.status);
    let fields = [("content-type", reply.content_type), ("cache-control", "no-store"), ("location", reply.location)];
    for (name, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    // The client may be gone by now; that is its business.
    let _ = request.respond(response);
}
