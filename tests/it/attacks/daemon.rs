//! The daemon itself: what it gives away, and how it bears those who only want it to be busy.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::attack;
use crate::skips::skipped;
use crate::support::daemon::{id_of, patience, play};

const API: &str = "127.0.0.1:7070";
const SECRET: &str = "sk_live_0123456789abcdef";

#[test]
fn a_secret_value_is_told_to_nobody_else() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let (mine, other) = (client.create_project("mine").await, client.create_project("other").await);
        let stranger = client.post("/auth/tokens", json!({ "alias": "stranger", "project_id": other })).await.data(201);
        let stranger = client.with_token(stranger["token"].as_str().unwrap());
        let body = json!({ "name": "keeper", "environment_vars": { "KEY": SECRET }, "template": true });
        let keeper = id_of(&client.post(&format!("/projects/{mine}/containers"), body).await.data(201));
        // Things that are logged: a verb, a failure, a refusal, a command with a secret of its own.
        client.verb(&keeper, "restart").await.data(200);
        let copy = json!({ "name": "copy", "environment_vars": { "MORE": format!("{SECRET}-more") } });
        let copied = id_of(&client.copy(&keeper, copy).await);
        let bad = json!({ "environment_vars": { "KEY": SECRET, "not a key": SECRET } });
        assert_eq!(client.patch(&format!("/containers/{keeper}"), bad).await.status, 400);
        let wrong = json!({ "environment_vars": SECRET });
        let refused = client.patch(&format!("/containers/{keeper}"), wrong).await;
        assert_eq!(refused.status, 400);
        let exec = json!({ "command": ["/bin/nope"], "env": { "ONCE": SECRET } });
        client.post(&format!("/containers/{keeper}/exec"), exec).await;
        client.patch(&format!("/containers/{copied}?restart=true"), json!({ "command": ["/bin/nope"] })).await;
        for path in ["", "/env", "/stats", "/logs", "/status-logs", "/exec"] {
            let found = stranger.get(&format!("/containers/{keeper}{path}")).await;
            assert!(matches!(found.status, 404 | 405) && !found.text.contains(SECRET), "{path}: {}", found.text);
        }
        for path in ["/containers/", "/projects/", "/images"] {
            let found = stranger.get(path).await;
            assert!(!found.text.contains(SECRET) && !found.text.contains(&keeper), "{path}: {}", found.text);
        }
        let copied = stranger
            .post(&format!("/containers/{keeper}/copy"), json!({ "name": "mine-now", "target_project_id": other }))
            .await;
        assert_eq!(copied.status, 404, "{}", copied.text);
        for asked in [client.get("/containers/").await, client.get("/containers/?limit=1").await] {
            assert_eq!(asked.status, 200);
        }
        let pid = daemon.pid();
        for file in ["cmdline", "environ"] {
            assert!(!fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap().contains(SECRET), "{file}");
        }
        let (log, token) = (daemon.log(), fs::read_to_string(daemon.data_dir().join("admin.token")).unwrap());
        assert!(!log.contains(SECRET) && !log.contains(token.trim()), "{log}");
        // A token cannot be read back, from the disk either.
        let database = fs::read_dir(daemon.data_dir().join("db"))
            .unwrap()
            .flatten()
            .filter_map(|entry| fs::read(entry.path()).ok());
        let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(database.into_iter().all(|bytes| !holds(&bytes, token.trim())));
    });
}

#[test]
fn nobody_but_root_reads_what_the_daemon_keeps() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("estate").await;
        client.post(&format!("/projects/{project}/containers"), json!({ "name": "tenant" })).await.data(201);
        assert_eq!(mode(&daemon.data_dir()), 0o700);
        for folder in ["db", "bundles", "uploads", "pool", "pool/containers", "pool/images"] {
            assert_eq!(mode(&daemon.data_dir().join(folder)), 0o700, "{folder}");
        }
        // The run folder is passed by containers' inits; what lies there is closed, one by one.
        assert_eq!(mode(daemon.run_dir()), 0o711);
        let mut open = Vec::new();
        readable_by_others(daemon.run_dir(), &mut open);
        assert!(open.is_empty(), "{open:?}");
    });
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Files that others may read in folders that they may pass.
fn readable_by_others(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        let others = meta.mode() & 0o007;
        if meta.is_dir() && others & 0o005 != 0 {
            assert_eq!(others & 0o006, 0, "{} may be listed or written", path.display());
            readable_by_others(&path, found);
        } else if !meta.is_dir() && others != 0 {
            found.push(format!("{} {:o}", path.display(), meta.mode()));
        }
    }
}

#[test]
fn the_daemon_has_given_up_what_it_does_not_need() {
    play(async |daemon| {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        assert_eq!(line("NoNewPrivs:"), "1");
        // SYS_MODULE, SYS_RAWIO, SYS_BOOT, SYS_TIME, AUDIT_CONTROL, MAC_ADMIN, SYSLOG.
        let dangerous: u64 = [16, 17, 22, 25, 30, 33, 34].iter().map(|bit| 1u64 << bit).sum();
        for set in ["CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&line(set), 16).unwrap() & dangerous, 0, "{set}");
        }
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["1", "1"], "{core}");
        // Every thread, not only the first.
        for task in fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten() {
            let status = fs::read_to_string(task.path().join("status")).unwrap();
            let bound = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
            assert_eq!(u64::from_str_radix(bound.trim(), 16).unwrap() & dangerous, 0);
        }
    });
}

