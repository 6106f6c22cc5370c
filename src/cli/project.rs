//! `tenantry project`.

use std::process::ExitCode;

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{cell, line, time};
use super::settings::{IdleArgs, LimitArgs, given};
use super::{Context, resolve};

/// Projects.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a project
    #[command(
        after_help = "Examples:\n  tenantry project create shop\n  tenantry project create shop --max-containers 400 --memory 256MiB --firewall-policy no-egress"
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
        /// The firewall policy of its containers
        #[arg(long, value_name = "NAME")]
        firewall_policy: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        idle: IdleArgs,
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
        /// The firewall policy of containers that are made in it from now on
        #[arg(long, value_name = "NAME")]
        firewall_policy: Option<String>,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        idle: IdleArgs,
    },
    /// Delete a project and all its containers
    #[command(visible_alias = "rm", after_help = "Example:\n  tenantry project delete shop")]
    Delete {
        /// Alias or id
        project: String,
    },
}

const FIELDS: [&str; 12] = [
    "id",
    "alias",
    "color",
    "container_count",
    "max_containers",
    "firewall_policy",
    "limits",
    "idle_timeout",
    "idle_action",
    "deleting",
    "created_at",
    "updated_at",
];

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    let (client, out) = (&context.client, context.out);
    match command {
        Command::Create { alias, color, max_containers, firewall_policy, limits, idle } => {
            let body = given(json!({
                "alias": alias, "color": color, "max_containers": max_containers,
                "firewall_policy": firewall_policy, "limits": limits.into_value(),
                "idle_timeout": idle.idle_timeout, "idle_action": idle.idle_action
            }));
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
                    ("CREATED", |one| time(&one["created_at"])),
                ],
            )?;
        }
        Command::Show { project } => {
            let id = resolve::project(context, Some(&project)).await?;
            out.one(&client.get(&format!("/projects/{id}")).await?, &FIELDS)?;
        }
        Command::Update { project, alias, color, max_containers, no_max_containers, firewall_policy, limits, idle } => {
            let mut body = given(json!({
                "alias": alias, "color": color, "max_containers": max_containers,
                "firewall_policy": firewall_policy, "limits": limits.into_value(),
                "idle_timeout": idle.idle_timeout, "idle_action": idle.idle_action
            }));
            if no_max_containers {
                body.insert("max_containers".to_owned(), Value::Null);
            }
            if body.is_empty() {
                let text = "nothing to change was given; see `tenantry project update --help`";
                return Err(Failure::Usage(text.to_owned()).into());
            }
            let id = resolve::project(context, Some(&project)).await?;
            let request = client.request(Method::PATCH, &format!("/projects/{id}")).json(&body);
            out.one(&client.send(request).await?, &FIELDS)?;
        }
        Command::Delete { project } => {
            let id = resolve::project(context, Some(&project)).await?;
            let spinner = out.spinner(format!("deleting {project} and its containers"));
            let data = client.send(client.request(Method::DELETE, &format!("/projects/{id}"))).await?;
            drop(spinner);
            if out.json {
                return out.one(&data, &[]).map(|()| ExitCode::SUCCESS);
            }
            let receipts: Vec<_> = data["receipt_ids"].as_array().into_iter().flatten().map(cell).collect();
            if out.quiet {
                receipts.iter().try_for_each(|id| line(id))?;
            } else {
                line(&format!("{project} is deleted; containers that went with it: {}", receipts.len()))?;
                receipts.iter().try_for_each(|id| line(&format!("  receipt {id}")))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
