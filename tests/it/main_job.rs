//! The main job over the real daemon: one call gives a customer a running sandbox with a URL.
//!
//! These run in the virtual machine too (`./dev test-vm`), where the kernel has the unified cgroup hierarchy alone.

use std::time::{Duration, Instant};

use futures_util::future::join;
use futures_util::{StreamExt, stream};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::daemon::{Client, Daemon, Reply, answer, id_of, in_vm, patience, play};

/// Containers of the test with many, and how many requests are open at once.
const MANY: usize = 50;
const MANY_IN_VM: usize = 6;
const AT_ONCE: usize = 8;

async fn erase(client: &Client, id: &str) -> Value {
    client.delete(&format!("/containers/{id}?wait=erased")).await.data(200)
}

/// A project, and a template in it.
async fn template(client: &Client) -> (String, String) {
    let project = client.create_project("acme").await;
    let template = client.create_template(&project, "crm").await;
    (project, id_of(&template))
}

async fn run(client: &Client, id: &str, body: Value) -> Value {
    client.post(&format!("/containers/{id}/exec"), body).await.data(200)
}

async fn sh(client: &Client, id: &str, script: &str) -> String {
    client.exec(id, &["sh", "-c", script]).await
}

#[test]
fn a_copy_answers_at_its_url_and_keeps_its_rows_to_itself() {
    play(async |daemon| {
        let client = &daemon.client;
        let before = daemon.objects();
        let (project, template) = template(client).await;
        let a = client.copy(&template, json!({ "name": "customer-a" })).await;
        let page = client.page(&a, "/").await;
        assert_eq!(page.status, 200, "the URL answers when the call has returned: {}", page.text);
        assert!(page.text.contains("This sandbox runs."));
        assert_eq!(
            (&a["status"], &a["source_container_id"], &a["project_id"]),
            (&json!("running"), &json!(template), &json!(project))
        );
        assert_eq!(a["warnings"], json!([]));
        let b = client.copy(&template, json!({ "name": "customer-b" })).await;
        assert_ne!(a["url"], b["url"]);
        assert_eq!(client.send_page(&a, "/cgi-bin/notes", "row of A").await.status, 200);
        assert_eq!(client.page(&a, "/cgi-bin/notes").await.text, "row of A\n");
        assert_eq!(client.page(&b, "/cgi-bin/notes").await.text, "");
        // The other URL, by ids, leads to the same place.
        let canonical = format!("{}/cgi-bin/whoami", a["urls"][1].as_str().unwrap());
        assert_eq!(answer(client.open(Method::GET, &canonical)).await.text, "customer-a\n");
        for id in [id_of(&a), id_of(&b), template] {
            assert_eq!(erase(client, &id).await["state"], "complete");
        }
        let gone = client.page(&a, "/").await;
        assert_eq!(gone.status, 404, "{}", gone.text);
        daemon.settles_to(&before);
        assert_eq!(client.containers_total().await, 0);
    });
}

#[test]
fn a_copy_of_a_copy_carries_the_data_and_the_settings_over() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, template) = template(client).await;
        let settings = json!({ "environment_vars": { "PLAN": "pro" }, "labels": { "tier": "1" }, "limits": { "pids": 100 }, "comment": "c" });
        let first = client.copy(&template, settings).await;
        client.send_page(&first, "/cgi-bin/notes", "carried over").await;
        let second = client
            .copy(&id_of(&first), json!({ "environment_vars": { "REGION": "eu" }, "labels": { "plan": "x" } }))
            .await;
        assert_eq!(client.page(&second, "/cgi-bin/notes").await.text, "carried over\n");
        assert_eq!(second["environment_vars"], json!({ "PLAN": "pro", "REGION": "eu" }));
        assert_eq!(second["labels"], json!({ "tier": "1", "plan": "x" }));
        assert_eq!((&second["limits"]["pids"], &second["comment"]), (&json!(100), &json!("c")));
        client.send_page(&first, "/cgi-bin/notes", "later").await;
        assert_eq!(client.page(&second, "/cgi-bin/notes").await.text, "carried over\n");
    });
}

