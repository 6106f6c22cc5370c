//! Control groups, v1 and v2 alike: limits with read-back, counters, the freezer, and removal.
//!
//! A container's group is `/<instance>/<id>`: one folder in the unified hierarchy (v2), or one in each controller's
//! hierarchy (v1, and the hybrid layout, where the unified hierarchy has no controllers). The runtime makes the folders
//! when it makes init; everything after that happens here, by plain files.
//!
//! - [`layout`] finds the hierarchies in mountinfo;
//! - [`plan`] turns limits into writes, and says what the kernel must answer (pure);
//! - [`kernel`] carries out, and waits;
//! - [`removal`] kills and removes.
//!
//! Invariants: a limit that was set was read back; a wait has a bound; a removal that returned `Ok` left no folder.

mod files;
pub mod kernel;
pub mod layout;
pub mod plan;
mod removal;

use std::path::PathBuf;

use async_trait::async_trait;

use crate::domain::{Bytes, ContainerId, Limits};

pub use kernel::KernelCgroups;
pub use layout::Layout;
pub use plan::DeviceNumber;

/// Which hierarchy the controllers are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy a controller (also the hybrid layout).
    V1,
    /// The unified hierarchy.
    V2,
}

/// Counters of one container's cgroup, as they are now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time used since the cgroup was made, in microseconds.
    pub cpu_us: u64,
    /// Memory charged, less inactive page cache (as `docker stats` counts).
    pub memory: Bytes,
    /// The memory limit as the kernel has it.
    pub memory_limit: Option<Bytes>,
    /// Tasks.
    pub pids: u64,
    /// How often the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// What the kernel had to do to a container to keep its limits, counted since its cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Alarms {
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Processes and threads refused.
    pub pids_refused: u64,
}

/// A cgroup operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// A file or folder could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried: "write", "read", "remove", …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The kernel took a limit but holds another value.
    #[error("the kernel did not take {file} = {wanted} of container {id}: it holds {found}")]
    NotTaken {
        /// Whose limit.
        id: ContainerId,
        /// The control file.
        file: &'static str,
        /// What was written.
        wanted: String,
        /// What was read back.
        found: String,
    },
    /// A controller that a limit needs is not there.
    #[error("the host has no `{controller}` controller, which this limit needs")]
    NoController {
        /// `cpu`, `memory`, `pids`, `io`.
        controller: &'static str,
    },
    /// No cgroup filesystem is mounted.
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
    /// A disk rate without the disk.
    #[error("no disk rate can be kept: the pool's block device is not known")]
    NoDevice,
    /// The container holds more memory than the new limit; the old limit stays, and nothing was killed for it.
    #[error("container {id} holds {used} of memory, more than the limit of {wanted} asked for")]
    MemoryInUse {
        /// Whose limit.
        id: ContainerId,
        /// The limit asked for.
        wanted: Bytes,
        /// What could not be reclaimed.
        used: Bytes,
    },
    /// A limit that was not taken; those before it in the order of their files may be in force, and must be set anew.
    #[error("limits.{limit} is not kept")]
    Limit {
        /// The limit, as the API calls it.
        limit: &'static str,
        /// The cause.
        #[source]
        source: Box<CgroupError>,
    },
    /// The wait for a cgroup to freeze or to empty ran out.
    #[error("the cgroup of container {id} did not {what} within {waited_ms} ms")]
    Timeout {
        /// Whose cgroup.
        id: ContainerId,
        /// "freeze", "empty".
        what: &'static str,
        /// The bound, in milliseconds.
        waited_ms: u64,
    },
    /// A fault put there by a test.
    #[error("injected fault at {0}")]
    Injected(&'static str),
}

/// The cgroups of one instance's containers.
#[async_trait]
pub trait Cgroups: Send + Sync + std::fmt::Debug {
    /// Which hierarchy is in use.
    fn version(&self) -> Version;
    /// What the instance needs once: its parent groups, and the controllers handed down to them.
    async fn prepare(&self) -> Result<(), CgroupError> {
        Ok(())
    }
    /// Says that a process is about to be moved into a cgroup, and returns at once. The first move after a pause waits for a
    /// grace period of the kernel's (measured: 10 ms of a start's 31); waited for here, it passes beside other work.
    fn expect_move(&self) {}
    /// The `cgroupsPath` of a container for the OCI spec: absolute, unique, under the instance's parent.
    fn path(&self, id: ContainerId) -> String;
    /// Writes the cpu, memory, pids and disk-rate limits and reads each back. A limit of `None` is lifted.
    async fn set_limits(&self, id: ContainerId, limits: &Limits) -> Result<(), CgroupError>;
    /// The counters; `None` where the container has no cgroup.
    async fn usage(&self, id: ContainerId) -> Result<Option<Usage>, CgroupError>;
    /// What the limits of these containers have led to; one without a cgroup is left out. For all at once, since it is asked
    /// every second.
    async fn alarms(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Alarms)>, CgroupError>;
    /// Memory that these containers hold, less inactive page cache; one without a cgroup is left out. For all at once, since it is
    /// asked every second.
    async fn memory(&self, ids: Vec<ContainerId>) -> Result<Vec<(ContainerId, Bytes)>, CgroupError>;
    /// Has the kernel take back what it can of a container's memory without losing anything: page cache, for a tenant never swaps.
    /// Its tasks may run meanwhile; they read from the disk again.
    async fn reclaim(&self, id: ContainerId) -> Result<(), CgroupError>;
    /// Stops or goes on with every task, and waits until the kernel says so.
    async fn freeze(&self, id: ContainerId, frozen: bool) -> Result<(), CgroupError>;
    /// Kills what is in the container's cgroups (thawing them), waits until they are empty, removes them. Idempotent.
    async fn remove(&self, id: ContainerId) -> Result<(), CgroupError>;
    /// Containers that have a cgroup now.
    async fn list(&self) -> Result<Vec<ContainerId>, CgroupError>;
    /// Removes the instance's parent groups, for an instance that ends with no container left. Idempotent.
    async fn remove_parent(&self) -> Result<(), CgroupError> {
        Ok(())
    }
}
