//! From the files of a cgroup to numbers, for both versions, as cadvisor counts.

use super::{Cpu, Io, Memory, Usage};

/// Clock ticks a second in `cpuacct.stat`: USER_HZ, the same on every architecture Linux has.
pub const TICKS_PER_SECOND: u64 = 100;

/// More than this much memory is no limit: the kernel rounds what it calls unlimited.
const LIMIT_MAX: u64 = 1 << 62;

/// Which files there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy a controller.
    V1,
    /// One hierarchy.
    V2,
}

/// Reads a cgroup: `read` gives the text of a controller's file, if there is one.
pub fn usage(version: Version, read: &dyn Fn(&str, &str) -> Option<String>) -> Usage {
    let number = |controller: &str, file: &str| read(controller, file).and_then(|t| plain(&t));
    let (cpu, io) = match version {
        Version::V1 => (cpu_v1(read), io_v1(read)),
        Version::V2 => (cpu_v2(read), io_v2(read)),
    };

    Usage { cpu, memory: memory(version, read), io, tasks: number("pids", "pids.current") }
}

/// Reads of a cgroup what it has of memory.
pub fn memory(version: Version, read: &dyn Fn(&str, &str) -> Option<String>) -> Option<Memory> {
    match version {
        Version::V1 => memory_v1(read),
        Version::V2 => memory_v2(read),
    }
}

/// A file of one number; `max` is none.
fn plain(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn limit(text: Option<String>) -> Option<u64> {
    text.and_then(|text| plain(&text)).filter(|bytes| *bytes < LIMIT_MAX)
}

/// Lines of a name and a number.
struct Stat(String);

impl Stat {
    fn get(&self, name: &str) -> Option<u64> {
        let value = |line: &str| plain(line.strip_prefix(name)?.strip_prefix(' ')?);

        self.0.lines().find_map(value)
    }

    fn or_zero(&self, name: &str) -> u64 {
        self.get(name).unwrap_or(0)
    }
}

fn cpu_v1(read: &dyn Fn(&str, &str) -> Option<String>) -> Option<Cpu> {
    let number = |file: &str| read("cpu", file).and_then(|text| plain(&text));
    let total_ns = read("cpuacct", "cpuacct.usage").and_then(|text| plain(&text))?;
    let ticks = Stat(read("cpuacct", "cpuacct.stat").unwrap_or_default());
    let stat = Stat(read("cpu", "cpu.stat").unwrap_or_default());
    let ns = |name| ticks.or_zero(name).saturating_mul(1_000_000_000 / TICKS_PER_SECOND);

    Some(Cpu {
        total_ns,
        user_ns: ns("user"),
        system_ns: ns("system"),
        periods: stat.or_zero("nr_periods"),
        throttled_periods: stat.or_zero("nr_throttled"),
        throttled_ns: stat.or_zero("throttled_time"),
        shares: number("cpu.shares").unwrap_or(0),
        // No limit is -1, which is no such number.
        quota_us: number("cpu.cfs_quota_us"),
        period_us: number("cpu.cfs_period_us").unwrap_or(0),
        nano_cores: None,
    })
}

fn cpu_v2(read: &dyn Fn(&str, &str) -> Option<String>) -> Option<Cpu> {
    let stat = Stat(read("cpu", "cpu.stat")?);
    let ns = |name| stat.or_zero(name).saturating_mul(1000);
    let max = read("cpu", "cpu.max").unwrap_or_default();
    let (quota, period) = max.trim().split_once(' ').unwrap_or_default();
    let weight = read("cpu", "cpu.weight").and_then(|text| plain(&text));

    Some(Cpu {
        total_ns: stat.get("usage_usec")?.saturating_mul(1000),
        user_ns: ns("user_usec"),
        system_ns: ns("system_usec"),
        periods: stat.or_zero("nr_periods"),
        throttled_periods: stat.or_zero("nr_throttled"),
        throttled_ns: ns("throttled_usec"),
        shares: weight.map_or(0, shares),
        quota_us: plain(quota),
        period_us: plain(period).unwrap_or(0),
        nano_cores: None,
    })
}

/// The v1 shares that give a v2 weight.
fn shares(weight: u64) -> u64 {
    2 + weight.max(1).saturating_sub(1).saturating_mul(262_142) / 9999
}

fn memory_v1(read: &dyn Fn(&str, &str) -> Option<String>) -> Option<Memory> {
    let text = |file: &str| read("memory", file);
    let usage = text("memory.usage_in_bytes").and_then(|text| plain(&text))?;
    let stat = Stat(text("memory.stat").unwrap_or_default());
    let memory_limit = limit(text("memory.limit_in_bytes"));
    let with_swap = limit(text("memory.memsw.limit_in_bytes"));

    Some(Memory {
        usage,
        max_usage: text("memory.max_usage_in_bytes").and_then(|text| plain(&text)),
        working_set: usage.saturating_sub(stat.or_zero("total_inactive_file")),
        rss: stat.or_zero("total_rss"),
        cache: stat.or_zero("total_cache"),
        mapped_file: stat.or_zero("total_mapped_file"),
        swap: stat.or_zero("total_swap"),
        fail_count: text("memory.failcnt").and_then(|text| plain(&text)).unwrap_or(0),
        faults: stat.or_zero("total_pgfault"),
        major_faults: stat.or_zero("total_pgmajfault"),
        oom_kills: Stat(text("memory.oom_control").unwrap_or_default()).or_zero("oom_kill"),
        limit: memory_limit,
        swap_limit: with_swap.map(|both| both.saturating_sub(memory_limit.unwrap_or(0))),
    })
}

fn memory_v2(read: &dyn Fn(&str, &str) -> Option<String>) -> Option<Memory> {
    let text = |file: &str| read("memory", file);
    let number = |file: &str| text(file).and_then(|text| plain(&text));
    let usage = number("memory.current")?;
    let stat = Stat(text("memory.stat").unwrap_or_default());
    let events = Stat(text("memory.events").unwrap_or_default());

    Some(Memory {
        usage,
        max_usage: number("memory.peak"),
        working_set: usage.saturating_sub(stat.or_zero("inactive_file")),
        rss: stat.or_zero("anon"),
        cache: stat.or_zero("file"),
        mapped_file: stat.or_zero("file_mapped"),
        swap: number("memory.swap.current").unwrap_or(0),
        fail_count: events.or_zero("max"),
        faults: stat.or_zero("pgfault"),
        major_faults: stat.or_zero("pgmajfault"),
        oom_kills: events.or_zero("oom_kill"),
        limit: limit(text("memory.max")),
        swap_limit: limit(text("memory.swap.max")),
    })
}

/// The root of v2 has no `memory.current`: what the machine has and what is left (`/proc/meminfo`).
pub fn memory_of_machine(meminfo: &str, root_stat: &str) -> Option<Memory> {
    let kibibytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let number = line.strip_prefix(':')?.split_whitespace().next()?;
        Some(number.parse::<u64>().ok()?.saturating_mul(1024))
    };
    let usage = kibibytes("MemTotal")?.saturating_sub(kibibytes("MemFree")?);
    let stat = Stat(root_stat.to_owned());
    let swap = kibibytes("SwapTotal").unwrap_or(0);

    Some(Memory {
        usage,
        working_set: usage.saturating_sub(stat.or_zero("inactive_file")),
        rss: stat.or_zero("anon"),
        cache: stat.or_zero("file"),
        mapped_file: stat.or_zero("file_mapped"),
        swap: swap.saturating_sub(kibibytes("SwapFree").unwrap_or(0)),
        faults: stat.or_zero("pgfault"),
        major_faults: stat.or_zero("pgmajfault"),
        ..Memory::default()
    })
}