#[test]
fn what_makes_a_machine_itself_is_not_carried_over() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, template) = template(client).await;
        let script = "mkdir -p /etc/ssh; echo 0123456789abcdef0123456789abcdef >/etc/machine-id; echo key >/etc/ssh/ssh_host_rsa_key";
        sh(client, &template, script).await;
        let mut seen = vec![sh(client, &template, "hostname; cat /etc/machine-id").await];
        for name in ["one", "two"] {
            let id = id_of(&client.copy(&template, json!({ "name": name })).await);
            seen.push(sh(client, &id, "hostname; cat /etc/machine-id").await);
            assert_eq!(sh(client, &id, "ls /etc/ssh").await, "", "another host's private key");
        }
        let mut lines: Vec<_> = seen.iter().flat_map(|text| text.lines()).collect();
        assert_eq!(lines.len(), 6, "{lines:?}");
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 6, "{lines:?}");
    });
}

#[test]
fn one_customers_environment_changes_and_the_others_does_not() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, template) = template(client).await;
        let vars = json!({ "environment_vars": { "PLAN": "free", "OLD": "1" } });
        let (a, b) = (client.copy(&template, vars.clone()).await, client.copy(&template, vars).await);
        let (a, b) = (id_of(&a), id_of(&b));
        let url = format!("/containers/{b}");
        let changed = client.patch(&url, json!({ "environment_vars": { "PLAN": "pro", "OLD": null } })).await.data(200);
        assert_eq!(changed["environment_vars"], json!({ "PLAN": "pro" }));
        assert_eq!((&changed["env_sync"]["pending"], &changed["status"]), (&json!(true), &json!("running")));
        assert!(sh(client, &b, "tr '\\0' '\\n' </proc/1/environ").await.contains("PLAN=free\n"), "not before a start");
        let done = client.verb(&b, "restart").await.data(200);
        assert_eq!((&done["operation"], &done["status"]), (&json!("restart"), &json!("running")));
        let env = sh(client, &b, "tr '\\0' '\\n' </proc/1/environ").await;
        assert!(env.contains("PLAN=pro\n") && !env.contains("OLD="), "{env}");
        assert!(env.contains(&format!("TENANTRY_CONTAINER_ID={b}\n")), "{env}");
        assert_eq!(client.container(&b).await["env_sync"]["pending"], false);
        let other = client.container(&a).await;
        assert_eq!(
            (&other["environment_vars"], &other["generation"]),
            (&json!({ "PLAN": "free", "OLD": "1" }), &client.container(&a).await["generation"])
        );
        assert!(sh(client, &a, "tr '\\0' '\\n' </proc/1/environ").await.contains("PLAN=free\n"));

        let set = client.put(&format!("/containers/{a}/env/REGION"), json!({ "value": "eu" })).await.data(200);
        assert_eq!((&set["synced"], &set["environment_vars"]["REGION"]), (&json!(false), &json!("eu")));
        client.delete(&format!("/containers/{a}/env/OLD")).await.data(200);
        client.delete(&format!("/containers/{a}/env/OLD")).await.refused(404, "ENV_KEY_NOT_FOUND");
        let restarted =
            client.patch(&format!("/containers/{a}?restart=true"), json!({ "comment": "x" })).await.data(200);
        assert_eq!(restarted["env_sync"]["pending"], false);
        assert_eq!(client.exec(&a, &["sh", "-c", "echo $REGION $OLD"]).await, "eu\n");
    });
}

/// A limit's value in the kernel, whichever hierarchy is in use: the name on v1, the name on v2.
fn in_kernel(daemon: &Daemon, id: &str, v1: &str, v2: &str) -> String {
    daemon.cgroup_file(id, v2).or_else(|| daemon.cgroup_file(id, v1)).unwrap_or_else(|| panic!("neither {v1} nor {v2}"))
}

