//! `tenantry container`.

mod args;

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::access_log;
use super::events::Events;
use super::failure::Failure;
use super::output::{bytes, cell, line, note, write, write_on};
use super::receipt::segment;
use super::settings::given;
use super::{Context, receipt, resolve};
use args::{CopyArgs, CreateArgs, DeleteArgs, EnvCommand, ExecArgs, ListArgs, Making, Many, Waiting};

pub use args::{Command, One};

/// Bytes of standard input that are passed to a command, at most: what the API takes.
const STDIN_BYTES_MAX: u64 = 4 << 20;
/// What the answer may take longer than the command, in seconds.
const EXEC_SLACK_S: u64 = 30;

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
