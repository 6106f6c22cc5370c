//! What a daemon tells of itself and of what was asked of its tenants: `/metrics` and access logs.

use std::time::Instant;

use serde_json::{Value, json};

use crate::support::daemon::{Client, answer, id_of, patience, play, play_with};

async fn metrics(client: &Client) -> String {
    let scrape = answer(client.outside("/metrics")).await;
    assert_eq!(scrape.status, 200, "{}", scrape.text);
    scrape.text
}

/// A sample's value, by its name and labels as they stand.
fn sample(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in {text}")).parse().unwrap()
}

/// Lines come a moment after the answer.
async fn accesses(client: &Client, id: &str, wanted: usize) -> Vec<Value> {
    let deadline = Instant::now() + patience(5);
    loop {
        let log = client.get(&format!("/containers/{id}/access-log")).await.data(200);
        let log = log["access_log"].as_array().unwrap().clone();
        if log.len() >= wanted {
            return log;
        }
        assert!(Instant::now() < deadline, "only {log:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[test]
fn a_wake_is_told_in_the_access_log_and_in_the_metrics() {
    play(async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let template = id_of(&client.create_template(&project, "crm").await);
        let tenant = client.copy(&template, json!({})).await;
        let id = id_of(&tenant);
        client.page(&tenant, "/one?secret=1").await;
        client.verb(&id, "stop").await.data(200);
        let woken = client.page(&tenant, "/two").await;
        let log = accesses(client, &id, 2).await;
        let told: Vec<_> =
            log.iter().map(|one| (one["path"].as_str().unwrap(), one["woken"].as_bool().unwrap())).collect();
        assert_eq!(told, [("/one", false), ("/two", true)]);
        assert_eq!(log[1]["request_id"].as_str().unwrap(), woken.headers["x-request-id"].to_str().unwrap());
        assert!(log[1]["duration_ms"].as_f64() > log[1]["upstream_ms"].as_f64(), "{log:?}");

        let text = metrics(client).await;
        assert_eq!(sample(&text, "tenantry_wakes_total{result=\"done\"}"), 1.0);
        assert_eq!(sample(&text, "tenantry_wake_step_duration_seconds_count{step=\"ready\"}"), 1.0);
        assert_eq!(sample(&text, "tenantry_verbs_total{verb=\"stop\",result=\"done\"}"), 1.0);
        assert_eq!(sample(&text, "tenantry_containers{status=\"running\"}"), 2.0);
        assert!(sample(&text, "tenantry_pool_bytes") > sample(&text, "tenantry_pool_available_bytes"));
        let requests = format!("tenantry_container_requests_total{{container=\"{id}\",class=");
        assert!(text.contains(&requests), "{text}");

        client.delete(&format!("/containers/{id}?wait=erased")).await.data(200);
        assert!(!daemon.scratch().join("data/pool/containers").join(&id).exists(), "the log goes with the container");
    });
}

#[test]
fn an_operator_switches_access_logs_off_and_opens_the_metrics() {
    let config = "[api]\nmetrics_open = true\n[proxy]\naccess_log = false\n";
    play_with(config, async |daemon| {
        let client = &daemon.client;
        let project = client.create_project("acme").await;
        let tenant = client.create_template(&project, "crm").await;
        client.page(&tenant, "/").await;
        // Counted when the answer is out, and a line would be written a moment later.
        tokio::time::sleep(patience(1)).await;
        let text = metrics(&client.with_token("")).await;
        assert_eq!(sample(&text, "tenantry_proxy_request_duration_seconds_count"), 1.0);
        assert!(accesses(client, &id_of(&tenant), 0).await.is_empty());
    });
}