/// Thousandths of a core.
fn cpu_in_kernel(daemon: &Daemon, id: &str) -> u64 {
    let quota = match daemon.cgroup_file(id, "cpu.max") {
        Some(text) => text,
        None => format!(
            "{} {}",
            in_kernel(daemon, id, "cpu.cfs_quota_us", ""),
            in_kernel(daemon, id, "cpu.cfs_period_us", "")
        ),
    };
    let (quota, period) = quota.split_once(' ').unwrap();
    quota.parse::<u64>().unwrap() * 1000 / period.parse::<u64>().unwrap()
}

#[test]
fn limits_are_the_kernels_and_change_while_it_runs() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, template) = template(client).await;
        let limits = json!({ "cpu": 0.5, "memory": 96 << 20, "pids": 64, "disk": 16 << 20, "ramdisk": 4 << 20 });
        let made = client.copy(&template, json!({ "limits": limits })).await;
        let id = id_of(&made);
        let memory = |daemon: &Daemon| in_kernel(daemon, &id, "memory.limit_in_bytes", "memory.max");
        assert_eq!(cpu_in_kernel(daemon, &id), 500);
        assert_eq!(
            (memory(daemon), in_kernel(daemon, &id, "pids.max", "pids.max")),
            ((96 << 20).to_string(), "64".to_owned())
        );
        assert!(sh(client, &id, "df -k /ramdisk | tail -1").await.split_whitespace().any(|word| word == "4096"));

        let fill = json!({ "command": ["dd", "if=/dev/zero", "of=/root/big", "bs=1M", "count=40", "conv=fsync"], "timeout": 300 });
        let full = run(client, &id, fill.clone()).await;
        assert_eq!(full["exit_code"], 1, "16 MiB are the limit: {full}");
        let stats = client.get(&format!("/containers/{id}/stats")).await.data(200);
        assert_eq!((&stats["disk"]["root"]["total"], &stats["memory"]["total"]), (&json!(16 << 20), &json!(96 << 20)));
        assert!(stats["disk"]["root"]["usage"].as_u64().unwrap() > 8 << 20, "{stats}");

        let more = json!({ "limits": { "cpu": 0.25, "memory": 128 << 20, "pids": 80, "disk": 100 << 20 } });
        let changed = client.patch(&format!("/containers/{id}"), more).await.data(200);
        assert_eq!(changed["limits"]["ramdisk"], 4 << 20, "what is not named stays");
        assert_eq!(cpu_in_kernel(daemon, &id), 250);
        assert_eq!(
            (memory(daemon), in_kernel(daemon, &id, "pids.max", "pids.max")),
            ((128 << 20).to_string(), "80".to_owned())
        );
        let fits = run(client, &id, fill).await;
        assert_eq!(fits["exit_code"], 0, "{fits}");

        let lifted = client.patch(&format!("/containers/{id}"), json!({ "limits": { "pids": null } })).await.data(200);
        assert_eq!(lifted["limits"]["pids"], Value::Null);
        assert_eq!(in_kernel(daemon, &id, "pids.max", "pids.max"), "max");
    });
}

#[test]
fn a_limit_of_memory_and_of_tasks_holds_inside() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, template) = template(client).await;
        let id = id_of(&client.copy(&template, json!({ "limits": { "memory": 32 << 20, "pids": 16 } })).await);
        // dd holds one block of 64 MiB.
        let killed =
            run(client, &id, json!({ "command": ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"] })).await;
        assert_ne!(killed["exit_code"], 0, "{killed}");
        let many = run(
            client,
            &id,
            json!({ "command": ["sh", "-c", "for i in $(seq 40); do sleep 5 & done; wait"], "timeout": 60 }),
        )
        .await;
        assert!(many["stderr"].as_str().unwrap().contains("fork"), "{many}");
        let stats = client.get(&format!("/containers/{id}/stats")).await.data(200);
        assert!(stats["memory"]["oom_kills"].as_u64().unwrap() > 0, "{stats}");
        assert_eq!(client.container(&id).await["status"], "running", "the app itself lives");
    });
}

