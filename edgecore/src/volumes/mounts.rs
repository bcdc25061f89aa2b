//! Mounts below a pod's directory: what is mounted, tmpfs, and taking it all down again.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Unmounts tried on one path: mounts can be stacked, but nobody stacks this many.
const STACKED_MOUNTS_MAX: usize = 16;

/// The mount points at or below `dir`, in the order in which they were mounted.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;

    Ok(points_below(&table, dir))
}

fn points_below(table: &str, dir: &Path) -> Vec<PathBuf> {
    let point = |line: &str| line.split(' ').nth(4).map(unescape);

    table.lines().filter_map(point).filter(|point| point.starts_with(dir)).collect()
}

/// mountinfo writes space, tab, newline and backslash as three octal digits (proc(5)).
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt as _;

    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _plain => {
                bytes.push(first);
                rest = tail;
            }
        }
    }

    std::ffi::OsString::from_vec(bytes).into()
}

/// Makes sure that a tmpfs is mounted on `dir`, with at most `size_bytes` if given.
///
/// After a power cut the directory is there and the mount is not: it is mounted again, empty. Answers
/// whether it was mounted just now.
pub fn ensure_tmpfs(dir: &Path, size_bytes: Option<u64>) -> io::Result<bool> {
    if is_mount_point(dir)? {
        return Ok(false);
    }
    let size = size_bytes.filter(|size| *size > 0).map(|size| format!("size={size},"));
    let size = size.unwrap_or_default();
    let mounted = |options: String| -> io::Result<()> {
        let options = CString::new(options)?;

        Ok(mount("tmpfs", dir, "tmpfs", MountFlags::empty(), options.as_c_str())?)
    };
    // What is secret is not to be swapped to a disk; kernels before 6.4 do not know how.
    if mounted(format!("{size}noswap")).is_err() {
        mounted(size.trim_end_matches(',').to_owned())?;
    }

    Ok(true)
}

/// Whether something is mounted on `dir` itself.
pub fn is_mount_point(dir: &Path) -> io::Result<bool> {
    Ok(below(dir)?.iter().any(|point| point == dir))
}

/// Unmounts everything at and below `dir`, what was mounted last first.
///
/// A mount still in use is detached: it disappears from the tree now and ends with its last user.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    for _ in 0..STACKED_MOUNTS_MAX {
        let points = below(dir)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            take_down(point)?;
        }
    }

    Err(io::Error::other(format!("{} is mounted over again and again", dir.display())))
}

fn take_down(point: &Path) -> io::Result<()> {
    match unmount(point, UnmountFlags::NOFOLLOW) {
        // EINVAL: no longer a mount point, for example gone with its parent.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Ok(unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(table: &str, dir: &str, expected: &[&str]) {
        let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
        assert_eq!(points_below(table, Path::new(dir)), expected);
    }

    #[test]
    fn mount_points_are_found_by_whole_path_components() {
        let table = "36 35 98:0 / /k/pods/a/volumes/x rw - tmpfs tmpfs rw\n\
                     37 35 98:0 / /k/pods/ab rw - tmpfs tmpfs rw\n\
                     38 35 98:0 /s /k/pods/a/with\\040space rw - ext4 /dev/x rw\n";
        check(table, "/k/pods/a", &["/k/pods/a/volumes/x", "/k/pods/a/with space"]);
        check(table, "/k/pods/ab", &["/k/pods/ab"]);
        check(table, "/elsewhere", &[]);
    }

    #[test]
    fn a_tmpfs_is_mounted_once_and_taken_down() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        ensure_tmpfs(&path, Some(1 << 20)).unwrap();
        ensure_tmpfs(&path, Some(1 << 20)).unwrap();
        assert_eq!(below(&path).unwrap().len(), 1);

        let open = std::fs::File::create(path.join("busy")).unwrap();
        unmount_below(&path).unwrap();
        drop(open);
        assert!(below(&path).unwrap().is_empty());
    }
}
