//! Where the kernel shows cgroups: the mounts of v1 and v2.

use std::path::PathBuf;

/// Where the kernel shows cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(super) mount: PathBuf,
    /// For example `cpu`, `cpuacct`.
    pub(super) controllers: Vec<String>,
    pub(super) unified: bool,
}

impl Hierarchy {
    pub(super) fn has(&self, name: &str) -> bool {
        self.controllers.iter().any(|controller| controller == name)
    }
}

/// Reads the mounts of mountinfo (proc(5)): the file system type follows ` - `. Which controllers are on v2
/// does not stand there.
pub(crate) fn hierarchies(table: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut right = right.split(' ');
        let unified = match right.next() {
            Some("cgroup") => false,
            Some("cgroup2") => true,
            _other => continue,
        };
        let options = right.nth(1).unwrap_or_default().split(',');
        let plain = |o: &&str| !matches!(*o, "rw" | "ro" | "relatime" | "noatime" | "nsdelegate");
        let controllers: Vec<String> =
            if unified { Vec::new() } else { options.filter(plain).map(str::to_owned).collect() };
        let again = found.iter().any(|h| h.controllers == controllers && h.unified == unified);
        if !again {
            found.push(Hierarchy { mount, controllers, unified });
        }
    }

    found
}
