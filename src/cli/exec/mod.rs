//! `tenantry exec`: scripts.

mod manage;
mod run;

use std::process::ExitCode;

use clap::Subcommand;

use super::Context;

/// What can be done with scripts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Try a script without a server: its answer to standard output, its console to standard error
    #[command(after_help = run::EXAMPLES)]
    Run(run::Args),
    #[command(flatten)]
    Manage(manage::Command),
}

/// What of the client's options a script that is tried is given.
#[derive(Debug)]
pub struct Reach {
    /// The daemon, where one was named.
    pub url: Option<String>,
    /// The token, where one was given.
    pub token: Option<String>,
}

/// Carries it out; whatever is not tried here is asked of the daemon.
///
/// # Errors
/// What went wrong.
pub async fn run(
    command: Command,
    reach: Reach,
    connect: impl FnOnce() -> anyhow::Result<Context>,
) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(args, reach).await,
        Command::Manage(command) => manage::run(command, &connect()?).await,
    }
}
