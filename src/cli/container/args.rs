//! What `tenantry container` is told.

use clap::{Args, Subcommand, ValueEnum};

use super::super::access_log::AccessLogArgs;
use super::super::settings::SettingsArgs;

/// How long a command may take where nothing is said, in seconds.
const EXEC_S_DEFAULT: u64 = 60;

/// Containers.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a container from an image
    #[command(
        after_help = "Examples:\n  tenantry container create acme\n  tenantry container create template --image crm --template --env PLAN=free --memory 256MiB\n  tenantry container create job --image base -- /bin/sh -c 'sleep 60'"
    )]
    Create(CreateArgs),
    /// Make a container from another one: milliseconds, whatever its size
    #[command(
        visible_alias = "cp",
        after_help = "Examples:\n  tenantry container copy template acme\n  tenantry container copy template acme --external-id cus_123 --env PLAN=pro"
    )]
    Copy(CopyArgs),
    /// List containers
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  tenantry container list\n  tenantry container list --status running --label plan=pro\n  tenantry container list --all-projects --json"
    )]
    List(ListArgs),
    /// Show a container
    #[command(after_help = "Example:\n  tenantry container show acme")]
    Show(One),
    /// Start containers
    #[command(after_help = "Example:\n  tenantry container start acme --wait ready")]
    Start(StartArgs),
    /// Stop containers: SIGTERM, then SIGKILL
    #[command(after_help = "Example:\n  tenantry container stop acme globex --timeout 3")]
    Stop(StopArgs),
    /// Stop containers by SIGKILL
    #[command(after_help = "Example:\n  tenantry container force-stop acme")]
    ForceStop(Many),
    /// Stop containers, then start them
    #[command(after_help = "Example:\n  tenantry container restart acme")]
    Restart(StartArgs),
    /// Freeze containers
    #[command(after_help = "Example:\n  tenantry container pause acme")]
    Pause(Many),
    /// Thaw containers
    #[command(after_help = "Example:\n  tenantry container resume acme")]
    Resume(Many),
    /// Change a container
    #[command(
        after_help = "Examples:\n  tenantry container update acme --env PLAN=pro --restart\n  tenantry container update acme --memory 1GiB --protect"
    )]
    Update(UpdateArgs),
    /// Delete containers and all their data
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  tenantry container delete acme\n  tenantry container delete acme --erased    wait until the filesystem has dropped the data"
    )]
    Delete(DeleteArgs),
    /// A container's environment
    #[command(subcommand)]
    Env(EnvCommand),
    /// Run a command inside; its output, its exit code
    ///
    /// Standard input is passed on where it is no terminal. The exit code is the command's own (128 and the signal's
    /// number where a signal ended it); 1, 2 and 3 can also be this client's, which then says why on standard error.
    #[command(
        after_help = "Examples:\n  tenantry container exec acme -- ls -l /data\n  echo 'select 1' | tenantry container exec acme -- sqlite3 /data/app.db"
    )]
    Exec(ExecArgs),
    /// Print the end of a container's log
    #[command(
        after_help = "Examples:\n  tenantry container logs acme --tail 50\n  tenantry container logs acme --follow"
    )]
    Logs {
        #[command(flatten)]
        one: One,
        /// Lines
        #[arg(short = 'n', long, default_value_t = 100)]
        tail: u64,
        /// Go on with what is written from now on, until the container is deleted
        #[arg(short, long)]
        follow: bool,
    },
    /// Print what was asked of a container's URLs, and who came to its ports
    #[command(
        after_help = "Examples:\n  tenantry container access-log acme --tail 20\n  tenantry container access-log acme --since 2030-01-31T12:00:00Z --json"
    )]
    AccessLog(AccessLogArgs),
    /// Show what a container uses now
    #[command(after_help = "Example:\n  tenantry container stats acme")]
    Stats(One),
}

