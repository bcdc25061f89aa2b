//! The kernel, its cgroups, memory and ports. What is read is read here; how it is judged is a function of
//! the text.

use std::fs;

use edgecore::Config;
use edgecore::node::cgroups::Cgroups;

use super::Finding;
use crate::ui;

/// The agent takes 10 MiB; the runtime and a few pods need the rest.
const MEMORY_MIN_MIB: u64 = 256;
/// Below that even small pods are evicted (`evictionHard` keeps 100Mi).
const MEMORY_FREE_MIN_MIB: u64 = 128;
/// The port of a kubelet.
const KUBELET_PORT: u16 = 10250;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let uname = rustix::system::uname();
    let tcp = read("/proc/net/tcp") + &read("/proc/net/tcp6");
    let unified = match Cgroups::detect() {
        Ok(cgroups) => Ok(cgroups.is_unified()),
        Err(error) => Err(ui::chain(&error)),
    };

    vec![
        kernel(&uname.release().to_string_lossy(), &read("/proc/filesystems")),
        cgroups(unified, &read("/proc/cgroups"), &read("/sys/fs/cgroup/cgroup.controllers")),
        memory(&read("/proc/meminfo")),
        forwarding(&read("/proc/sys/net/ipv4/ip_forward")),
        ports(&tcp),
        resolver(&config.resolv_conf.display().to_string(), &read_path(&config.resolv_conf)),
    ]
}

fn read_path(path: &std::path::Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What is said of these texts, in the places of those of the kernel: for [`crate::inputs`].
pub(crate) fn judged(text: &str) -> [Finding; 6] {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));

    [
        kernel(first, rest),
        cgroups(Ok(text.len().is_multiple_of(2)), rest, first),
        memory(text),
        forwarding(first),
        ports(text),
        resolver(first, rest),
    ]
}

fn kernel(release: &str, file_systems: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let has_overlay = file_systems.lines().any(|line| line.ends_with("\toverlay"));
    let found = format!("Linux {release}");
    if version < (4, 18) {
        return Finding::fail("kernel", found, "use Linux 4.18 or newer");
    }
    if version < (5, 6) {
        let found = format!("{found}: too old for pods that mount a part of a volume (subPath)");
        return Finding::warn("kernel", found, "use Linux 5.6 or newer, or pods without subPath");
    }
    if !has_overlay {
        let found = format!("{found}, without overlayfs as far as it is loaded");
        return Finding::warn("kernel", found, "load it: modprobe overlay");
    }

    Finding::ok("kernel", found)
}

/// `table` is /proc/cgroups, `controllers` those of v2.
fn cgroups(unified: Result<bool, String>, table: &str, controllers: &str) -> Finding {
    let unified = match unified {
        Ok(unified) => unified,
        Err(why) => return Finding::fail("cgroups", why, "mount cgroup2 on /sys/fs/cgroup"),
    };
    let has = |name: &str| {
        if unified {
            return controllers.split_whitespace().any(|found| found == name);
        }
        // Name, hierarchy, number of cgroups, enabled.
        table.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.first() == Some(&name) && words.last() == Some(&"1")
        })
    };
    let missing: Vec<_> = ["cpu", "memory", "pids"].into_iter().filter(|name| !has(name)).collect();
    let version = if unified { "v2" } else { "v1" };
    if missing.is_empty() {
        return Finding::ok("cgroups", version);
    }
    let remedy = if missing.contains(&"memory") {
        "add cgroup_enable=memory cgroup_memory=1 to the kernel's command line (on a Raspberry Pi \
         /boot/firmware/cmdline.txt) and start the machine again"
    } else {
        "use a kernel that has them, or enable them on its command line"
    };

    Finding::fail("cgroups", format!("{version}, without {}", missing.join(", ")), remedy)
}

fn memory(meminfo: &str) -> Finding {
    let mib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) / 1024
    };
    let (total, free) = (mib("MemTotal:"), mib("MemAvailable:"));
    let found = format!("{free} of {total} MiB are free");
    if total < MEMORY_MIN_MIB || free < MEMORY_FREE_MIN_MIB {
        let remedy = format!(
            "have at least {MEMORY_MIN_MIB} MiB in all and {MEMORY_FREE_MIN_MIB} MiB free, or lower \
             evictionHard in the configuration"
        );
        return Finding::warn("memory", found, remedy);
    }

    Finding::ok("memory", found)
}

