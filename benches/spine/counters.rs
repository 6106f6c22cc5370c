//! What a copy costs beside time. The counters are the machine's, so others' work is in them: of many copies the one with
//! the lowest count is the copy's own.

use std::fs;

use anyhow::{Context, Result};

/// Counters at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    /// Processes and threads made since boot.
    pub forks: u64,
    /// Cache flushes that block devices were asked for: what an fsync comes to.
    pub flushes: u64,
}

/// The field of `/sys/block/*/stat` that counts flushes, from 0 (the kernel's Documentation/block/stat.rst).
const FLUSHES_FIELD: usize = 15;

impl Counters {
    pub fn now() -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let forks = stat.lines().find_map(|line| line.strip_prefix("processes ")?.trim().parse().ok());
        Ok(Self { forks: forks.context("/proc/stat counts no processes")?, flushes: flushes()? })
    }
}

/// Of all real disks: a loop device's flushes come to the disk under it.
fn flushes() -> Result<u64> {
    let mut sum = 0;
    for device in fs::read_dir("/sys/block")? {
        let device = device?;
        if device.file_name().to_string_lossy().starts_with("loop") {
            continue;
        }
        let stat = fs::read_to_string(device.path().join("stat")).unwrap_or_default();
        sum += stat.split_whitespace().nth(FLUSHES_FIELD).and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(sum)
}