/// One container.
#[derive(Debug, Args)]
pub struct One {
    /// Name or id
    pub container: String,
    #[command(flatten)]
    pub within: Within,
}

/// Several containers.
#[derive(Debug, Args)]
pub struct Many {
    /// Names or ids
    #[arg(required = true)]
    pub containers: Vec<String>,
    #[command(flatten)]
    pub within: Within,
}

#[derive(Debug, Args)]
pub struct Within {
    /// The project's alias or id; the only one there is, where left out
    #[arg(short, long)]
    pub project: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Wait {
    /// Until its port accepts
    Ready,
    /// Until its process was started
    Started,
    /// Not at all
    None,
}

impl Wait {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Started => "started",
            Self::None => "none",
        }
    }
}

#[derive(Debug, Args)]
pub struct Waiting {
    /// What to wait for
    #[arg(long, value_enum)]
    pub wait: Option<Wait>,
    /// Seconds to wait
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub struct Making {
    /// Leave it stopped
    #[arg(long)]
    pub no_start: bool,
    /// Makes one container however often the command is run within 24 hours
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Options of create.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name; a random one where left out
    pub name: Option<String>,
    /// An image's name or id
    #[arg(short, long)]
    pub image: Option<String>,
    #[command(flatten)]
    pub within: Within,
    #[command(flatten)]
    pub making: Making,
}

/// Options of copy.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What to copy: name or id
    pub source: String,
    /// The copy's name; a random one where left out
    pub name: Option<String>,
    /// Where the copy goes: alias or id; the source's project where left out
    #[arg(long, value_name = "PROJECT")]
    pub to_project: Option<String>,
    #[command(flatten)]
    pub within: Within,
    #[command(flatten)]
    pub making: Making,
}

/// Options of list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Of every project
    #[arg(long, conflicts_with = "project")]
    pub all_projects: bool,
    /// Only of this status
    #[arg(long)]
    pub status: Option<String>,
    /// Only with this label; repeated: all of them
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Only with this external id
    #[arg(long, value_name = "ID")]
    pub external_id: Option<String>,
    /// Also those being removed
    #[arg(long)]
    pub deleting: bool,
    #[command(flatten)]
    pub within: Within,
}

/// Options of start and restart.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub many: Many,
    #[command(flatten)]
    pub waiting: Waiting,
}

/// Options of stop.
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub many: Many,
    /// Seconds between SIGTERM and SIGKILL
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// Options of update.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    pub one: One,
    /// A new name
    #[arg(long)]
    pub name: Option<String>,
    /// Restart it where it runs, so that its environment is in force
    #[arg(long)]
    pub restart: bool,
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Options of delete.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub many: Many,
    /// Wait until the filesystem has dropped the data
    #[arg(long)]
    pub erased: bool,
}

/// Options of exec.
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub one: One,
    /// A variable added to the container's own; can be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Where the command starts
    #[arg(short = 'w', long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// Seconds before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = EXEC_S_DEFAULT)]
    pub timeout: u64,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// A container's environment.
#[derive(Debug, Subcommand)]
pub enum EnvCommand {
    /// Print the variables
    #[command(visible_alias = "ls", after_help = "Example:\n  tenantry container env list acme")]
    List(One),
    /// Set variables; in force at the next start
    #[command(after_help = "Example:\n  tenantry container env set acme PLAN=pro SEATS=5 --restart")]
    Set {
        #[command(flatten)]
        one: One,
        /// KEY=VALUE
        #[arg(required = true, value_name = "KEY=VALUE")]
        vars: Vec<String>,
        /// Restart it where it runs
        #[arg(long)]
        restart: bool,
    },
    /// Remove variables
    #[command(after_help = "Example:\n  tenantry container env unset acme SEATS")]
    Unset {
        #[command(flatten)]
        one: One,
        /// Names
        #[arg(required = true)]
        keys: Vec<String>,
        /// Restart it where it runs
        #[arg(long)]
        restart: bool,
    },
}
