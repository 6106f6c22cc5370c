//! Which control files a container's limits mean, what is written to each, and what the kernel must hold afterwards.
//!
//! Pure: nothing here opens a file. A tenant never swaps (its memory limit would otherwise be only half of what it can
//! take from the machine), so swap is closed whether or not there is a limit.

use std::fmt;

use crate::domain::{Bytes, BytesPerSecond, CpuMillis, Limits};

use super::{CgroupError, Version};

/// The period over which processor time is counted, in microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The least quota the scheduler takes, in microseconds (`min_cfs_quota_period` of `kernel/sched/core.c`).
const CPU_QUOTA_US_MIN: u64 = 1_000;

/// What v1 lets a container's TCP and UDP sockets hold: it counts that beside memory, and not at all unless it has a limit.
pub(super) const SOCKETS_V1: &str = "memory.kmem.tcp.limit_in_bytes";

/// The part of the memory limit that this is. The kernel grants each socket one buffer (64 KiB) beyond it.
const SOCKETS_PART: u64 = 4;

/// A block device's number, as the disk rates name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    /// Driver.
    pub major: u64,
    /// Which of the driver's devices.
    pub minor: u64,
}

impl DeviceNumber {
    /// Splits a `dev_t`, such as `st_rdev` of the pool's `/dev/loop0`.
    pub fn from_dev(dev: u64) -> Self {
        Self { major: nix::sys::stat::major(dev), minor: nix::sys::stat::minor(dev) }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What a control file must hold after a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// This text.
    Text(String),
    /// This many bytes, in whole pages; `None` is the kernel's "no limit".
    Pages(Option<u64>),
    /// A line of the device with this rate; `None`: no such line.
    RateV1(DeviceNumber, Option<u64>),
    /// A line of the device with these read and write rates; no line where both are `None`.
    RatesV2(DeviceNumber, Option<u64>, Option<u64>),
}

/// The limit that a control file is for, as the API calls it.
fn limit_of(file: &str) -> &'static str {
    match file {
        "pids.max" => "pids",
        "blkio.throttle.write_bps_device" => "disk_write_bps",
        "io.max" | "blkio.throttle.read_bps_device" => "disk_read_bps",
        _ if file.starts_with("cpu.") => "cpu",
        _ => "memory",
    }
}

/// One write to one control file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The controller the file belongs to, by its v2 name.
    pub controller: &'static str,
    /// The file.
    pub file: &'static str,
    /// What is written.
    pub value: String,
    /// What must be read back.
    pub expect: Expect,
    /// Whether the file must be there. Lifting a limit that cannot have been set is nothing to do.
    pub required: bool,
}

/// The writes for `limits`, in order; memory first, because it alone can be refused for what the tenant does.
///
/// `memsw_now` is v1's limit of memory and swap together as it stands; `None` where swap is not accounted.
pub fn writes(
    version: Version,
    limits: &Limits,
    device: Option<DeviceNumber>,
    memsw_now: Option<u64>,
) -> Result<Vec<Write>, CgroupError> {
    let mut writes = match version {
        Version::V1 => memory_v1(limits.memory, memsw_now),
        Version::V2 => memory_v2(limits.memory),
    };
    match version {
        Version::V1 => writes.extend(cpu_v1(limits.cpu)),
        Version::V2 => writes.push(cpu_v2(limits.cpu)),
    }
    let pids = limits.pids.map_or("max".to_owned(), |pids| pids.0.to_string());
    writes.push(text("pids", "pids.max", pids, limits.pids.is_some()));
    match (device, limits.disk_read_bps.or(limits.disk_write_bps)) {
        (Some(device), _) if version == Version::V1 => writes.extend(rates_v1(device, limits)),
        (Some(device), _) => writes.push(rates_v2(device, limits)),
        (None, Some(_)) => {
            let limit = if limits.disk_read_bps.is_some() { "disk_read_bps" } else { "disk_write_bps" };
            return Err(CgroupError::Limit { limit, source: Box::new(CgroupError::NoDevice) });
        }
        (None, None) => {}
    }
    Ok(writes)
}

