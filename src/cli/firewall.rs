//! `tenantry firewall`.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::output::{Column, cell, line, note};
use super::{Context, resolve};

/// A container's own firewall rules, and what is in force.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List a container's own rules, in the order in which they are looked at
    #[command(
        visible_alias = "ls",
        after_help = "Examples:\n  tenantry firewall list acme\n  tenantry firewall list acme --project shop --json"
    )]
    List(One),
    /// Add a rule behind the container's others; its policy's rules come after all of them
    #[command(
        after_help = "Examples:\n  tenantry firewall add acme egress --action allow --protocol tcp --peer 10.0.0.7 --port 5432 --description 'the database'\n  tenantry firewall add acme egress --action allow --protocol tcp --peer api.stripe.com,*.sentry.io --port 443\n  tenantry firewall add acme egress --action reject --protocol tcp --port 25\n  tenantry firewall add acme ingress --action allow --protocol tcp --peer 192.0.2.0/24 --port 22,8000-8100"
    )]
    Add {
        #[command(flatten)]
        one: One,
        /// Which way packets go
        #[arg(value_enum)]
        direction: Direction,
        #[command(flatten)]
        parts: Parts,
        /// Keep it without looking at it
        #[arg(long)]
        disabled: bool,
    },
    /// Remove the first rule that has these parts
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  tenantry firewall remove acme egress --port 25\n  tenantry firewall remove acme ingress --all"
    )]
    Remove {
        #[command(flatten)]
        one: One,
        /// Which way packets go
        #[arg(value_enum)]
        direction: Direction,
        #[command(flatten)]
        parts: Parts,
        /// Remove every rule that has them; without any part, every rule of this direction
        #[arg(long)]
        all: bool,
    },
    /// Put rules that have these parts into force
    #[command(after_help = "Example:\n  tenantry firewall enable acme egress --port 5432")]
    Enable {
        #[command(flatten)]
        one: One,
        /// Which way packets go
        #[arg(value_enum)]
        direction: Direction,
        #[command(flatten)]
        parts: Parts,
    },
    /// Keep rules that have these parts without looking at them
    #[command(after_help = "Example:\n  tenantry firewall disable acme egress --description 'the database'")]
    Disable {
        #[command(flatten)]
        one: One,
        /// Which way packets go
        #[arg(value_enum)]
        direction: Direction,
        #[command(flatten)]
        parts: Parts,
    },
    /// Remove all of a container's own rules, so that its policy alone is in force
    #[command(after_help = "Example:\n  tenantry firewall reset acme")]
    Reset(One),
    /// Show what should be in force, what is in the kernel, and whether they agree
    #[command(after_help = "Example:\n  tenantry firewall effective acme")]
    Effective(One),
}

/// One container.
#[derive(Debug, Args)]
pub struct One {
    /// Name or id
    container: String,
    /// The project's alias or id; the only one there is, where left out
    #[arg(short, long)]
    project: Option<String>,
}

/// Which way packets go.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Direction {
    /// Towards the container
    Ingress,
    /// From the container
    Egress,
}