#[test]
fn a_container_is_paused_resumed_stopped_and_started_with_its_data() {
    play(async |daemon| {
        let client = &daemon.client;
        let before = daemon.objects();
        let (_, template) = template(client).await;
        let running = daemon.objects();
        let made = client.copy(&template, json!({})).await;
        let id = id_of(&made);
        client.send_page(&made, "/cgi-bin/notes", "kept").await;
        let stats = client.get(&format!("/containers/{id}/stats")).await.data(200);
        assert!(stats["cpu"]["usage"].as_u64().unwrap() > 0 && stats["processes"].as_u64().unwrap() >= 2, "{stats}");
        assert!(stats["network"][0]["rx_bytes"].as_u64().unwrap() > 0, "{stats}");

        let done = client.verb(&id, "pause").await.data(200);
        assert_eq!(
            (&done["operation"], &done["status"], &done["container_id"]),
            (&json!("pause"), &json!("paused"), &json!(id))
        );
        client.verb(&id, "pause").await.refused(400, "INVALID_CONTAINER_STATE");
        client.verb(&id, "start").await.refused(400, "INVALID_CONTAINER_STATE");
        client
            .post(&format!("/containers/{id}/exec"), json!({ "command": ["true"] }))
            .await
            .refused(409, "CONTAINER_NOT_RUNNING");
        client.page(&made, "/").await.refused(503, "CONTAINER_NOT_RUNNING");
        assert_eq!(client.verb(&id, "resume").await.data(200)["status"], "running");
        assert_eq!(client.page(&made, "/cgi-bin/notes").await.text, "kept\n");

        // A request would wake it.
        client.patch(&format!("/containers/{id}"), json!({ "wake_on_request": false })).await.data(200);
        let began = Instant::now();
        assert_eq!(client.verb(&id, "stop").await.data(200)["status"], "stopped");
        assert!(began.elapsed() < patience(8), "the app ends on SIGTERM: {:?}", began.elapsed());
        let stats = client.get(&format!("/containers/{id}/stats")).await.data(200);
        assert_eq!((&stats["cpu"], &stats["memory"], &stats["network"]), (&Value::Null, &Value::Null, &json!([])));
        client.page(&made, "/").await.refused(503, "CONTAINER_NOT_RUNNING");
        for verb in ["stop", "force-stop", "pause", "resume", "restart"] {
            client.verb(&id, verb).await.refused(400, "INVALID_CONTAINER_STATE");
        }
        // A stopped one costs nothing but its files.
        let mut stopped = running.clone();
        stopped.extend(daemon.objects().into_iter().filter(|line| line.contains(&id) && !line.starts_with("cgroup")));
        daemon.settles_to(&stopped);

        client.post(&format!("/containers/{id}/start?wait=ready"), json!({})).await.data(200);
        assert_eq!(client.page(&made, "/cgi-bin/notes").await.text, "kept\n");
        assert_eq!(client.verb(&id, "force-stop").await.data(200)["status"], "stopped");

        let log = client.get(&format!("/containers/{id}/status-logs?limit=100")).await.data(200);
        let log = log["status_logs"].as_array().unwrap();
        assert_eq!((&log[0]["from_status"], &log[1]["triggered_by"]), (&json!("creating"), &json!("pause")));
        let log: Vec<_> = log.iter().map(|one| one["to_status"].as_str().unwrap()).collect();
        assert_eq!(log, ["running", "paused", "running", "stopped", "running", "stopped"]);
        for id in [&id, &template] {
            erase(client, id).await;
        }
        daemon.settles_to(&before);
    });
}

