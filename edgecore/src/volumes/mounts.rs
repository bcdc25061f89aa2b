//! Mounts below a pod's directory: what is mounted, tmpfs, and taking it all down again.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};

/// Unmounts tried on one path: mounts can be stacked, but nobody stacks this many.
const STACKED_MOUNTS_MAX: usize = 16;

/// A mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Where.
    pub path: PathBuf,
    /// The number of the device that has what is mounted.
    pub device: String,
    /// The server that has what is mounted, and may be away: whoever looks at it may wait for ever.
    pub server: Option<String>,
}

/// The mount points at or below `dir`, in the order in which they were mounted.
pub fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(points(dir)?.into_iter().map(|point| point.path).collect())
}

/// The first server that has something of what is at or below `dir`.
pub fn server_of(dir: &Path) -> io::Result<Option<String>> {
    Ok(points(dir)?.into_iter().find_map(|point| point.server))
}

/// As [`below`], with what they lead to.
pub fn points(dir: &Path) -> io::Result<Vec<Point>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;

    Ok(points_below(&table, dir))
}

pub(crate) fn points_below(table: &str, dir: &Path) -> Vec<Point> {
    let point = |line: &str| {
        let mut fields = line.split(' ').skip(2);
        let (device, _root) = (fields.next()?.to_owned(), fields.next()?);
        let path = fields.next().map(unescape)?;
        let mut rest = line.split_once(" - ").map_or("", |(_, rest)| rest).split(' ');
        let kind = rest.next().unwrap_or_default();
        let server = kind.starts_with("nfs").then(|| server(rest.next().unwrap_or_default()));
        Some(Point { path, device, server })
    };

    table.lines().filter_map(point).filter(|point| point.path.starts_with(dir)).collect()
}

/// The server of an export SERVER:/PATH.
fn server(export: &str) -> String {
    let server = export.split_once(":/").map_or(export, |(server, _)| server);

    server.trim_start_matches('[').trim_end_matches(']').to_owned()
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

/// Makes sure that huge pages of `size_bytes` are mounted on `dir`, which gets that mode with them; whether
/// they were just now.
pub fn ensure_huge_pages(dir: &Path, size_bytes: u64, mode: u32) -> io::Result<bool> {
    if is_mount_point(dir)? {
        return Ok(false);
    }
    let options = CString::new(format!("pagesize={size_bytes},mode={mode:o}"))?;
    let mounted = mount("nodev", dir, "hugetlbfs", MountFlags::empty(), options.as_c_str());

    mounted.map(|()| true).map_err(|error| match error {
        Errno::NODEV | Errno::INVAL => io::Error::other(format!(
            "this node has no huge pages of {size_bytes} bytes: see /sys/kernel/mm/hugepages"
        )),
        other => other.into(),
    })
}

/// Makes sure that mounts that are made below `dir` show in all who have it, as far as they want: on hosts
/// that keep mounts private it becomes a mount of its own. (The kubelet does so with its whole root.)
pub fn share(dir: &Path) -> io::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    // What is mounted already would be hidden below it.
    if is_shared(&table, dir) || !points_below(&table, dir).is_empty() {
        return Ok(());
    }
    mount_bind(dir, dir)?;

    Ok(mount_change(dir, MountPropagationFlags::SHARED)?)
}

/// Whether the mount that `path` is in passes on what is mounted in it.
pub(crate) fn is_shared(table: &str, path: &Path) -> bool {
    let mounts = table.lines().filter_map(|line| {
        let point = line.split(' ').nth(4).map(unescape)?;
        path.starts_with(&point).then_some((point.components().count(), line))
    });
    // Of those at one place the last is on top.
    let innermost = mounts.max_by_key(|(depth, _)| *depth);

    innermost.is_some_and(|(_, line)| {
        let optional = line.split(' ').skip(6).take_while(|field| *field != "-");
        optional.into_iter().any(|field| field.starts_with("shared:"))
    })
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
        let points = points(dir)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            take_down(point)?;
        }
    }

    Err(io::Error::other(format!("{} is mounted over again and again", dir.display())))
}

fn take_down(point: &Point) -> io::Result<()> {
    let path = &point.path;
    // What is not on this node is taken out of the tree without asking its server; the kernel writes the
    // rest when it can.
    let is_away = point.server.is_some();
    let flags = if is_away { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match unmount(path, UnmountFlags::NOFOLLOW | flags) {
        // EINVAL: no longer a mount point, for example gone with its parent.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Ok(unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn check(table: &str, dir: &str, expected: &[&str]) {
        let shown = points_below(table, Path::new(dir)).into_iter().map(|point| {
            let server = point.server.map(|server| format!("{server}!")).unwrap_or_default();
            format!("{} {server}{}", point.device, point.path.display())
        });
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn mount_points_are_found_by_whole_path_components() {
        let table = "36 35 98:0 / /k/pods/a/volumes/x rw - tmpfs tmpfs rw\n\
                     37 35 98:0 / /k/pods/ab rw - tmpfs tmpfs rw\n\
                     38 35 98:0 /s /k/pods/a/with\\040space rw shared:1 - ext4 /dev/x rw\n\
                     39 35 0:50 / /k/pods/a/nfs rw - nfs4 s:/films rw\n\
                     40 35 0:51 / /k/pods/a/six rw - nfs4 [2001:db8::5]:/ rw\n";
        check(
            table,
            "/k/pods/a",
            &[
                "98:0 /k/pods/a/volumes/x",
                "98:0 /k/pods/a/with space",
                "0:50 s!/k/pods/a/nfs",
                "0:51 2001:db8::5!/k/pods/a/six",
            ],
        );
        check(table, "/k/pods/ab", &["98:0 /k/pods/ab"]);
        check(table, "/elsewhere", &[]);
    }

    #[test]
    fn a_directory_is_shared_by_the_mount_that_it_is_in() {
        let table = "1 1 8:0 / / rw shared:1 - ext4 /dev/x rw\n\
                     2 1 8:0 / /k rw - ext4 /dev/x rw\n\
                     3 1 8:0 / /k/pods rw master:2 shared:3 - ext4 /dev/x rw\n\
                     4 1 8:0 / /k/pods rw master:2 - ext4 /dev/x rw\n";
        for (path, expected) in [("/a", true), ("/k/a", false), ("/k/pods/a", false), ("/kk", true)]
        {
            assert_eq!(is_shared(table, Path::new(path)), expected, "{path}");
        }

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        std::fs::create_dir(path.join("volume")).unwrap();
        for _ in 0..2 {
            share(&path).unwrap();
        }
        let now = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(is_shared(&now, &path.join("volume")) && below(&path).unwrap().len() < 2);
        unmount_below(&path).unwrap();
    }

    #[test]
    fn huge_pages_of_a_size_that_the_machine_lacks_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        let error = ensure_huge_pages(&path, 3 << 20, 0o777).unwrap_err().to_string();
        assert!(error.starts_with("this node has no huge pages of 3145728 bytes"), "{error}");

        if Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
            assert!(ensure_huge_pages(&path, 2 << 20, 0o777).unwrap());
            assert!(!ensure_huge_pages(&path, 2 << 20, 0o777).unwrap());
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
            unmount_below(&path).unwrap();
        }
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
