//! Tokens as their users meet them: rotation, who wrote what, the socket for scripts, and one container a key whatever happens to
//! the daemon in between.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon, Reply, answer, id_of, patience, play};

/// Copies that are asked for at once while the daemon is killed.
const COPIES: usize = 12;

async fn token(client: &Client, body: Value) -> (String, Client) {
    let made = client.post("/auth/tokens", body).await.data(201);
    (id_of(&made), client.with_token(made["token"].as_str().unwrap()))
}

#[test]
fn a_provisioner_runs_a_signup_from_template_to_goodbye_and_touches_nothing_else() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("shop").await;
        let template = client.create_template(&project, "shop-app").await;
        let foreign =
            client.post(&format!("/projects/{project}/containers"), json!({ "start": false })).await.data(201);
        let body = json!({ "alias": "signup", "permission_template": "provisioner", "templates": ["shop-app"],
                           "project_id": project });
        let (_, signup) = token(client, body).await;
        let made = signup.copy(&id_of(&template), json!({ "external_id": "cus_1" })).await;
        assert_eq!(signup.page(&made, "/").await.status, 200);
        let path = format!("/containers/{}", id_of(&made));
        signup.patch(&path, json!({ "environment_vars": { "PLAN": "pro" } })).await.data(200);
        for (method, path) in [
            (Method::DELETE, format!("/containers/{}", id_of(&foreign))),
            (Method::PATCH, format!("/containers/{}", id_of(&template))),
            (Method::POST, format!("/containers/{}/stop", id_of(&template))),
            (Method::POST, format!("/containers/{}/copy", id_of(&foreign))),
            (Method::POST, format!("/projects/{project}/containers")),
            (Method::POST, "/auth/tokens".to_owned()),
        ] {
            let reply = answer(signup.request(method, &path).json(&json!({}))).await;
            reply.refused(403, "INSUFFICIENT_PERMISSIONS");
        }
        signup.delete(&path).await.data(200);

        let notes = client.get("/events?type=audit.*&limit=100").await.data(200);
        let notes = notes["events"].as_array().unwrap();
        let of_signup = notes.iter().filter(|note| note["audit"]["token_alias"] == "signup");
        let told: Vec<_> = of_signup.map(|note| note["audit"]["status"].as_u64().unwrap()).collect();
        assert_eq!(told, [201, 200, 403, 403, 403, 403, 403, 403, 200]);
        assert!(notes.iter().all(|note| note["audit"]["client"] == "127.0.0.1"), "{notes:?}");
    });
}

#[test]
fn a_rotation_gives_time_to_change_and_the_admins_file_follows_it() {
    play(async |daemon| {
        let (id, old) = token(&daemon.client, json!({ "alias": "ci" })).await;
        let rotate = format!("/auth/tokens/{id}/rotate");
        let rotated = daemon.client.post(&rotate, json!({ "grace": 2 })).await.data(200);
        let new = daemon.client.with_token(rotated["token"].as_str().unwrap());
        old.get("/projects/").await.data(200);
        new.get("/projects/").await.data(200);
        tokio::time::sleep(Duration::from_millis(2_100)).await;
        old.get("/projects/").await.refused(401, "INVALID_TOKEN");
        new.get("/projects/").await.data(200);

        let tokens = daemon.client.get("/auth/tokens").await.data(200);
        let one = |alias: &str| {
            tokens["tokens"].as_array().unwrap().iter().find(|one| one["alias"] == alias).unwrap().clone()
        };
        let used = one("ci")["last_used_at"].clone();
        assert!(used.is_string());
        let file = daemon.data_dir().join("admin.token");
        let before = fs::read_to_string(&file).unwrap();
        let rotated =
            daemon.client.post(&format!("/auth/tokens/{}/rotate", id_of(&one("admin"))), json!({})).await.data(200);
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), rotated["token"].as_str().unwrap());
        daemon.client.get("/projects/").await.refused(401, "INVALID_TOKEN");
        daemon.stop();
        daemon.restart().await;
        assert_ne!(fs::read_to_string(&file).unwrap(), before);
        let tokens = daemon.client.get("/auth/tokens").await.data(200);
        let again = tokens["tokens"].as_array().unwrap().iter().find(|one| one["alias"] == "ci").unwrap().clone();
        assert_eq!(again["last_used_at"], used, "written at the end");
        new.get("/projects/").await.data(200);
    });
}

/// The status with which the socket for scripts answers a GET.
fn over_the_socket(daemon: &Daemon, path: &str, secret: &str) -> String {
    let mut stream = UnixStream::connect(daemon.run_dir().join("scripts/api.sock")).unwrap();
    stream.set_read_timeout(Some(patience(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: api\r\nauthorization: Bearer {secret}\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.lines().next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned()
}

#[test]
fn the_socket_for_scripts_is_roots_to_give_and_takes_no_token() {
    play(async |daemon| {
        let socket = daemon.run_dir().join("scripts/api.sock");
        let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&socket), mode(socket.parent().unwrap())), (0o666, 0o700));
        let secret = fs::read_to_string(daemon.data_dir().join("admin.token")).unwrap();
        for path in ["/api/v1/containers", "/api/v1/auth/tokens"] {
            assert_eq!(over_the_socket(daemon, path, secret.trim()), "401");
        }
        for path in ["/metrics", "/healthz"] {
            assert_eq!(over_the_socket(daemon, path, secret.trim()), "404");
        }
        daemon.kill9();
        daemon.restart().await;
        assert_eq!(
            over_the_socket(daemon, "/api/v1/containers", secret.trim()),
            "401",
            "the one that was left made room"
        );
        daemon.stop();
        assert!(!socket.exists());
        daemon.restart().await;
    });
}

/// Asks for one copy under a key of its own; nothing where the daemon is gone.
async fn copy(client: &Client, template: &str, n: usize) -> Option<Reply> {
    let request = client.request(Method::POST, &format!("/containers/{template}/copy"));
    let body = json!({ "external_id": format!("cus_{n}") });
    let response = request.header("idempotency-key", format!("evt_{n}")).json(&body).send().await.ok()?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.ok()?;
    Some(Reply { status, headers, json: serde_json::from_str(&text).unwrap_or_default(), text })
}

#[test]
fn each_key_makes_one_container_though_the_daemon_is_killed_at_any_moment() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let project = client.create_project("shop").await;
        let template = id_of(&client.create_template(&project, "shop-app").await);
        for (round, after_ms) in [15, 40, 90, 160].into_iter().enumerate() {
            let keys = round * COPIES..(round + 1) * COPIES;
            let asked: Vec<_> = keys
                .clone()
                .map(|n| {
                    let (client, template) = (client.clone(), template.clone());
                    tokio::spawn(async move { copy(&client, &template, n).await })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            daemon.kill9();
            for one in asked {
                drop(one.await.unwrap());
            }
            daemon.restart().await;
            for n in keys {
                let made = copy(&daemon.client, &template, n).await.unwrap().data(201);
                let again = copy(&daemon.client, &template, n).await.unwrap();
                assert_eq!(again.headers["idempotent-replayed"], "true");
                assert_eq!(again.data(201)["id"], made["id"]);
            }
            assert_eq!(daemon.client.containers_total().await, ((round + 1) * COPIES + 1) as u64);
        }
    });
}
