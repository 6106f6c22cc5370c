//! Scripts of a daemon: listed, shown, written, deleted; their logs and their secrets.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cli::Context;
use crate::cli::output::{Column, cell, line, time, write};

/// What of a script's name stands in a path as it is.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'-').remove(b'_');

/// Scripts and what belongs to them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List scripts: which file answers what, and what is wrong with those that do not
    #[command(visible_alias = "ls", after_help = "Example:\n  tenantry exec list")]
    List,
    /// Print a script's text
    #[command(after_help = "Example:\n  tenantry exec show shop/stripe.js")]
    Show {
        /// Its file below the scripts' folder
        script: String,
    },
    /// Write a script; one that does not parse is refused, and what was there stays
    #[command(
        after_help = "Examples:\n  tenantry exec write shop/stripe.js stripe.js\n  cat stripe.js | tenantry exec write shop/stripe.js -"
    )]
    Write {
        /// Its file below the scripts' folder
        script: String,
        /// Its text; `-`: standard input
        file: PathBuf,
    },
    /// Delete a script, and its log
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry exec delete shop/stripe.js")]
    Delete {
        /// Its file below the scripts' folder
        script: String,
    },
    /// What a script printed, and how its runs ended
    #[command(after_help = "Example:\n  tenantry exec logs shop/stripe.js -n 50")]
    Logs {
        /// Its file below the scripts' folder
        script: String,
        /// Lines, the last ones
        #[arg(short = 'n', long, default_value_t = 200)]
        tail: u64,
        /// None from before this time, as 2030-01-31T12:00:00Z
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
    },
    /// What scripts know and nobody is shown
    #[command(subcommand)]
    Secrets(Secrets),
}

/// Secrets of scripts.
#[derive(Debug, Subcommand)]
pub enum Secrets {
    /// List them, without their values
    #[command(visible_alias = "ls", after_help = "Example:\n  tenantry exec secrets list")]
    List,
    /// Set one: every script sees it from its next run on
    #[command(
        after_help = "Examples:\n  tenantry exec secrets set STRIPE_WEBHOOK_SECRET < whsec.txt\n  tenantry exec secrets set STRIPE_WEBHOOK_SECRET --value whsec_…"
    )]
    Set {
        /// Its name: A-Z, 0-9 and _
        name: String,
        /// Its value; left out: standard input, without the line's end
        #[arg(long)]
        value: Option<String>,
    },
    /// Delete one that was set so
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry exec secrets delete STRIPE_WEBHOOK_SECRET")]
    Delete {
        /// Its name
        name: String,
    },
}

const COLUMNS: [Column; 5] = [
    ("FILE", |script| cell(&script["file"])),
    ("ROUTE", |script| cell(&script["route"])),
    ("SCHEDULE", |script| cell(&script["settings"]["schedule"])),
    ("DESCRIPTION", |script| cell(&script["settings"]["description"])),
    ("ERROR", error),
];

/// What is wrong with it, or that it is switched off.
fn error(script: &Value) -> String {
    if script["settings"]["enabled"] == false { "switched off".to_owned() } else { cell(&script["error"]) }
}

fn path(kind: &str, name: &str) -> String {
    format!("/exec/{kind}/{}", utf8_percent_encode(name, NAME))
}

/// A list's items by what `-q` prints.
fn named(mut item: Value, field: &str) -> Value {
    item["id"] = item[field].clone();
    item
}

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (client, out) = (&context.client, context.out);
    match command {
        Command::List => {
            let data = client.get("/exec/scripts").await?;
            let scripts = data["scripts"].as_array().cloned().unwrap_or_default();
            out.list("scripts", scripts.into_iter().map(|one| named(one, "file")).collect(), &COLUMNS)?;
        }
        Command::Show { script } => {
            let data = client.get(&path("scripts", &script)).await?;
            if out.json {
                out.one(&data, &[])?;
            } else {
                write(data["source"].as_str().unwrap_or_default().as_bytes())?;
            }
        }
        Command::Write { script, file } => {
            let text = read(&file)?;
            let request = client.request(Method::PUT, &path("scripts", &script)).body(text);
            let data = client.send(request).await?;
            out.one(&named(data, "file"), &["file", "route", "error"])?;
        }
        Command::Delete { script } => {
            let data = client.send(client.request(Method::DELETE, &path("scripts", &script))).await?;
            out.one(&data, &["id"])?;
        }
        Command::Logs { script, tail, since } => {
            let since = since.map(|since| ("since", since));
            let query: Vec<_> = [("tail", tail.to_string())].into_iter().chain(since).collect();
            let data = client.send(client.request(Method::GET, &path("logs", &script)).query(&query)).await?;
            if out.json {
                out.one(&data, &[])?;
            } else {
                data["log"].as_array().into_iter().flatten().try_for_each(log_line)?;
            }
        }
        Command::Secrets(command) => secrets(command, context).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A script wrote the text: what would move the cursor is left out.
fn log_line(entry: &Value) -> anyhow::Result<()> {
    let text: String =
        entry["text"].as_str().unwrap_or_default().chars().filter(|c| !c.is_control() || *c == '\n').collect();
    line(&format!("{} {} {:5} {text}", time(&entry["time"]), cell(&entry["run"]), cell(&entry["level"])))
}

fn read(file: &PathBuf) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut text).context("cannot read standard input")?;
        return Ok(text);
    }
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

async fn secrets(command: Secrets, context: &Context) -> anyhow::Result<()> {
    let (client, out) = (&context.client, context.out);
    match command {
        Secrets::List => {
            let data = client.get("/exec/secrets").await?;
            let secrets = data["secrets"].as_array().cloned().unwrap_or_default();
            let columns: [Column; 3] = [
                ("NAME", |one| cell(&one["name"])),
                ("FROM", |one| cell(&one["origin"])),
                ("SET", |one| time(&one["updated_at"])),
            ];
            out.list("secrets", secrets.into_iter().map(|one| named(one, "name")).collect(), &columns)
        }
        Secrets::Set { name, value } => {
            let value = match value {
                Some(value) => value,
                None => {
                    let text = String::from_utf8(read(&PathBuf::from("-"))?).context("the value is not UTF-8")?;
                    text.trim_end_matches(['\r', '\n']).to_owned()
                }
            };
            let request = client.request(Method::PUT, &path("secrets", &name)).json(&json!({ "value": value }));
            let data = client.send(request).await?;
            out.one(&named(data, "name"), &["name", "origin", "updated_at"])
        }
        Secrets::Delete { name } => {
            let data = client.send(client.request(Method::DELETE, &path("secrets", &name))).await?;
            out.one(&data, &["id"])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scripts_name_is_one_path() {
        assert_eq!(path("scripts", "shop/[id].js"), "/exec/scripts/shop/%5Bid%5D.js");
        assert_eq!(path("logs", "a b?.ts"), "/exec/logs/a%20b%3F.ts");
    }
}
