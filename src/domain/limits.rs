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

impl Limits {
    /// These limits, and where one is not set, that of `base`.
    pub fn over(self, base: Self) -> Self {
        Self {
            cpu: self.cpu.or(base.cpu),
            memory: self.memory.or(base.memory),
            disk: self.disk.or(base.disk),
            ramdisk: self.ramdisk.or(base.ramdisk),
            pids: self.pids.or(base.pids),
            disk_read_bps: self.disk_read_bps.or(base.disk_read_bps),
            disk_write_bps: self.disk_write_bps.or(base.disk_write_bps),
            net_rx_bps: self.net_rx_bps.or(base.net_rx_bps),
            net_tx_bps: self.net_tx_bps.or(base.net_tx_bps),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_set_wins_over_the_base() {
        let base = Limits { memory: Some(Bytes::mib(64)), pids: Some(Pids(10)), ..Limits::default() };
        let own = Limits { memory: Some(Bytes::mib(8)), cpu: Some(CpuMillis(500)), ..Limits::default() };
        let want = Limits { cpu: own.cpu, memory: own.memory, pids: base.pids, ..Limits::default() };
        assert_eq!(own.over(base), want);
    }
}
