//! A helper that outlives its daemon undoes its start; the next daemon waits for that before it starts the same container.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tenantry::sys::runtime::process::Stat;

use crate::support::daemon::{Daemon, id_of, patience, play};

/// Helpers of this daemon's containers: their folder is open in them, locked.
fn helpers(daemon: &Daemon) -> Vec<Pid> {
    let containers = daemon.run_dir().join("containers");
    let processes =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_one = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name == "tenantry-start\n" && holds(*pid, &containers)
    };
    processes.filter(is_one).map(Pid::from_raw).collect()
}

fn holds(pid: i32, containers: &Path) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.parent() == Some(containers))
}

#[test]
fn the_next_daemon_waits_for_a_helper_that_still_undoes_its_start() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let project = client.create_project("estate").await;
        let made = client.post(&format!("/projects/{project}/containers"), json!({ "name": "one" })).await.data(201);
        let id = id_of(&made);
        client.verb(&id, "stop").await.data(200);
        // Stopped in the middle of a start, its daemon killed: it has not seen that yet.
        let deadline = Instant::now() + patience(10);
        let (starting, helper) = loop {
            // That of the start before may still be ending.
            comes_true("no helper is at work", || helpers(daemon).is_empty()).await;
            let (start, held) = (client.clone(), id.clone());
            let starting = tokio::spawn(async move {
                start.request(reqwest::Method::POST, &format!("/containers/{held}/start")).send().await
            });
            let helper = loop {
                // Not what it forks, which looks like it until it is init.
                let is_child =
                    |pid: &Pid| Stat::of(pid.as_raw()).is_some_and(|stat| stat.parent == daemon.pid() as i32);
                if let Some(helper) = helpers(daemon).into_iter().find(is_child) {
                    // One that is gone by now is not seen.
                    break kill(helper, Signal::SIGSTOP).ok().map(|()| helper);
                }
                if starting.is_finished() {
                    break None;
                }
                tokio::task::yield_now().await;
            };
            let made = daemon.run_dir().join("containers").join(&id).join("init.json");
            // What it had said before it was stopped arrives in that time.
            tokio::time::sleep(Duration::from_millis(100)).await;
            // In the container's own group, where it is for a moment on v1, it would be killed with that.
            let visits = |helper: &Pid| {
                fs::read_to_string(format!("/proc/{helper}/cgroup")).is_ok_and(|groups| groups.contains(&id))
            };
            match helper.filter(|helper| !made.exists() && !starting.is_finished() && !visits(helper)) {
                Some(helper) => break (starting, helper),
                // Seen too late: it is ending, or has ended.
                None => helper.iter().for_each(|helper| _ = kill(*helper, Signal::SIGCONT)),
            }
            assert!(Instant::now() < deadline, "no helper was seen in time");
            starting.await.unwrap().unwrap();
            client.verb(&id, "stop").await.data(200);
        };
        daemon.kill9();
        assert!(starting.await.unwrap().is_err(), "the start was answered");
        daemon.spawn();
        // The next daemon removes what was half made, and must not while somebody else works on it.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let folder = daemon.run_dir().join("containers").join(&id);
        assert!(folder.exists(), "it was removed under the helper's hands");
        kill(helper, Signal::SIGCONT).unwrap();
        daemon.wait_ready().await;
        // Its start was never answered: whether the daemon still knows of it or this request wakes it is all the same.
        assert_eq!(client.page(&made, "/").await.status, 200);
        comes_true("a helper remains", || helpers(daemon).is_empty()).await;
    });
}

/// Children of a daemon that are helpers and have been told nothing.
fn spares(daemon: &Daemon) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children = lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>());
    children.filter(|pid| is_helper(*pid)).collect()
}

fn is_helper(pid: i32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"tenantry\0runtime\0start\0")
}

async fn comes_true(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + patience(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_few_spare_helpers_own_nothing_serve_one_start_each_and_end_with_their_daemon() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let first = spares(daemon);
        assert!((1..=4).contains(&first.len()), "{first:?}");
        for spare in &first {
            let same = |file: &str| fs::read_to_string(format!("/proc/{spare}/{file}")).unwrap();
            assert_eq!(same("cgroup"), fs::read_to_string(format!("/proc/{}/cgroup", daemon.pid())).unwrap());
            let tree = |pid: u32, name: &str| fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap();
            for name in ["user", "net", "mnt", "pid"] {
                assert_eq!(tree(*spare as u32, name), tree(daemon.pid(), name), "{name}");
            }
            assert!(!holds(Pid::from_raw(*spare).as_raw(), &daemon.run_dir().join("containers")));
        }
        let project = client.create_project("estate").await;
        let made = client.post(&format!("/projects/{project}/containers"), json!({ "name": "one" })).await.data(201);
        assert_eq!(client.page(&made, "/").await.status, 200);
        comes_true("no spare was used up", || first.iter().filter(|spare| is_helper(**spare)).count() < first.len())
            .await;
        comes_true("it was not replaced", || spares(daemon).len() == first.len()).await;
        let last = spares(daemon);
        daemon.kill9();
        comes_true("a spare outlives its daemon", || !last.iter().any(|spare| is_helper(*spare))).await;
        daemon.spawn();
        daemon.wait_ready().await;
        assert_eq!(client.page(&made, "/").await.status, 200);
    });
}
