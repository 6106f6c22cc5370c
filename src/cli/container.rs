//! `tenantry container`.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::access_log::{self, AccessLogArgs};
use super::events::Events;
use super::failure::Failure;
use super::output::{bytes, cell, line, note, write, write_on};
use super::receipt::segment;
use super::settings::{SettingsArgs, given};
use super::{Context, receipt, resolve};

/// Bytes of standard input that are passed to a command, at most: what the API takes.
const STDIN_BYTES_MAX: u64 = 4 << 20;
/// How long a command may take where nothing is said, in seconds.
const EXEC_S_DEFAULT: u64 = 60;
/// What the answer may take longer than the command, in seconds.
const EXEC_SLACK_S: u64 = 30;

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
    /// Print what was asked of a container's URL
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
    container: String,
    #[command(flatten)]
    within: Within,
}

/// Several containers.
#[derive(Debug, Args)]
pub struct Many {
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
    #[command(flatten)]
    within: Within,
}

#[derive(Debug, Args)]
struct Within {
    /// The project's alias or id; the only one there is, where left out
    #[arg(short, long)]
    project: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Wait {
    /// Until its port accepts
    Ready,
    /// Until its process was started
    Started,
    /// Not at all
    None,
}

impl Wait {
    const fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Started => "started",
            Self::None => "none",
        }
    }
}

#[derive(Debug, Args)]
struct Waiting {
    /// What to wait for
    #[arg(long, value_enum)]
    wait: Option<Wait>,
    /// Seconds to wait
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

#[derive(Debug, Args)]
struct Making {
    /// Leave it stopped
    #[arg(long)]
    no_start: bool,
    /// Makes one container however often the command is run within 24 hours
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Options of create.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Its name; a random one where left out
    name: Option<String>,
    /// An image's name or id
    #[arg(short, long)]
    image: Option<String>,
    #[command(flatten)]
    within: Within,
    #[command(flatten)]
    making: Making,
}

/// Options of copy.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// What to copy: name or id
    source: String,
    /// The copy's name; a random one where left out
    name: Option<String>,
    /// Where the copy goes: alias or id; the source's project where left out
    #[arg(long, value_name = "PROJECT")]
    to_project: Option<String>,
    #[command(flatten)]
    within: Within,
    #[command(flatten)]
    making: Making,
}

/// Options of list.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Of every project
    #[arg(long, conflicts_with = "project")]
    all_projects: bool,
    /// Only of this status
    #[arg(long)]
    status: Option<String>,
    /// Only with this label; repeated: all of them
    #[arg(short, long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Only with this external id
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Also those being removed
    #[arg(long)]
    deleting: bool,
    #[command(flatten)]
    within: Within,
}

/// Options of start and restart.
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    many: Many,
    #[command(flatten)]
    waiting: Waiting,
}

/// Options of stop.
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    many: Many,
    /// Seconds between SIGTERM and SIGKILL
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// Options of update.
#[derive(Debug, Args)]
pub struct UpdateArgs {
    #[command(flatten)]
    one: One,
    /// A new name
    #[arg(long)]
    name: Option<String>,
    /// Restart it where it runs, so that its environment is in force
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Options of delete.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    many: Many,
    /// Wait until the filesystem has dropped the data
    #[arg(long)]
    erased: bool,
}

/// Options of exec.
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    one: One,
    /// A variable added to the container's own; can be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Where the command starts
    #[arg(short = 'w', long, value_name = "DIR")]
    cwd: Option<String>,
    /// Seconds before it is killed
    #[arg(long, value_name = "SECONDS", default_value_t = EXEC_S_DEFAULT)]
    timeout: u64,
    /// The command
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
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

