//! `./dev bench proxy`: what the proxy costs beside Debian's nginx, and what waking costs, in one run on one machine.
//!
//! ```text
//!             ┌─► our proxy ─┐
//!  load ──────┼─► nginx ─────┼──► veth ──► nginx in a container's network: the same upstream for all three
//!             └──────────────┘ directly
//! ```
//!
//! A daemon of its own in a network and a mount namespace of its own. Rounds of the three are interleaved, so that a machine that
//! is busy for a moment is busy for all; a figure is the median of its rounds. The load, the upstream and what is measured share
//! the machine's cores: requests a second say how the whole did, requests a second *of processor time* what one proxy costs.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is what it is for")]

#[path = "../spine/bed.rs"]
#[allow(dead_code, reason = "the other bench uses more of it")]
mod bed;
#[path = "../spine/client.rs"]
#[allow(dead_code, reason = "the other bench uses more of it")]
mod client;
mod figures;
mod load;
mod peers;
mod sleepers;
mod throughput;
mod wake;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use serde_json::{Value, json};

use bed::Bed;
use client::Client;

/// Measures the proxy beside nginx, wakes, and what sleeping containers cost. Needs root.
#[derive(Debug, Parser)]
#[command(name = "./dev bench proxy")]
pub struct Args {
    /// Parts to measure
    #[arg(long, value_delimiter = ',', default_value = "proxy,wake,herd,sleepers")]
    only: Vec<Part>,
    /// Rounds of each of the three and each number of connections
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a round
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Requests a second of the paced rounds, in which latencies are measured
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Wakes, one after the other
    #[arg(long, default_value_t = 200)]
    wakes: usize,
    /// Sleeping containers that are asked for at once
    #[arg(long, default_value_t = 300)]
    herd: usize,
    /// Sleeping containers whose memory is measured
    #[arg(long, default_value_t = 2_000)]
    sleepers: usize,
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

/// What can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Proxy,
    Wake,
    Herd,
    Sleepers,
}

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
    for part in [Part::Proxy, Part::Wake, Part::Herd, Part::Sleepers] {
        if !args.only.contains(&part) {
            continue;
        }
        // Each has a daemon of its own: memory that a herd has freed would hide what sleepers take.
        let bed = Bed::start(&args.daemon, args.log.as_deref(), &[]).await?;
        let client = bed.client()?;
        let project = client.post("/projects/", json!({"alias": "bench"})).await?.expect(201)?.id()?;
        match part {
            Part::Proxy => throughput::measure(args, &bed, &client, &project).await?,
            Part::Wake => wake::one_by_one(args, &client, &project).await?,
            Part::Herd => wake::herd(args, &client, &project).await?,
            Part::Sleepers => sleepers::measure(args, &bed, &client, &project).await?,
        }
        client.delete(&format!("/projects/{project}")).await?.expect(200)?;
    }
    println!("{}", figures::machine());
    Ok(())
}

/// A container of the base image that is a template and sleeps; its id.
async fn template(client: &Client, project: &str) -> Result<String> {
    let body = json!({"name": "rand", "template": true, "start": false});
    client.post(&format!("/projects/{project}/containers"), body).await?.expect(201)?.id()
}

/// A container's field that is a text.
async fn field(client: &Client, id: &str, key: &str) -> Result<String> {
    client.get(&format!("/containers/{id}")).await?.expect(200)?.text(key)
}

/// A verb that must end well.
async fn verb(client: &Client, id: &str, verb: &str) -> Result<()> {
    client.post(&format!("/containers/{id}/{verb}"), Value::Null).await?.expect(200)?;
    Ok(())
}
