//! The command line: `serve` and its kin, and the client, which speaks to the REST API like any other client.
//!
//! Exit codes: 0 done, 1 refused by the API (or failed), 2 usage, 3 unreachable; `container exec` exits with the command's own
//! code. What was asked for goes to standard output, everything else to standard error. The environment is
//! handed in by `main` and read nowhere else.

mod access;
mod access_log;
mod alias;
mod client;
mod configuration;
mod container;
mod doctor;
mod event;
mod events;
mod exec;
mod failure;
mod firewall;
mod image;
mod network;
mod output;
mod project;
mod receipt;
mod resolve;
mod serve;
mod settings;
mod token;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::telemetry;
use client::Client;
use failure::Failure;
use output::Output;

/// What is logged where `TENANTRY_LOG` is not set: the daemon's doings, and a client's troubles.
const LOG_OF_SERVE: &str = "info";
const LOG_OF_CLIENT: &str = "warn";

/// Variables of the environment, as `main` found them.
pub type Environment = HashMap<String, String>;

const EXAMPLES: &str = "\
Examples:
  tenantry serve                                   run the daemon
  tenantry project create shop
  tenantry image import rootfs.tar --name crm
  tenantry container create template --image crm --template
  tenantry container copy template acme --external-id cus_123
  tenantry container delete acme --erased

The client finds the daemon by --url and --token, by TENANTRY_URL and TENANTRY_TOKEN, or by the local configuration.
Exit codes: 0 done, 1 refused, 2 usage, 3 unreachable; `container exec` exits with the command's own code.";

/// One sandbox per customer: a container, a filesystem, a firewall and a URL from one API call
#[derive(Debug, Parser)]
#[command(name = "tenantry", version, after_help = EXAMPLES, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// The daemon's URL [TENANTRY_URL]
    #[arg(long, global = true, value_name = "URL", help_heading = "Global options")]
    url: Option<String>,
    /// The token to present [TENANTRY_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN", help_heading = "Global options", hide_env_values = true)]
    token: Option<String>,
    /// The configuration's file [TENANTRY_CONFIG]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    config: Option<PathBuf>,
    /// Print the answer's data as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
    /// Print ids alone, and no progress
    #[arg(short, long, global = true, help_heading = "Global options")]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve {
        /// What a line of the log looks like
        #[arg(long, value_enum, default_value_t)]
        log_format: telemetry::Format,
    },
    /// Check or print the configuration
    #[command(subcommand)]
    Config(configuration::Command),
    /// Check this host, and say how to mend what is amiss
    Doctor,
    /// Projects: the customer base of one product
    #[command(subcommand)]
    Project(project::Command),
    /// Containers: one customer each
    #[command(subcommand)]
    Container(Box<container::Command>),
    /// Firewall: a container's own rules, and what is in force
    #[command(subcommand)]
    Firewall(Box<firewall::Command>),
    /// Images: what a container's filesystem begins as
    #[command(subcommand)]
    Image(image::Command),
    /// Further names of containers
    #[command(subcommand)]
    Alias(alias::Command),
    /// Who may open a container's URL: by password, token, JSON Web Token or address
    #[command(subcommand)]
    Access(access::Command),
    /// How what a container sends leaves this host: directly, through a proxy, or not at all
    #[command(subcommand)]
    Network(network::Command),
    /// API tokens
    #[command(subcommand)]
    Token(token::Command),
    /// Receipts: what is left of a deleted container
    #[command(subcommand)]
    Receipt(receipt::Command),
    /// Scripts: files that answer requests
    #[command(subcommand)]
    Exec(exec::Command),
    /// What happened, or what happens from now on
    Events(event::EventsArgs),
}

/// What the client's commands share.
#[derive(Debug)]
struct Context {
    client: Client,
    out: Output,
}

/// Carries the command out; the exit code says how it went, and standard error why.
pub fn main(cli: Cli, env: Environment) -> ExitCode {
    match run(cli, &env) {
        Ok(code) => code,
        Err(error) => {
            output::complain(&error);
            failure::exit_code(&error)
        }
    }
}

