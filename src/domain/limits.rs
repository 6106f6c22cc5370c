//! What one container may use. `None` means: not limited by us.

use serde::{Deserialize, Serialize};

use super::quantity::{Bytes, BytesPerSecond, CpuMillis, Pids};

/// A container's limits, each enforced by the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Processor time, in thousandths of a core (cgroup `cpu.max`, `cpu.cfs_quota_us`).
    pub cpu: Option<CpuMillis>,
    /// Memory, without swap (cgroup `memory.max`, `memory.limit_in_bytes`).
    pub memory: Option<Bytes>,
    /// The tenant's own writes (BTRFS simple quota); the template's data is not counted.
    pub disk: Option<Bytes>,
    /// Size of the ramdisk (tmpfs at `/ramdisk`).
    pub ramdisk: Option<Bytes>,
    /// Tasks (cgroup `pids.max`).
    pub pids: Option<Pids>,
    /// Disk reads (cgroup `io.max`, `blkio.throttle.read_bps_device`).
    pub disk_read_bps: Option<BytesPerSecond>,
    /// Disk writes (cgroup `io.max`, `blkio.throttle.write_bps_device`).
    pub disk_write_bps: Option<BytesPerSecond>,
    /// Network, towards the tenant.
    pub net_rx_bps: Option<BytesPerSecond>,
    /// Network, from the tenant.
    pub net_tx_bps: Option<BytesPerSecond>,
}
