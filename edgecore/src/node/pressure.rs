//! What there is of memory, disks and process numbers at this moment.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podcore::pressure::{Observations, Policy, Seen, Signal, Threshold, Verdict};
use tokio::sync::watch;

use super::cgroups::Cgroups;
use super::facts::bytes_in;
use super::gate::Gate;
use crate::blocking::read_trimmed;

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// On the file system of volumes and logs.
    pub root: PathBuf,
    /// On the file system of images and writable layers, once the runtime has said where that is.
    pub images: Option<PathBuf>,
    /// Processes the kernel allows.
    pub pid_max: u64,
    /// The machine's cgroups.
    pub cgroups: Cgroups,
    /// Under which `kubepods` is.
    pub cgroup_root: String,
}

/// What the node was short of at the last look.
#[derive(Clone, Debug, Default)]
pub struct Short {
    /// Thresholds that something must be done about, the most urgent first.
    pub due: Vec<Threshold>,
    /// What was seen.
    pub seen: Observations,
}

/// What the one who looks tells.
#[derive(Debug)]
pub struct Watched {
    /// When it is too little.
    pub policy: Arc<Policy>,
    /// Closed to pods while it is.
    pub gate: Gate,
    /// Where to look.
    pub places: watch::Sender<Places>,
    /// What is due, at every look.
    pub short: watch::Sender<Short>,
}

/// What those hear who do something about it.
#[derive(Clone, Debug)]
pub struct Shortages {
    /// When it is too little.
    pub policy: Arc<Policy>,
    /// Closed to pods while it is.
    pub gate: Gate,
    /// Where to look again.
    pub places: watch::Receiver<Places>,
    /// What is due, at every look.
    pub short: watch::Receiver<Short>,
}

/// Both ends.
pub fn channel(policy: Policy, places: Places) -> (Watched, Shortages) {
    let (policy, gate) = (Arc::new(policy), Gate::default());
    let (places, places_seen) = watch::channel(places);
    let (short, short_seen) = watch::channel(Short::default());
    let heard = Shortages {
        policy: Arc::clone(&policy),
        gate: gate.clone(),
        places: places_seen,
        short: short_seen,
    };

    (Watched { policy, gate, places, short }, heard)
}

impl Watched {
    /// Takes in what a look came to: closed to pods, and told to those who do something about it.
    pub fn tell(&self, verdict: Verdict, seen: Observations) {
        self.gate.press(verdict.conditions);
        // Nobody hears it after the pods' task has ended.
        let _pods_ended = self.short.send(Short { due: verdict.due, seen });
    }
}

