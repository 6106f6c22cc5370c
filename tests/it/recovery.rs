//! A daemon that comes after one that was killed, on the real kernel: tenants go on without it and are taken over, what was
//! half done is finished or undone, nothing leaks and nothing that was answered is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::Rng;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::container::remove_group;
use crate::support::daemon::{Client, Daemon, answer, id_of, patience, play};
use crate::support::net::{ip, nft};

/// Longer than the store keeps a change that it need not flush at once.
const FLUSHED: Duration = Duration::from_millis(400);
/// Rounds of the storm, and tasks in each.
const ROUNDS: u32 = 20;
const TASKS: usize = 8;

async fn settle() {
    tokio::time::sleep(FLUSHED).await;
}

/// A container's processes as the kernel has them.
fn processes(daemon: &Daemon, id: &str) -> BTreeSet<i32> {
    let text = daemon.cgroup_file(id, "cgroup.procs").unwrap_or_default();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

fn init_of(daemon: &Daemon, id: &str) -> i32 {
    let text = fs::read(daemon.run_dir().join("containers").join(id).join("init.json")).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["pid"].as_i64().unwrap() as i32
}

fn kill_process(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// The page of a tenant by its address: no daemon is asked.
async fn page_by_address(container: &Value) -> String {
    let address = container["ip"].as_str().unwrap();
    let http = reqwest::Client::builder().timeout(patience(5)).build().unwrap();
    answer(http.get(format!("http://{address}:8080/"))).await.text
}

async fn assert_serves(client: &Client, container: &Value) {
    let page = client.page(container, "/").await;
    assert!(page.status == 200 && page.text.contains("This sandbox runs."), "{}: {container}", page.text);
}

/// Waits until the API says so of a container.
async fn until(client: &Client, id: &str, status: &str) -> Value {
    let deadline = Instant::now() + patience(15);
    loop {
        let container = client.container(id).await;
        if container["status"] == status {
            return container;
        }
        assert!(Instant::now() < deadline, "it is not {status}: {container}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn verb(client: &Client, id: &str, verb: &str) {
    client.verb(id, verb).await.data(200);
}

async fn list(client: &Client) -> Vec<Value> {
    let list = client.get("/containers/?include_deleting=true&limit=100").await.data(200);
    list["containers"].as_array().unwrap().clone()
}

/// Deletes everything and waits until the filesystem has dropped it.
async fn delete_all(client: &Client) {
    let all = list(client).await;
    let paths: Vec<_> = all.iter().map(|one| format!("/containers/{}?wait=erased", id_of(one))).collect();
    for reply in join_all(paths.iter().map(|path| client.delete(path))).await {
        assert_eq!(reply.data(200)["state"], "complete");
    }
}

async fn copies(client: &Client, source: &str, names: &[&str]) -> BTreeMap<String, Value> {
    let copies = names.iter().map(|name| client.copy(source, json!({ "name": name })));
    names.iter().map(|name| (*name).to_owned()).zip(join_all(copies).await).collect()
}

#[test]
fn containers_serve_without_a_daemon_and_the_next_one_takes_them_over() {
    const NAMES: [&str; 10] = ["c-0", "c-1", "c-2", "c-3", "c-4", "c-5", "c-6", "c-7", "c-8", "c-9"];
    play(async |daemon| {
        let before = daemon.objects();
        let client = daemon.client.clone();
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        verb(&client, &template, "stop").await;
        copies(&client, &template, &NAMES).await;
        let changed = id_of(&list(&client).await[1]);
        client
            .patch(&format!("/containers/{changed}"), json!({ "environment_vars": { "PLAN": "pro" } }))
            .await
            .data(200);
        settle().await;
        let ten: Vec<Value> = list(&client).await.into_iter().filter(|one| id_of(one) != template).collect();
        // A server forks as it likes; its init is one.
        let inits = |daemon: &Daemon| {
            let init = |one: &Value| init_of(daemon, &id_of(one));
            assert!(ten.iter().all(|one| processes(daemon, &id_of(one)).contains(&init(one))));
            ten.iter().map(init).collect::<Vec<_>>()
        };
        let inits_before = inits(daemon);
        assert_eq!(ten.len(), 10);

        daemon.kill9();
        for page in join_all(ten.iter().map(page_by_address)).await {
            assert!(page.contains("This sandbox runs."), "{page}");
        }
        daemon.restart().await;

        assert_eq!(inits(daemon), inits_before);
        for old in &ten {
            let new = client.container(&id_of(old)).await;
            for field in ["status", "started_at", "desired", "env_sync", "url", "ip", "environment_vars"] {
                assert_eq!(new[field], old[field], "{field}");
            }
            assert_serves(&client, &new).await;
            assert_eq!(client.exec(&id_of(old), &["hostname"]).await.trim(), old["name"].as_str().unwrap());
        }
        assert_eq!(client.container(&changed).await["env_sync"]["pending"], true);
        assert_eq!(client.container(&template).await["status"], "stopped");

        let dies = id_of(ten.iter().find(|one| id_of(one) != changed).unwrap());
        kill_process(init_of(daemon, &dies));
        let dead = until(&client, &dies, "stopped").await;
        assert!(dead["status_reason"].is_string(), "{dead}");
        verb(&client, &changed, "restart").await;
        assert_eq!(client.container(&changed).await["env_sync"]["pending"], false);
        for id in ten.iter().map(id_of).filter(|id| *id != dies) {
            verb(&client, &id, "stop").await;
            assert_eq!(client.container(&id).await["status"], "stopped");
        }
        assert_eq!(daemon.processes(), []);
        delete_all(&client).await;
        daemon.settles_to(&before);
    });
}

#[test]
fn what_was_under_way_when_the_daemon_was_killed_is_brought_to_its_end() {
    /// An init that lets SIGTERM pass.
    const DEAF: [&str; 3] = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"];
    play(async |daemon| {
        let before = daemon.objects();
        let client = daemon.client.clone();
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let made = copies(&client, &template, &["paused", "resumed", "thawed", "died", "doomed"]).await;
        let id = |name: &str| id_of(&made[name]);
        let path = format!("/projects/{project}/containers?wait=started");
        let deaf = id_of(&client.post(&path, json!({ "name": "deaf", "command": DEAF })).await.data(201));
        verb(&client, &id("resumed"), "pause").await;
        verb(&client, &id("resumed"), "resume").await;
        settle().await;
        let stopper = client.clone();
        let stopping = format!("/containers/{deaf}/stop?timeout=60");
        let stopping = tokio::spawn(async move { stopper.request(Method::POST, &stopping).send().await });
        let pin = daemon.data_dir().join("pool/containers").join(id("doomed")).join("logs");
        hold(&pin);
        let refused = client.delete(&format!("/containers/{}", id("doomed"))).await;
        assert_eq!(refused.status, 500, "{}", refused.text);
        settle().await;
        // Answered a moment before the end: it must not be lost, nor be half.
        verb(&client, &id("paused"), "pause").await;
        daemon.kill9();
        let _cut_off = stopping.await.unwrap();
        release(&pin);
        kill_process(init_of(daemon, &id("died")));
        // As a daemon that was killed between the freezer and the record would leave it.
        freeze(daemon, &id("thawed"));
        daemon.restart().await;

        assert_eq!(client.container(&id("paused")).await["status"], "paused");
        verb(&client, &id("paused"), "resume").await;
        for name in ["paused", "resumed", "thawed", "died"] {
            let container = until(&client, &id(name), "running").await;
            wait_ready(&client, &container).await;
        }
        until(&client, &deaf, "stopped").await;
        let receipt = client.delete(&format!("/containers/{}?wait=erased", id("doomed"))).await.data(200);
        assert_eq!(receipt["state"], "complete");
        let gone = client.get(&format!("/containers/{}", id("doomed"))).await;
        assert_eq!(gone.status, 404, "{}", gone.text);
        client.copy(&template, json!({ "name": "doomed" })).await;
        delete_all(&client).await;
        daemon.settles_to(&before);
    });
}

#[test]
fn an_answer_holds_though_the_daemon_is_killed_the_moment_after() {
    play(async |daemon| {
        let before = daemon.objects();
        let client = daemon.client.clone();
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let one = id_of(&client.copy(&template, json!({ "name": "one" })).await);
        crash(daemon).await;
        assert_serves(&client, &client.container(&one).await).await;
        for (name, status) in [("pause", "paused"), ("resume", "running"), ("stop", "stopped"), ("start", "running")] {
            verb(&client, &one, name).await;
            crash(daemon).await;
            let container = client.container(&one).await;
            assert_eq!(container["status"], status, "after {name}: {container}");
            let desired = if name == "stop" { "stopped" } else { "running" };
            assert_eq!(container["desired"], desired, "after {name}: {container}");
        }
        wait_ready(&client, &client.container(&one).await).await;
        let changes = json!({ "environment_vars": { "PLAN": "pro" }, "comment": "kept" });
        client.patch(&format!("/containers/{one}"), changes).await.data(200);
        crash(daemon).await;
        let container = client.container(&one).await;
        assert_eq!((&container["environment_vars"]["PLAN"], &container["comment"]), (&json!("pro"), &json!("kept")));
        assert_eq!(container["env_sync"]["pending"], true);
        let asleep = id_of(&client.copy(&template, json!({ "name": "asleep", "start": false })).await);
        crash(daemon).await;
        assert_eq!(client.container(&asleep).await["status"], "stopped");
        let deleted = client.delete(&format!("/containers/{one}")).await.data(200);
        crash(daemon).await;
        gone(&client, &format!("/containers/{one}")).await;
        completed(daemon, deleted["receipt_id"].as_str().unwrap()).await;
        delete_all(&client).await;
        daemon.settles_to(&before);
    });
}

async fn crash(daemon: &mut Daemon) {
    daemon.kill9();
    daemon.restart().await;
}

async fn wait_ready(client: &Client, container: &Value) {
    let deadline = Instant::now() + patience(10);
    while client.page(container, "/").await.status != 200 {
        assert!(Instant::now() < deadline, "it does not answer: {container}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Keeps a folder from being removed.
fn hold(dir: &Path) {
    mount(None::<&str>, dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn release(dir: &Path) {
    umount2(dir, MntFlags::MNT_DETACH).unwrap();
}

fn freeze(daemon: &Daemon, id: &str) {
    let files = [("cgroup.freeze", "1"), ("freezer.state", "FROZEN")];
    let groups = daemon.cgroup_parents().into_iter().map(|parent| parent.join(id));
    let file =
        groups.flat_map(|group| files.map(|(name, word)| (group.join(name), word))).find(|(path, _)| path.exists());
    // On a hybrid host both may be there; the one with the controllers is v1's.
    let v1 = daemon.cgroup_parents().into_iter().map(|parent| parent.join(id).join("freezer.state"));
    let (path, word) = v1.map(|path| (path, "FROZEN")).find(|(path, _)| path.exists()).or(file).unwrap();
    fs::write(path, word).unwrap();
}

#[test]
fn an_erasure_that_fails_is_tried_again_without_being_asked_and_so_is_a_projects() {
    play(async |daemon| {
        let before = daemon.objects();
        let client = daemon.client.clone();
        let (acme, other) = (client.create_project("acme").await, client.create_project("other").await);
        let template = id_of(&client.create_template(&acme, "crm").await);
        let a = client.copy(&template, json!({ "name": "one" })).await;
        let b = client.copy(&template, json!({ "name": "two", "target_project_id": other })).await;
        let pins = [&a, &b].map(|one| daemon.data_dir().join("pool/containers").join(id_of(one)).join("logs"));
        pins.iter().for_each(|pin| hold(pin));
        assert_eq!(client.delete(&format!("/containers/{}", id_of(&a))).await.status, 500);
        assert_eq!(client.delete(&format!("/projects/{other}")).await.status, 500);
        release(&pins[0]);
        gone(&client, &format!("/containers/{}", id_of(&a))).await;
        daemon.kill9();
        release(&pins[1]);
        daemon.restart().await;
        gone(&client, &format!("/containers/{}", id_of(&b))).await;
        gone(&client, &format!("/projects/{other}")).await;
        delete_all(&client).await;
        daemon.settles_to(&before);
    });
}

async fn gone(client: &Client, path: &str) {
    let deadline = Instant::now() + patience(15);
    while client.get(path).await.status != 404 {
        assert!(Instant::now() < deadline, "{path} is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn after_a_reboot_what_should_run_runs_and_what_was_stopped_stays_so() {
    play(async |daemon| {
        let before = daemon.objects();
        let client = daemon.client.clone();
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let made = copies(&client, &template, &["runs", "stopped"]).await;
        let by_hand = client.copy(&template, json!({ "name": "by-hand", "autostart": false })).await;
        verb(&client, &id_of(&made["stopped"]), "stop").await;
        client.send_page(&made["runs"], "/cgi-bin/notes", "kept").await;
        settle().await;
        reboot(daemon);
        daemon.restart().await;
        let runs = until(&client, &id_of(&made["runs"]), "running").await;
        wait_ready(&client, &runs).await;
        assert_eq!(client.page(&runs, "/cgi-bin/notes").await.text, "kept\n");
        until(&client, &template, "running").await;
        for one in [&made["stopped"], &by_hand] {
            assert_eq!(client.container(&id_of(one)).await["status"], "stopped");
        }
        verb(&client, &id_of(&by_hand), "start").await;
        delete_all(&client).await;
        daemon.settles_to(&before);
    });
}

/// Takes away what a reboot takes away.
fn reboot(daemon: &mut Daemon) {
    daemon.kill9();
    for parent in daemon.cgroup_parents() {
        let groups = fs::read_dir(&parent).unwrap().flatten().map(|entry| entry.path());
        groups.filter(|path| path.is_dir()).for_each(|group| remove_group(&group));
        remove_group(&parent);
    }
    // Out of their groups they may still be ending.
    let deadline = Instant::now() + patience(5);
    while !daemon.processes().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", daemon.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    for line in ip("-o link show").lines() {
        let name = line.split([':', '@']).nth(1).unwrap().trim();
        if name.starts_with(&format!("{}-", daemon.instance)) {
            // With its namespace the kernel may have taken it already.
            let _ = std::process::Command::new("ip").args(["link", "delete", name]).output().unwrap();
        }
    }
    nft(&format!("delete table inet {}", daemon.instance));
    umount2(&daemon.data_dir().join("pool"), MntFlags::empty()).unwrap();
    fs::remove_dir_all(daemon.run_dir()).unwrap();
}

#[test]
fn a_torn_journal_and_a_store_older_than_the_pool_lose_nothing() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        settle().await;
        daemon.kill9();
        let journal = daemon.run_dir().join("journal");
        let mut text = fs::read(&journal).unwrap();
        text.extend_from_slice(b"{\"entry\":\"begin\",\"id\":\"0123\xff");
        fs::write(&journal, text).unwrap();
        let (db, old) = (daemon.data_dir().join("db"), daemon.scratch().join("old-db"));
        copy_folder(&db, &old);
        let init = init_of(daemon, &template);
        daemon.restart().await;
        assert!(processes(daemon, &template).contains(&init));

        let unknown = client.copy(&template, json!({ "name": "unknown" })).await;
        client.send_page(&unknown, "/cgi-bin/notes", "precious").await;
        settle().await;
        daemon.kill9();
        fs::remove_dir_all(&db).unwrap();
        fs::rename(&old, &db).unwrap();
        daemon.restart().await;
        let id = id_of(&unknown);
        assert_eq!(client.get(&format!("/containers/{id}")).await.status, 404);
        assert_eq!(processes(daemon, &id), BTreeSet::new());
        assert!(processes(daemon, &template).contains(&init));
        let data: Vec<_> = daemon.objects().into_iter().filter(|line| line.contains(&id)).collect();
        assert!(data.iter().any(|line| line.starts_with("subvolume")), "its data is gone: {data:?}");
        assert!(data.iter().all(|line| !line.starts_with("cgroup") && !line.contains("/run/")), "{data:?}");
        let log = daemon.log();
        let told = log.lines().any(|line| line.contains(&id) && line.contains("left alone"));
        assert!(told, "nobody is told of the data of {id}");
    });
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn one_containers_missing_policy_keeps_no_other_from_being_served() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let policies = daemon.scratch().join("policies");
        fs::create_dir_all(&policies).unwrap();
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/web.toml"), policies.join("own.toml")).unwrap();
        daemon.stop();
        daemon.restart().await;
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let fine = client.copy(&template, json!({ "name": "fine" })).await;
        let odd = client.copy(&template, json!({ "name": "odd", "firewall_policy": "own" })).await;
        daemon.kill9();
        fs::remove_dir_all(&policies).unwrap();
        daemon.restart().await;
        assert_serves(&client, &fine).await;
        assert_ne!(client.page(&odd, "/").await.status, 200, "no policy means deny");
        let odd = id_of(&odd);
        assert_eq!(client.container(&odd).await["status"], "running");
        verb(&client, &odd, "stop").await;
        let refused = client.verb(&odd, "start").await;
        assert!(refused.status >= 400 && refused.text.contains("own"), "{}", refused.text);
        assert_eq!(client.container(&odd).await["status"], "stopped");
        let patched = client.patch(&format!("/containers/{odd}"), json!({ "firewall_policy": "web" })).await;
        patched.data(200);
        verb(&client, &odd, "start").await;
    });
}

#[test]
fn a_daemon_that_is_asked_to_end_ends_its_verbs_and_leaves_containers_and_their_pool_alone() {
    play(async |daemon| {
        let before = daemon.objects();
        let client = daemon.client.clone();
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let path = format!("/containers/{template}/copy?wait=none");
        let requests: Vec<_> = (0..TASKS).map(|n| client.post_to(&path, n)).collect();
        let accepted: Vec<String> = join_all(requests).await.into_iter().flatten().collect();
        assert_eq!(accepted.len(), TASKS);
        let status = daemon.stop();
        assert!(status.success(), "{status}");
        // All that was accepted was made before the daemon ended, and runs on.
        for id in accepted.iter().chain([&template]) {
            assert!(!processes(daemon, id).is_empty(), "{id} does not run");
        }
        assert!(is_mounted(daemon));
        daemon.restart().await;
        for id in &accepted {
            let container = client.container(id).await;
            assert_eq!(container["status"], "running", "{container}");
            wait_ready(&client, &container).await;
        }
        // In the middle of verbs of every kind, whose callers wait.
        let under_way = join_all(accepted.iter().enumerate().map(|(n, id)| {
            let verb = ["stop", "restart", "pause", "force-stop"][n % 4];
            client.request(Method::POST, &format!("/containers/{id}/{verb}")).send()
        }));
        let under_way = tokio::spawn(under_way);
        tokio::time::sleep(Duration::from_millis(15)).await;
        let status = daemon.stop();
        assert!(status.success(), "{status}");
        drop(under_way.await.unwrap());
        daemon.restart().await;
        for one in list(&client).await {
            let status = one["status"].as_str().unwrap();
            assert!(["running", "stopped", "paused"].contains(&status), "{one}");
            if status != "stopped" {
                verb(&client, &id_of(&one), "force-stop").await;
            }
        }
        let status = daemon.stop();
        assert!(status.success(), "{status}");
        assert!(!is_mounted(daemon), "no container runs");
        daemon.restart().await;
        delete_all(&client).await;
        daemon.settles_to(&before);
    });
}

fn is_mounted(daemon: &Daemon) -> bool {
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    device(&daemon.data_dir().join("pool")) != device(&daemon.data_dir())
}

impl Client {
    /// A copy of a name of its own; its id, where the answer came.
    async fn post_to(&self, path: &str, n: usize) -> Option<String> {
        let request = self.request(Method::POST, path).json(&json!({ "name": format!("copy-{n}") }));
        let reply = ask(request).await?;
        (reply.0 == 201).then(|| id_of(&reply.1["data"]))
    }
}

/// Status and body; `None` where the daemon was killed meanwhile.
async fn ask(request: reqwest::RequestBuilder) -> Option<(u16, Value)> {
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    let text = response.text().await.ok()?;
    Some((status, serde_json::from_str(&text).unwrap_or_default()))
}

/// What a task of the storm was told, which no crash may take back.
#[derive(Debug, Default, Clone)]
struct Told {
    /// Its container, and whether its last verb was a stop; `None` where an answer to a change is still out.
    there: Option<(String, Option<bool>)>,
    /// Deleted, by container, with their receipts.
    gone: Vec<(String, String)>,
}

/// Creates, copies, stops, starts and deletes until the daemon is killed.
async fn storm(client: Client, project: String, template: String, n: usize, mut told: Told) -> Told {
    loop {
        let Some((id, _)) = told.there.clone() else {
            let body = json!({ "name": format!("storm-{n}") });
            let path = match rand::rng().random_range(0..3) {
                0 => format!("/projects/{project}/containers"),
                _ => format!("/containers/{template}/copy"),
            };
            match ask(client.request(Method::POST, &path).json(&body)).await {
                Some((201, json)) => told.there = Some((id_of(&json["data"]), Some(false))),
                Some((409, json)) if json["error"] == "CONTAINER_NAME_IN_USE" => panic!("{json}"),
                Some((503, _)) | None => return told,
                Some(other) => panic!("{other:?}"),
            }
            continue;
        };
        let choice = rand::rng().random_range(0..4);
        if choice == 0 {
            let request = client.request(Method::DELETE, &format!("/containers/{id}"));
            told.there = Some((id.clone(), None));
            match ask(request).await {
                Some((200, json)) => {
                    told.gone.push((id, json["data"]["receipt_id"].as_str().unwrap().to_owned()));
                    told.there = None;
                }
                Some((503, _)) | None => return told,
                Some(other) => panic!("{other:?}"),
            }
            continue;
        }
        let verb = ["stop", "start", "restart"][choice - 1];
        told.there = Some((id.clone(), None));
        match ask(client.request(Method::POST, &format!("/containers/{id}/{verb}?wait=started"))).await {
            Some((200, _)) => told.there = Some((id, Some(verb == "stop"))),
            // It is not in the state for that.
            Some((400, _)) => {}
            Some((503, _)) | None => return told,
            Some(other) => panic!("{other:?}"),
        }
    }
}

#[test]
fn whenever_the_daemon_is_killed_nothing_answered_is_lost_and_nothing_leaks() {
    play(async |daemon| {
        let before = daemon.objects();
        let client = daemon.client.clone();
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let mut told = vec![Told::default(); TASKS];
        for round in 0..ROUNDS {
            let storms = told
                .drain(..)
                .enumerate()
                .map(|(n, told)| tokio::spawn(storm(client.clone(), project.clone(), template.clone(), n, told)));
            let storms: Vec<_> = storms.collect();
            let delay =
                Duration::from_millis(u64::from(20 + round * 17)) + Duration::from_micros(rand::random_range(0..9_000));
            tokio::time::sleep(delay).await;
            daemon.kill9();
            for storm in storms {
                told.push(storm.await.unwrap());
            }
            daemon.restart().await;
            check(daemon, &client, &template, &mut told).await;
        }
        delete_all(&client).await;
        daemon.settles_to(&before);
    });
}

/// What must hold after each crash; containers whose create was never answered are given to the tasks whose name they have.
async fn check(daemon: &Daemon, client: &Client, template: &str, told: &mut [Told]) {
    settled(daemon, client).await;
    let there: BTreeMap<String, Value> = list(client).await.into_iter().map(|one| (id_of(&one), one)).collect();
    for (n, told) in told.iter_mut().enumerate() {
        for (id, receipt) in told.gone.drain(..) {
            assert!(!there.contains_key(&id), "{id} was deleted");
            completed(daemon, &receipt).await;
        }
        match told.there.take() {
            Some((id, Some(stopped))) => {
                let container = there.get(&id).unwrap_or_else(|| panic!("{id} is lost"));
                assert_eq!(container["status"], if stopped { "stopped" } else { "running" }, "{container}");
            }
            // The task was in the middle of something: a DELETE may have gone through.
            Some((id, None)) => assert!(there.get(&id).is_none_or(|one| one["status"] != "failed")),
            None => {}
        }
        let name = format!("storm-{n}");
        let mine = there.iter().find(|(_, one)| one["name"] == *name);
        told.there = mine.map(|(id, one)| (id.clone(), Some(one["status"] == "stopped")));
    }
    for container in there.values().filter(|one| one["status"] == "running") {
        wait_ready(client, container).await;
    }
    assert!(there.contains_key(template));
    for line in daemon.objects() {
        let owner =
            line.split(['/', '-', ' ']).find(|word| word.len() == 24 && word.bytes().all(|b| b.is_ascii_hexdigit()));
        let is_image = line.contains("pool/images") || line.contains("subvolume images");
        assert!(owner.is_none_or(|id| is_image || there.contains_key(id)), "nobody owns: {line}");
    }
}

/// Waits until nothing is under way any more: what should run is started, what was deleted is gone.
async fn settled(daemon: &Daemon, client: &Client) {
    let deadline = Instant::now() + patience(20);
    loop {
        let all = list(client).await;
        let rests = |one: &Value| match one["status"].as_str().unwrap() {
            "running" => true,
            "stopped" => one["desired"] == "stopped",
            _ => false,
        };
        let links = ip("-o link show").lines().filter(|line| line.contains(&format!("{}-", daemon.instance))).count();
        let running = all.iter().filter(|one| one["status"] == "running").count();
        if all.iter().all(rests) && links == running {
            return;
        }
        assert!(Instant::now() < deadline, "{links} links, {all:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The filesystem's cleaner comes by when it can: in milliseconds nearly always, and once in a while after more than 20 s.
async fn completed(daemon: &Daemon, receipt: &str) {
    let deadline = Instant::now() + patience(60);
    loop {
        let found = daemon.client.get(&format!("/receipts/{receipt}")).await.data(200);
        if found["state"] == "complete" {
            return;
        }
        assert!(Instant::now() < deadline, "{found}; {:#?}", daemon.objects());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