fn text(controller: &'static str, file: &'static str, value: String, required: bool) -> Write {
    let expect = Expect::Text(value.clone());
    Write { controller, file, value, expect, required }
}

fn pages(file: &'static str, limit: Option<Bytes>, unlimited: &str, required: bool) -> Write {
    let value = limit.map_or(unlimited.to_owned(), |limit| limit.0.to_string());
    Write { controller: "memory", file, value, expect: Expect::Pages(limit.map(|limit| limit.0)), required }
}

/// The kernel refuses a `memsw` limit below the memory limit, at every moment: the outer one is raised first and
/// lowered last.
fn memory_v1(limit: Option<Bytes>, memsw_now: Option<u64>) -> Vec<Write> {
    let memory = pages("memory.limit_in_bytes", limit, "-1", limit.is_some());
    let memsw = pages("memory.memsw.limit_in_bytes", limit, "-1", false);
    let swappiness = text("memory", "memory.swappiness", "0".to_owned(), false);
    let sockets = pages(SOCKETS_V1, limit.map(|limit| Bytes(limit.0 / SOCKETS_PART)), "-1", false);
    let raised = limit.map_or(u64::MAX, |limit| limit.0) > memsw_now.unwrap_or(0);
    match memsw_now {
        None => vec![memory, swappiness, sockets],
        Some(_) if raised => vec![memsw, memory, swappiness, sockets],
        Some(_) => vec![memory, memsw, swappiness, sockets],
    }
}

fn memory_v2(limit: Option<Bytes>) -> Vec<Write> {
    vec![
        pages("memory.max", limit, "max", limit.is_some()),
        // Lowered only for the moment in which room is made for a smaller limit (`kernel::make_room`).
        pages("memory.high", None, "max", false),
        pages("memory.swap.max", Some(Bytes(0)), "max", false),
    ]
}

fn quota_us(cpu: CpuMillis) -> u64 {
    (u64::from(cpu.0) * CPU_PERIOD_US / 1_000).max(CPU_QUOTA_US_MIN)
}

fn cpu_v1(cpu: Option<CpuMillis>) -> Vec<Write> {
    let quota = cpu.map_or("-1".to_owned(), |cpu| quota_us(cpu).to_string());
    vec![
        text("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string(), cpu.is_some()),
        text("cpu", "cpu.cfs_quota_us", quota, cpu.is_some()),
    ]
}

fn cpu_v2(cpu: Option<CpuMillis>) -> Write {
    let quota = cpu.map_or("max".to_owned(), |cpu| quota_us(cpu).to_string());
    text("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_US}"), cpu.is_some())
}

fn rates_v1(device: DeviceNumber, limits: &Limits) -> Vec<Write> {
    let rate = |file, bps: Option<BytesPerSecond>| Write {
        controller: "io",
        file,
        value: format!("{device} {}", bps.map_or(0, |bps| bps.0)),
        expect: Expect::RateV1(device, bps.map(|bps| bps.0)),
        required: bps.is_some(),
    };
    vec![
        rate("blkio.throttle.read_bps_device", limits.disk_read_bps),
        rate("blkio.throttle.write_bps_device", limits.disk_write_bps),
    ]
}

fn rates_v2(device: DeviceNumber, limits: &Limits) -> Write {
    let (read, write) = (limits.disk_read_bps.map(|bps| bps.0), limits.disk_write_bps.map(|bps| bps.0));
    let word = |bps: Option<u64>| bps.map_or("max".to_owned(), |bps| bps.to_string());
    Write {
        controller: "io",
        file: "io.max",
        value: format!("{device} rbps={} wbps={}", word(read), word(write)),
        expect: Expect::RatesV2(device, read, write),
        required: read.or(write).is_some(),
    }
}

impl Write {
    /// The limit it is for, as the API calls it. v2 has both disk rates in one file: it stands for the one that is set.
    pub fn limit(&self) -> &'static str {
        match self.expect {
            Expect::RatesV2(_, None, Some(_)) => "disk_write_bps",
            _ => limit_of(self.file),
        }
    }
}

