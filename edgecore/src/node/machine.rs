//! What of this machine decides what the runtime is told.

use std::fs;
use std::path::Path;

use podcore::resources::Machine;

use super::cgroups::Cgroups;
use super::facts::Facts;

/// Reads it; what cannot be read is not there.
pub fn read(facts: &Facts, cgroups: &Cgroups, root_dir: &Path) -> Machine {
    Machine {
        memory_bytes: i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX),
        huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
        unified: cgroups.is_unified(),
        swap: cgroups.has_swap(),
        seccomp_root: root_dir.join("seccomp").to_string_lossy().into_owned(),
        masked_paths: throttles(Path::new("/sys/devices/system/cpu")),
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();

    names
}

/// Sizes of huge pages, from names such as `hugepages-2048kB`.
fn huge_pages(dir: &Path) -> Vec<i64> {
    let size = |name: &String| {
        let kibibytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<i64>().ok()?;
        kibibytes.checked_mul(1024)
    };
    let mut sizes: Vec<_> = names(dir).iter().filter_map(size).collect();
    sizes.sort_unstable();

    sizes
}

/// What tells how hot the CPUs are (kubelet: `defaultMaskedPaths`).
fn throttles(dir: &Path) -> Vec<String> {
    let all = names(dir).into_iter().filter(|name| {
        let number = name.strip_prefix("cpu").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    let all = all.map(|name| dir.join(name).join("thermal_throttle")).filter(|path| path.exists());

    all.map(|path| path.to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_and_throttles_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for made in ["hugepages-1048576kB", "hugepages-2048kB", "other", "cpu0/thermal_throttle"] {
            fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        for made in ["cpu1", "cpufreq/thermal_throttle"] {
            fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        assert_eq!(huge_pages(dir.path()), [2 << 20, 1 << 30]);
        let expected = dir.path().join("cpu0/thermal_throttle");
        assert_eq!(throttles(dir.path()), [expected.to_string_lossy()]);
    }
}
