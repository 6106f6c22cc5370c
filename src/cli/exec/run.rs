//! `tenantry exec run FILE`: one run of a script in a worker of its own, as the server would run it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc;

use super::Reach;
use crate::cli::failure::Failure;
use crate::cli::output;
use crate::domain::{Bytes, Secret};
use crate::exec::pool::{Confine, Pool, PoolConfig};
use crate::exec::run::{Answer, Asked, Bounds, ConsoleLine, Engine, Run, RunError, ScriptFile};
use crate::sys::worker::Api;

/// Bounds of a run that somebody watches.
const WALL_S_MAX: u64 = 300;
const CPU_S_MAX: u64 = 60;
const MEMORY_MIB_MAX: u64 = 128;
const RESPONSE_MIB_MAX: u64 = 64;
const CONNECTIONS_MAX: u32 = 16;
/// Ids of nobody's, as in the default configuration (`users.uid_base`).
const FIRST_ID: u32 = 1_000_000_000;
/// Lines of the console that wait to be printed.
const LINES_WAITING_MAX: usize = 1_024;
/// How long a worker may take to come up, in seconds.
const WAIT_S_MAX: u64 = 10;

pub const EXAMPLES: &str = "\
Examples:
  tenantry exec run scripts/hello.js
  tenantry exec run scripts/stripe-signup.js --body @event.json --secret STRIPE_WEBHOOK_SECRET=whsec_1";

/// What to run, and what it is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The script
    file: PathBuf,
    /// The scripts folder, out of which nothing is required; the file's own where this is not given
    #[arg(long, value_name = "DIR")]
    scripts: Option<PathBuf>,
    /// The body: a text, or @FILE
    #[arg(long, value_name = "TEXT|@FILE")]
    body: Option<String>,
    /// The method
    #[arg(long, default_value = "POST")]
    method: String,
    /// A header
    #[arg(long = "header", value_name = "NAME:VALUE")]
    headers: Vec<String>,
    /// What `secrets.NAME` is
    #[arg(long = "secret", value_name = "NAME=VALUE")]
    secrets: Vec<String>,
    /// The path that is asked for, with its query
    #[arg(long, default_value = "/")]
    path: String,
}

/// Runs it; fails where the answer's status is 400 or above.
pub async fn run(args: Args, reach: Reach) -> anyhow::Result<ExitCode> {
    let (scripts_dir, file) = place(&args.file, args.scripts.as_deref())?;
    let source = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let (console, lines) = mpsc::channel(LINES_WAITING_MAX);
    let run = Run {
        metadata: serde_json::json!({ "script": file.0, "run": "local" }),
        file,
        source: source.into(),
        asked: asked(&args)?,
        secrets: secrets(&args.secrets)?,
        key: reach.token.map(Secret::new),
        bounds: Bounds {
            wall: Duration::from_secs(WALL_S_MAX),
            cpu: Duration::from_secs(CPU_S_MAX),
            memory: Bytes::mib(MEMORY_MIB_MAX),
            response: Bytes::mib(RESPONSE_MIB_MAX),
            connections: CONNECTIONS_MAX,
        },
        console: Arc::new(console),
    };
    let pool = Pool::start(PoolConfig {
        program: std::env::current_exe().context("cannot find this program")?,
        scripts_dir,
        api: reach.url.map_or(Api::Nowhere, Api::Url),
        confine: confine(),
        warm: 1,
        workers_max: 1,
        memory_max: Bytes::mib(MEMORY_MIB_MAX),
        wait_max: Duration::from_secs(WAIT_S_MAX),
    })
    .await?;
    let printer = tokio::spawn(print_lines(lines));
    let done = print(pool.run(run).await).await;
    pool.close().await;
    printer.await?;
    done
}

/// All that can be taken away; where that is not everything, it is said.
fn confine() -> Confine {
    if nix::unistd::geteuid().is_root() {
        return Confine::Full { instance: None, first_id: FIRST_ID };
    }
    output::note("not root: the script's worker sees your files, and is held by a system call filter and limits alone");
    Confine::Partial
}

