//! `tenantry token`.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::output::{cell, line, time};
use super::{Context, resolve};

/// API tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token; its secret is shown this once
    #[command(
        after_help = "Examples:\n  tenantry token create ci\n  tenantry token create viewer --permission read_only --project shop\n  tenantry token create gone --expires-at 2030-01-31T00:00:00Z\n  tenantry token create signup --permission provisioner --template shop-app --project shop"
    )]
    Create {
        /// Its name, unique
        alias: String,
        /// What it may do
        #[arg(long, default_value = "full_access", value_parser = ["full_access", "read_only", "provisioner"])]
        permission: String,
        /// The only project it may know of: alias or id
        #[arg(long)]
        project: Option<String>,
        /// From when on it is refused, as 2030-01-31T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
        /// What a provisioner may copy: a container's name or id; repeated. Left out: whatever is a template
        #[arg(long = "template", value_name = "CONTAINER")]
        templates: Vec<String>,
        /// It may manage scripts
        #[arg(long)]
        scripts: bool,
    },
    /// Give a token another secret, shown this once
    #[command(after_help = "Examples:\n  tenantry token rotate ci\n  tenantry token rotate ci --grace 3600")]
    Rotate {
        /// Alias or id
        #[arg(id = "which", value_name = "TOKEN")]
        token: String,
        /// Seconds for which the old secret works on
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        grace: u64,
    },
    /// List tokens
    #[command(visible_alias = "ls", after_help = "Example:\n  tenantry token list")]
    List,
    /// Delete a token: it is refused from now on
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry token delete ci")]
    Delete {
        /// Alias or id
        // An id of its own: the global `--token` would take the argument's value.
        #[arg(id = "which", value_name = "TOKEN")]
        token: String,
    },
}

/// A token whose secret is new.
fn show(context: &Context, data: &Value) -> anyhow::Result<()> {
    if context.out.quiet && !context.out.json {
        // The one thing that cannot be asked for again.
        return line(&cell(&data["token"]));
    }
    let fields = ["id", "alias", "permission_template", "templates", "scripts", "project_id", "expires_at", "token"];
    context.out.one(data, &fields)
}

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (client, out) = (&context.client, context.out);
    match command {
        Command::Create { alias, permission, project, expires_at, templates, scripts } => {
            let project_id = match &project {
                None => None,
                Some(name) => Some(resolve::project(context, Some(name)).await?),
            };
            let body = json!({
                "alias": alias, "permission_template": permission, "project_id": project_id, "expires_at": expires_at,
                "templates": templates, "scripts": scripts
            });
            let data = client.send(client.request(Method::POST, "/auth/tokens").json(&body)).await?;
            show(context, &data)?;
        }
        Command::Rotate { token, grace } => {
            let id = resolve::token(context, &token).await?;
            let request = client.request(Method::POST, &format!("/auth/tokens/{id}/rotate"));
            let data = client.send(request.json(&json!({ "grace": grace }))).await?;
            show(context, &data)?;
        }
        Command::List => {
            let tokens = client.list("/auth/tokens", "tokens", &[]).await?;
            out.list(
                "tokens",
                tokens,
                &[
                    ("ALIAS", |one| cell(&one["alias"])),
                    ("ID", |one| cell(&one["id"])),
                    ("PERMISSION", |one| cell(&one["permission_template"])),
                    ("PROJECT", |one| cell(&one["project_id"])),
                    ("TEMPLATES", |one| cell(&one["templates"])),
                    ("LAST USED", |one| time(&one["last_used_at"])),
                    ("EXPIRES", |one| time(&one["expires_at"])),
                ],
            )?;
        }
        Command::Delete { token } => {
            let id = resolve::token(context, &token).await?;
            let data = client.send(client.request(Method::DELETE, &format!("/auth/tokens/{id}"))).await?;
            out.one(&data, &["id"])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
