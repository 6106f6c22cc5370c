//! `tenantry project`.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::output::{cell, line};
use super::{Context, resolve};

/// Projects.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a project
    #[command(
        after_help = "Examples:\n  tenantry project create shop\n  tenantry project create shop --max-containers 400"
    )]
    Create {
        /// Its name, unique on this host
        alias: String,
        /// #rrggbb, for people
        #[arg(long)]
        color: Option<String>,
        /// How many containers it may have
        #[arg(long, value_name = "N")]
        max_containers: Option<u32>,
    },
    /// List projects
    #[command(visible_alias = "ls", after_help = "Example:\n  tenantry project list --json")]
    List,
    /// Show a project
    #[command(after_help = "Example:\n  tenantry project show shop")]
    Show {
        /// Alias or id
        project: String,
    },
    /// Change a project
    #[command(
        after_help = "Examples:\n  tenantry project update shop --max-containers 800\n  tenantry project update shop --no-max-containers"
    )]
    Update {
        /// Alias or id
        project: String,
        /// A new alias
        #[arg(long)]
        alias: Option<String>,
        /// #rrggbb, for people
        #[arg(long)]
        color: Option<String>,
        /// How many containers it may have
        #[arg(long, value_name = "N", conflicts_with = "no_max_containers")]
        max_containers: Option<u32>,
        /// As many containers as the host can
        #[arg(long)]
        no_max_containers: bool,
    },
    /// Delete a project and all its containers
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry project delete shop")]
    Delete {
        /// Alias or id
        project: String,
    },
}

const FIELDS: [&str; 8] =
    ["id", "alias", "color", "container_count", "max_containers", "deleting", "created_at", "updated_at"];

fn body(pairs: [(&str, Option<Value>); 3]) -> Value {
    let given = pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(given.collect::<Map<_, _>>())
}

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (client, out) = (&context.client, context.out);
    match command {
        Command::Create { alias, color, max_containers } => {
            let body = json!({ "alias": alias, "color": color, "max_containers": max_containers });
            out.one(&client.send(client.request(Method::POST, "/projects/").json(&body)).await?, &FIELDS)?;
        }
        Command::List => {
            let projects = client.list("/projects/", "projects", &[]).await?;
            out.list(
                "projects",
                projects,
                &[
                    ("ALIAS", |one| cell(&one["alias"])),
                    ("ID", |one| cell(&one["id"])),
                    ("CONTAINERS", |one| cell(&one["container_count"])),
                    ("MAX", |one| cell(&one["max_containers"])),
                    ("CREATED", |one| cell(&one["created_at"])),
                ],
            )?;
        }
        Command::Show { project } => {
            let id = resolve::project(context, Some(&project)).await?;
            out.one(&client.get(&format!("/projects/{id}")).await?, &FIELDS)?;
        }
        Command::Update { project, alias, color, max_containers, no_max_containers } => {
            let id = resolve::project(context, Some(&project)).await?;
            let max = if no_max_containers { Some(Value::Null) } else { max_containers.map(Value::from) };
            let body =
                body([("alias", alias.map(Value::from)), ("color", color.map(Value::from)), ("max_containers", max)]);
            let request = client.request(Method::PATCH, &format!("/projects/{id}")).json(&body);
            out.one(&client.send(request).await?, &FIELDS)?;
        }
        Command::Delete { project } => {
            let id = resolve::project(context, Some(&project)).await?;
            let _spinner = out.spinner(format!("deleting {project} and its containers"));
            let data = client.send(client.request(Method::DELETE, &format!("/projects/{id}"))).await?;
            if out.json {
                out.one(&data, &[])?;
            } else {
                data["receipt_ids"].as_array().into_iter().flatten().try_for_each(|id| line(&cell(id)))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