impl Expect {
    /// Whether `found`, the file's text, is what was wanted, in the kernel's own rounding: memory is kept in whole
    /// pages, rounded down.
    pub fn holds(&self, found: &str, page_size: u64) -> bool {
        match self {
            Self::Text(wanted) => found.trim() == wanted,
            Self::Pages(wanted) => match (wanted, parse_memory(found.trim(), page_size)) {
                (None, Some(None)) => true,
                (Some(wanted), Some(Some(bytes))) => bytes / page_size == wanted / page_size,
                _ => false,
            },
            Self::RateV1(device, wanted) => {
                device_line(found, *device).and_then(|rate| rate.trim().parse().ok()).filter(|rate| *rate != 0)
                    == *wanted
            }
            Self::RatesV2(device, read, write) => {
                let line = device_line(found, *device).unwrap_or_default();
                rate_word(line, "rbps=") == *read && rate_word(line, "wbps=") == *write
            }
        }
    }
}

/// A memory limit as the kernel prints it: `Some(None)` is "no limit", `None` is no number. v1 prints its largest
/// page count in bytes where there is no limit.
pub fn parse_memory(text: &str, page_size: u64) -> Option<Option<u64>> {
    if text == "max" {
        return Some(None);
    }
    let bytes: u64 = text.parse().ok()?;
    let unlimited = i64::MAX as u64 / page_size * page_size;
    Some((bytes < unlimited).then_some(bytes))
}

/// The value behind `key` in a file of `key value` lines, such as `memory.stat`.
pub fn flat_value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn device_line(text: &str, device: DeviceNumber) -> Option<&str> {
    let key = device.to_string();
    text.lines().find_map(|line| line.strip_prefix(&key)?.strip_prefix(' '))
}

