//! A container as the API shows it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::page::Pagination;
use crate::domain::container::Transition;
use crate::domain::{ActivitySources, Container, Desired, EnvVars, Limits};
use crate::lifecycle::Stats;

/// A container.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ContainerView {
    /// Its id.
    pub id: String,
    /// The project it belongs to.
    pub project_id: String,
    /// That project's alias; null while the project goes away.
    pub project_alias: Option<String>,
    /// This node's id.
    pub server_id: String,
    /// This node's name, as in the URLs.
    pub server_name: String,
    /// Unique in the project.
    pub name: String,
    /// For people.
    pub color: Option<String>,
    /// The image its rootfs began as.
    pub container_image: String,
    /// creating, running, paused, stopped, failed, deleting.
    pub status: &'static str,
    /// running or stopped.
    pub desired: &'static str,
    /// Why it is as it is, for people.
    pub status_reason: Option<String>,
    /// Goes up with every change; the ETag.
    pub generation: u64,
    /// Environment variables.
    pub environment_vars: BTreeMap<String, String>,
    /// Whether they are in force.
    pub env_sync: EnvSync,
    /// Started again after a reboot.
    pub autostart: bool,
    /// A tmpfs at `/ramdisk`.
    pub ramdisk: bool,
    /// How closely it is confined, from its next start on.
    pub confinement: &'static str,
    /// For people.
    pub comment: Option<String>,
    /// In root's `authorized_keys`.
    pub ssh_public_key: Option<String>,
    /// How many snapshots there are of it.
    pub snapshot_count: u64,
    /// The snapshot it was last set back to.
    pub last_used_snapshot: Option<String>,
    /// What it was copied from.
    pub source_container_id: Option<String>,
    /// The id of the token that it was made with; of all scripts it is the same one. Null: it is older than this is noted.
    pub made_by: Option<String>,
    /// Hosts under which the proxy knows it.
    pub proxy_domains: Vec<String>,
    /// What the caller should know, though nothing failed.
    pub warnings: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Its own, unguessable URL.
    pub url: Option<String>,
    /// All its URLs, `url` first.
    pub urls: Vec<String>,
    /// Where its HTTP server listens.
    pub port: u16,
    /// Replaces the image's entrypoint and command; empty: the image's own.
    pub command: Vec<String>,
    /// The kernel's limits; null: not limited.
    pub limits: LimitsView,
    /// The firewall policy's name.
    pub firewall_policy: String,
    /// Seconds of silence before it is put to sleep; null: never.
    pub idle_timeout: Option<u32>,
    /// What that is: stop or pause.
    pub idle_action: &'static str,
    /// What counts as use.
    pub activity: ActivityView,
    /// Whether a request to its URL starts it where it is stopped.
    pub wake_on_request: bool,
    /// Whether copies take its rules along by default.
    pub template: bool,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Refuses DELETE.
    pub deletion_protection: bool,
    /// The customer's id in the user's own system.
    pub external_id: Option<String>,
    /// Its address.
    #[schema(value_type = Option<String>)]
    pub ip: Option<Ipv4Addr>,
    /// When init was last started.
    pub started_at: Option<Timestamp>,
    /// When its port was last seen accepting after a start.
    pub ready_at: Option<Timestamp>,
    /// When a request or a command last began or ended; null: not since the daemon began.
    pub last_activity_at: Option<Timestamp>,
    /// What it was last started or thawed by: create, start, restart, resume, request.
    pub last_woken_by: Option<String>,
    /// Why it is awake, for people; null where it is not.
    pub why_awake: Option<String>,
}

/// Whether the environment is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct EnvSync {
    /// Whether a start is needed for the newest one.
    pub pending: bool,
    /// Goes up with every change.
    pub revision: u64,
    /// The one init was started with.
    pub applied_revision: u64,
    /// Why it could not be put in force.
    pub last_error: Option<String>,
}

/// Limits; null: not limited.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "each field is the one of the same name in LimitsBody")]
pub struct LimitsView {
    pub cpu: Option<f64>,
    pub memory: Option<u64>,
    pub disk: Option<u64>,
    pub ramdisk: Option<u64>,
    pub pids: Option<u32>,
    pub disk_read_bps: Option<u64>,
    pub disk_write_bps: Option<u64>,
    pub net_rx_bps: Option<u64>,
    pub net_tx_bps: Option<u64>,
}

/// What counts as use of a container.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "each field is the one of the same name in ActivityBody")]
pub struct ActivityView {
    pub requests: bool,
    pub connections: bool,
    pub connection_idle: Option<u32>,
    pub exec: bool,
    pub keepalive: bool,
    pub cpu: Option<f64>,
}