/// Lines such as `8:0 Read 4096`; a total at the end.
fn io_v1(read: &dyn Fn(&str, &str) -> Option<String>) -> Vec<Io> {
    let mut devices: Vec<Io> = Vec::new();
    for (file, is_bytes) in [
        ("blkio.throttle.io_service_bytes_recursive", true),
        ("blkio.throttle.io_serviced_recursive", false),
    ] {
        let text = read("blkio", file).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(what), Some(number)) =
                (words.next(), words.next(), words.next().and_then(plain))
            else {
                continue;
            };
            let io = device_of(&mut devices, device);
            match (what, is_bytes) {
                ("Read", true) => io.read_bytes = number,
                ("Write", true) => io.written_bytes = number,
                ("Read", false) => io.reads = number,
                ("Write", false) => io.writes = number,
                _sums => {}
            }
        }
    }

    devices
}

/// Lines such as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn io_v2(read: &dyn Fn(&str, &str) -> Option<String>) -> Vec<Io> {
    let mut devices = Vec::new();
    for line in read("io", "io.stat").unwrap_or_default().lines() {
        let Some((device, numbers)) = line.split_once(' ') else { continue };
        let io = device_of(&mut devices, device);
        for (name, number) in numbers.split(' ').filter_map(|pair| pair.split_once('=')) {
            let number = plain(number).unwrap_or(0);
            match name {
                "rbytes" => io.read_bytes = number,
                "wbytes" => io.written_bytes = number,
                "rios" => io.reads = number,
                "wios" => io.writes = number,
                _discards => {}
            }
        }
    }

    devices
}