/// How long the API may take to answer while somebody is busy with it.
const PATIENCE_S: u32 = 5;

async fn api_answers(client: &crate::support::daemon::Client) {
    let asked = Instant::now();
    assert_eq!(client.get("/projects/").await.status, 200);
    assert!(asked.elapsed() < patience(PATIENCE_S), "it took {:?}", asked.elapsed());
}

#[test]
fn clients_that_send_too_much_or_nothing_keep_nobody_from_being_served() {
    play(async |daemon| {
        let client = daemon.client.clone();
        // Many that say nothing, many that never end their head, each byte in time.
        let mut idle = Vec::new();
        for number in 0..1_200 {
            let mut stream = TcpStream::connect(API).await.unwrap();
            if number % 2 == 0 {
                stream.write_all(b"GET /api/v1/projects/ HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
            }
            idle.push(stream);
        }
        for _ in 0..3 {
            for stream in idle.iter_mut().step_by(2) {
                stream.write_all(b"a").await.unwrap();
            }
            api_answers(&client).await;
        }
        drop(idle);
        // A head without an end; it is cut off at its bound.
        let mut stream = TcpStream::connect(API).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ").await.unwrap();
        let mut sent = 0usize;
        let chunk = vec![b'a'; 64 << 10];
        while sent < 64 << 20 && stream.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        assert!(sent < 16 << 20, "{sent} bytes of one header were taken");
        let mut said = Vec::new();
        let _ = tokio::time::timeout(patience(5), stream.read_to_end(&mut said)).await;
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&said));
        api_answers(&client).await;
        // Headers without number.
        let many = client.request(Method::GET, "/projects/");
        let many = (0..500).fold(many, |request, n| request.header(format!("x-many-{n}"), "1"));
        let many = many.send().await;
        assert!(many.is_err() || many.is_ok_and(|answer| answer.status().is_client_error()));
        // A body above its bound is refused by its length, and one without a length where it passes the bound.
        let token = fs::read_to_string(daemon.data_dir().join("admin.token")).unwrap();
        let authorised = format!("Authorization: Bearer {}\r\n", token.trim());
        // Neither is waited for: who may not, may not, and what is too long will not get shorter.
        for (authorisation, wanted) in [("", "HTTP/1.1 401"), (authorised.as_str(), "HTTP/1.1 413")] {
            let mut stream = TcpStream::connect(API).await.unwrap();
            let head = format!(
                "POST /api/v1/projects/ HTTP/1.1\r\nHost: x\r\n{authorisation}Content-Type: application/json\r\n\
                 Content-Length: 99999999999\r\n\r\n{{"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut first = [0; 12];
            tokio::time::timeout(patience(5), stream.read_exact(&mut first)).await.unwrap().unwrap();
            assert_eq!(String::from_utf8_lossy(&first), wanted);
        }
        api_answers(&client).await;
    });
}

#[test]
fn a_tenants_root_does_not_reach_the_api() {
    attack(async |stage| {
        let tries = "for a in 127.0.0.1 169.254.1.1 203.0.113.2 10.201.0.1; do wget -q -T 1 -O - http://$a:7070/readyz 2>/dev/null && echo $a; done";
        assert_eq!(stage.villain.sh(tries).await, "");
    });
}

/// What systemd itself says of the unit that is shipped.
#[test]
fn systemd_takes_the_unit_and_finds_it_confined() {
    let folder = tempfile::tempdir().unwrap();
    let unit =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/systemd/tenantry.service")).unwrap();
    let path = folder.path().join("tenantry.service");
    // The program does not lie where the unit wants it.
    fs::write(&path, unit.replace("/usr/local/bin/tenantry", env!("CARGO_BIN_EXE_tenantry"))).unwrap();
    let analyze = |words: &[&str]| Command::new("systemd-analyze").args(words).arg(&path).output();
    let verified = match analyze(&["verify", "--man=no"]) {
        Ok(output) => output,
        Err(error) => {
            return skipped("systemd_takes_the_unit_and_finds_it_confined", &format!("systemd-analyze: {error}"));
        }
    };
    let said = String::from_utf8_lossy(&verified.stderr);
    let about: Vec<&str> = said.lines().filter(|line| line.contains("tenantry.service")).collect();
    assert!(verified.status.success() && about.is_empty(), "{said}");
    // Of 10, where 10 is no confinement at all. A runtime of containers needs most of what it is not denied.
    let rated = analyze(&["security", "--offline=true", "--no-pager", "--threshold=70"]).unwrap();
    assert!(rated.status.success(), "{}", String::from_utf8_lossy(&rated.stdout));
}
