//! From a request to the first byte of a container that sleeps: one after the other, and many at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::figures::{median, ms, percentile};
use crate::load::{Connection, Target};
use crate::{Args, field, template, verb};

/// Between a stop and the request, so that nothing of the stop is still under way: link and rules go behind its answer.
const REST: Duration = Duration::from_millis(150);
/// Containers that are made at once.
const MADE_AT_ONCE: usize = 8;
/// Between two questions to the API while the herd wakes.
const API_EVERY: Duration = Duration::from_millis(10);

pub async fn one_by_one(args: &Args, client: &Client, project: &str) -> Result<()> {
    let template = template(client, project).await?;
    let id = client.post(&format!("/containers/{template}/copy"), json!({})).await?.expect(201)?.id()?;
    let url = field(client, &id, "url").await?;
    let mut took = Vec::new();
    let mut steps = BTreeMap::<String, Vec<f64>>::new();
    for _ in 0..args.wakes {
        verb(client, &id, "stop").await?;
        tokio::time::sleep(REST).await;
        let began = Instant::now();
        let page = client.open(&url).await?.expect(200)?;
        took.push(page.head_at - began);
        for (step, took) in &page.timings {
            steps.entry(step.clone()).or_default().push(*took);
        }
    }
    let [p50, p95, p99, max] = [50.0, 95.0, 99.0, 100.0].map(|p| ms(percentile(&mut took, p)));
    println!(
        "wake, request to first byte: p50 {p50:.1} ms, p95 {p95:.1}, p99 {p99:.1}, max {max:.1}; {} wakes",
        took.len()
    );
    let told = steps.into_iter().map(|(step, took)| format!("{step} {:.1}", median(took)));
    println!("  steps, p50: {}", told.collect::<Vec<_>>().join(", "));
    client.delete(&format!("/containers/{id}")).await?.expect(200)?;
    Ok(())
}

/// Makes copies that sleep; their ids and URLs.
pub async fn sleeping(client: &Client, template: &str, many: usize) -> Result<Vec<(String, String)>> {
    let mut made = Vec::with_capacity(many);
    while made.len() < many {
        let batch = (many - made.len()).min(MADE_AT_ONCE);
        let copy = async || {
            let path = format!("/containers/{template}/copy");
            let made = client.post(&path, json!({"start": false})).await?.expect(201)?;
            Ok::<_, anyhow::Error>((made.id()?, made.text("url")?))
        };
        made.extend(futures_util::future::try_join_all((0..batch).map(|_| copy())).await?);
    }
    Ok(made)
}

/// The API's answers to a list of one, until it is told to stop.
async fn watch_api(client: &Client, ends: &tokio::sync::Notify) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    loop {
        let began = Instant::now();
        client.get("/containers/?limit=1").await?.expect(200)?;
        took.push(began.elapsed());
        tokio::select! {
            () = tokio::time::sleep(API_EVERY) => {}
            () = ends.notified() => return Ok(took),
        }
    }
}

pub async fn herd(args: &Args, client: &Client, project: &str) -> Result<()> {
    let template = template(client, project).await?;
    let containers = sleeping(client, &template, args.herd).await?;
    let ends = tokio::sync::Notify::new();
    let began = Instant::now();
    let all = async {
        let mut asking = JoinSet::new();
        for (_, url) in &containers {
            let host = url.trim_start_matches("http://").to_owned();
            let target = Target { name: "herd", addr: ([127, 0, 0, 1], 8080).into(), host, path: "/" };
            asking.spawn(async move {
                let began = Instant::now();
                let mut connection = Connection::open(&target).await?;
                connection.ask().await?;
                Ok::<_, anyhow::Error>(began.elapsed())
            });
        }
        let mut took = Vec::new();
        while let Some(done) = asking.join_next().await {
            took.push(done??);
        }
        ends.notify_one();
        Ok::<_, anyhow::Error>(took)
    };
    let (took, api) = tokio::join!(all, watch_api(client, &ends));
    let (mut took, mut api) = (took?, api?);
    let lasted = began.elapsed();
    for (id, _) in &containers {
        let log = client.get(&format!("/containers/{id}/status-logs?limit=100")).await?.expect(200)?;
        let log = log.list("status_logs").context("no log")?;
        let starts = log.iter().filter(|one| one["to_status"] == "running").count();
        ensure!(starts == 1, "container {id} was started {starts} times");
    }
    let [p50, p99, max] = [50.0, 99.0, 100.0].map(|p| ms(percentile(&mut took, p)));
    println!(
        "herd: {} containers at once, all answered 200 and each started once, in {:.1} s; p50 {p50:.0} ms, p99 {p99:.0}, max {max:.0}",
        took.len(),
        lasted.as_secs_f64()
    );
    let [p50, p99, max] = [50.0, 99.0, 100.0].map(|p| ms(percentile(&mut api, p)));
    println!("  the API meanwhile: p50 {p50:.1} ms, p99 {p99:.1}, max {max:.1}; {} requests", api.len());
    let paths: Vec<_> = containers.iter().map(|(id, _)| format!("/containers/{id}")).collect();
    for batch in paths.chunks(MADE_AT_ONCE) {
        futures_util::future::try_join_all(batch.iter().map(|path| client.delete(path))).await?;
    }
    Ok(())
}