const FIELDS: [&str; 24] = [
    "id",
    "name",
    "project_alias",
    "status",
    "status_reason",
    "idle_timeout",
    "idle_action",
    "why_awake",
    "last_woken_by",
    "url",
    "ip",
    "port",
    "container_image",
    "command",
    "limits",
    "environment_vars",
    "env_sync",
    "labels",
    "external_id",
    "firewall_policy",
    "template",
    "source_container_id",
    "created_at",
    "ready_at",
];

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(args) => create(context, args).await?,
        Command::Copy(args) => copy(context, args).await?,
        Command::List(args) => list(context, args).await?,
        Command::Show(one) => {
            let path = path(context, &one).await?;
            context.out.one(&context.client.get(&path).await?, &FIELDS)?;
        }
        Command::Start(args) => verb(context, "start", &args.many, waiting(&args.waiting)).await?,
        Command::Restart(args) => verb(context, "restart", &args.many, waiting(&args.waiting)).await?,
        Command::Stop(args) => {
            let timeout = args.timeout.map(|seconds| ("timeout", seconds.to_string()));
            verb(context, "stop", &args.many, timeout.into_iter().collect()).await?;
        }
        Command::ForceStop(many) => verb(context, "force-stop", &many, Vec::new()).await?,
        Command::Pause(many) => verb(context, "pause", &many, Vec::new()).await?,
        Command::Resume(many) => verb(context, "resume", &many, Vec::new()).await?,
        Command::Update(args) => {
            let mut body = args.settings.into_body()?;
            body.extend(given(json!({ "name": args.name })));
            change(context, &args.one, Value::Object(body), args.restart).await?;
        }
        Command::Delete(args) => delete(context, args).await?,
        Command::Env(command) => env(context, command).await?,
        Command::Exec(args) => return exec(context, args).await,
        Command::Logs { one, tail, follow: false } => logs(context, &one, tail).await?,
        Command::Logs { one, tail, follow: true } => follow(context, &one, tail).await?,
        Command::AccessLog(args) => return access_log::run(args, context).await,
        Command::Stats(one) => stats(context, &one).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Where the API has a container.
///
/// # Errors
/// There is none of that name, or more than one.
pub async fn path(context: &Context, one: &One) -> anyhow::Result<String> {
    let id = resolve::container(context, &one.container, one.within.project.as_deref()).await?;
    Ok(format!("/containers/{id}"))
}

fn waiting(waiting: &Waiting) -> Vec<(&'static str, String)> {
    let wait = waiting.wait.map(|wait| ("wait", wait.word().to_owned()));
    let timeout = waiting.timeout.map(|seconds| ("timeout", seconds.to_string()));
    wait.into_iter().chain(timeout).collect()
}

async fn make(context: &Context, path: &str, name: Option<String>, own: Value, making: Making) -> anyhow::Result<()> {
    let query = waiting(&making.waiting);
    let mut body = making.settings.into_body()?;
    body.extend(given(own));
    body.extend(given(json!({ "name": name, "start": making.no_start.then_some(false) })));
    let mut request = context.client.request(Method::POST, path).query(&query).json(&Value::Object(body));
    if let Some(key) = making.idempotency_key {
        request = request.header("idempotency-key", key);
    }
    let spinner = context.out.spinner("waiting until it is ready");
    let container = context.client.send(request).await?;
    drop(spinner);
    context.out.one(&container, &FIELDS)
}

async fn create(context: &Context, args: CreateArgs) -> anyhow::Result<()> {
    let project = resolve::project(context, args.within.project.as_deref()).await?;
    let own = json!({ "container_image": args.image });
    make(context, &format!("/projects/{project}/containers"), args.name, own, args.making).await
}

async fn copy(context: &Context, args: CopyArgs) -> anyhow::Result<()> {
    let source = resolve::container(context, &args.source, args.within.project.as_deref()).await?;
    let target = match &args.to_project {
        None => None,
        Some(name) => Some(resolve::project(context, Some(name)).await?),
    };
    let own = json!({ "target_project_id": target });
    make(context, &format!("/containers/{source}/copy"), args.name, own, args.making).await
}

async fn list(context: &Context, args: ListArgs) -> anyhow::Result<()> {
    let path = if args.all_projects {
        "/containers/".to_owned()
    } else {
        format!("/projects/{}/containers", resolve::project(context, args.within.project.as_deref()).await?)
    };
    let mut query: Vec<(String, String)> = args.label.into_iter().map(|label| ("label".to_owned(), label)).collect();
    query.extend(args.status.map(|status| ("status".to_owned(), status)));
    query.extend(args.external_id.map(|id| ("external_id".to_owned(), id)));
    query.extend(args.deleting.then(|| ("include_deleting".to_owned(), "true".to_owned())));
    let containers = context.client.list(&path, "containers", &query).await?;
    context.out.list(
        "containers",
        containers,
        &[
            ("NAME", |one| cell(&one["name"])),
            ("ID", |one| cell(&one["id"])),
            ("STATUS", |one| cell(&one["status"])),
            ("IMAGE", |one| cell(&one["container_image"])),
            ("URL", |one| cell(&one["url"])),
        ],
    )
}

