//! What containers cost that sleep: the daemon's memory, and the time to find one among many names.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use crate::bed::Bed;
use crate::client::Client;
use crate::figures::{cpu_s, median, ms, percentile, resident_kib};
use crate::load::{Target, drive};
use crate::wake::sleeping;
use crate::{Args, template};

/// Further names of each.
const ALIASES_EACH: usize = 5;
/// Aliases that are made at once.
const MADE_AT_ONCE: usize = 16;
/// Containers before any is counted: what a daemon needs once is there then.
const BEFORE: usize = 20;
/// Rounds of a lookup's time.
const ROUNDS: usize = 5;

pub async fn measure(args: &Args, bed: &Bed, client: &Client, project: &str) -> Result<()> {
    let template = template(client, project).await?;
    let awake = client.post(&format!("/containers/{template}/copy"), json!({})).await?.expect(201)?;
    let host = awake.text("url")?.trim_start_matches("http://").to_owned();
    let target = Target { name: "lookup", addr: ([127, 0, 0, 1], 8080).into(), host, path: "/" };
    sleeping(client, &template, BEFORE).await?;
    let (few_us, few_cpu) = lookup(bed, &target).await?;
    let before = resident_kib(bed.pid())?;
    let began = Instant::now();
    let containers = sleeping(client, &template, args.sleepers).await?;
    let made = began.elapsed();
    let after = resident_kib(bed.pid())?;
    println!(
        "sleepers: {} stopped containers (BTRFS snapshots) made in {:.0} s, {:.1} ms each",
        containers.len(),
        made.as_secs_f64(),
        ms(made) / containers.len() as f64
    );
    println!(
        "  the daemon's memory: {before} KiB before, {after} after: {:.2} KiB each",
        after.saturating_sub(before) as f64 / containers.len() as f64
    );
    let began = Instant::now();
    let bodies = containers.iter().flat_map(|(id, _)| std::iter::repeat_n(json!({"container_id": id}), ALIASES_EACH));
    let bodies: Vec<_> = bodies.collect();
    for batch in bodies.chunks(MADE_AT_ONCE) {
        let make = async |body: &serde_json::Value| client.post("/proxy/aliases", body.clone()).await?.expect(201);
        futures_util::future::try_join_all(batch.iter().map(make)).await?;
    }
    let with_aliases = resident_kib(bed.pid())?;
    println!(
        "  {} aliases of them made in {:.0} s; {:.2} KiB each",
        bodies.len(),
        began.elapsed().as_secs_f64(),
        with_aliases.saturating_sub(after) as f64 / bodies.len() as f64
    );
    let (many_us, many_cpu) = lookup(bed, &target).await?;
    println!(
        "  a request by the proxy: p50 {few_us:.0} µs and {few_cpu:.1} µs of cpu with {BEFORE} names, {many_us:.0} µs and {many_cpu:.1} µs with {}",
        bodies.len() + containers.len()
    );
    Ok(())
}

/// The median of a request's time on one connection, and of the processor time that the daemon spends on one, in microseconds.
async fn lookup(bed: &Bed, target: &Target) -> Result<(f64, f64)> {
    let (mut times, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = cpu_s(bed.pid())?;
        let mut round = drive(target, 1, Duration::from_secs(2), None).await?;
        times.push(ms(percentile(&mut round.took, 50.0)) * 1e3);
        cpu.push((cpu_s(bed.pid())? - before) * 1e6 / (round.requests as f64 * 1.25));
    }
    Ok((median(times), median(cpu)))
}
