//! What cgroups have used.

use std::fs;
use std::path::{Path, PathBuf};

use podcore::usage::cgroup::{self, Version};
use podcore::usage::{Memory, Usage};

use super::{Cgroups, limit_of, path_of};
use crate::blocking::read_trimmed;

/// The controller in whose hierarchy, on v1, members of a cgroup are looked for.
const CONTROLLER: &str = "memory";

impl Cgroups {
    /// What the cgroup has used that the runtime is told as `parent`, or that is at that path; `/` is
    /// the machine.
    pub fn usage(&self, parent: &str) -> Usage {
        let path = path_of(parent);
        let mut usage =
            cgroup::usage(self.version(), &|controller, file| self.read(&path, controller, file));
        if usage.memory.is_none() && path.as_os_str().is_empty() {
            let meminfo = read_trimmed("/proc/meminfo").unwrap_or_default();
            usage.memory = self.memory_of_machine(&meminfo);
        }

        usage
    }

    /// Bytes of memory that the cgroup of `parent` may have; nearly endless if it has no limit.
    pub fn memory_limit(&self, parent: &str) -> Option<u64> {
        let dir = self.dir(CONTROLLER)?.join(path_of(parent));
        let limit =
            ["memory.max", "memory.limit_in_bytes"].map(|file| read_trimmed(dir.join(file)));

        limit.into_iter().flatten().next().map(|text| limit_of(&text))
    }

    /// What of memory that cgroup has.
    pub fn memory(&self, parent: &str) -> Option<Memory> {
        let path = path_of(parent);

        cgroup::memory(self.version(), &|controller, file| self.read(&path, controller, file))
    }

    /// What of memory is in use on the machine.
    pub fn memory_of_machine(&self, meminfo: &str) -> Option<Memory> {
        let stat = || self.read(Path::new(""), CONTROLLER, "memory.stat").unwrap_or_default();

        self.memory("/").or_else(|| cgroup::memory_of_machine(meminfo, &stat()))
    }

    /// The cgroup of all pods, as whichever driver names it, is there with its files under one of these.
    pub fn kubepods(root: &str) -> [String; 2] {
        [format!("{}/kubepods", root.trim_end_matches('/')), "kubepods.slice".to_owned()]
    }

    fn version(&self) -> Version {
        if self.is_unified() { Version::V2 } else { Version::V1 }
    }

    fn read(&self, path: &Path, controller: &str, file: &str) -> Option<String> {
        read_trimmed(self.dir(controller)?.join(path).join(file))
    }

    /// The path of the cgroup that the runtime is told as `parent`, from the root.
    pub fn shown(parent: &str) -> String {
        format!("/{}", path_of(parent).display())
    }

    /// Paths of the cgroups directly below that of `parent`, from the root. Those of containers have
    /// the container's id in their name, whatever the runtime and the driver.
    pub fn below(&self, parent: &str) -> Vec<String> {
        let path = path_of(parent);
        let Some(dir) = self.dir(CONTROLLER) else { return Vec::new() };
        let Ok(entries) = fs::read_dir(dir.join(&path)) else { return Vec::new() };
        let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));

        dirs.map(|entry| format!("/{}", path.join(entry.file_name()).display())).collect()
    }

    /// A process of the cgroup at this path, if it has one.
    pub fn process(&self, path: &str) -> Option<u32> {
        let file = self.dir(CONTROLLER)?.join(path.trim_start_matches('/')).join("cgroup.procs");

        read_trimmed(file)?.lines().next()?.parse().ok()
    }

    /// Where a controller's files are.
    fn dir(&self, controller: &str) -> Option<&Path> {
        let has = |name: &String| name == controller;
        let found = self.hierarchies.iter().find(|h| h.controllers.iter().any(has));
        let unified = || self.hierarchies.iter().find(|h| h.unified);

        found.or_else(unified).map(|hierarchy| hierarchy.mount.as_path())
    }
}

/// The name of a block device, for example `/dev/sda` of `8:0`; the numbers if there is none.
pub(in crate::node) fn device_name(numbers: &str) -> String {
    let uevent = PathBuf::from("/sys/dev/block").join(numbers).join("uevent");
    let text = read_trimmed(uevent).unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));

    name.map_or_else(|| numbers.to_owned(), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests {
    use super::super::Hierarchy;
    use super::*;

    #[test]
    fn both_versions_are_read_where_their_files_are() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        at("memory/kubepods/podu/c1/memory.usage_in_bytes", "5000\n");
        at("memory/kubepods/podu/c1/cgroup.procs", "42\n43\n");
        at("cpuacct/kubepods/podu/c1/cpuacct.usage", "7\n");
        at("v2/kubepods.slice/kubepods-podu.slice/cri-c1.scope/memory.current", "6000\n");
        let hierarchy = |name: &str, controllers: &[&str]| Hierarchy {
            mount: folder.path().join(name),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            unified: controllers.is_empty(),
        };

        let hybrid = Cgroups {
            hierarchies: vec![
                hierarchy("memory", &["memory"]),
                hierarchy("cpuacct", &["cpu", "cpuacct"]),
                hierarchy("v2", &[]),
            ],
            systemd: None,
        };
        assert_eq!(hybrid.below("/kubepods/podu"), ["/kubepods/podu/c1"]);
        let usage = hybrid.usage("/kubepods/podu/c1");
        assert_eq!((usage.memory.unwrap().usage, usage.cpu.unwrap().total_ns), (5000, 7));
        assert_eq!(hybrid.process("/kubepods/podu/c1"), Some(42));
        assert_eq!(hybrid.process("/kubepods/podu"), None);

        let unified = Cgroups { hierarchies: vec![hierarchy("v2", &[])], systemd: None };
        let below = unified.below("kubepods-podu.slice");
        assert_eq!(below, ["/kubepods.slice/kubepods-podu.slice/cri-c1.scope"]);
        assert_eq!(unified.usage(&below[0]).memory.unwrap().usage, 6000);
    }
}
