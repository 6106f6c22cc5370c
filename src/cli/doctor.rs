//! `tenantry doctor`: whether this host can do what is promised, what has leaked, and how to mend each.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Client;
use super::output::{Output, cell, line};
use crate::config::Config;
use crate::sys::host::{self, Finding, Status, Wanted};

/// Containers awake at once that a host is judged for.
const CONTAINERS_WANTED: u32 = 500;

/// Checks this host; the exit code is 1 where something keeps containers from running, or where something has leaked.
///
/// # Errors
/// What is found cannot be printed.
pub async fn run(config: Config, client: anyhow::Result<Client>, out: Output) -> anyhow::Result<ExitCode> {
    let wanted = Wanted { containers: CONTAINERS_WANTED, pool: config.pool_path(), data_dir: config.data_dir };
    let findings = tokio::task::spawn_blocking(move || host::findings(&wanted)).await?;
    let leaks = match client {
        Ok(client) => client.get("/leaks").await,
        Err(error) => Err(error),
    };
    let leaked = leaks.as_ref().ok().and_then(|found| found["leaks"].as_array()).is_some_and(|found| !found.is_empty());
    let failed = findings.iter().any(|finding| finding.status == Status::Fail);
    if out.json {
        let leaks = leaks.map(|found| found["leaks"].clone()).unwrap_or(Value::Null);
        line(&serde_json::to_string_pretty(&json!({ "findings": findings, "leaks": leaks }))?)?;
    } else {
        findings.iter().try_for_each(|finding| print(finding, out.quiet))?;
        print_leaks(leaks, out.quiet)?;
    }
    Ok(if failed || leaked { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok  ",
        Status::Warn => "warn",
        Status::Fail => "FAIL",
    }
}

fn print(finding: &Finding, quiet: bool) -> anyhow::Result<()> {
    if quiet && finding.status == Status::Ok {
        return Ok(());
    }
    line(&format!("{}  {}: {}", word(finding.status), finding.check, finding.found))?;
    match &finding.mend {
        Some(mend) => line(&format!("      mend: {mend}")),
        None => Ok(()),
    }
}

fn print_leaks(leaks: anyhow::Result<Value>, quiet: bool) -> anyhow::Result<()> {
    match leaks {
        Ok(found) => {
            let leaks = found["leaks"].as_array().cloned().unwrap_or_default();
            if leaks.is_empty() && !quiet {
                line("ok    leaks: none")?;
            }
            for leak in &leaks {
                line(&format!("FAIL  leak: {}", cell(leak)))?;
                line("      mend: restart tenantry, which removes what nobody owns; containers run on")?;
            }
            Ok(())
        }
        // The host can be checked before the first start.
        Err(error) => line(&format!("warn  leaks: not looked for, as no daemon answers ({error:#})")),
    }
}