impl From<ActivitySources> for ActivityView {
    fn from(sources: ActivitySources) -> Self {
        Self {
            requests: sources.requests,
            connections: sources.connections,
            connection_idle: sources.connection_idle_s,
            exec: sources.exec,
            keepalive: sources.keepalive,
            cpu: sources.cpu.map(|cpu| f64::from(cpu.0) / 1000.0),
        }
    }
}

/// What a view needs that is not in the record.
#[derive(Debug, Clone)]
pub struct Place {
    /// The project's alias.
    pub project_alias: Option<String>,
    /// This node's id.
    pub server_id: String,
    /// This node's name.
    pub server_name: String,
    /// Its URLs, its own first.
    pub urls: Vec<String>,
    /// Its address.
    pub ip: Option<Ipv4Addr>,
    /// When it was last used.
    pub last_activity_at: Option<Timestamp>,
    /// Why it is awake.
    pub why_awake: Option<String>,
}

/// Variables as texts: the API has to carry them, a log never does.
pub fn revealed(env: &EnvVars) -> BTreeMap<String, String> {
    env.iter().map(|(key, value)| (key.to_string(), value.reveal().to_owned())).collect()
}

impl EnvSync {
    /// Of a container.
    pub fn of(container: &Container) -> Self {
        Self {
            pending: container.env_pending(),
            revision: container.env_revision,
            applied_revision: container.env_revision_applied,
            last_error: None,
        }
    }
}

impl From<Limits> for LimitsView {
    fn from(limits: Limits) -> Self {
        Self {
            cpu: limits.cpu.map(|cpu| f64::from(cpu.0) / 1000.0),
            memory: limits.memory.map(|bytes| bytes.0),
            disk: limits.disk.map(|bytes| bytes.0),
            ramdisk: limits.ramdisk.map(|bytes| bytes.0),
            pids: limits.pids.map(|pids| pids.0),
            disk_read_bps: limits.disk_read_bps.map(|rate| rate.0),
            disk_write_bps: limits.disk_write_bps.map(|rate| rate.0),
            net_rx_bps: limits.net_rx_bps.map(|rate| rate.0),
            net_tx_bps: limits.net_tx_bps.map(|rate| rate.0),
        }
    }
}

/// `http://<host>:8080/` → `<host>`.
fn host(url: &str) -> Option<String> {
    let uri: axum::http::Uri = url.parse().ok()?;
    uri.host().map(str::to_owned)
}

impl ContainerView {
    /// A record as the API shows it.
    pub fn new(container: &Container, place: Place, warnings: Vec<String>) -> Self {
        let settings = &container.settings;
        Self {
            id: container.id.to_string(),
            project_id: container.project.to_string(),
            project_alias: place.project_alias,
            server_id: place.server_id,
            server_name: place.server_name,
            name: container.name.to_string(),
            color: settings.color.clone(),
            container_image: container.image_name.clone(),
            status: container.status().as_str(),
            desired: match container.desired {
                Desired::Running => "running",
                Desired::Stopped => "stopped",
            },
            status_reason: container.phase.reason(),
            generation: container.generation,
            environment_vars: revealed(&settings.env),
            env_sync: EnvSync::of(container),
            autostart: settings.autostart,
            ramdisk: settings.ramdisk,
            confinement: settings.confinement.as_str(),
            comment: settings.comment.clone(),
            ssh_public_key: settings.ssh_public_key.clone(),
            snapshot_count: 0,
            last_used_snapshot: None,
            source_container_id: container.source.map(|id| id.to_string()),
            made_by: container.made_by.map(|id| id.to_string()),
            proxy_domains: place.urls.iter().filter_map(|url| host(url)).collect(),
            warnings,
            created_at: container.created_at,
            updated_at: container.updated_at,
            url: place.urls.first().cloned(),
            urls: place.urls,
            port: settings.port.get(),
            command: settings.command.clone(),
            limits: settings.limits.into(),
            firewall_policy: settings.firewall_policy.to_string(),
            idle_timeout: settings.idle_timeout_s,
            idle_action: settings.idle_action.as_str(),
            activity: settings.activity.into(),
            wake_on_request: settings.wake_on_request,
            template: settings.template,
            labels: settings.labels.clone(),
            deletion_protection: settings.deletion_protection,
            external_id: container.external_id.as_ref().map(|id| id.as_str().to_owned()),
            ip: place.ip,
            started_at: container.started_at,
            ready_at: container.ready_at,
            last_activity_at: place.last_activity_at,
            last_woken_by: container.started_by.clone(),
            why_awake: place.why_awake,
        }
    }
}