#[test]
fn what_the_app_prints_is_its_log_and_why_it_ended_is_told() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let containers = format!("/projects/{project}/containers?wait=started");
        let command = json!(["sh", "-c", "for i in 1 2 3; do echo line $i; done; echo oops >&2; exit 7"]);
        let id = id_of(&client.post(&containers, json!({ "command": command })).await.data(201));
        let deadline = Instant::now() + patience(10);
        while client.container(&id).await["status"] != "stopped" {
            assert!(Instant::now() < deadline, "{}", client.container(&id).await);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let container = client.container(&id).await;
        assert!(container["status_reason"].as_str().unwrap().contains('7'), "{container}");
        let log = client.get(&format!("/containers/{id}/logs?tail=2")).await;
        assert_eq!((log.status, log.text.as_str()), (200, "line 3\noops\n"));
        let whole = client.get(&format!("/containers/{id}/logs")).await;
        assert_eq!(whole.text, "line 1\nline 2\nline 3\noops\n");
    });
}

#[test]
fn a_command_inside_gives_its_output_its_code_and_no_more_than_its_time() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, id) = template(client).await;
        let done = run(client, &id, json!({ "command": ["sh", "-c", "echo out; echo err >&2; exit 3"] })).await;
        assert_eq!(
            done,
            json!({ "exit_code": 3, "stdout": "out\n", "stderr": "err\n", "truncated": false, "timed_out": false })
        );
        let echoed = run(client, &id, json!({ "command": ["cat"], "stdin": "from outside ☃" })).await;
        assert_eq!(echoed["stdout"], "from outside ☃");
        let there = run(
            client,
            &id,
            json!({ "command": ["sh", "-c", "pwd; echo $A $PORT"], "cwd": "/var/www", "env": { "A": "own" } }),
        )
        .await;
        assert_eq!(there["stdout"], "/var/www\nown 8080\n");

        let began = Instant::now();
        let late = run(client, &id, json!({ "command": ["sh", "-c", "echo begun; sleep 600"], "timeout": 1 })).await;
        assert_eq!(
            (&late["timed_out"], &late["exit_code"], &late["stdout"]),
            (&json!(true), &json!(137), &json!("begun\n"))
        );
        assert!(began.elapsed() < patience(10), "{:?}", began.elapsed());
        assert!(!sh(client, &id, "ps").await.contains("sleep 600"), "what is timed out is killed");

        let long = run(client, &id, json!({ "command": ["head", "-c", "3000000", "/dev/zero"] })).await;
        assert_eq!((&long["truncated"], &long["exit_code"]), (&json!(true), &json!(0)));
        assert_eq!(long["stdout"].as_str().unwrap().len(), 1 << 20);
        let missing = client.post(&format!("/containers/{id}/exec"), json!({ "command": ["/no/such/program"] })).await;
        missing.refused(422, "COMMAND_NOT_EXECUTABLE");
        assert!(missing.text.contains("/no/such/program"), "{}", missing.text);
    });
}

#[test]
fn a_command_inside_is_held_exactly_as_init_is() {
    play(async |daemon| {
        let client = &daemon.client;
        let (_, id) = template(client).await;
        for file in ["uid_map", "gid_map", "setgroups", "limits", "cgroup", "oom_score_adj"] {
            let of_init = client.exec(&id, &["cat", &format!("/proc/1/{file}")]).await;
            assert_eq!(client.exec(&id, &["cat", &format!("/proc/self/{file}")]).await, of_init, "{file}");
        }
        for namespace in ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"] {
            let link = |of: &str| format!("/proc/{of}/ns/{namespace}");
            let of_init = client.exec(&id, &["readlink", &link("1")]).await;
            assert_eq!(client.exec(&id, &["readlink", &link("self")]).await, of_init, "{namespace}");
            let ours = std::fs::read_link(link("self")).unwrap();
            assert_ne!(ours.to_str().unwrap(), of_init.trim(), "{namespace} is the host's");
        }
        let fields = "^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)";
        let status = |of: &str| format!("grep -E '{fields}' /proc/{of}/status");
        let (init, command) =
            (sh(client, &id, &status("1")).await, sh(client, &id, &format!("{} | cat", status("self"))).await);
        assert_eq!(command, init);
        assert!(init.contains("Seccomp:\t2\n") && init.contains("NoNewPrivs:\t1\n"), "{init}");
    });
}

