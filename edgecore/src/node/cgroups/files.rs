//! Files of a cgroup: which limit is which value in which of them, on v1 and v2; and its directory.

use std::fs;
use std::io;
use std::path::Path;

use podcore::resources::page_size_name;

use super::hierarchy::Hierarchy;
use super::{CPU_PERIOD_US, CgroupError, Limits};
use crate::blocking::read_trimmed;
use crate::volumes::remove::gone_is_done;

/// Least `cpu.shares` the kernel takes.
pub(super) const SHARES_MIN: u64 = 2;
/// Most `cpu.shares` the kernel takes.
pub(super) const SHARES_MAX: u64 = 262_144;
/// Makes the directory and, on v2, hands the controllers down to it.
pub(super) fn make(hierarchy: &Hierarchy, path: &Path) -> Result<(), CgroupError> {
    let mut dir = hierarchy.mount.clone();
    for part in path {
        if hierarchy.unified {
            hand_down(&dir);
        }
        dir.push(part);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Make { path: dir, source: error });
            }
            _made_or_there => {}
        }
    }

    Ok(())
}

/// Lets the children of `dir` use the controllers. A controller that this machine lacks is told by
/// the limit that then cannot be written.
fn hand_down(dir: &Path) {
    let there = read_trimmed(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in there.split(' ').filter(|name| !name.is_empty()) {
        if let Err(error) = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            tracing::debug!(dir = %dir.display(), controller, %error, "controller not handed down");
        }
    }
}

/// Which file gets which value.
pub(super) fn files(hierarchy: &Hierarchy, limits: &Limits) -> Vec<(String, String)> {
    let (files, huge_file) = if hierarchy.unified {
        (unified_files(limits), "max")
    } else {
        (v1_files(hierarchy, limits), "limit_in_bytes")
    };
    let huge = limits.huge_pages.iter().filter(|_| hierarchy.has("hugetlb"));
    let huge = huge.map(|(size, limit)| {
        (format!("hugetlb.{}.{huge_file}", page_size_name(*size)), limit.to_string())
    });

    files.into_iter().map(|(file, value)| (file.to_owned(), value)).chain(huge).collect()
}

fn unified_files(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    let quota = |us| format!("{} {CPU_PERIOD_US}", most(us));
    files.extend(limits.cpu_shares.map(|shares| ("cpu.weight", weight(shares).to_string())));
    files.extend(limits.cpu_quota_us.map(|us| ("cpu.max", quota(us))));
    files.extend(limits.memory_bytes.map(|bytes| ("memory.max", most(bytes))));
    files.extend(limits.pids.map(|pids| ("pids.max", most(pids))));

    files
}

fn v1_files(hierarchy: &Hierarchy, limits: &Limits) -> Vec<(&'static str, String)> {
    let mut files = Vec::new();
    if hierarchy.has("cpu") {
        let shares = limits.cpu_shares.map(|shares| shares.clamp(SHARES_MIN, SHARES_MAX));
        files.extend(shares.map(|shares| ("cpu.shares", shares.to_string())));
        if let Some(us) = limits.cpu_quota_us {
            files.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
            files.push(("cpu.cfs_quota_us", if us > 0 { us } else { -1 }.to_string()));
        }
    }
    if hierarchy.has("memory") {
        let bytes = limits.memory_bytes.map(|bytes| if bytes > 0 { bytes } else { -1 });
        files.extend(bytes.map(|bytes| ("memory.limit_in_bytes", bytes.to_string())));
    }
    if hierarchy.has("pids") {
        files.extend(limits.pids.map(|pids| ("pids.max", most(pids))));
    }

    files
}

/// How v2 writes "no limit".
fn most(value: i64) -> String {
    if value > 0 { value.to_string() } else { "max".to_owned() }
}

/// A limit as the kernel shows it: v1 has -1 for none, and v2 the period behind the quota.
pub(super) fn limit_of(text: &str) -> u64 {
    let number = text.split_whitespace().next().and_then(|word| word.parse().ok());

    number.unwrap_or(u64::MAX)
}

/// v1 shares to the v2 weight as the kubelet converts them; runtimes have other ways for containers.
pub(super) fn weight(shares: u64) -> u64 {
    if shares >= SHARES_MAX {
        return 10_000;
    }

    1 + (shares.max(SHARES_MIN) - SHARES_MIN) * 9999 / (SHARES_MAX - SHARES_MIN)
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(|source| CgroupError::Limit {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// Removes the deepest first; cgroup directories are removed with their files in them.
pub(super) fn remove_below(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return gone_is_done(Err(error)),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_below(&entry.path())?;
        }
    }

    gone_is_done(fs::remove_dir(dir))
}
