//! `tenantry alias`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::output::{cell, time};
use super::settings::given;
use super::{Context, resolve};

/// Further names of containers.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give a container a further name
    #[command(
        after_help = "Examples:\n  tenantry alias create acme --alias acme-crm\n  tenantry alias create acme --alias docs --target-path /docs --allow-path-override\n  tenantry alias create acme --expires-at 2030-01-31T00:00:00Z\n  tenantry alias create acme --program tcp --port 5432"
    )]
    Create {
        /// The container's name or id
        container: String,
        /// The container's project: alias or id
        #[arg(short, long)]
        project: Option<String>,
        /// What is spoken there: http, or tcp for anything, at a port of the host's own
        #[arg(long)]
        program: Option<String>,
        /// The port of the host for an alias of tcp; left out: one that is free
        #[arg(long, value_name = "PORT")]
        listen_port: Option<u16>,
        #[command(flatten)]
        leads: Leads,
    },
    /// List aliases
    #[command(visible_alias = "ls", after_help = "Example:\n  tenantry alias list")]
    List,
    /// Show an alias
    #[command(after_help = "Example:\n  tenantry alias show acme-crm")]
    Show {
        /// Name or id
        alias: String,
    },
    /// Change an alias
    #[command(after_help = "Example:\n  tenantry alias update acme-crm --target-path /login")]
    Update {
        /// Name or id
        #[arg(id = "which", value_name = "ALIAS")]
        alias: String,
        #[command(flatten)]
        leads: Leads,
    },
    /// Switch an alias on
    #[command(after_help = "Example:\n  tenantry alias enable acme-crm")]
    Enable {
        /// Name or id
        alias: String,
    },
    /// Switch an alias off: 404
    #[command(after_help = "Example:\n  tenantry alias disable acme-crm")]
    Disable {
        /// Name or id
        alias: String,
    },
    /// Let an alias's domain lead where it does, if the DNS says so
    #[command(after_help = "Example:\n  tenantry alias verify acme-crm")]
    Verify {
        /// Name or id
        alias: String,
    },
    /// Take an alias away
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry alias delete acme-crm")]
    Delete {
        /// Name or id
        alias: String,
    },
}

/// The name, and where it leads.
#[derive(Debug, Args)]
pub struct Leads {
    /// 3–61 of a-z, 0-9 and -; left out: 48 hex digits that nobody can guess
    #[arg(long, value_name = "NAME")]
    alias: Option<String>,
    /// A domain of the customer's that leads to the same once it is verified
    #[arg(long, value_name = "DOMAIN")]
    domain: Option<String>,
    /// Take the domain for verified, whatever the DNS says
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    verified: Option<bool>,
    /// The port it leads to, in the place of the container's own
    #[arg(long)]
    port: Option<u16>,
    /// Whether a connection to an alias of tcp wakes the container
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    wake: Option<bool>,
    /// The path every request goes to
    #[arg(long, value_name = "PATH")]
    target_path: Option<String>,
    /// Let a path that is asked for, other than /, go before --target-path
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_path_override: Option<bool>,
    /// From when on it leads nowhere, as 2030-01-31T00:00:00Z
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
}

impl Leads {
    fn into_body(self) -> Map<String, Value> {
        given(json!({
            "alias": self.alias, "port": self.port, "target_path": self.target_path,
            "allow_path_override": self.allow_path_override, "expires_at": self.expires_at,
            "domain": self.domain, "verified": self.verified, "wake": self.wake
        }))
    }
}

const FIELDS: [&str; 15] = [
    "id",
    "alias",
    "container_id",
    "url",
    "program",
    "listen_port",
    "listening",
    "wake",
    "port",
    "target_path",
    "enabled",
    "expires_at",
    "domain",
    "verified",
    "verification",
];

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (client, out) = (&context.client, context.out);
    match command {
        Command::Create { container, project, program, listen_port, leads } => {
            let id = resolve::container(context, &container, project.as_deref()).await?;
            let mut body = leads.into_body();
            body.extend(given(json!({ "program": program, "listen_port": listen_port })));
            body.insert("container_id".to_owned(), id.into());
            let made = client.send(client.request(Method::POST, "/proxy/aliases").json(&body)).await?;
            out.one(&made, &FIELDS)?;
        }
        Command::List => {
            let aliases = client.list("/proxy/aliases", "aliases", &[]).await?;
            out.list(
                "aliases",
                aliases,
                &[
                    ("ALIAS", |one| cell(&one["alias"])),
                    ("ID", |one| cell(&one["id"])),
                    ("CONTAINER", |one| cell(&one["container_id"])),
                    ("URL", |one| cell(&one["url"])),
                    ("ENABLED", |one| cell(&one["enabled"])),
                    ("EXPIRES", |one| time(&one["expires_at"])),
                ],
            )?;
        }
        Command::Show { alias } => out.one(&client.get(&path(context, &alias).await?).await?, &FIELDS)?,
        Command::Update { alias, leads } => change(context, &alias, "", Value::Object(leads.into_body())).await?,
        Command::Enable { alias } => change(context, &alias, "/state", json!({ "enabled": true })).await?,
        Command::Disable { alias } => change(context, &alias, "/state", json!({ "enabled": false })).await?,
        Command::Verify { alias } => {
            let path = format!("{}/verify", path(context, &alias).await?);
            out.one(&client.send(client.request(Method::POST, &path)).await?, &FIELDS)?;
        }
        Command::Delete { alias } => {
            let gone = client.send(client.request(Method::DELETE, &path(context, &alias).await?)).await?;
            out.one(&gone, &["id"])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn path(context: &Context, alias: &str) -> anyhow::Result<String> {
    Ok(format!("/proxy/aliases/{}", resolve::alias(context, alias).await?))
}

async fn change(context: &Context, alias: &str, what: &str, body: Value) -> anyhow::Result<()> {
    let path = format!("{}{what}", path(context, alias).await?);
    let changed = context.client.send(context.client.request(Method::PATCH, &path).json(&body)).await?;
    context.out.one(&changed, &FIELDS)
}
