//! `./dev bench`: what the main job costs, beside Debian's runc, in one run on one machine.
//!
//! A daemon of its own in a network and a mount namespace of its own; every round measures each thing once, so that a
//! machine that is busy for a moment is busy for all of them. Nothing runs at once but what the daemon itself does at once.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is what it is for")]

#[allow(dead_code, reason = "the other bench uses more of it")]
mod bed;
#[allow(dead_code, reason = "the other bench uses more of it")]
mod client;
mod counters;
mod report;
mod rivals;
mod script;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};

use bed::Bed;
use client::{Client, Reply};
use counters::Counters;
use report::Report;
use rivals::Rivals;
use script::Script;

/// Measures copy (also by a script), start, stop and delete, and runc beside them. Needs root.
#[derive(Debug, Parser)]
#[command(name = "./dev bench")]
pub struct Args {
    /// Rounds that are measured; each thing once a round
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Rounds before those, which are not
    #[arg(long, default_value_t = 5)]
    warm_up: usize,
    /// Leaves runc and the helper alone out
    #[arg(long)]
    no_runc: bool,
    /// Writes the figures to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The daemon's log goes here; left out, nowhere
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Another build of the daemon, to compare two
    #[arg(long, value_name = "FILE", default_value = env!("CARGO_BIN_EXE_tenantry"))]
    daemon: PathBuf,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long an erasure may take before it is an error, in seconds.
const ERASED_S_MAX: u64 = 120;
/// Between two looks whether something has come about, in milliseconds: what a figure may be too large by.
const LOOK_MS: u64 = 2;
/// Between a stop and the next start, in milliseconds: link and rules are removed behind the stop's answer, and a sleeping
/// container's are long gone. What a start right behind a stop takes is measured as a restart.
const REST_MS: u64 = 100;

fn main() -> Result<()> {
    let args = Args::parse();
    // Before anything makes a thread: what follows inherits the namespaces.
    bed::enter_namespaces()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            // Whichever comes first; the bed is dropped, and with it everything is removed.
            done = run(&args) => done,
            _ = bed::interrupted() => anyhow::bail!("interrupted; what was made is removed"),
        }
    })
}

async fn run(args: &Args) -> Result<()> {
    let bed = Bed::start(&args.daemon, args.log.as_deref(), &script::FILES).await?;
    let client = bed.client()?;
    let project = client.post("/projects/", json!({"alias": "bench"})).await?.expect(201)?.id()?;
    let mut round = Round::prepare(&bed, &client, project, !args.no_runc).await?;
    let mut report = Report::default();
    for n in 0..args.warm_up + args.runs {
        if n == args.warm_up {
            report = Report::default();
        }
        round.play(&mut report).await.with_context(|| format!("round {n}"))?;
        if n % 10 == 9 {
            eprintln!("bench: {} of {} rounds", n + 1, args.warm_up + args.runs);
        }
    }
    client.delete(&format!("/projects/{}", round.project)).await?.expect(200)?;
    let machine = report::machine(bed.cgroup_version());
    println!("{}", report.text(&machine));
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report.json(&machine, args.runs))?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// What every round works with.
struct Round<'a> {
    client: &'a Client,
    project: String,
    template: String,
    script: Script,
    rivals: Option<Rivals>,
}

impl<'a> Round<'a> {
    async fn prepare(bed: &Bed, client: &'a Client, project: String, with_rivals: bool) -> Result<Self> {
        let body = json!({"name": "template", "template": true, "start": false});
        let made = client.post(&format!("/projects/{project}/containers"), body).await?.expect(201)?;
        let template = made.id()?;
        let rivals = if with_rivals {
            // A bundle is written at a start: one copy lends its own.
            let lender = client.post(&format!("/containers/{template}/copy"), json!({})).await?.expect(201)?.id()?;
            let rivals = Rivals::borrow(bed, &lender)?;
            client.delete(&format!("/containers/{lender}")).await?.expect(200)?;
            Some(rivals)
        } else {
            None
        };
        let script = Script::prepare(client).await?;
        Ok(Self { client, project, template, script, rivals })
    }

    async fn play(&mut self, report: &mut Report) -> Result<()> {
        let id = self.copy(report).await?;
        self.stop_and_start(report, &id).await?;
        self.delete(report, &id).await?;
        self.create(report).await?;
        self.script.play(report, self.client, &self.template).await?;
        if let Some(rivals) = &mut self.rivals {
            rivals.play(report).await?;
        }
        Ok(())
    }

    async fn copy(&self, report: &mut Report) -> Result<String> {
        let before = Counters::now()?;
        let began = Instant::now();
        let made = self.client.post(&format!("/containers/{}/copy", self.template), json!({})).await?.expect(201)?;
        let answered = began.elapsed();
        let url = made.text("url")?;
        let page = self.client.open(&url).await?;
        let reached = began.elapsed();
        page.expect(200).context("the URL of a copy must answer when the call has returned")?;
        report.counted(&before, &Counters::now()?);
        report.took("copy → its URL answers", reached);
        report.took("  of it: POST copy", answered);
        report.took("  of it: GET url, by the proxy", reached - answered);
        report.steps("copy", &made.timings);
        made.id()
    }

    async fn create(&self, report: &mut Report) -> Result<()> {
        let began = Instant::now();
        let made = self.client.post(&format!("/projects/{}/containers", self.project), json!({})).await?.expect(201)?;
        report.took("create from an image, ready", began.elapsed());
        self.client.delete(&format!("/containers/{}", made.id()?)).await?.expect(200)?;
        Ok(())
    }

    async fn verb(&self, id: &str, verb: &str) -> Result<(Duration, Reply)> {
        let began = Instant::now();
        let done = self.client.post(&format!("/containers/{id}/{verb}"), Value::Null).await?;
        Ok((began.elapsed(), done.expect(200)?))
    }

    async fn stop_and_start(&self, report: &mut Report, id: &str) -> Result<()> {
        let (took, done) = self.verb(id, "stop").await?;
        report.took("stop", took);
        report.steps("stop", &done.timings);
        tokio::time::sleep(Duration::from_millis(REST_MS)).await;
        let (took, done) = self.verb(id, "start").await?;
        report.took("start, its process runs", took);
        report.steps("start", &done.timings);
        self.verb(id, "stop").await?;
        tokio::time::sleep(Duration::from_millis(REST_MS)).await;
        let (took, _) = self.verb(id, "start?wait=ready").await?;
        report.took("start, its port accepts", took);
        let (took, _) = self.verb(id, "restart").await?;
        report.took("restart, its process runs", took);
        Ok(())
    }

    async fn delete(&self, report: &mut Report, id: &str) -> Result<()> {
        let began = Instant::now();
        let done = self.client.delete(&format!("/containers/{id}")).await?.expect(200)?;
        report.took("delete, running", began.elapsed());
        report.steps("delete", &done.timings);
        let receipt = format!("/receipts/{}", done.text("receipt_id")?);
        while self.client.get(&receipt).await?.expect(200)?.text("state")? != "complete" {
            anyhow::ensure!(began.elapsed() < Duration::from_secs(ERASED_S_MAX), "{receipt} is never complete");
            tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
        }
        report.took("delete, until its data is erased", began.elapsed());
        Ok(())
    }
}
