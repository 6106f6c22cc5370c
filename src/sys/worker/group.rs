//! A worker's control group: `/<instance>-scripts/<seat>` in the hierarchies of the processor, memory and task controllers.
//!
//! Beside the instance's own group and not in it, where every group is a container. On a host without a controller its bound is left
//! to the others: rlimits and the engine's own.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::domain::{Bytes, Instance};
use crate::sys::cgroup::{Layout, Version};

use super::{TASKS_MAX, WorkerError};

/// Controllers, as v2 calls them.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// Workers get a quarter of what an equal would, when the processor is short.
const CPU_WEIGHT: u32 = 25;
const CPU_SHARES: u32 = 256;
/// How often, and with which pauses in milliseconds, the removal of a group is tried while its last task is taken apart.
const REMOVE_TRIES_MAX: u32 = 200;
const REMOVE_PAUSE_MS: u64 = 5;

/// The groups of one instance's workers.
#[derive(Debug, Clone)]
pub struct Groups {
    layout: Layout,
    name: String,
}

impl Groups {
    /// On this host's hierarchies.
    ///
    /// # Errors
    /// There are none, or the parent group cannot be made.
    pub fn prepare(instance: &Instance) -> Result<Self, WorkerError> {
        let failed = |source| WorkerError { action: "make a control group", source };
        let layout = Layout::detect().map_err(|e| failed(io::Error::other(e)))?;
        let groups = Self { layout, name: format!("{instance}-scripts") };
        for mount in groups.mounts() {
            if groups.layout.version() == Version::V2 {
                hand_down(&mount);
            }
            let parent = mount.join(&groups.name);
            make(&parent).map_err(failed)?;
            sweep(&parent);
            if groups.layout.version() == Version::V2 {
                hand_down(&parent);
            }
        }
        Ok(groups)
    }

    /// Makes a seat's group, with its bounds; the answer is what a process writes itself into.
    ///
    /// # Errors
    /// A folder that cannot be made, a bound that is not taken.
    pub fn make(&self, seat: u16, memory: Bytes) -> Result<Vec<PathBuf>, WorkerError> {
        let failed = |source| WorkerError { action: "make a control group", source };
        let folders = self.folders(seat);
        for folder in &folders {
            make(folder).map_err(failed)?;
            for (file, value) in bounds(memory) {
                let file = folder.join(file);
                // A file that is not there belongs to the other version, or to a controller that is elsewhere or off.
                if file.exists() {
                    fs::write(&file, value)
                        .map_err(|e| failed(io::Error::new(e.kind(), format!("{}: {e}", file.display()))))?;
                }
            }
        }
        Ok(folders.iter().map(|folder| folder.join("cgroup.procs")).collect())
    }

    /// Whether the kernel has killed in a seat's group for want of memory.
    pub fn ran_out_of_memory(&self, seat: u16) -> bool {
        let killed = |folder: &PathBuf| {
            ["memory.events", "memory.oom_control"].iter().any(|file| {
                let text = fs::read_to_string(folder.join(file)).unwrap_or_default();
                text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
            })
        };
        self.folders(seat).iter().any(killed)
    }

    /// Removes a seat's group, whose processes have ended.
    pub async fn remove(&self, seat: u16) {
        for folder in self.folders(seat) {
            remove(&folder).await;
        }
    }

    /// Removes the parent.
    pub async fn remove_parent(&self) {
        for mount in self.mounts() {
            remove(&mount.join(&self.name)).await;
        }
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let mut mounts: Vec<PathBuf> =
            CONTROLLERS.iter().filter_map(|name| self.layout.mount_of(name)).map(Path::to_owned).collect();
        mounts.dedup();
        mounts
    }

    fn folders(&self, seat: u16) -> Vec<PathBuf> {
        self.mounts().iter().map(|mount| mount.join(&self.name).join(seat.to_string())).collect()
    }
}

/// Control files of both versions, and what goes into them.
fn bounds(memory: Bytes) -> Vec<(&'static str, String)> {
    vec![
        ("memory.max", memory.0.to_string()),
        ("memory.swap.max", "0".to_owned()),
        ("memory.limit_in_bytes", memory.0.to_string()),
        ("pids.max", TASKS_MAX.to_string()),
        ("cpu.weight", CPU_WEIGHT.to_string()),
        ("cpu.shares", CPU_SHARES.to_string()),
    ]
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}

/// Groups of a daemon that was killed: its workers have ended with it.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        // A file is none, and a group that is still in use is made anew as it is.
        let _ = fs::remove_dir(entry.path());
    }
}

fn hand_down(folder: &Path) {
    for name in CONTROLLERS {
        // One that stays off shows by its missing files.
        let _ = fs::write(folder.join("cgroup.subtree_control"), format!("+{name}"));
    }
}

async fn remove(folder: &Path) {
    for _ in 0..REMOVE_TRIES_MAX {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                tokio::time::sleep(Duration::from_millis(REMOVE_PAUSE_MS)).await;
            }
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return tracing::warn!(folder = %folder.display(), %error, "a script worker's control group stays");
            }
            _ => return,
        }
    }
    tracing::warn!(folder = %folder.display(), "a script worker's control group stays: it does not empty");
}
