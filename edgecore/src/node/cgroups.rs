//! Cgroups of the node's pods: `kubepods`, one per QoS class, one per pod, as the kubelet's.
//!
//! The runtime makes the cgroups of containers below a pod's; limits of the pod as a whole and the
//! removal afterwards are the node agent's work. Works on cgroup v1, v2 and the hybrid of both, and
//! takes the names of both drivers. Slices are made by systemd, and hold what files hold too.

mod files;
pub(crate) mod hierarchy;
mod reading;
mod units;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use self::files::{files, limit_of, make, remove_below, write};
use self::hierarchy::{Hierarchy, hierarchies};
use crate::blocking::{self, read_trimmed};
use crate::systemd::{Systemd, SystemdError};

pub(in crate::node) use self::reading::device_name;

/// Period of CPU quotas in microseconds, the kernel's and the kubelet's default.
pub const CPU_PERIOD_US: u64 = 100_000;
/// Controllers whose hierarchies get limits. The runtime makes the cgroups of the others itself.
const LIMITED: [&str; 4] = ["cpu", "memory", "pids", "hugetlb"];

/// Why a cgroup could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mounts cannot be read, or there are none.
    #[error(
        "cannot find the cgroup file systems in /proc/self/mountinfo; mount cgroup2 on /sys/fs/cgroup"
    )]
    NotMounted(#[source] io::Error),
    /// A directory cannot be made.
    #[error("cannot make cgroup {}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A limit was refused.
    #[error("cannot write {value} to {}", path.display())]
    Limit {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// systemd does not make or limit a slice.
    #[error(
        "cannot have systemd make the slice {slice}; the container runtime's cgroup driver is systemd, so \
         systemd has to answer on the message bus (config key systemBus); where there is none, set \
         SystemdCgroup = false in the runtime and cgroupDriver: cgroupfs here"
    )]
    Slice {
        /// Its name.
        slice: String,
        /// Why not.
        #[source]
        source: SystemdError,
    },
    /// systemd does not remove a slice.
    #[error("cannot have systemd remove the slice {slice}; it is asked again")]
    StopSlice {
        /// Its name.
        slice: String,
        /// Why not.
        #[source]
        source: SystemdError,
    },
    /// A directory cannot be removed, usually because a process is left in it.
    #[error("cannot remove cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Limits of one cgroup; what is `None` is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Relative weight, in the unit of v1.
    pub cpu_shares: Option<u64>,
    /// CPU time in microseconds per [`CPU_PERIOD_US`].
    pub cpu_quota_us: Option<i64>,
    /// In bytes.
    pub memory_bytes: Option<i64>,
    /// Processes.
    pub pids: Option<i64>,
    /// Bytes in huge pages of each size.
    pub huge_pages: Vec<(i64, i64)>,
}

/// The cgroup file systems of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// The message bus on which systemd is, if it makes the cgroups.
    systemd: Option<PathBuf>,
}

impl Cgroups {
    /// Processes in the cgroup that the runtime is told as `parent`, if the kernel counts them.
    pub fn processes(&self, parent: &str) -> Option<u64> {
        let path = path_of(parent);
        let counts = |h: &&Hierarchy| {
            h.unified || h.controllers.iter().any(|controller| controller == "pids")
        };
        let mut counted = self.hierarchies.iter().filter(counts).filter_map(|hierarchy| {
            read_trimmed(hierarchy.mount.join(&path).join("pids.current"))?.parse().ok()
        });

        counted.next()
    }

    /// Finds the hierarchies of this machine.
    pub fn detect() -> Result<Self, CgroupError> {
        let table = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::NotMounted)?;
        let mut hierarchies = hierarchies(&table);
        for hierarchy in hierarchies.iter_mut().filter(|hierarchy| hierarchy.unified) {
            let there = read_trimmed(hierarchy.mount.join("cgroup.controllers"));
            let there = there.unwrap_or_default();
            hierarchy.controllers = there.split_whitespace().map(str::to_owned).collect();
        }
        if hierarchies.is_empty() {
            return Err(CgroupError::NotMounted(io::ErrorKind::NotFound.into()));
        }

