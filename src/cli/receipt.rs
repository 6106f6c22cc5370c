//! `tenantry receipt`.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::Value;

use super::Context;
use super::output::{Output, cell, line, time};

/// Receipts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what was erased, when, and how that was seen
    #[command(after_help = "Example:\n  tenantry receipt show 65f0c0a1b2c3d4e5f6a7b8c9")]
    Show {
        /// The receipt's id, as the deletion answered it
        id: String,
    },
}

/// Prints a receipt and what it lists.
pub fn print(out: Output, receipt: &Value) -> anyhow::Result<()> {
    out.one(receipt, &["id", "container_id", "project_id", "state", "requested_at", "completed_at"])?;
    if out.json || out.quiet {
        return Ok(());
    }
    for erased in receipt["erased"].as_array().into_iter().flatten() {
        line(&format!("  erased {}: {} ({})", cell(&erased["what"]), cell(&erased["verified"]), time(&erased["at"])))?;
    }
    Ok(())
}

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let Command::Show { id } = command;
    print(context.out, &context.client.get(&format!("/receipts/{}", segment(&id))).await?)?;
    Ok(ExitCode::SUCCESS)
}

/// A text as one segment of a path: what is not plain is escaped.
pub fn segment(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_stays_in_its_place() {
        assert_eq!(segment("a-b_1"), "a-b_1");
        assert_eq!(segment("../x?y"), "%2E%2E%2Fx%3Fy");
    }
}