#[test]
fn delete_is_legal_in_every_state_and_again_the_same() {
    play(async |daemon| {
        let client = &daemon.client;
        let (project, template) = template(client).await;
        let before = daemon.objects();
        let mut ids = Vec::new();
        for verb in [None, Some("pause"), Some("stop")] {
            let id = id_of(&client.copy(&template, json!({})).await);
            if let Some(verb) = verb {
                client.verb(&id, verb).await.data(200);
            }
            ids.push(id);
        }
        // These two are being made while they are deleted.
        ids.push(id_of(&client.post(&format!("/containers/{template}/copy?wait=none"), json!({})).await.data(201)));
        ids.push(id_of(&client.post(&format!("/projects/{project}/containers?wait=none"), json!({})).await.data(201)));
        for id in &ids {
            let first = client.delete(&format!("/containers/{id}")).await;
            assert_eq!(first.json["message"], "Container deleted successfully", "{}", first.text);
            let first = first.data(200);
            let receipt = first["receipt_id"].as_str().unwrap();
            let again = client.delete(&format!("/containers/{id}?wait=erased")).await.data(200);
            assert_eq!(again["receipt_id"], receipt);
            assert_eq!((&again["state"], &again["container_id"]), (&json!("complete"), &json!(id)));
            let shown = client.get(&format!("/receipts/{receipt}")).await.data(200);
            assert!(shown["completed_at"].is_string() && shown["erased"].as_array().unwrap().len() >= 5, "{shown}");
            client.get(&format!("/containers/{id}")).await.refused(404, "CONTAINER_NOT_FOUND");
            client.verb(id, "start").await.refused(404, "CONTAINER_NOT_FOUND");
        }
        daemon.settles_to(&before);
        assert_eq!(client.containers_total().await, 1);
        let project = client.delete(&format!("/projects/{project}")).await.data(200);
        assert_eq!(project["receipt_ids"].as_array().unwrap().len(), 1);
        assert_eq!(client.containers_total().await, 0);
    });
}

#[test]
fn a_deletion_that_meets_a_create_or_a_stop_at_any_step_leaves_nothing() {
    play(async |daemon| {
        let client = &daemon.client;
        let (project, template) = template(client).await;
        let before = daemon.objects();
        let (create, copy) = (format!("/projects/{project}/containers"), format!("/containers/{template}/copy"));
        let rounds = if in_vm() { 4 } else { 24 };
        for round in 0..rounds {
            let path = if round % 2 == 0 { &create } else { &copy };
            let id = id_of(&client.post(&format!("{path}?wait=none"), json!({})).await.data(201));
            // A create takes some 50 ms, so that the later rounds meet a running container, which is stopped first.
            tokio::time::sleep(Duration::from_millis(4 * round)).await;
            let stop = async {
                let stopped = client.verb(&id, "stop").await.status;
                assert!([200, 400, 404, 409].contains(&stopped), "round {round}: {stopped}");
            };
            let deleted = async { client.delete(&format!("/containers/{id}?wait=erased")).await.data(200) };
            let ((), receipt) = join(stop, deleted).await;
            assert_eq!(receipt["state"], "complete", "round {round}: {receipt}");
            let left: Vec<_> = daemon.objects().into_iter().filter(|line| line.starts_with("deleted")).collect();
            assert!(left.is_empty(), "round {round}: the receipt was early: {left:?}, {receipt}");
            client.get(&format!("/containers/{id}")).await.refused(404, "CONTAINER_NOT_FOUND");
        }
        daemon.settles_to(&before);
        assert_eq!(client.containers_total().await, 1);
        assert_eq!(client.get("/leaks").await.data(200)["leaks"], json!([]));
    });
}