fn rate_word(line: &str, key: &str) -> Option<u64> {
    line.split(' ').find_map(|word| word.strip_prefix(key)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Pids;
    use proptest::prelude::*;

    const PAGE: u64 = 4_096;
    const DEVICE: DeviceNumber = DeviceNumber { major: 7, minor: 3 };

    fn limits() -> Limits {
        Limits {
            cpu: Some(CpuMillis(1_500)),
            memory: Some(Bytes::mib(64)),
            pids: Some(Pids(100)),
            disk_read_bps: Some(BytesPerSecond(1 << 20)),
            ..Limits::default()
        }
    }

    fn pairs(writes: &[Write]) -> Vec<(&str, &str)> {
        writes.iter().map(|write| (write.file, write.value.as_str())).collect()
    }

    #[test]
    fn limits_become_the_files_of_v2() {
        let writes = writes(Version::V2, &limits(), Some(DEVICE), None).unwrap();
        let wanted = [
            ("memory.max", "67108864"),
            ("memory.high", "max"),
            ("memory.swap.max", "0"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "100"),
            ("io.max", "7:3 rbps=1048576 wbps=max"),
        ];
        assert_eq!(pairs(&writes), wanted);
    }

    #[test]
    fn limits_become_the_files_of_v1() {
        let writes = writes(Version::V1, &limits(), Some(DEVICE), None).unwrap();
        let wanted = [
            ("memory.limit_in_bytes", "67108864"),
            ("memory.swappiness", "0"),
            ("memory.kmem.tcp.limit_in_bytes", "16777216"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "150000"),
            ("pids.max", "100"),
            ("blkio.throttle.read_bps_device", "7:3 1048576"),
            ("blkio.throttle.write_bps_device", "7:3 0"),
        ];
        assert_eq!(pairs(&writes), wanted);
    }

    #[test]
    fn no_limit_lifts_each_and_requires_no_controller() {
        for version in [Version::V1, Version::V2] {
            let writes = writes(version, &Limits::default(), Some(DEVICE), Some(1 << 20)).unwrap();
            assert!(writes.iter().all(|write| !write.required), "{writes:?}");
        }
        let lifted = writes(Version::V1, &Limits::default(), None, Some(1 << 20)).unwrap();
        assert_eq!(pairs(&lifted)[..2], [("memory.memsw.limit_in_bytes", "-1"), ("memory.limit_in_bytes", "-1")]);
    }

    #[test]
    fn swap_is_raised_before_memory_and_lowered_after_it() {
        let order = |limit, memsw_now| {
            pairs(&memory_v1(limit, Some(memsw_now))).iter().take(3).map(|(file, _)| file.len()).collect::<Vec<_>>()
        };
        let (memory, memsw, swappiness) =
            ("memory.limit_in_bytes".len(), "memory.memsw.limit_in_bytes".len(), "memory.swappiness".len());
        assert_eq!(order(Some(Bytes::mib(2)), 1 << 20), [memsw, memory, swappiness]);
        assert_eq!(order(Some(Bytes::mib(1)), 1 << 21), [memory, memsw, swappiness]);
    }

    #[test]
    fn a_share_of_a_core_below_the_schedulers_least_is_raised_to_it() {
        assert_eq!(quota_us(CpuMillis(1)), CPU_QUOTA_US_MIN);
        assert_eq!(quota_us(CpuMillis(u32::MAX)), u64::from(u32::MAX) * 100, "no overflow");
    }

    #[test]
    fn a_disk_rate_without_a_device_is_refused() {
        let error = writes(Version::V2, &limits(), None, None).unwrap_err();
        assert!(matches!(error, CgroupError::Limit { limit: "disk_read_bps", .. }), "{error}");
        let error = writes(Version::V1, &Limits { disk_read_bps: None, ..write_limit() }, None, None).unwrap_err();
        assert!(matches!(error, CgroupError::Limit { limit: "disk_write_bps", .. }), "{error}");
    }

    fn write_limit() -> Limits {
        Limits { disk_write_bps: Some(BytesPerSecond(1)), ..limits() }
    }

    #[test]
    fn every_file_is_one_limits() {
        let all = Limits { disk_read_bps: None, ..write_limit() };
        for version in [Version::V1, Version::V2] {
            let found: Vec<_> =
                writes(version, &all, Some(DEVICE), Some(1)).unwrap().iter().map(Write::limit).collect();
            for limit in ["memory", "cpu", "pids", "disk_write_bps"] {
                assert!(found.contains(&limit), "{limit}: {found:?}");
            }
        }
    }

    #[test]
    fn memory_is_compared_in_pages() {
        assert!(Expect::Pages(Some(10_000)).holds("8192\n", PAGE));
        assert!(!Expect::Pages(Some(10_000)).holds("12288\n", PAGE));
        assert!(Expect::Pages(None).holds("max\n", PAGE));
        assert!(Expect::Pages(None).holds("9223372036854771712\n", PAGE), "how v1 prints that there is no limit");
        assert!(!Expect::Pages(None).holds("8192", PAGE));
        assert!(!Expect::Pages(Some(8192)).holds("", PAGE));
    }

    #[test]
    fn disk_rates_are_found_on_their_devices_line() {
        let v1 = "7:30 5\n7:3 1048576\n";
        assert!(Expect::RateV1(DEVICE, Some(1 << 20)).holds(v1, PAGE));
        assert!(!Expect::RateV1(DEVICE, None).holds(v1, PAGE));
        assert!(Expect::RateV1(DEVICE, None).holds("7:30 5\n", PAGE));
        let v2 = "7:3 rbps=1048576 wbps=max riops=max wiops=max\n";
        assert!(Expect::RatesV2(DEVICE, Some(1 << 20), None).holds(v2, PAGE));
        assert!(!Expect::RatesV2(DEVICE, Some(1 << 20), Some(5)).holds(v2, PAGE));
        assert!(Expect::RatesV2(DEVICE, None, None).holds("", PAGE));
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(flat_value(text, "oom_kill"), Some(2));
        assert_eq!(flat_value(text, "oom_kil"), None);
    }

    proptest! {
        #[test]
        fn at_no_moment_is_memory_above_memory_and_swap(new in 1u64..1 << 40, now in 1u64..1 << 40) {
            let (mut memory, mut memsw) = (now, now);
            for write in memory_v1(Some(Bytes(new)), Some(now)) {
                match write.file {
                    "memory.limit_in_bytes" => memory = new,
                    "memory.memsw.limit_in_bytes" => memsw = new,
                    _ => {}
                }
                prop_assert!(memory <= memsw);
            }
            prop_assert_eq!((memory, memsw), (new, new));
        }
    }
}