        Ok(Self { hierarchies, systemd: None })
    }

    /// From here on systemd makes the cgroups; `bus` is the socket of the system's message bus.
    #[must_use]
    pub fn with_systemd(self, bus: &Path) -> Self {
        Self { systemd: Some(bus.to_owned()), ..self }
    }

    /// Whether swap can be limited.
    pub fn has_swap(&self) -> bool {
        if self.is_unified() {
            // The root has no such file: the agent's own cgroup is looked at.
            let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
            let mut mounts = self.hierarchies.iter().map(|hierarchy| &hierarchy.mount);
            return mounts.any(|mount| mount.join(own).join("memory.swap.max").exists());
        }

        self.hierarchies.iter().any(|one| one.mount.join("memory.memsw.limit_in_bytes").exists())
    }

    /// Whether all controllers are on v2.
    pub fn is_unified(&self) -> bool {
        self.hierarchies.iter().all(|hierarchy| hierarchy.unified)
    }

    /// Makes the cgroup that the runtime is told as `parent` (a path, or a slice name) and sets its
    /// limits. What exists is kept and its limits are set again.
    pub async fn ensure(&self, parent: &str, limits: Limits) -> Result<(), CgroupError> {
        let limits = match self.slice(parent) {
            None => limits,
            Some((bus, slice)) => {
                let limits = units::rounded(limits);
                let made = self.ensure_slice(bus, slice, &limits).await;
                made.map_err(|source| CgroupError::Slice { slice: slice.to_owned(), source })?;
                limits
            }
        };
        let (cgroups, parent) = (self.clone(), parent.to_owned());

        blocking::run(move || cgroups.ensure_files(&parent, &limits)).await
    }

    async fn ensure_slice(
        &self,
        bus: &Path,
        slice: &str,
        limits: &Limits,
    ) -> Result<(), SystemdError> {
        let unified = self.is_unified();
        let (made, limits) = (units::made(slice, unified), units::limited(limits, unified));

        Systemd::connect(bus).await?.ensure(slice, &made, &limits).await
    }

    fn ensure_files(&self, parent: &str, limits: &Limits) -> Result<(), CgroupError> {
        let path = path_of(parent);
        for hierarchy in self.limited() {
            let dir = hierarchy.mount.join(&path);
            make(hierarchy, &path)?;
            for (file, value) in files(hierarchy, limits) {
                write(&dir.join(file), &value)?;
            }
        }

        Ok(())
    }

    /// Sets those of the limits that are more than the cgroup of `parent` has. systemd is told when it is
    /// ensured that it has them all.
    pub async fn raise(&self, parent: &str, limits: Limits) -> Result<(), CgroupError> {
        let is_slice = self.slice(parent).is_some();
        let limits = if is_slice { units::rounded(limits) } else { limits };
        let (cgroups, parent) = (self.clone(), parent.to_owned());

        blocking::run(move || cgroups.raise_files(&parent, &limits)).await
    }

    fn raise_files(&self, parent: &str, limits: &Limits) -> Result<(), CgroupError> {
        let path = path_of(parent);
        for hierarchy in self.limited() {
            let dir = hierarchy.mount.join(&path);
            for (file, value) in files(hierarchy, limits) {
                let file = dir.join(file);
                let has = read_trimmed(&file);
                if has.is_none_or(|has| limit_of(&value) > limit_of(&has)) {
                    write(&file, &value)?;
                }
            }
        }

        Ok(())
    }

    /// Removes the cgroup of `parent` with everything below it. Gone already is done; while there are
    /// processes in it, it stays and they run on.
    pub async fn remove(&self, parent: &str) -> Result<(), CgroupError> {
        let stopped = match self.slice(parent) {
            None => Ok(()),
            // With a slice systemd would stop what is in it.
            Some(_) if self.processes(parent).is_some_and(|count| count > 0) => {
                let source = io::ErrorKind::ResourceBusy.into();
                return Err(CgroupError::Remove { path: path_of(parent), source });
            }
            Some((bus, slice)) => {
                let stopped = async { Systemd::connect(bus).await?.stop(slice).await };
                let slice = slice.to_owned();
                stopped.await.map_err(|source| CgroupError::StopSlice { slice, source })
            }
        };
        let (cgroups, parent) = (self.clone(), parent.to_owned());
        // Whatever systemd has not made stays for this, and what it does not remove.
        blocking::run(move || cgroups.remove_files(&parent)).await?;

        stopped
    }

    fn remove_files(&self, parent: &str) -> Result<(), CgroupError> {
        let path = path_of(parent);
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.mount.join(&path);
            remove_below(&dir).map_err(|source| CgroupError::Remove { path: dir, source })?;
        }

        Ok(())
    }

    /// The slice and where systemd is, if that makes what the runtime is told as `parent`.
    fn slice<'a>(&'a self, parent: &'a str) -> Option<(&'a Path, &'a str)> {
        self.systemd.as_deref().zip(units::slice(parent))
    }

    /// Names of the pod cgroups directly below the cgroup of `parent`, each once.
    pub fn children(&self, parent: &str) -> Vec<String> {
        let path = path_of(parent);
        let mut names: Vec<String> = Vec::new();
        for hierarchy in &self.hierarchies {
            let Ok(entries) = fs::read_dir(hierarchy.mount.join(&path)) else { continue };
            let dirs = entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
            names.extend(dirs.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        names.sort();
        names.dedup();

        names
    }

    fn limited(&self) -> impl Iterator<Item = &Hierarchy> {
        let unified = self.is_unified();
        let wanted = move |hierarchy: &&Hierarchy| {
            let limited = |name: &String| LIMITED.contains(&name.as_str());
            if hierarchy.unified { unified } else { hierarchy.controllers.iter().any(limited) }
        };

        self.hierarchies.iter().filter(wanted)
    }
}

/// The path below a mount for what the runtime is told: `/a/b` as it is, `a-b.slice` as systemd
/// nests slices: `a.slice/a-b.slice`.
fn path_of(parent: &str) -> PathBuf {
    let parent = parent.trim_matches('/');
    let Some(name) = parent.strip_suffix(".slice").filter(|name| !name.contains('/')) else {
        return parent.into();
    };
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);

    ends.map(|end| format!("{}.slice", &name[..end])).collect()
}

#[cfg(test)]
impl Cgroups {
    /// One hierarchy at that mount, of v2 if no controllers are named.
    pub fn of_one(mount: &Path, controllers: &[&str]) -> Self {
        let unified = controllers.is_empty();
        let controllers = controllers.iter().map(|name| (*name).to_owned()).collect();
        let mount = mount.to_owned();

        Self { hierarchies: vec![Hierarchy { mount, controllers, unified }], systemd: None }
    }
}

#[cfg(test)]
mod tests;