#[test]
fn nothing_a_tenant_wrote_is_found_after_its_deletion() {
    play(async |daemon| {
        let client = daemon.client.clone();
        let (_, template) = template(&client).await;
        // A word that no id can have in it.
        let made =
            client.copy(&template, json!({ "environment_vars": { "KEY": "sk_live_zebra" }, "name": "leaver" })).await;
        client.send_page(&made, "/cgi-bin/notes", "personal data zebra").await;
        let id = id_of(&made);
        erase(&client, &id).await;
        let list = client.get("/containers/?include_deleting=true").await;
        assert!(!list.text.contains(&id) && !list.text.contains("zebra"), "{}", list.text);
        assert!(!daemon.rootfs(&id).parent().unwrap().exists());
        assert!(!daemon.data_dir().join("bundles").join(&id).exists());
        assert!(!daemon.log().contains("zebra"), "a value is never logged");
        // Also the next daemon does not know it, and knows the receipt.
        daemon.stop();
        daemon.restart().await;
        client.get(&format!("/containers/{id}")).await.refused(404, "CONTAINER_NOT_FOUND");
        assert_eq!(client.delete(&format!("/containers/{id}")).await.data(200)["state"], "complete");
    });
}

/// So many requests, at most [`AT_ONCE`] open.
async fn all<T>(of: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    stream::iter(of).buffer_unordered(AT_ONCE).collect().await
}

#[test]
fn fifty_containers_are_made_copied_stopped_started_and_deleted_eight_at_a_time() {
    play(async |daemon| {
        let client = &daemon.client;
        let before = daemon.objects();
        let many = if in_vm() { MANY_IN_VM } else { MANY };
        let (project, template) = template(client).await;
        let containers = format!("/projects/{project}/containers");
        let create = |n: usize| client.post(&containers, json!({ "name": format!("made-{n}") }));
        let mut ids: Vec<String> =
            all((0..many / 2).map(create)).await.into_iter().map(|reply| id_of(&reply.data(201))).collect();
        let copy = |n: usize| client.copy(&template, json!({ "name": format!("copied-{n}") }));
        let copies: Vec<Value> = all((0..many - ids.len()).map(copy)).await;
        for copy in &copies {
            assert_eq!((&copy["status"], &copy["warnings"]), (&json!("running"), &json!([])), "{copy}");
        }
        ids.extend(copies.iter().map(id_of));
        let pages = all(copies.iter().map(|copy| client.page(copy, "/cgi-bin/whoami"))).await;
        let mut names: Vec<String> = pages.into_iter().map(|page| page.text.trim().to_owned()).collect();
        let mut wanted: Vec<_> = copies.iter().map(|copy| copy["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        wanted.sort();
        assert_eq!(names, wanted, "each URL leads to its own container");
        let list = client.get(&format!("{containers}?limit=100&status=running")).await.data(200);
        assert_eq!(list["pagination"]["total"], many + 1);
        for (verb, status) in [("stop", "stopped"), ("start", "running")] {
            for done in all(ids.iter().map(|id| client.verb(id, verb))).await {
                assert_eq!(done.data(200)["status"], status);
            }
        }
        let deleted: Vec<Reply> =
            all(ids.iter().map(|id| async move { client.delete(&format!("/containers/{id}")).await })).await;
        for reply in deleted {
            assert!(reply.data(200)["receipt_id"].is_string());
        }
        for reply in all(ids.iter().map(|id| erase(client, id))).await {
            assert_eq!(reply["state"], "complete", "{reply}");
        }
        erase(client, &template).await;
        daemon.settles_to(&before);
        assert_eq!(client.containers_total().await, 0);
        assert_eq!(client.get("/leaks").await.data(200)["leaks"], json!([]));
    });
}
