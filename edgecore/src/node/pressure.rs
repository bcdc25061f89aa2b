//! Whether memory, disk or process numbers run out, by the kubelet's default thresholds.

use std::path::Path;

use crate::blocking::read_trimmed;

/// `memory.available<100Mi`
const MEMORY_BYTES_MIN: u64 = 100 << 20;
/// `nodefs.available<10%`
const DISK_PERCENT_MIN: u64 = 10;
/// `nodefs.inodesFree<5%`
const INODES_PERCENT_MIN: u64 = 5;
/// Share of process numbers that must be free; the kubelet leaves its threshold to the operator.
const PIDS_PERCENT_MIN: u64 = 5;

/// What runs out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory does.
    pub memory: bool,
    /// Space or inodes of the file system with volumes do.
    pub disk: bool,
    /// Process numbers do.
    pub pids: bool,
}

/// Reads the state of this moment. What cannot be read is taken not to run out.
pub fn read(root_dir: &Path, pid_max: u64) -> Pressure {
    let meminfo = read_trimmed("/proc/meminfo").unwrap_or_default();
    let loadavg = read_trimmed("/proc/loadavg").unwrap_or_default();
    let disk = rustix::fs::statvfs(root_dir);

    Pressure {
        memory: available(&meminfo).is_some_and(|bytes| bytes < MEMORY_BYTES_MIN),
        disk: disk.is_ok_and(|disk| {
            below(disk.f_bavail, disk.f_blocks, DISK_PERCENT_MIN)
                || below(disk.f_favail, disk.f_files, INODES_PERCENT_MIN)
        }),
        pids: processes(&loadavg)
            .is_some_and(|used| below(pid_max.saturating_sub(used), pid_max, PIDS_PERCENT_MIN)),
    }
}

/// Whether `free` is less than `percent` of `all`. File systems without inodes say 0 of 0.
fn below(free: u64, all: u64, percent: u64) -> bool {
    u128::from(free) * 100 < u128::from(all) * u128::from(percent)
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;

    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// `0.2 0.1 0.0 1/257 4242`: 257 threads exist.
pub(super) fn processes(loadavg: &str) -> Option<u64> {
    loadavg.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_compared_without_overflow() {
        for (free, all, percent, expected) in [
            (9, 100, 10, true),
            (10, 100, 10, false),
            (0, 0, 5, false),
            (u64::MAX, u64::MAX, 10, false),
        ] {
            assert_eq!(below(free, all, percent), expected, "{free}/{all}");
        }
    }

    #[test]
    fn kernel_files_are_understood() {
        assert_eq!(available("MemTotal: 5 kB\nMemAvailable:   4 kB\n"), Some(4096));
        assert_eq!(processes("0.20 0.18 0.12 1/257 4242"), Some(257));
        assert_eq!((available(""), processes("")), (None, None));
    }
}
