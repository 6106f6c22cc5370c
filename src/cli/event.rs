//! `tenantry events`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::Value;

use super::events::Events;
use super::output::{Column, cell, line, time, write_on};
use super::{Context, resolve};

/// Events of one page of the API.
const PAGE: u64 = 100;

/// Which events.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tenantry events --last 20\n  tenantry events --container acme --type 'container.*'\n  tenantry events --follow --type container.oom --json\n  tenantry events --type 'audit.*' --last 20"
)]
pub struct EventsArgs {
    /// Of this container: its name or id
    #[arg(short, long)]
    container: Option<String>,
    /// Of this project: its alias or id
    #[arg(short, long)]
    project: Option<String>,
    /// Of this type, or of all that begin so: `container.*`
    #[arg(short, long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// How many of those that have happened
    #[arg(short = 'n', long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=PAGE))]
    last: u64,
    /// Go on with what happens from now on, in the place of what has happened
    #[arg(short, long)]
    follow: bool,
}

const COLUMNS: [Column; 5] = [
    ("AT", |event| time(&event["created_at"])),
    ("TYPE", |event| cell(&event["type"])),
    ("CONTAINER", |event| cell(&event["container_id"])),
    ("REASON", |event| cell(&event["reason"])),
    ("DATA", |event| cell(&event["data"])),
];

/// Carries the command out.
pub async fn run(args: EventsArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let mut query = Vec::new();
    if let Some(name) = &args.container {
        query.push(("container_id", resolve::container(context, name, args.project.as_deref()).await?));
    }
    if let Some(name) = &args.project {
        query.push(("project_id", resolve::project(context, Some(name)).await?));
    }
    query.extend(args.kind.map(|kind| ("type", kind)));
    if args.follow {
        follow(context, &query).await?;
        return Ok(ExitCode::SUCCESS);
    }
    query.extend([("sort_order", "desc".to_owned()), ("limit", args.last.to_string())]);
    let mut data = context.client.send(context.client.request(Method::GET, "/events").query(&query)).await?;
    let mut events = match data["events"].take() {
        Value::Array(events) => events,
        _ => Vec::new(),
    };
    events.reverse();
    context.out.list("events", events, &COLUMNS)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints each event as it happens: a line of words, of JSON, or its container's id alone.
async fn follow(context: &Context, query: &[(&str, String)]) -> anyhow::Result<()> {
    let request = context.client.request(Method::GET, "/events/stream").query(query);
    let mut chunks = context.client.send_raw(request).await?.bytes_stream();
    let mut events = Events::default();
    while let Some(chunk) = chunks.next().await {
        events.push(&chunk.context("the stream broke off")?);
        while let Some((kind, data)) = events.next()? {
            match kind.as_str() {
                "" => {}
                "end" => anyhow::bail!("the stream has ended: {data}"),
                _ if !show(context, &data)? => return Ok(()),
                _ => {}
            }
        }
    }
    anyhow::bail!("the stream broke off")
}

/// Whether anybody reads on.
fn show(context: &Context, data: &str) -> anyhow::Result<bool> {
    if context.out.json {
        return write_on(format!("{data}\n").as_bytes());
    }
    let event: Value = serde_json::from_str(data).context("an event is not JSON")?;
    if context.out.quiet {
        line(&cell(&event["container_id"]))?;
        return Ok(true);
    }
    let cells: Vec<_> = COLUMNS.iter().map(|(_, cell_of)| cell_of(&event)).collect();
    write_on(format!("{}\n", cells.join("  ")).as_bytes())
}