/// The scripts folder, and the file in it.
fn place(file: &Path, scripts: Option<&Path>) -> anyhow::Result<(PathBuf, ScriptFile)> {
    let real = |path: &Path| path.canonicalize().with_context(|| format!("cannot find {}", path.display()));
    let file = real(file)?;
    let folder = match scripts {
        Some(folder) => real(folder)?,
        None => file.parent().unwrap_or(Path::new("/")).to_owned(),
    };
    let inside = file.strip_prefix(&folder).ok().and_then(Path::to_str);
    let inside = inside.ok_or_else(|| Failure::Usage(format!("{} is not in {}", file.display(), folder.display())))?;
    let inside = ScriptFile(inside.to_owned());
    Ok((folder, inside))
}

fn asked(args: &Args) -> anyhow::Result<Asked> {
    let body = match args.body.as_deref() {
        None => Vec::new(),
        Some(text) => match text.strip_prefix('@') {
            Some(file) => std::fs::read(file).with_context(|| format!("cannot read {file}"))?,
            None => text.as_bytes().to_vec(),
        },
    };
    let mut headers = args.headers.iter().map(|header| pair(header, ':')).collect::<Result<Vec<_>, _>>()?;
    for (name, _) in &mut headers {
        name.make_ascii_lowercase();
    }
    if !body.is_empty() && !headers.iter().any(|(name, _)| name == "content-type") {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        headers.push(("content-type".to_owned(), if json { "application/json" } else { "text/plain" }.to_owned()));
    }
    Ok(Asked {
        method: args.method.to_uppercase(),
        url: args.path.clone(),
        params: BTreeMap::new(),
        headers,
        body,
        client: None,
    })
}

fn secrets(given: &[String]) -> Result<BTreeMap<String, Secret>, Failure> {
    given.iter().map(|text| pair(text, '=').map(|(name, value)| (name, Secret::new(value)))).collect()
}

fn pair(text: &str, by: char) -> Result<(String, String), Failure> {
    let parts = text.split_once(by).filter(|(name, _)| !name.trim().is_empty());
    let (name, value) = parts.ok_or_else(|| Failure::Usage(format!("NAME{by}VALUE is wanted, not `{text}`")))?;
    Ok((name.trim().to_owned(), if by == ':' { value.trim() } else { value }.to_owned()))
}

async fn print_lines(mut lines: mpsc::Receiver<ConsoleLine>) {
    while let Some(line) = lines.recv().await {
        // A terminal that is gone reads nothing.
        let _ = writeln!(std::io::stderr(), "[{}] {}", line.level, line.text.trim_end());
    }
}

async fn print(answer: Result<Answer, RunError>) -> anyhow::Result<ExitCode> {
    let mut answer = answer.map_err(failed)?;
    let mut out = std::io::stdout();
    while let Some(part) = answer.body.recv().await {
        out.write_all(&part.map_err(failed)?)?;
    }
    out.flush()?;
    Ok(ExitCode::from(u8::from(answer.status >= 400)))
}

fn failed(error: RunError) -> anyhow::Error {
    match error {
        RunError::Thrown { message, stack: Some(stack) } => anyhow::anyhow!("uncaught {message}\n{stack}"),
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_told_apart() {
        assert_eq!(pair("A: b:c", ':').unwrap(), ("A".into(), "b:c".into()));
        assert_eq!(pair("K= v=", '=').unwrap(), ("K".into(), " v=".into()));
        assert!(pair("K", '=').is_err() && pair("=v", '=').is_err());
    }

    #[test]
    fn a_file_is_named_from_its_folder_on() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("shop")).unwrap();
        let file = folder.path().join("shop/a.js");
        std::fs::write(&file, "").unwrap();
        assert_eq!(place(&file, None).unwrap().1.0, "a.js");
        assert_eq!(place(&file, Some(folder.path())).unwrap().1.0, "shop/a.js");
        assert!(place(&file, Some(Path::new("/usr"))).is_err());
    }
}
