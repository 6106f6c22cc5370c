//! `tenantry token`.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::output::{cell, line, time};
use super::{Context, resolve};

/// API tokens.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a token; its secret is shown this once
    #[command(
        after_help = "Examples:\n  tenantry token create ci\n  tenantry token create viewer --permission read_only --project shop\n  tenantry token create gone --expires-at 2030-01-31T00:00:00Z"
    )]
    Create {
        /// Its name, unique
        alias: String,
        /// What it may do
        #[arg(long, default_value = "full_access", value_parser = ["full_access", "read_only"])]
        permission: String,
        /// The only project it may know of: alias or id
        #[arg(long)]
        project: Option<String>,
        /// From when on it is refused, as 2030-01-31T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
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

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (client, out) = (&context.client, context.out);
    match command {
        Command::Create { alias, permission, project, expires_at } => {
            let project_id = match &project {
                None => None,
                Some(name) => Some(resolve::project(context, Some(name)).await?),
            };
            let body = json!({
                "alias": alias, "permission_template": permission, "project_id": project_id, "expires_at": expires_at
            });
            let data = client.send(client.request(Method::POST, "/auth/tokens").json(&body)).await?;
            if out.quiet && !out.json {
                // The one thing that cannot be asked for again.
                line(&cell(&data["token"]))?;
            } else {
                out.one(&data, &["id", "alias", "permission_template", "project_id", "expires_at", "token"])?;
            }
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
