//! Images over the API: what an archive says about running it is honoured, and a hostile one leaves nothing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::daemon::{Client, Daemon, Reply, answer, id_of, patience, play};

/// One entry of an archive.
enum Entry {
    Folder,
    File(Vec<u8>),
    Symlink(&'static str),
    Hardlink(&'static str),
}

/// A tar with these entries; names are written as they are, also those that no honest program would write.
fn tar(entries: &[(&str, Entry)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, entry) in entries {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_mode(0o755);
        let (kind, target, data) = match entry {
            Entry::Folder => (tar::EntryType::Directory, None, &[][..]),
            Entry::File(data) => (tar::EntryType::Regular, None, data.as_slice()),
            Entry::Symlink(target) => (tar::EntryType::Symlink, Some(target), &[][..]),
            Entry::Hardlink(target) => (tar::EntryType::Link, Some(target), &[][..]),
        };
        header.set_entry_type(kind);
        if let Some(target) = target {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        archive.append(&header, data).unwrap();
    }
    archive.into_inner().unwrap()
}

fn text(text: &str) -> Entry {
    Entry::File(text.as_bytes().to_vec())
}

/// A root filesystem of busybox with a page and users.
fn rootfs() -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is needed");
    tar(&[
        ("bin", Entry::Folder),
        ("bin/busybox", Entry::File(busybox)),
        ("bin/sh", Entry::Symlink("busybox")),
        ("bin/id", Entry::Hardlink("bin/busybox")),
        ("bin/httpd", Entry::Hardlink("bin/busybox")),
        ("etc/passwd", text("root:x:0:0:root:/:/bin/sh\napp:x:1000:1001:app:/srv/app:/bin/sh\n")),
        ("etc/group", text("root:x:0:\napp:x:1001:\n")),
        ("srv/app/index.html", text("made from an image\n")),
        ("dev", Entry::Folder),
        ("proc", Entry::Folder),
        ("sys", Entry::Folder),
        ("tmp", Entry::Folder),
    ])
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// An OCI image layout in a tar: these layers, and a configuration.
fn layout(layers: &[Vec<u8>], config: Value) -> Vec<u8> {
    let blob = |kind: &str, bytes: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{}", digest(bytes)), "size": bytes.len() });
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", digest(layer))).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": config, "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let config = config.to_string().into_bytes();
    let packed: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": blob("config.v1+json", &config),
        "layers": packed.iter().map(|layer| blob("layer.v1.tar+gzip", layer)).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let index = json!({ "schemaVersion": 2, "manifests": [blob("manifest.v1+json", &manifest)] }).to_string();
    let blobs: Vec<_> = [config, manifest]
        .into_iter()
        .chain(packed)
        .map(|bytes| (format!("blobs/sha256/{}", digest(&bytes)), bytes))
        .collect();
    let mut entries = vec![("oci-layout", text("{\"imageLayoutVersion\":\"1.0.0\"}")), ("index.json", text(&index))];
    entries.extend(blobs.iter().map(|(name, bytes)| (name.as_str(), Entry::File(bytes.clone()))));
    tar(&entries)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

async fn import(client: &Client, name: &str, archive: Vec<u8>) -> Reply {
    answer(client.request(Method::POST, &format!("/images?name={name}")).body(archive)).await
}

async fn run_image(client: &Client, project: &str, image: &str, body: Value) -> Value {
    let mut body = body;
    body["container_image"] = json!(image);
    client.post(&format!("/projects/{project}/containers"), body).await.data(201)
}

#[test]
fn a_root_filesystem_is_imported_and_run_with_a_command() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let before = daemon.objects();
        for (name, archive) in [("plain", rootfs()), ("packed/app:1.2", gzip(&rootfs()))] {
            let image = import(client, name, archive).await.data(201);
            assert_eq!((&image["name"], &image["warnings"]), (&json!(name), &Value::Null));
            let command = json!({ "command": ["httpd", "-f", "-p", "8080", "-h", "/srv/app"] });
            let made = run_image(client, &project, name, command).await;
            assert_eq!(client.page(&made, "/").await.text, "made from an image\n", "{made}");
            assert_eq!(made["container_image"], name);
            // Also by its id; and what a container lives on is not deleted under it.
            let id = id_of(&image);
            let second =
                run_image(client, &project, &id, json!({ "command": ["sh", "-c", "id"], "start": false })).await;
            client.delete(&format!("/images/{id}")).await.refused(409, "IMAGE_IN_USE");
            import(client, name, rootfs()).await.refused(409, "IMAGE_NAME_IN_USE");
            for container in [&made, &second] {
                client.delete(&format!("/containers/{}?wait=erased", id_of(container))).await.data(200);
            }
            client.delete(&format!("/images/{id}")).await.data(200);
            client.delete(&format!("/images/{id}")).await.refused(404, "IMAGE_NOT_FOUND");
        }
        daemon.settles_to(&before);
    });
}

#[test]
fn what_an_oci_image_says_about_running_it_is_honoured() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let config = json!({
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["id; pwd; echo $COLOR $PLAN; exec httpd -f -p $PORT"],
            "Env": ["PATH=/bin", "COLOR=blue", "PLAN=free"],
            "User": "app",
            "WorkingDir": "/srv/app",
            "ExposedPorts": { "8000/tcp": {}, "53/udp": {} },
        });
        let second = tar(&[("srv/app/.wh.index.html", text("")), ("srv/app/page.html", text("the second layer\n"))]);
        let image = import(client, "app", layout(&[rootfs(), second], config)).await.data(201);
        assert_eq!(image["config"]["working_dir"], "/srv/app");
        let made = run_image(client, &project, "app", json!({ "environment_vars": { "PLAN": "pro" } })).await;
        assert_eq!((&made["port"], &made["warnings"]), (&json!(8000), &json!([])), "the port it exposes");
        assert_eq!(client.page(&made, "/page.html").await.text, "the second layer\n");
        assert_eq!(client.page(&made, "/index.html").await.status, 404, "whited out");
        let id = id_of(&made);
        let said = client.get(&format!("/containers/{id}/logs")).await.text;
        assert_eq!(said, "uid=1000(app) gid=1001(app)\n/srv/app\nblue pro\n");
        assert_eq!(client.exec(&id, &["id", "-u"]).await, "1000\n", "a command runs as the image's user too");
        // What the caller says is over what the image says.
        let other = run_image(
            client,
            &project,
            "app",
            json!({ "port": 9000, "command": ["httpd", "-f", "-p", "9000", "-h", "/etc"] }),
        )
        .await;
        assert!(client.page(&other, "/passwd").await.text.contains("app:x:1000"), "{other}");
    });
}

