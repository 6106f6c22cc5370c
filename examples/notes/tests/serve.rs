//! The program as a container runs it: environment in, HTTP out, SIGTERM at the end.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Running {
    child: Child,
    port: u16,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(db: &Path, customer: &str) -> Running {
    let mut child = Command::new(env!("CARGO_BIN_EXE_notes"))
        .env_clear()
        .env("PORT", "0")
        .env("NOTES_DB", db)
        .env("CUSTOMER", customer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    let port = line.trim().rsplit(':').next().unwrap().parse().unwrap_or_else(|_| panic!("it said: {line}"));
    Running { child, port }
}

fn say(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn terminate(mut running: Running) {
    let pid = running.child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(running.child.wait().unwrap().success(), "SIGTERM ends it well");
}

fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

const END: &str = "Host: acme.localhost\r\nConnection: close\r\n";

#[test]
fn notes_outlive_a_restart_and_the_file_alone_is_whole_after_sigterm() {
    let folder = folder("restart");
    let db = folder.join("notes.db");
    let first = start(&db, "Acme & Sons");
    let body = r#"{"text":"kept"}"#;
    let post = format!(
        "POST /notes HTTP/1.1\r\n{END}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert!(say(first.port, &post).starts_with("HTTP/1.1 201 "));
    terminate(first);
    let wal = folder.join("notes.db-wal");
    assert!(std::fs::metadata(&wal).map_or(0, |meta| meta.len()) == 0, "the log was written back");
    let second = start(&db, "Acme & Sons");
    let page = say(second.port, &format!("GET / HTTP/1.1\r\n{END}\r\n"));
    assert!(page.contains("kept") && page.contains("Acme &amp; Sons"), "{page}");
    terminate(second);
}

#[test]
fn a_body_beyond_the_bound_is_refused_with_or_without_its_length() {
    let running = start(&folder("bound").join("notes.db"), "Acme");
    let head = format!("POST /notes HTTP/1.1\r\n{END}Content-Type: application/json\r\n");
    let answer = say(running.port, &format!("{head}Content-Length: 70000\r\n\r\n{}", "x".repeat(70_000)));
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let chunk = format!("{:x}\r\n{}\r\n0\r\n\r\n", 70_000, "x".repeat(70_000));
    let answer = say(running.port, &format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}"));
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    terminate(running);
}