impl Places {
    /// Looks. What cannot be read is left out.
    pub fn look(&self) -> Observations {
        let meminfo = read_trimmed("/proc/meminfo").unwrap_or_default();
        let loadavg = read_trimmed("/proc/loadavg").unwrap_or_default();
        let mut seen = Observations::new();
        seen.extend(memory(&self.cgroups, &self.cgroup_root, &meminfo));
        let disks = [
            (Some(&self.root), Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
            (self.images.as_ref(), Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
        ];
        for (path, space, inodes) in disks {
            let Some(Ok(disk)) = path.map(rustix::fs::statvfs) else { continue };
            let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
            let (available, capacity) = (bytes(disk.f_bavail), bytes(disk.f_blocks));
            seen.insert(space, Seen { available, capacity });
            // File systems without inodes say 0 of 0.
            let free = Seen { available: disk.f_favail, capacity: disk.f_files };
            seen.extend((disk.f_files > 0).then_some((inodes, free)));
        }
        let pids = processes(&loadavg).map(|used| Seen {
            available: self.pid_max.saturating_sub(used),
            capacity: self.pid_max,
        });
        seen.extend(pids.map(|pids| (Signal::PidAvailable, pids)));

        seen
    }

    /// Whether images and writable layers are on another file system than volumes.
    pub fn has_image_disk(&self) -> bool {
        let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());

        self.images.as_ref().is_some_and(|images| device(images) != device(&self.root))
    }
}

/// Memory of the machine, and of all pods, if that has a limit.
fn memory(cgroups: &Cgroups, cgroup_root: &str, meminfo: &str) -> Vec<(Signal, Seen)> {
    let total = Some(bytes_in(meminfo, "MemTotal:")).filter(|total| *total > 0);
    let all = cgroups.memory_of_machine(meminfo);
    let all = all.zip(total).map(|(memory, total)| Seen::of_memory(&memory, total));
    let pods = Cgroups::kubepods(cgroup_root).into_iter().find_map(|path| cgroups.memory(&path));
    let pods = pods.and_then(|memory| Some(Seen::of_memory(&memory, memory.limit?)));
    let seen = [(Signal::MemoryAvailable, all), (Signal::AllocatableMemoryAvailable, pods)];

    seen.into_iter().filter_map(|(signal, seen)| Some((signal, seen?))).collect()
}

/// `0.2 0.1 0.0 1/257 4242`: 257 threads exist.
pub(super) fn processes(loadavg: &str) -> Option<u64> {
    loadavg.split(' ').nth(3)?.split_once('/')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_files_are_understood() {
        assert_eq!(processes("0.20 0.18 0.12 1/257 4242"), Some(257));
        assert_eq!(processes(""), None);
    }

    /// What is seen of memory with these files of cgroups, on a machine with 10 MiB.
    fn check_memory(folder: &str, cgroups: fn(&Path) -> Cgroups, files: &[(&str, &str)]) {
        let meminfo = "MemTotal: 10240 kB\nMemFree: 2048 kB\nMemAvailable: 9000 kB\n";
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let seen: Observations =
            memory(&cgroups(dir.path()), "/site", meminfo).into_iter().collect();
        let mib = |mib: u64| mib << 20;
        // 8 MiB are used, and 3 of them are pages of files that nobody reads.
        let all = Seen { available: mib(5), capacity: mib(10) };
        let pods = Seen { available: mib(1), capacity: mib(4) };
        let expected = [(Signal::MemoryAvailable, all), (Signal::AllocatableMemoryAvailable, pods)];
        assert_eq!(seen, expected.into(), "{folder}");
    }

    #[test]
    fn memory_is_counted_as_the_kubelet_counts_it() {
        let v1: fn(&Path) -> Cgroups = |dir| Cgroups::of_one(dir, &["memory"]);
        check_memory(
            "v1",
            v1,
            &[
                ("memory.usage_in_bytes", "8388608\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 3145728\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("site/kubepods/memory.usage_in_bytes", "4194304\n"),
                ("site/kubepods/memory.stat", "total_inactive_file 1048576\n"),
                ("site/kubepods/memory.limit_in_bytes", "4194304\n"),
            ],
        );
        let v2: fn(&Path) -> Cgroups = |dir| Cgroups::of_one(dir, &[]);
        check_memory(
            "v2",
            v2,
            &[
                ("memory.stat", "anon 5\ninactive_file 3145728\n"),
                ("kubepods.slice/memory.current", "4194304\n"),
                ("kubepods.slice/memory.stat", "inactive_file 1048576\n"),
                ("kubepods.slice/memory.max", "4194304\n"),
            ],
        );
        // Pods without a limit have all memory, and nothing is known without the kernel's files.
        let dir = tempfile::tempdir().unwrap();
        let none = v2(dir.path());
        std::fs::create_dir_all(dir.path().join("kubepods.slice")).unwrap();
        std::fs::write(dir.path().join("kubepods.slice/memory.current"), "1\n").unwrap();
        std::fs::write(dir.path().join("kubepods.slice/memory.max"), "max\n").unwrap();
        assert_eq!(memory(&none, "/", ""), []);
    }

    #[test]
    fn this_machine_is_seen_in_whole() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_owned();
        let places = Places {
            root: path.clone(),
            images: Some(path),
            pid_max: 1 << 22,
            cgroups: Cgroups::detect().unwrap(),
            cgroup_root: "/".to_owned(),
        };
        let seen = places.look();

        assert!(!places.has_image_disk());
        // Others write to the disk between one look and the next.
        let [node, image] = [Signal::NodeFsAvailable, Signal::ImageFsAvailable];
        assert_eq!(seen[&node].capacity, seen[&image].capacity);
        for signal in [Signal::MemoryAvailable, Signal::NodeFsAvailable, Signal::PidAvailable] {
            let seen = seen[&signal];
            assert!(seen.available <= seen.capacity && seen.capacity > 0, "{signal:?} {seen:?}");
        }
        let elsewhere = Places { images: Some("/proc".into()), ..places };
        assert!(elsewhere.has_image_disk());
    }
}