fn run(cli: Cli, env: &Environment) -> anyhow::Result<ExitCode> {
    let (level, format) = match &cli.command {
        Command::Serve { log_format } => (LOG_OF_SERVE, *log_format),
        _ => (LOG_OF_CLIENT, telemetry::Format::Text),
    };
    let filter = env.get("TENANTRY_LOG").map_or(level, String::as_str);
    telemetry::init(filter, format).map_err(|error| Failure::usage(&error))?;
    let mut builder = match cli.command {
        Command::Serve { .. } => {
            serve::drop_privileges();
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build()?.block_on(dispatch(cli, env))
}

async fn dispatch(cli: Cli, env: &Environment) -> anyhow::Result<ExitCode> {
    let Global { url, token, config, json, quiet } = cli.global;
    let file = config.or_else(|| env.get("TENANTRY_CONFIG").map(PathBuf::from));
    let out = Output { json, quiet };
    let connect = || -> anyhow::Result<Context> {
        let client = client::find(url.as_deref(), token.as_deref(), file.as_deref(), env)?;
        Ok(Context { client, out })
    };
    match cli.command {
        Command::Serve { .. } => serve::run(configuration::load(file.as_deref(), env)?).await,
        Command::Doctor => {
            let client = connect().map(|context| context.client);
            doctor::run(configuration::load(file.as_deref(), env)?, client, out).await
        }
        Command::Config(command) => configuration::run(&command, file.as_deref(), env, out),
        Command::Project(command) => project::run(command, &connect()?).await,
        Command::Container(command) => container::run(*command, &connect()?).await,
        Command::Firewall(command) => firewall::run(*command, &connect()?).await,
        Command::Image(command) => image::run(command, &connect()?).await,
        Command::Alias(command) => alias::run(command, &connect()?).await,
        Command::Access(command) => access::run(command, &connect()?).await,
        Command::Network(command) => network::run(command, &connect()?).await,
        Command::Token(command) => token::run(command, &connect()?).await,
        Command::Receipt(command) => receipt::run(command, &connect()?).await,
        Command::Exec(command) => {
            // No local configuration is looked for: a script that is tried reaches what was named, and nothing else.
            let given = |flag: Option<String>, name: &str| flag.or_else(|| env.get(name).cloned());
            let reach =
                exec::Reach { url: given(url.clone(), "TENANTRY_URL"), token: given(token.clone(), "TENANTRY_TOKEN") };
            exec::run(command, reach, connect).await
        }
        Command::Events(args) => event::run(args, &connect()?).await,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_that_does_something_shows_examples() {
        fn leaves(command: &clap::Command, path: &str, missing: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            let mut below = command.get_subcommands().filter(|one| one.get_name() != "help").peekable();
            if below.peek().is_none()
                && !command.get_after_help().is_some_and(|help| help.to_string().contains("tenantry"))
            {
                missing.push(path.clone());
            }
            below.for_each(|one| leaves(one, &path, missing));
        }
        let mut missing = Vec::new();
        leaves(&Cli::command(), "", &mut missing);
        let known = [" tenantry serve", " tenantry doctor", " tenantry config check", " tenantry config default"];
        missing.retain(|path| !known.contains(&path.as_str()));
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn usage_that_cannot_be_is_refused() {
        for bad in [
            "tenantry",
            "tenantry container start",
            "tenantry container create a --env PLAN",
            "tenantry container create a --memory lots",
            "tenantry container exec a",
            "tenantry container create a --wait soon",
            "tenantry image import x.tar",
            "tenantry token create ci --permission root",
            "tenantry firewall add a sideways --action allow",
            "tenantry firewall add a egress --action deny",
        ] {
            let error = Cli::try_parse_from(bad.split(' ')).expect_err(bad);
            assert_eq!(error.exit_code(), 2, "{bad}");
        }
    }

    #[test]
    fn no_argument_takes_the_place_of_a_global_option() {
        fn look(command: &clap::Command, globals: &[String], bad: &mut Vec<String>) {
            for sub in command.get_subcommands() {
                let ids = sub.get_arguments().map(|arg| arg.get_id().to_string());
                bad.extend(ids.filter(|id| globals.contains(id)).map(|id| format!("{} {id}", sub.get_name())));
                look(sub, globals, bad);
            }
        }
        let command = Cli::command();
        let globals: Vec<_> = command.get_arguments().map(|arg| arg.get_id().to_string()).collect();
        let mut bad = Vec::new();
        look(&command, &globals, &mut bad);
        assert!(globals.len() >= 5 && bad.is_empty(), "{bad:?}");
    }

    #[test]
    fn global_options_stand_anywhere() {
        for good in [
            "tenantry --json container list --project shop",
            "tenantry container list --json --url http://127.0.0.1:1 -q",
            "tenantry container exec acme --project shop -- ls -l --json",
            "tenantry container copy template acme --env PLAN=pro --label a=b --template=false",
        ] {
            assert!(Cli::try_parse_from(good.split(' ')).is_ok(), "{good}");
        }
    }
}