async fn verb(context: &Context, verb: &str, many: &Many, query: Vec<(&str, String)>) -> anyhow::Result<()> {
    for name in &many.containers {
        let id = resolve::container(context, name, many.within.project.as_deref()).await?;
        let request = context.client.request(Method::POST, &format!("/containers/{id}/{verb}")).query(&query);
        let spinner = context.out.spinner(format!("{verb} {name}"));
        let done = context.client.send(request).await?;
        drop(spinner);
        if context.out.json {
            context.out.one(&done, &[])?;
            continue;
        }
        context.out.warn(&done);
        line(&if context.out.quiet { id } else { format!("{name} is {}", cell(&done["status"])) })?;
    }
    Ok(())
}

async fn patch(context: &Context, one: &One, body: Value, restart: bool) -> anyhow::Result<Value> {
    let request = context.client.request(Method::PATCH, &path(context, one).await?).json(&body);
    let request = if restart { request.query(&[("restart", "true")]) } else { request };
    context.client.send(request).await
}

async fn change(context: &Context, one: &One, body: Value, restart: bool) -> anyhow::Result<()> {
    if body.as_object().is_none_or(Map::is_empty) {
        return Err(
            Failure::Usage("nothing to change was given; see `tenantry container update --help`".to_owned()).into()
        );
    }
    context.out.one(&patch(context, one, body, restart).await?, &FIELDS)
}

async fn delete(context: &Context, args: DeleteArgs) -> anyhow::Result<()> {
    for name in &args.many.containers {
        let id = resolve::container(context, name, args.many.within.project.as_deref()).await?;
        let mut request = context.client.request(Method::DELETE, &format!("/containers/{id}"));
        if args.erased {
            request = request.query(&[("wait", "erased")]);
        }
        let spinner = context.out.spinner(format!("deleting {name}"));
        let data = context.client.send(request).await?;
        drop(spinner);
        receipt::print(context.out, &data)?;
    }
    Ok(())
}

fn print_env(context: &Context, container: &Value) -> anyhow::Result<()> {
    if context.out.json {
        return context.out.one(&container["environment_vars"], &[]);
    }
    // As a shell or a file of variables takes them: not cut like a cell.
    for (key, value) in container["environment_vars"].as_object().into_iter().flatten() {
        line(&format!("{key}={}", value.as_str().unwrap_or_default()))?;
    }
    if container["env_sync"]["pending"] == true && !context.out.quiet {
        note("note: in force at the next start");
    }
    Ok(())
}

async fn env(context: &Context, command: EnvCommand) -> anyhow::Result<()> {
    match command {
        EnvCommand::List(one) => {
            let path = format!("{}/env", path(context, &one).await?);
            print_env(context, &context.client.get(&path).await?)
        }
        EnvCommand::Set { one, vars, restart } => {
            let body = json!({ "environment_vars": pairs(&vars)? });
            print_env(context, &patch(context, &one, body, restart).await?)
        }
        EnvCommand::Unset { one, keys, restart } => {
            let path = path(context, &one).await?;
            let mut left = Value::Null;
            for key in &keys {
                // One by one, because this says which was not there.
                let request = context.client.request(Method::DELETE, &format!("{path}/env/{}", segment(key)));
                left = context.client.send(request).await?;
            }
            if restart {
                left = patch(context, &one, json!({}), true).await?;
            }
            print_env(context, &left)
        }
    }
}

fn pairs(texts: &[String]) -> Result<Map<String, Value>, Failure> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), Value::from(value))),
        _ => Err(Failure::Usage(format!("`{text}`: KEY=VALUE is wanted"))),
    };
    texts.iter().map(pair).collect()
}

/// What is piped in; nothing where a person sits in front.
fn piped_input() -> anyhow::Result<Option<String>> {
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    stdin.lock().take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes).context("cannot read the standard input")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        return Err(Failure::Usage(format!("standard input is longer than {STDIN_BYTES_MAX} bytes")).into());
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::Usage("standard input is not UTF-8".to_owned()))?;
    Ok(Some(text))
}

