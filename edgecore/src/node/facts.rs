//! What this machine is: read once at start from /proc, /sys and /etc.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use rustix::system::uname;

use crate::blocking::read_trimmed;

/// The version told to Kubernetes: the minor whose node agent this one behaves like, and ours.
pub const KUBELET_VERSION: &str = concat!("v1.35.4+holdfast.", env!("CARGO_PKG_VERSION"));

/// What does not change while the node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// CPUs online.
    pub cpus: u64,
    /// Of the machine, in bytes.
    pub memory_bytes: u64,
    /// Swap of the machine, in bytes.
    pub swap_bytes: u64,
    /// Bytes set aside for huge pages, by their size.
    pub huge_pages: BTreeMap<u64, u64>,
    /// Size of the file system that holds volumes, in bytes.
    pub ephemeral_storage_bytes: u64,
    /// Processes the kernel allows.
    pub pid_max: u64,
    /// `uname -r`.
    pub kernel: String,
    /// Architecture as Go and Kubernetes name it.
    pub architecture: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// From the firmware, else the machine id.
    pub system_uuid: String,
    /// Changes with every boot.
    pub boot_id: String,
    /// Host name of the machine.
    pub hostname: String,
}

/// Reads the facts; what cannot be read stays empty or zero.
pub fn read(root_dir: &Path, boot_id_file: &Path) -> Facts {
    let uname = uname();
    let text = |cstr: &std::ffi::CStr| cstr.to_string_lossy().into_owned();
    let machine_id = read_trimmed("/etc/machine-id").unwrap_or_default();
    let meminfo = read_trimmed("/proc/meminfo").unwrap_or_default();
    let disk = rustix::fs::statvfs(root_dir);
    let number = |path: &str| read_trimmed(path).and_then(|text| text.parse().ok());

    Facts {
        cpus: cpus_online(),
        memory_bytes: bytes_in(&meminfo, "MemTotal:"),
        swap_bytes: bytes_in(&meminfo, "SwapTotal:"),
        huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
        ephemeral_storage_bytes: disk.map_or(0, |disk| disk.f_blocks * disk.f_frsize),
        pid_max: number("/proc/sys/kernel/pid_max").unwrap_or(0),
        kernel: text(uname.release()),
        architecture: architecture(&text(uname.machine())).to_owned(),
        os_image: os_image(&read_trimmed("/etc/os-release").unwrap_or_default()),
        system_uuid: read_trimmed("/sys/class/dmi/id/product_uuid")
            .or_else(|| read_trimmed("/sys/class/dmi/id/product_serial"))
            .filter(|uuid| !uuid.is_empty())
            .unwrap_or_else(|| machine_id.clone()),
        machine_id,
        boot_id: read_trimmed(boot_id_file).unwrap_or_default(),
        hostname: text(uname.nodename()),
    }
}

fn cpus_online() -> u64 {
    let listed = read_trimmed("/sys/devices/system/cpu/online").map(|list| count_list(&list));
    let usable = || std::thread::available_parallelism().map_or(1, |n| n.get() as u64);

    listed.filter(|count| *count > 0).unwrap_or_else(usable)
}

/// How many numbers a kernel list such as `0-3,8` names.
pub(crate) fn count_list(list: &str) -> u64 {
    let count = |part: &str| -> Option<u64> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    };

    list.split(',').filter_map(count).fold(0, u64::saturating_add)
}

/// Of a table such as /proc/meminfo, which is in KiB; 0 if it is not there.
pub(crate) fn bytes_in(table: &str, name: &str) -> u64 {
    let line = table.lines().find_map(|line| line.strip_prefix(name));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());

    kibibytes.unwrap_or(0).saturating_mul(1024)
}

/// The kernel has a folder for each size: `hugepages-2048kB`.
fn huge_pages(dir: &Path) -> BTreeMap<u64, u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();

    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kibibytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            let bytes = kibibytes.parse::<u64>().ok()?.checked_mul(1024)?;
            let pages: u64 = read_trimmed(entry.path().join("nr_hugepages"))?.parse().ok()?;
            Some((bytes, pages.saturating_mul(bytes)))
        })
        .collect()
}

pub(crate) fn os_image(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));

    value.unwrap_or("Linux").trim_matches(['"', '\'']).to_owned()
}

fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i386" | "i686" => "386",
        other if other.starts_with("arm") => "arm",
        other => other,
    }
}

/// The address from which this machine would send to `towards`; no packet is sent.
pub fn source_address(towards: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if towards.is_ipv4() { [0, 0, 0, 0].into() } else { [0; 16].into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    // The discard port: a UDP connect only asks the kernel for the route.
    socket.connect((towards, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();

    (!address.is_unspecified() && !address.is_loopback()).then_some(address)
}

/// The address of the default route.
pub fn default_address() -> Option<IpAddr> {
    // Documentation addresses: never local, so the kernel answers with the default route.
    let v4 = source_address([192, 0, 2, 1].into());

    v4.or_else(|| source_address([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_counted() {
        const MOST: &str = "0-18446744073709551615";

        for (list, count) in [("0", 1), ("0-3", 4), ("0-1,4-7", 6), ("", 0), ("7-2", 0), (MOST, 0)]
        {
            assert_eq!(count_list(list), count, "{list}");
        }
    }

    #[test]
    fn files_are_understood() {
        let meminfo = "MemTotal:       24684468 kB\nMemFree: 1 kB\nSwapTotal:  7 kB";
        assert_eq!(bytes_in(meminfo, "MemTotal:"), 24_684_468 << 10);
        assert_eq!((bytes_in(meminfo, "SwapTotal:"), bytes_in("", "SwapTotal:")), (7 << 10, 0));
        assert_eq!(os_image("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(architecture("armv7l"), "arm");
        assert_eq!(architecture("riscv64"), "riscv64");
    }

    #[test]
    fn huge_pages_are_counted_by_size() {
        let dir = tempfile::tempdir().unwrap();
        for (name, pages) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n")] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("nr_hugepages"), pages).unwrap();
        }
        fs::create_dir(dir.path().join("other")).unwrap();
        assert_eq!(huge_pages(dir.path()), BTreeMap::from([(2 << 20, 6 << 20), (1 << 30, 0)]));
        assert!(huge_pages(&dir.path().join("missing")).is_empty());
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = read(Path::new("/"), Path::new("/proc/sys/kernel/random/boot_id"));

        assert!(facts.cpus > 0 && facts.memory_bytes > 0 && facts.ephemeral_storage_bytes > 0);
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
    }
}