/// A page of containers.
#[derive(Debug, Serialize, ToSchema)]
pub struct ContainerList {
    /// The containers.
    pub containers: Vec<ContainerView>,
    /// Where they stand.
    pub pagination: Pagination,
    /// Parameters that asked for something we do not do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One change of status.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatusLogView {
    /// Before; null for the first.
    pub from_status: Option<&'static str>,
    /// After.
    pub to_status: &'static str,
    /// When.
    pub transition_time: Timestamp,
    /// How long it took.
    pub duration_ms: u64,
    /// A verb, `exit`, `recovery`.
    pub triggered_by: String,
    /// More about it.
    pub metadata: StatusLogMetadata,
}

/// More about a change of status.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatusLogMetadata {
    /// Why, for people.
    pub reason: Option<String>,
}

impl From<Transition> for StatusLogView {
    fn from(transition: Transition) -> Self {
        Self {
            from_status: transition.from.map(|status| status.as_str()),
            to_status: transition.to.as_str(),
            transition_time: transition.at,
            duration_ms: transition.duration_ms,
            triggered_by: transition.triggered_by,
            metadata: StatusLogMetadata { reason: transition.reason },
        }
    }
}

/// A page of a container's status log.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatusLogList {
    /// Oldest first where nothing else was asked for.
    pub status_logs: Vec<StatusLogView>,
    /// Where they stand.
    pub pagination: Pagination,
}

/// What a container uses now.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct StatsView {
    /// Whose.
    pub container_id: String,
    /// Its name.
    pub name: String,
    /// Its status.
    pub status: &'static str,
    /// Null when stopped.
    pub cpu: Option<CpuView>,
    /// Null when stopped.
    pub memory: Option<MemoryView>,
    /// Its rootfs.
    pub disk: DiskView,
    /// Its links; empty when stopped.
    pub network: Vec<NetworkView>,
    /// Processes and threads; null when stopped.
    pub processes: Option<u64>,
    /// The limits in force; each was read back from the kernel when it was set.
    pub limits: LimitsView,
}

/// Processor use.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct CpuView {
    /// Nanoseconds used since the start.
    pub usage: u64,
    /// Nanoseconds a second it may use; null: not limited.
    pub allocated_time: Option<u64>,
    /// Of one core, over the moment before.
    pub usage_percent: Option<f64>,
}

/// Memory use.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MemoryView {
    /// Bytes, without inactive page cache.
    pub usage: u64,
    /// The limit in bytes; null: not limited.
    pub total: Option<u64>,
    /// Of the limit.
    pub usage_percent: Option<f64>,
    /// How often the kernel killed in it for want of memory.
    pub oom_kills: u64,
}

/// Disk use by device.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DiskView {
    /// Null where the kernel does not count.
    pub root: Option<RootDiskView>,
}

/// The rootfs.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RootDiskView {
    /// The limit in bytes; null: not limited.
    pub total: Option<u64>,
    /// Bytes it has written itself.
    pub usage: u64,
}

/// A link's counters, seen from the tenant.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[allow(missing_docs, reason = "the names say it")]
pub struct NetworkView {
    pub name: &'static str,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
}

/// Stats of a project's containers.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatsList {
    /// One each.
    pub containers: Vec<StatsView>,
    /// Where they stand.
    pub pagination: Pagination,
}

impl StatsView {
    /// Counters as the API shows them.
    pub fn new(container: &Container, stats: Stats) -> Self {
        let usage = stats.cgroup;
        let percent = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
        Self {
            container_id: container.id.to_string(),
            name: container.name.to_string(),
            status: container.status().as_str(),
            cpu: usage.map(|usage| CpuView {
                usage: usage.cpu_us.saturating_mul(1_000),
                allocated_time: container.settings.limits.cpu.map(|cpu| u64::from(cpu.0) * 1_000_000),
                usage_percent: stats.cpu_percent,
            }),
            memory: usage.map(|usage| MemoryView {
                usage: usage.memory.0,
                total: usage.memory_limit.map(|limit| limit.0),
                usage_percent: usage.memory_limit.map(|limit| percent(usage.memory.0, limit.0)),
                oom_kills: usage.oom_kills,
            }),
            disk: DiskView {
                root: stats
                    .disk
                    .map(|disk| RootDiskView { total: disk.limit.map(|limit| limit.0), usage: disk.used.0 }),
            },
            network: stats
                .link
                .iter()
                .map(|link| NetworkView {
                    name: "eth0",
                    rx_bytes: link.rx_bytes,
                    tx_bytes: link.tx_bytes,
                    rx_packets: link.rx_packets,
                    tx_packets: link.tx_packets,
                })
                .collect(),
            processes: usage.map(|usage| usage.pids),
            limits: container.settings.limits.into(),
        }
    }
}

#[cfg(test)]
#[path = "container_tests.rs"]
mod tests;
