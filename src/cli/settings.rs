//! The options that create, copy and update share, as the API's body.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Map, Value, json};

use super::failure::Failure;
use crate::domain::Bytes;

/// Bytes of a file that holds a public key, at most.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// Limits, of a container or of all that a project gets.
#[derive(Debug, Default, Args)]
pub struct LimitArgs {
    /// Cores, such as 0.5
    #[arg(long, value_name = "CORES")]
    cpu: Option<f64>,
    /// Memory, such as 512MiB
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Its own writes, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    disk: Option<Bytes>,
    /// Size of /ramdisk, such as 64MiB
    #[arg(long, value_name = "SIZE")]
    ramdisk_size: Option<Bytes>,
    /// Processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<u32>,
}

impl LimitArgs {
    /// The API's object, or null where nothing was given.
    pub fn into_value(self) -> Value {
        let size = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.0);
        let limits = given(json!({
            "cpu": self.cpu, "memory": size(self.memory), "disk": size(self.disk),
            "ramdisk": size(self.ramdisk_size), "pids": self.pids
        }));
        if limits.is_empty() { Value::Null } else { Value::Object(limits) }
    }
}

/// When what is not used sleeps, of a container or of all that are made in a project.
#[derive(Debug, Default, Args)]
pub struct IdleArgs {
    /// Seconds of silence before it is put to sleep
    #[arg(long, value_name = "SECONDS")]
    pub idle_timeout: Option<u32>,
    /// What that is: stop, or pause, which keeps its memory and goes on in milliseconds
    #[arg(long, value_name = "ACTION")]
    pub idle_action: Option<String>,
}

/// What counts as use of a container.
#[derive(Debug, Default, Args)]
pub struct ActivityArgs {
    /// Requests keep it awake (true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    awake_by_requests: Option<bool>,
    /// Open upgraded connections keep it awake (true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    awake_by_connections: Option<bool>,
    /// A connection without a byte for so long keeps it awake no longer
    #[arg(long, value_name = "SECONDS")]
    connection_idle: Option<u32>,
    /// Commands that run in it keep it awake (true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    awake_by_exec: Option<bool>,
    /// Its own calls to http://169.254.1.1/keepalive keep it awake (true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    awake_by_keepalive: Option<bool>,
    /// More use of the processor than this keeps it awake
    #[arg(long, value_name = "CORES")]
    awake_by_cpu: Option<f64>,
}

impl ActivityArgs {
    /// The API's object, or null where nothing was given.
    fn into_value(self) -> Value {
        let activity = given(json!({
            "requests": self.awake_by_requests, "connections": self.awake_by_connections,
            "connection_idle": self.connection_idle, "exec": self.awake_by_exec,
            "keepalive": self.awake_by_keepalive, "cpu": self.awake_by_cpu
        }));
        if activity.is_empty() { Value::Null } else { Value::Object(activity) }
    }
}

/// What can be chosen about a container.
#[derive(Debug, Default, Args)]
pub struct SettingsArgs {
    /// An environment variable; can be repeated
    #[arg(short, long = "env", value_name = "KEY=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A label; can be repeated
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Where its HTTP server listens
    #[arg(long)]
    port: Option<u16>,
    #[command(flatten)]
    limits: LimitArgs,
    /// A firewall policy's name
    #[arg(long, value_name = "NAME")]
    firewall_policy: Option<String>,
    #[command(flatten)]
    idle: IdleArgs,
    #[command(flatten)]
    activity: ActivityArgs,
    /// Start it when its URL is opened (true)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    wake_on_request: Option<bool>,
    /// The customer's id in your own system, unique in the project
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// For people
    #[arg(long)]
    comment: Option<String>,
    /// #rrggbb, for people
    #[arg(long)]
    color: Option<String>,
    /// A file with the SSH public key for root
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Copies take its firewall rules along by default
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    template: Option<bool>,
    /// Refuse to delete it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    protect: Option<bool>,
    /// Start it again after a reboot
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    autostart: Option<bool>,
    /// Give it a tmpfs at /ramdisk
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    ramdisk: Option<bool>,
    /// How closely it is confined: standard, nested, io-uring
    #[arg(long, value_name = "PROFILE")]
    confinement: Option<String>,
    /// Its command, in the place of the image's own
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is wanted".to_owned()),
    }
}

fn texts(pairs: Vec<(String, String)>) -> Option<Value> {
    let map: Map<_, _> = pairs.into_iter().map(|(key, value)| (key, Value::from(value))).collect();
    (!map.is_empty()).then_some(Value::Object(map))
}

fn read_key(path: &PathBuf) -> anyhow::Result<String> {
    let length = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    if length > KEY_FILE_BYTES_MAX {
        return Err(Failure::Usage(format!("{} is too long for a public key", path.display())).into());
    }
    Ok(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?.trim().to_owned())
}

impl SettingsArgs {
    /// The API's body: only what was given is in it.
    ///
    /// # Errors
    /// The key's file cannot be read.
    pub fn into_body(self) -> anyhow::Result<Map<String, Value>> {
        let body = json!({
            "environment_vars": texts(self.env), "labels": texts(self.labels), "port": self.port,
            "limits": self.limits.into_value(),
            "firewall_policy": self.firewall_policy, "idle_timeout": self.idle.idle_timeout,
            "idle_action": self.idle.idle_action, "activity": self.activity.into_value(),
            "wake_on_request": self.wake_on_request,
            "external_id": self.external_id, "comment": self.comment, "color": self.color,
            "ssh_public_key": self.ssh_key.as_ref().map(read_key).transpose()?,
            "template": self.template, "deletion_protection": self.protect, "autostart": self.autostart,
            "ramdisk": self.ramdisk, "confinement": self.confinement, "command": (!self.command.is_empty()).then_some(self.command)
        });
        Ok(given(body))
    }
}

/// An object's fields that are not null.
pub fn given(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(fields) => fields.into_iter().filter(|(_, value)| !value.is_null()).collect(),
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_in_the_body() {
        assert!(SettingsArgs::default().into_body().unwrap().is_empty());
        let args = SettingsArgs {
            env: vec![("PLAN".into(), "a=b".into())],
            limits: LimitArgs { memory: Some(Bytes::mib(1)), ..LimitArgs::default() },
            template: Some(false),
            idle: IdleArgs { idle_action: Some("pause".into()), ..IdleArgs::default() },
            activity: ActivityArgs { awake_by_exec: Some(false), ..ActivityArgs::default() },
            command: vec!["/app".into()],
            ..SettingsArgs::default()
        };
        let want = json!({
            "environment_vars": {"PLAN": "a=b"}, "limits": {"memory": 1_048_576}, "template": false, "command": ["/app"],
            "idle_action": "pause", "activity": {"exec": false}
        });
        assert_eq!(Value::Object(args.into_body().unwrap()), want);
    }

    #[test]
    fn a_pair_is_split_at_its_first_sign() {
        assert_eq!(pair("A=1=2"), Ok(("A".into(), "1=2".into())));
        assert_eq!(pair("A="), Ok(("A".into(), String::new())));
        assert!(pair("A").is_err() && pair("=1").is_err());
    }
}
