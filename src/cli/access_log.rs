//! `tenantry container access-log`.

use std::process::ExitCode;

use clap::Args;
use reqwest::Method;
use serde_json::Value;

use super::container::One;
use super::output::{Column, bytes, cell};
use super::{Context, container};

/// Which requests.
#[derive(Debug, Args)]
pub struct AccessLogArgs {
    #[command(flatten)]
    one: One,
    /// Requests, the last ones
    #[arg(short = 'n', long, default_value_t = 100)]
    tail: u64,
    /// None that ended before this time, as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

const COLUMNS: [Column; 9] = [
    ("TIME", |access| cell(&access["time"])),
    ("CLIENT", |access| cell(&access["client_ip"])),
    ("METHOD", |access| cell(&access["method"])),
    ("STATUS", |access| cell(&access["status"])),
    ("SENT", |access| bytes(&access["bytes"])),
    ("MS", |access| cell(&access["duration_ms"])),
    ("UPSTREAM", |access| cell(&access["upstream_ms"])),
    ("WOKEN", |access| cell(&access["woken"])),
    ("PATH", |access| cell(&access["path"])),
];

/// Carries the command out.
pub async fn run(args: AccessLogArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let path = format!("{}/access-log", container::path(context, &args.one).await?);
    let since = args.since.map(|since| ("since", since));
    let query: Vec<_> = [("tail", args.tail.to_string())].into_iter().chain(since).collect();
    let log = context.client.send(context.client.request(Method::GET, &path).query(&query)).await?;
    if context.out.json {
        context.out.one(&log, &[])?;
    } else {
        let accesses = log["access_log"].as_array().cloned().unwrap_or_default();
        context.out.list("access_log", accesses.into_iter().map(named).collect(), &COLUMNS)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// With `-q` a list prints ids: a request's is what its response bore.
fn named(mut access: Value) -> Value {
    access["id"] = access["request_id"].clone();
    access
}