#[test]
fn an_import_is_watched_while_it_goes_on() {
    play(async |daemon| {
        let client = &daemon.client;
        let request = client.request(Method::POST, "/images?name=watched").header("accept", "text/event-stream");
        let stream = answer(request.body(layout(&[rootfs()], json!({ "Cmd": ["sh"] })))).await;
        assert_eq!((stream.status, &stream.headers["content-type"]), (200, &"text/event-stream".parse().unwrap()));
        let last = stream.text.split("\n\n").filter(|event| !event.is_empty()).last().unwrap();
        let data = last.strip_prefix("event: done\ndata: ").unwrap_or_else(|| panic!("{}", stream.text));
        assert_eq!(serde_json::from_str::<Value>(data).unwrap()["data"]["name"], "watched");
        let request = client.request(Method::POST, "/images?name=bad").header("accept", "text/event-stream");
        let refused = answer(request.body("no archive")).await;
        assert!(refused.text.contains("event: error") && refused.text.contains("INVALID_IMAGE"), "{}", refused.text);
    });
}

#[test]
fn a_hostile_or_damaged_archive_is_refused_and_leaves_nothing() {
    play(async |daemon| {
        let client = &daemon.client;
        let before = daemon.objects();
        let outside = daemon.scratch().join("escaped");
        let target: &'static str = Box::leak(daemon.scratch().to_str().unwrap().to_owned().into_boxed_str());
        let escape = format!("../../../../../../..{}", outside.display());
        let good = layout(&[rootfs()], json!({ "Cmd": ["sh"] }));
        let mut changed = good.clone();
        let at = changed.windows(4).rposition(|bytes| bytes == [0x1f, 0x8b, 8, 0]).unwrap() + 2_000;
        changed[at] ^= 0xff;
        let cases = [
            ("climbs out by its name", tar(&[(&escape, text("x"))])),
            ("has dots inside a name", tar(&[("a/../../escaped", text("x"))])),
            ("writes through a link", tar(&[("out", Entry::Symlink(target)), ("out/escaped", text("x"))])),
            ("links hard to the host", tar(&[("passwd", Entry::Hardlink("../../../../../../../../etc/passwd"))])),
            ("is no archive", b"this is no archive, though it is long enough to be one".repeat(40)),
            ("is cut off", good[..good.len() / 2].to_vec()),
            ("is cut off in its compression", gzip(&rootfs())[..10_000].to_vec()),
            ("is not what its digest says", changed),
            ("names a layer that is not there", tar(&[("oci-layout", text("{\"imageLayoutVersion\":\"1.0.0\"}")), ("index.json", text(&json!({ "schemaVersion": 2, "manifests": [{ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", "0".repeat(64)), "size": 7 }] }).to_string()))])),
            ("asks for a user that it has not", layout(&[rootfs()], json!({ "User": "nobody-here", "Cmd": ["sh"] }))),
        ];
        for (n, (what, archive)) in cases.into_iter().enumerate() {
            let reply = import(client, &format!("bad-{n}"), archive).await;
            assert_eq!((reply.status, &reply.json["error"]), (422, &json!("INVALID_IMAGE")), "{what}: {}", reply.text);
            assert!(!outside.exists(), "{what}");
        }
        for (query, body, code) in [
            ("", vec![1], "INVALID_PARAMETER"),
            ("?name=", vec![1], "INVALID_PARAMETER"),
            ("?name=../x", vec![1], "INVALID_PARAMETER"),
            ("?name=x", vec![], "EMPTY_BODY"),
            ("?name=x&tag=1", vec![1], "UNKNOWN_PARAMETER"),
        ] {
            answer(client.request(Method::POST, &format!("/images{query}")).body(body)).await.refused(400, code);
        }
        client
            .post("/images?name=x", json!({ "reference": "registry/app" }))
            .await
            .refused(400, "INVALID_CONTENT_TYPE");
        assert_eq!(client.get("/images").await.data(200)["pagination"]["total"], 1, "the built-in one");
        daemon.settles_to(&before);
    });
}

/// The example app as an OCI layout; built once, by its own script.
fn notes() -> &'static Path {
    static NOTES: OnceLock<PathBuf> = OnceLock::new();
    NOTES.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/notes");
        let built = Command::new(folder.join("build")).output().unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        folder.join("target/notes-oci.tar")
    })
}

async fn add_note(client: &Client, app: &Value, text: String) -> i64 {
    let url = format!("{}/notes", app["url"].as_str().unwrap());
    let reply = answer(client.open(Method::POST, &url).json(&json!({ "text": text }))).await;
    assert_eq!(reply.status, 201, "{}", reply.text);
    reply.json["id"].as_i64().unwrap()
}

/// Notes are written to the app until `done`; the highest id that was answered.
async fn write_notes(client: &Client, app: &Value, acknowledged: &std::cell::Cell<i64>, done: &std::cell::Cell<bool>) {
    while !done.get() {
        let id = add_note(client, app, "x".repeat(1_500)).await;
        acknowledged.set(acknowledged.get().max(id));
    }
}

async fn newest_note(client: &Client, app: &Value) -> i64 {
    let notes = client.page(app, "/notes").await;
    assert_eq!(notes.status, 200, "{}", notes.text);
    notes.json["notes"][0]["id"].as_i64().unwrap()
}

/// The log of a container whose command has ended, or ends soon.
async fn log_of_ended(client: &Client, id: &str) -> String {
    let deadline = Instant::now() + patience(10);
    while client.container(id).await["status"] != "stopped" {
        assert!(Instant::now() < deadline, "{}", client.container(id).await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.get(&format!("/containers/{id}/logs")).await.text
}

#[test]
fn a_copy_of_an_app_that_writes_sqlite_all_the_time_has_a_whole_database() {
    const ROUNDS: usize = 8;
    let archive = std::fs::read(notes()).unwrap();
    play(async |daemon: &mut Daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        import(client, "notes", archive).await.data(201);
        let app = run_image(client, &project, "notes", json!({ "template": true })).await;
        assert_eq!(app["warnings"], json!([]));
        let (acknowledged, done) =
            (std::cell::Cell::new(add_note(client, &app, "first".into()).await), std::cell::Cell::new(false));
        let writers = join_all((0..4).map(|_| write_notes(client, &app, &acknowledged, &done)));
        let copies = async {
            let path = format!("/containers/{}/copy", id_of(&app));
            for round in 0..ROUNDS {
                // Its first process is the check: nothing else has opened the file before.
                let written = acknowledged.get();
                let check = json!({ "command": ["/app/notes", "check"] });
                let checked = client.post(&format!("{path}?wait=started"), check).await.data(201);
                let copy = client.post(&path, json!({})).await.data(201);
                assert!(newest_note(client, &copy).await >= written, "what was answered before the copy is in it");
                let found = client.exec(&id_of(&copy), &["/app/notes", "check"]).await;
                assert!(found.starts_with("ok"), "round {round}: {found}");
                let log = log_of_ended(client, &id_of(&checked)).await;
                assert!(log.contains("ok, "), "round {round}: {log}");
                assert!(acknowledged.get() > written, "nothing was written meanwhile");
                for container in [&copy, &checked] {
                    client.delete(&format!("/containers/{}", id_of(container))).await.data(200);
                }
            }
            done.set(true);
        };
        join(writers, copies).await;
        assert!(acknowledged.get() > 50, "{} notes", acknowledged.get());
        let own = newest_note(client, &app).await;
        assert!(own >= acknowledged.get());
    });
}