fn forwarding(text: &str) -> Finding {
    if text.trim() == "1" {
        return Finding::ok("forwarding", "IPv4 packets are forwarded");
    }

    Finding::warn(
        "forwarding",
        "IPv4 packets are not forwarded: pods reach nothing outside this machine",
        "sysctl -w net.ipv4.ip_forward=1, and the same in /etc/sysctl.d",
    )
}

/// `table` is /proc/net/tcp and tcp6.
fn ports(table: &str) -> Finding {
    let listens = |port: u16| {
        let wanted = format!(":{port:04X}");
        table.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            // 0A is LISTEN.
            words.get(1).is_some_and(|local| local.ends_with(&wanted))
                && words.get(3) == Some(&"0A")
        })
    };
    if listens(KUBELET_PORT) {
        return Finding::warn(
            "ports",
            format!("somebody listens at {KUBELET_PORT}: a kubelet seems to run here"),
            "stop it, and have it started no more: two node agents fight for the pods of a machine",
        );
    }

    Finding::ok("ports", "no kubelet listens; the agent needs none")
}

fn resolver(path: &str, text: &str) -> Finding {
    let servers: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.split_whitespace().next())
        .collect();
    if servers.is_empty() {
        return Finding::warn(
            "name servers",
            format!("{path} names none: pods without a cluster DNS resolve no names"),
            "name one there, or another file as resolvConf in the configuration",
        );
    }

    Finding::ok("name servers", servers.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict::{self, Fail, Ok as Fine, Warn};

    fn check(finding: &Finding, verdict: Verdict, words: &str) {
        let text = format!("{} {}", finding.found, finding.remedy);
        assert_eq!(finding.verdict, verdict, "{text}");
        assert!(text.contains(words), "{text}");
        assert_eq!(finding.remedy.is_empty(), verdict == Fine, "{text}");
    }

    #[test]
    fn kernels() {
        let overlay = "nodev\tproc\nnodev\toverlay\n";
        check(&kernel("6.1.0-rpi7-rpi-v8", overlay), Fine, "6.1.0");
        check(&kernel("6.1.0", "nodev\tproc\n"), Warn, "modprobe overlay");
        check(&kernel("5.4.0-150-generic", overlay), Warn, "subPath");
        check(&kernel("4.9.1", overlay), Fail, "4.18");
        check(&kernel("odd", overlay), Fail, "4.18");
    }

    #[test]
    fn controllers() {
        let table = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t2\t1\t1\nmemory\t0\t1\t0\npids\t3\t1\t1\n";
        check(&cgroups(Ok(true), "", "cpuset cpu io memory pids\n"), Fine, "v2");
        check(&cgroups(Ok(true), "", "cpu pids\n"), Fail, "cgroup_enable=memory");
        check(&cgroups(Ok(false), table, ""), Fail, "v1, without memory");
        check(&cgroups(Ok(false), &table.replace("\t0\t1\t0", "\t4\t1\t1"), ""), Fine, "v1");
        check(&cgroups(Err("none".to_owned()), "", ""), Fail, "mount cgroup2");
    }

    #[test]
    fn memories() {
        let text = |total: u64, free: u64| {
            format!("MemTotal:  {} kB\nMemAvailable:  {} kB\n", total * 1024, free * 1024)
        };
        check(&memory(&text(512, 300)), Fine, "300 of 512 MiB");
        check(&memory(&text(512, 100)), Warn, "evictionHard");
        check(&memory(&text(200, 150)), Warn, "256 MiB");
    }

    #[test]
    fn the_rest() {
        check(&forwarding("1\n"), Fine, "");
        check(&forwarding("0\n"), Warn, "sysctl");
        let line = |state| format!("   1: 00000000:280A 00000000:0000 {state} 00000000:00000000\n");
        check(&ports(&line("0A")), Warn, "kubelet");
        check(&ports(&line("01")), Fine, "");
        check(&resolver("/r", "# x\nnameserver 192.0.2.1\n"), Fine, "192.0.2.1");
        check(&resolver("/r", "search lan\n"), Warn, "/r names none");
    }
}