impl Direction {
    const fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Parts of a rule.
#[derive(Debug, Args)]
pub struct Parts {
    /// What happens: reject says so, drop does not
    #[arg(long, value_parser = ["allow", "reject", "drop"])]
    action: Option<String>,
    /// Any where left out
    #[arg(long, value_parser = ["tcp", "udp", "icmp4"])]
    protocol: Option<String>,
    /// The other side: IPv4 addresses and networks, with commas; where egress is allowed, also hosts by name; any where left out
    #[arg(long, value_name = "NETWORKS")]
    peer: Option<String>,
    /// Destination ports, as 443 or 80-90 or 80,443; any where left out
    #[arg(long, value_name = "PORTS")]
    port: Option<String>,
    /// Source ports; any where left out
    #[arg(long, value_name = "PORTS")]
    source_port: Option<String>,
    /// ICMP type, as 8 for an echo request
    #[arg(long, value_name = "NUMBER")]
    icmp_type: Option<u8>,
    /// ICMP code
    #[arg(long, value_name = "NUMBER")]
    icmp_code: Option<u8>,
    /// For people
    #[arg(long)]
    description: Option<String>,
}

impl Parts {
    fn body(&self, direction: Direction) -> Map<String, Value> {
        let peer = match direction {
            Direction::Ingress => "source",
            Direction::Egress => "destination",
        };
        let fields = [
            ("action", json!(self.action)),
            ("protocol", json!(self.protocol)),
            (peer, json!(self.peer)),
            ("destination_port", json!(self.port)),
            ("source_port", json!(self.source_port)),
            ("icmp_type", json!(self.icmp_type)),
            ("icmp_code", json!(self.icmp_code)),
            ("description", json!(self.description)),
        ];
        fields.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

const COLUMNS: [Column; 7] = [
    ("DIRECTION", |rule| cell(&rule["direction"])),
    ("STATE", |rule| cell(&rule["state"])),
    ("ACTION", |rule| cell(&rule["action"])),
    ("PROTOCOL", protocol),
    ("PEER", peer),
    ("PORTS", ports),
    ("DESCRIPTION", |rule| cell(&rule["description"])),
];

fn or_any(value: &Value) -> String {
    if value.is_null() { "any".to_owned() } else { cell(value) }
}

fn protocol(rule: &Value) -> String {
    match (&rule["icmp_type"], &rule["icmp_code"]) {
        (Value::Null, _) => or_any(&rule["protocol"]),
        (kind, Value::Null) => format!("{} {kind}", cell(&rule["protocol"])),
        (kind, code) => format!("{} {kind}/{code}", cell(&rule["protocol"])),
    }
}

fn peer(rule: &Value) -> String {
    or_any(if rule["source"].is_null() { &rule["destination"] } else { &rule["source"] })
}

fn ports(rule: &Value) -> String {
    match &rule["source_port"] {
        Value::Null => or_any(&rule["destination_port"]),
        from => format!("{} from {}", or_any(&rule["destination_port"]), cell(from)),
    }
}

fn directed(direction: &str, rules: &Value) -> Vec<Value> {
    let rules = rules.as_array().into_iter().flatten().cloned();
    let with = |mut rule: Value| {
        rule["direction"] = json!(direction);
        rule
    };
    rules.map(with).collect()
}

async fn path(context: &Context, one: &One, end: &str) -> anyhow::Result<String> {
    let id = resolve::container(context, &one.container, one.project.as_deref()).await?;
    Ok(format!("/containers/{id}/firewall/{end}"))
}

/// Carries the command out.
pub async fn run(command: Command, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(one) => list(context, &one).await?,
        Command::Add { one, direction, parts, disabled } => {
            let mut body = parts.body(direction);
            if disabled {
                body.insert("state".to_owned(), json!("disabled"));
            }
            add(context, &one, direction, body).await?;
        }
        Command::Remove { one, direction, parts, all } => {
            let mut body = parts.body(direction);
            body.insert("all".to_owned(), json!(all));
            change(context, Method::DELETE, &one, direction, body, "removed").await?;
        }
        Command::Enable { one, direction, parts } => switch(context, &one, direction, &parts, "enabled").await?,
        Command::Disable { one, direction, parts } => switch(context, &one, direction, &parts, "disabled").await?,
        Command::Reset(one) => reset(context, &one).await?,
        Command::Effective(one) => return effective(context, &one).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(context: &Context, one: &One) -> anyhow::Result<()> {
    let data = context.client.get(&path(context, one, "rules").await?).await?;
    if context.out.json {
        return context.out.one(&data, &[]);
    }
    let mut rules = directed("ingress", &data["ingress"]);
    rules.extend(directed("egress", &data["egress"]));
    context.out.list("rules", rules, &COLUMNS)?;
    note(&format!("then the policy `{}`", cell(&data["firewall_policy"])));
    Ok(())
}

async fn add(context: &Context, one: &One, direction: Direction, body: Map<String, Value>) -> anyhow::Result<()> {
    let path = path(context, one, direction.word()).await?;
    let data = context.client.send(context.client.request(Method::POST, &path).json(&body)).await?;
    if context.out.json {
        return context.out.one(&data, &[]);
    }
    if data["duplicate"] == true {
        note("a rule that does the same is there already");
    }
    context.out.list("rules", directed(direction.word(), &json!([data["rule"]])), &COLUMNS)
}

async fn switch(
    context: &Context,
    one: &One,
    direction: Direction,
    parts: &Parts,
    state: &'static str,
) -> anyhow::Result<()> {
    let mut body = parts.body(direction);
    body.insert("state".to_owned(), json!(state));
    change(context, Method::PATCH, one, direction, body, state).await
}

async fn change(
    context: &Context,
    method: Method,
    one: &One,
    direction: Direction,
    body: Map<String, Value>,
    done: &str,
) -> anyhow::Result<()> {
    let path = path(context, one, direction.word()).await?;
    let data = context.client.send(context.client.request(method, &path).json(&body)).await?;
    if context.out.json {
        return context.out.one(&data, &[]);
    }
    context.out.list("rules", directed(direction.word(), &data["rules"]), &COLUMNS)?;
    note(&format!("{done}: {}", data["count"]));
    Ok(())
}

async fn reset(context: &Context, one: &One) -> anyhow::Result<()> {
    let path = path(context, one, "reset").await?;
    let data = context.client.send(context.client.request(Method::POST, &path)).await?;
    if context.out.json {
        return context.out.one(&data, &[]);
    }
    line(&format!(
        "{} rules removed; the policy `{}` alone is in force",
        data["removed"],
        cell(&data["firewall_policy"])
    ))
}

/// Fails where what is in force is not what should be, so that a script can go by it.
async fn effective(context: &Context, one: &One) -> anyhow::Result<ExitCode> {
    let data = context.client.get(&path(context, one, "effective").await?).await?;
    let agrees = data["agrees"] == true;
    let code = if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if context.out.json {
        context.out.one(&data, &[])?;
        return Ok(code);
    }
    let mut rules = Vec::new();
    for direction in ["ingress", "egress"] {
        let side = &data["rules"][direction];
        for one in side["rules"].as_array().into_iter().flatten() {
            let mut rule = one["rule"].clone();
            rule["state"] = one["origin"].clone();
            rules.extend(directed(direction, &json!([rule])));
        }
        let rest = json!({ "state": "default", "action": side["default"], "description": "what no rule matches" });
        rules.extend(directed(direction, &json!([rest])));
    }
    let mut columns = COLUMNS;
    columns[1].0 = "FROM";
    context.out.list("rules", rules, &columns)?;
    if agrees {
        let repairs = if data["repairs"] == 0 { String::new() } else { format!("; mended {} times", data["repairs"]) };
        line(&format!("the kernel agrees{repairs}"))?;
    } else {
        tell_difference(&data)?;
    }
    Ok(code)
}

fn tell_difference(data: &Value) -> anyhow::Result<()> {
    line("the kernel does not agree:")?;
    if data["table_intact"] != true {
        line("  the table is not as it should be")?;
    }
    for direction in ["ingress", "egress"] {
        let texts =
            |of: &str| -> Vec<String> { data[of][direction].as_array().into_iter().flatten().map(cell).collect() };
        let (desired, kernel) = (texts("desired"), texts("kernel"));
        desired
            .iter()
            .filter(|text| !kernel.contains(text))
            .try_for_each(|text| line(&format!("  {direction} - {text}")))?;
        kernel
            .iter()
            .filter(|text| !desired.contains(text))
            .try_for_each(|text| line(&format!("  {direction} + {text}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_shown_in_few_words() {
        let rule = json!({ "protocol": "icmp4", "icmp_type": 8, "icmp_code": null, "source": null, "destination": "10.0.0.0/8",
            "destination_port": null, "source_port": null });
        assert_eq!((protocol(&rule), peer(&rule), ports(&rule)), ("icmp4 8".into(), "10.0.0.0/8".into(), "any".into()));
        let rule = json!({ "protocol": "tcp", "source": null, "destination": null, "destination_port": "80,443", "source_port": "9" });
        assert_eq!((protocol(&rule), peer(&rule), ports(&rule)), ("tcp".into(), "any".into(), "80,443 from 9".into()));
    }

    #[test]
    fn the_peer_is_named_by_the_direction() {
        let parts = Parts {
            action: Some("allow".into()),
            protocol: None,
            peer: Some("192.0.2.1".into()),
            port: Some("443".into()),
            source_port: None,
            icmp_type: None,
            icmp_code: None,
            description: None,
        };
        assert_eq!(
            Value::from(parts.body(Direction::Ingress)),
            json!({ "action": "allow", "source": "192.0.2.1", "destination_port": "443" })
        );
        assert!(parts.body(Direction::Egress).contains_key("destination"));
    }
}
