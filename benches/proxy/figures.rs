//! Percentiles, medians, memory, processor time, and what the figures were measured on.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

/// A percentile by nearest rank: a sample that was measured. Sorts.
pub fn percentile(samples: &mut [Duration], p: f64) -> Duration {
    samples.sort_unstable();
    let rank = (samples.len() as f64 * p / 100.0).ceil() as usize;
    samples.get(rank.max(1) - 1).copied().unwrap_or_default()
}

/// The one in the middle.
pub fn median(samples: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = samples.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// Processor time of a process with all its threads, its own and the kernel's for it, in seconds.
pub fn cpu_s(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid} is gone"))?;
    // Behind the program's name, which may hold anything: fields 14 and 15 (proc(5)).
    let rest = stat.rsplit_once(") ").context("no stat")?.1;
    let fields: Vec<f64> = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(fields.iter().sum::<f64>() / hertz as f64)
}

/// Resident memory that is a process's own (not a file's), in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

fn first_line(output: &[u8]) -> String {
    String::from_utf8_lossy(output).lines().next().unwrap_or_default().to_owned()
}

/// One line.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZeroUsize::get);
    let nginx = Command::new("nginx").arg("-v").output().map(|said| first_line(&said.stderr)).unwrap_or_default();
    format!(
        "machine: {cores} cores {}; kernel {}; {nginx}; load at the end {}; {}",
        cpu.trim_start_matches([' ', '\t', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
        jiff::Zoned::now().strftime("%Y-%m-%d")
    )
}
