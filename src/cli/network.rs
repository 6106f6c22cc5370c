//! `tenantry network`.

use std::io::BufRead;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Context, resolve};

/// What is shown of network settings.
const FIELDS: [&str; 6] = ["type", "proxy", "proxy_credentials", "dns_servers", "comment", "enabled"];

/// How what a container sends leaves this host.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show a container's network settings
    #[command(after_help = "Example:\n  tenantry network show acme")]
    Show(One),
    /// Change a container's network settings: what is not named stays
    ///
    /// In force at once, also while it runs. With a proxy, TCP goes through it after the container's own firewall rules were applied, names
    /// are asked for through it, and everything else is dropped.
    #[command(
        after_help = "Examples:\n  tenantry network set acme --type socks5 --proxy socks5://proxy.example:1080\n  tenantry network set acme --type https --proxy - <proxy.url      a URL with a password\n  tenantry network set acme --dns-server 192.0.2.53 --dns-server 192.0.2.54\n  tenantry network set acme --type block"
    )]
    Set(Box<SetArgs>),
    /// Remove a container's network settings: what it sends leaves directly
    #[command(after_help = "Example:\n  tenantry network clear acme")]
    Clear(One),
    /// Switch a container's network settings on
    #[command(after_help = "Example:\n  tenantry network start acme")]
    Start(One),
    /// Switch a container's network settings off, and keep them
    #[command(after_help = "Example:\n  tenantry network stop acme")]
    Stop(One),
}

/// One container.
#[derive(Debug, Args)]
pub struct One {
    /// Name or id
    container: String,
    /// Its project: alias or id; left out: the only one there is
    #[arg(long)]
    project: Option<String>,
}

/// How traffic leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Socks5,
    Http,
    Https,
    Block,
    /// No proxy: only name servers of its own
    Direct,
}

/// A change.
#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    one: One,
    /// How traffic leaves
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<Kind>,
    /// The proxy's URL; `-` reads it from standard input, so that no password stands in a list of processes
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
    /// Who is asked for names, up to 4 times; empty: those of the daemon
    #[arg(long = "dns-server", value_name = "ADDRESS")]
    dns_servers: Vec<String>,
    /// For people
    #[arg(long)]
    comment: Option<String>,
}

impl SetArgs {
    fn body(&self) -> anyhow::Result<Value> {
        let mut body = Map::new();
        if let Some(kind) = self.kind {
            let word =
                kind.to_possible_value().filter(|_| kind != Kind::Direct).map(|value| value.get_name().to_owned());
            body.insert("type".into(), json!(word));
        }
        if let Some(url) = &self.proxy {
            body.insert("proxy".into(), json!(if url == "-" { first_line()? } else { url.clone() }));
        }
        if !self.dns_servers.is_empty() {
            let servers: Vec<_> = self.dns_servers.iter().filter(|server| !server.is_empty()).collect();
            body.insert("dns_servers".into(), json!(servers));
        }
        if let Some(comment) = &self.comment {
            body.insert("comment".into(), json!(comment));
        }
        Ok(body.into())
    }
}

fn first_line() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("standard input does not read")?;
    Ok(line.trim().to_owned())
}

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (one, method, verb, body) = match &command {
        Command::Show(one) => (one, Method::GET, "", None),
        Command::Set(args) => (&args.one, Method::PATCH, "", Some(args.body()?)),
        Command::Clear(one) => (one, Method::DELETE, "", None),
        Command::Start(one) => (one, Method::POST, "/start", None),
        Command::Stop(one) => (one, Method::POST, "/stop", None),
    };
    let id = resolve::container(context, &one.container, one.project.as_deref()).await?;
    let request = context.client.request(method, &format!("/containers/{id}/network{verb}"));
    let data = context.client.send(body.iter().fold(request, |request, body| request.json(body))).await?;
    context.out.one(&data, &FIELDS)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn body(line: &str) -> Value {
        match Line::try_parse_from(line.split(' ')).unwrap().command {
            Command::Set(args) => args.body().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_named_is_sent() {
        assert_eq!(body("network set acme"), json!({}));
        assert_eq!(
            body("network set acme --type direct --dns-server 192.0.2.53"),
            json!({ "type": null, "dns_servers": ["192.0.2.53"] })
        );
        let proxied = json!({ "type": "socks5", "proxy": "socks5://192.0.2.7:1080" });
        assert_eq!(body("network set acme --type socks5 --proxy socks5://192.0.2.7:1080"), proxied);
    }
}