async fn exec(context: &Context, args: ExecArgs) -> anyhow::Result<ExitCode> {
    let path = format!("{}/exec", path(context, &args.one).await?);
    let body = given(json!({
        "command": args.command, "env": pairs(&args.env)?, "cwd": args.cwd, "stdin": piped_input()?, "timeout": args.timeout
    }));
    let patience = Duration::from_secs(args.timeout.saturating_add(EXEC_SLACK_S));
    let request = context.client.request(Method::POST, &path).json(&body).timeout(patience);
    let mut answer: Value =
        context.client.send_raw(request).await?.json().await.context("the daemon's answer is not JSON")?;
    let outcome = answer["data"].take();
    if context.out.json {
        context.out.one(&outcome, &[])?;
    } else {
        write(outcome["stdout"].as_str().unwrap_or_default().as_bytes())?;
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            outcome["stderr"].as_str().unwrap_or_default().as_bytes(),
        );
    }
    for (flag, text) in [("timed_out", "the command was killed: it took too long"), ("truncated", "the output was cut")]
    {
        if outcome[flag] == true {
            note(&format!("note: {text}"));
        }
    }
    Ok(exit_code(&outcome))
}

fn exit_code(outcome: &Value) -> ExitCode {
    let code = outcome["exit_code"].as_i64().and_then(|code| u8::try_from(code & 0xff).ok());
    ExitCode::from(code.unwrap_or(1))
}

async fn logs(context: &Context, one: &One, tail: u64) -> anyhow::Result<()> {
    let path = format!("{}/logs", path(context, one).await?);
    let request = context.client.request(Method::GET, &path).query(&[("tail", tail)]);
    let text = context.client.send_raw(request).await?.bytes().await.context("the log broke off")?;
    write(&text)
}

/// Prints the log as it is written; ends well when the container is deleted.
async fn follow(context: &Context, one: &One, tail: u64) -> anyhow::Result<()> {
    let path = format!("{}/logs", path(context, one).await?);
    let query = [("tail", tail.to_string()), ("follow", "true".to_owned())];
    let response = context.client.send_raw(context.client.request(Method::GET, &path).query(&query)).await?;
    let mut chunks = response.bytes_stream();
    let mut events = Events::default();
    while let Some(chunk) = chunks.next().await {
        events.push(&chunk.context("the log broke off")?);
        while let Some((kind, data)) = events.next()? {
            match (kind.as_str(), data.as_str()) {
                ("end", "container_deleted") => {
                    note("note: the container was deleted");
                    return Ok(());
                }
                ("end", why) => anyhow::bail!("the log is not followed any longer: {why}"),
                ("", text) if !write_on(text.as_bytes())? => return Ok(()),
                _ => {}
            }
        }
    }
    anyhow::bail!("the log broke off")
}

async fn stats(context: &Context, one: &One) -> anyhow::Result<()> {
    let stats = context.client.get(&format!("{}/stats", path(context, one).await?)).await?;
    if context.out.json {
        return context.out.one(&stats, &[]);
    }
    let network = &stats["network"][0];
    let of = |used: &Value, total: &Value| format!("{} of {}", bytes(used), bytes(total));
    let shown = json!({
        "id": stats["container_id"], "name": stats["name"], "status": stats["status"],
        "cpu": stats["cpu"]["usage_percent"].as_f64().map(|percent| format!("{percent:.1} % of a core")),
        "memory": stats["memory"]["usage"].as_u64().map(|_| of(&stats["memory"]["usage"], &stats["memory"]["total"])),
        "disk": of(&stats["disk"]["root"]["usage"], &stats["disk"]["root"]["total"]),
        "processes": stats["processes"],
        "received": bytes(&network["rx_bytes"]), "sent": bytes(&network["tx_bytes"]), "limits": stats["limits"],
    });
    let fields = ["name", "id", "status", "cpu", "memory", "disk", "processes", "received", "sent", "limits"];
    context.out.one(&shown, &fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_exit_code_is_ours() {
        assert_eq!(exit_code(&json!({"exit_code": 0})), ExitCode::SUCCESS);
        assert_eq!(exit_code(&json!({"exit_code": 137})), ExitCode::from(137));
        assert_eq!(exit_code(&json!({"exit_code": null})), ExitCode::from(1));
    }

    #[test]
    fn variables_are_pairs() {
        assert_eq!(pairs(&["A=1".into(), "B=x=y".into()]).unwrap()["B"], "x=y");
        assert!(matches!(pairs(&["A".into()]), Err(Failure::Usage(_))));
    }
}