fn device_of<'a>(devices: &'a mut Vec<Io>, device: &str) -> &'a mut Io {
    let at = devices.iter().position(|io| io.device == device).unwrap_or_else(|| {
        devices.push(Io { device: device.to_owned(), ..Io::default() });
        devices.len() - 1
    });

    &mut devices[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files<'a>(
        files: &'a [(&'a str, &'a str)],
    ) -> impl Fn(&str, &str) -> Option<String> + use<'a> {
        |_, wanted| {
            let found = files.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, text)| (*text).to_owned())
        }
    }

    #[test]
    fn version_1_is_read() {
        let read = files(&[
            ("cpuacct.usage", "1234567890\n"),
            ("cpuacct.stat", "user 80\nsystem 43\n"),
            ("cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 5000\n"),
            ("cpu.shares", "102\n"),
            ("cpu.cfs_quota_us", "20000\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("memory.usage_in_bytes", "1000000\n"),
            ("memory.max_usage_in_bytes", "2000000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("memory.failcnt", "3\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            (
                "memory.stat",
                "cache 1\nrss 2\ntotal_cache 300000\ntotal_rss 600000\ntotal_rss_huge 5\n\
                 total_mapped_file 70\ntotal_swap 9\ntotal_pgfault 11\ntotal_pgmajfault 12\n\
                 total_inactive_file 250000\n",
            ),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 4096\n8:0 Write 8192\n8:0 Total 12288\n254:1 Read 1\nTotal 12289\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\nTotal 3\n"),
            ("pids.current", "4\n"),
        ]);

        let cpu = Cpu {
            total_ns: 1_234_567_890,
            user_ns: 800_000_000,
            system_ns: 430_000_000,
            periods: 7,
            throttled_periods: 2,
            throttled_ns: 5000,
            shares: 102,
            quota_us: Some(20_000),
            period_us: 100_000,
            nano_cores: None,
        };
        let memory = Memory {
            usage: 1_000_000,
            max_usage: Some(2_000_000),
            working_set: 750_000,
            rss: 600_000,
            cache: 300_000,
            mapped_file: 70,
            swap: 9,
            fail_count: 3,
            faults: 11,
            major_faults: 12,
            oom_kills: 2,
            limit: None,
            swap_limit: None,
        };
        let io = |device: &str, numbers: [u64; 4]| Io {
            device: device.to_owned(),
            read_bytes: numbers[0],
            written_bytes: numbers[1],
            reads: numbers[2],
            writes: numbers[3],
        };
        let expected = Usage {
            cpu: Some(cpu),
            memory: Some(memory),
            io: vec![io("8:0", [4096, 8192, 1, 2]), io("254:1", [1, 0, 0, 0])],
            tasks: Some(4),
        };
        assert_eq!(usage(Version::V1, &read), expected);
    }

    #[test]
    fn version_2_is_read() {
        let read = files(&[
            (
                "cpu.stat",
                "usage_usec 1234567\nuser_usec 800000\nsystem_usec 434567\nnr_periods 7\n\
                 nr_throttled 2\nthrottled_usec 5\n",
            ),
            ("cpu.max", "20000 100000\n"),
            ("cpu.weight", "100\n"),
            ("memory.current", "1000000\n"),
            ("memory.max", "2097152\n"),
            ("memory.swap.max", "max\n"),
            ("memory.swap.current", "5\n"),
            ("memory.events", "low 0\nhigh 0\nmax 6\noom 1\noom_kill 1\n"),
            (
                "memory.stat",
                "anon 600000\nfile 300000\nfile_mapped 70\ninactive_file 250000\npgfault 11\n\
                 pgmajfault 12\n",
            ),
            ("io.stat", "8:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n"),
            ("pids.current", "4\n"),
        ]);
        let found = usage(Version::V2, &read);

        let cpu = found.cpu.unwrap();
        assert_eq!((cpu.total_ns, cpu.user_ns), (1_234_567_000, 800_000_000));
        assert_eq!((cpu.quota_us, cpu.period_us, cpu.shares), (Some(20_000), 100_000, 2597));
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_ns), (7, 2, 5000));
        let memory = found.memory.unwrap();
        assert_eq!((memory.usage, memory.working_set), (1_000_000, 750_000));
        assert_eq!((memory.limit, memory.swap_limit), (Some(2_097_152), None));
        assert_eq!(memory.oom_kills, 1);
        assert_eq!((memory.rss, memory.cache, memory.fail_count), (600_000, 300_000, 6));
        assert_eq!((found.io[0].reads, found.io[0].written_bytes, found.tasks), (1, 8192, Some(4)));
    }

    #[test]
    fn what_is_not_there_is_not_told() {
        let read = files(&[("cpu.stat", "nr_periods 0\n"), ("cpu.cfs_quota_us", "-1\n")]);
        assert_eq!(usage(Version::V1, &read), Usage::default());
        assert_eq!(usage(Version::V2, &read), Usage::default());

        let read = files(&[("cpuacct.usage", "1\n"), ("cpu.cfs_quota_us", "-1\n")]);
        assert_eq!(usage(Version::V1, &read).cpu.unwrap().quota_us, None);
    }

    #[test]
    fn the_machine_is_read_where_the_root_tells_nothing() {
        let meminfo = "MemTotal: 1000 kB\nMemFree: 400 kB\nSwapTotal: 10 kB\nSwapFree: 4 kB\n";
        let memory = memory_of_machine(meminfo, "inactive_file 1024\nanon 2\n").unwrap();
        assert_eq!((memory.usage, memory.working_set), (600 * 1024, 599 * 1024));
        assert_eq!((memory.swap, memory.rss), (6 * 1024, 2));
    }
}
