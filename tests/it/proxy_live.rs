//! The URL of a real tenant through the real proxy: many at once, large bodies both ways, answers that trickle, upgrades.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use reqwest::{Body, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::daemon::{Client, Daemon, PROXY, answer, id_of, patience, play};

/// More than the proxy may ever hold of a body.
const LARGE_BYTES: usize = 96 << 20;
/// What the daemon may grow by while such a body passes.
const GROWTH_KIB_MAX: u64 = 32 << 10;

/// A running container of the base image; programs that answer requests can be put into it.
async fn tenant(client: &Client) -> Value {
    let project = client.create_project("acme").await;
    client.create_template(&project, "crm").await
}

async fn put_program(client: &Client, container: &Value, name: &str, script: &str) {
    let path = format!("/var/www/cgi-bin/{name}");
    let put = json!({ "command": ["sh", "-c", format!("cat >{path} && chmod 755 {path}")], "stdin": script });
    let done = client.post(&format!("/containers/{}/exec", id_of(container)), put).await.data(200);
    assert_eq!(done["exit_code"], 0, "{done}");
}

fn url(container: &Value, path: &str) -> String {
    format!("{}{path}", container["url"].as_str().unwrap())
}

/// The daemon's resident memory at its highest.
fn peak_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn many_requests_at_once_each_get_their_own_answer() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        put_program(
            client,
            &tenant,
            "echo",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nhead -c $CONTENT_LENGTH\n",
        )
        .await;
        for _ in 0..5 {
            let said: Vec<String> = (0..20).map(|n| format!("request {n} {}", "x".repeat(n * 997))).collect();
            let heard = join_all(said.iter().map(|text| client.send_page(&tenant, "/cgi-bin/echo", text))).await;
            for (said, heard) in said.iter().zip(heard) {
                assert_eq!((heard.status, &heard.text), (200, said));
            }
        }
    });
}

#[test]
fn large_bodies_pass_both_ways_and_are_not_kept_in_memory() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        put_program(
            client,
            &tenant,
            "sum",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nhead -c $CONTENT_LENGTH | wc -c\n",
        )
        .await;
        client
            .exec(
                &id_of(&tenant),
                &["dd", "if=/dev/zero", "of=/var/www/large", "bs=1M", &format!("count={}", LARGE_BYTES >> 20)],
            )
            .await;
        let before = peak_kib(daemon);

        let response = client.open(Method::GET, &url(&tenant, "/large")).send().await.unwrap();
        assert_eq!(response.content_length(), Some(LARGE_BYTES as u64));
        let mut chunks = response.bytes_stream();
        let mut received = 0;
        while let Some(chunk) = chunks.next().await {
            received += chunk.unwrap().len();
        }
        assert_eq!(received, LARGE_BYTES);

        let chunks = stream::iter((0..LARGE_BYTES >> 16).map(|_| Ok::<_, std::io::Error>(vec![7u8; 1 << 16])));
        let request = client.open(Method::POST, &url(&tenant, "/cgi-bin/sum")).header("content-length", LARGE_BYTES);
        let uploaded = answer(request.body(Body::wrap_stream(chunks))).await;
        assert_eq!((uploaded.status, uploaded.text.trim()), (200, LARGE_BYTES.to_string().as_str()));

        let growth = peak_kib(daemon).saturating_sub(before);
        assert!(growth < GROWTH_KIB_MAX, "the daemon grew by {growth} KiB");
    });
}

#[test]
fn an_answer_is_passed_on_as_it_comes() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        put_program(
            client,
            &tenant,
            "trickle",
            "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\nfirst\\n'\nsleep 2\necho last\n",
        )
        .await;
        let began = Instant::now();
        let response = client.open(Method::GET, &url(&tenant, "/cgi-bin/trickle")).send().await.unwrap();
        let mut chunks = response.bytes_stream();
        let first = chunks.next().await.unwrap().unwrap();
        let first_after = began.elapsed();
        let mut text = String::from_utf8(first.to_vec()).unwrap();
        while let Some(chunk) = chunks.next().await {
            text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
        assert_eq!(text, "first\nlast\n");
        assert!(
            began.elapsed() >= Duration::from_secs(2) && first_after < began.elapsed() / 2,
            "the first came after {first_after:?}"
        );
    });
}

/// Reads until a text has come.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    while !String::from_utf8_lossy(&seen).ends_with(end) {
        let length = tokio::time::timeout(patience(10), stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(seen).unwrap()
}

#[test]
fn an_upgraded_connection_goes_both_ways_until_one_side_ends_it() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        let id = id_of(&tenant);
        let handler = "#!/bin/sh\nwhile read -r line; do [ \"$line\" = \"$(printf '\\r')\" ] && break; done\n\
            printf 'HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: parrot\\r\\n\\r\\n'\nexec cat\n";
        let start = json!({ "command": ["sh", "-c", "cat >/root/up && chmod 755 /root/up && (nc -ll -p 9000 -e /root/up >/dev/null 2>&1 &)"], "stdin": handler });
        let done = client.post(&format!("/containers/{id}/exec"), start).await.data(200);
        assert_eq!(done["exit_code"], 0, "{done}");
        // Any port is reached by the URL that names it.
        let host =
            tenant["urls"][1].as_str().unwrap().trim_start_matches("http://").replace("-http-8080", "-http-9000");
        let mut stream = connect_when_listening(&host).await;
        let head = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: parrot"), "{head}");
        for word in ["hello", "again", "☃"] {
            stream.write_all(word.as_bytes()).await.unwrap();
            assert_eq!(read_until(&mut stream, word).await, word);
        }
        // A stop of the container ends it: no connection outlives its tenant.
        client.verb(&id, "stop").await.data(200);
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(patience(10), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "the connection is still open");
    });
}

/// An upgrade's request, sent anew until the program inside listens.
async fn connect_when_listening(host: &str) -> TcpStream {
    let deadline = Instant::now() + patience(10);
    loop {
        let mut stream = TcpStream::connect(PROXY).await.unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: parrot\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.peek(&mut first).await.unwrap();
        while stream.peek(&mut first).await.unwrap() < first.len() {}
        if &first == b"HTTP/1.1 101" {
            return stream;
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&first));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_host_that_is_nobodys_and_a_dead_port_are_told_apart() {
    play(async |daemon| {
        let client = &daemon.client;
        let tenant = tenant(client).await;
        let unknown = format!("http://{}.node1.localhost:8080/", "a".repeat(48));
        answer(client.open(Method::GET, &unknown)).await.refused(404, "UNKNOWN_HOST");
        answer(client.open(Method::GET, "http://elsewhere.example/")).await.refused(404, "UNKNOWN_HOST");
        let dead = tenant["urls"][1].as_str().unwrap().replace("-http-8080", "-http-9");
        answer(client.open(Method::GET, &dead)).await.refused(502, "CONTAINER_UNREACHABLE");
        assert_eq!(client.page(&tenant, "/nothing").await.status, 404, "the tenant's own answer");
    });
}
