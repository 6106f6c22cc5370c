//! `tenantry exec`: scripts.

mod run;

use std::process::ExitCode;

use clap::Subcommand;

/// What can be done with scripts.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Try a script without a server: its answer to standard output, its console to standard error
    #[command(after_help = run::EXAMPLES)]
    Run(run::Args),
}

/// What of the client's options a script that is tried is given.
#[derive(Debug)]
pub struct Reach {
    /// The daemon, where one was named.
    pub url: Option<String>,
    /// The token, where one was given.
    pub token: Option<String>,
}

/// Carries it out.
///
/// # Errors
/// What went wrong.
pub async fn run(command: Command, reach: Reach) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(args, reach).await,
    }
}
