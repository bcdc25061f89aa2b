//! Writing a set of files so that a container sees all of the old or all of the new ones.
//!
//! The layout is the kubelet's: `..data` is a link to a timestamped directory that holds the files,
//! and each top-level name is a link through `..data`; one rename of `..data` changes them all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

use super::ownership::give_dir_to_readers;
use super::remove::{gone_is_done, remove_tree};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";
/// Mode of the timestamped directory and of directories in it.
const DIR_MODE: u32 = 0o755;

/// One file of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// What it holds.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, if not root.
    pub uid: Option<u32>,
}

/// Files by path relative to the volume.
pub type Payload = BTreeMap<PathBuf, FileContent>;

/// Makes `dir` hold exactly `payload`, and says whether that changed anything.
///
/// `gid` is the pod's fsGroup: files then belong to it and it may do what the owner may.
pub fn write(dir: &Path, payload: &Payload, gid: Option<u32>, now: Timestamp) -> io::Result<bool> {
    payload.keys().try_for_each(|path| check(path))?;
    let old = current(dir);
    if let Some(old) = old.filter(|old| holds(&dir.join(old), payload, gid)) {
        // A crash may have come between the rename and what follows it.
        link_names(dir, payload)?;
        remove_stale(dir, payload, &old)?;
        return Ok(false);
    }

    let new = new_dir(dir, now)?;
    gid.map_or(Ok(()), |gid| give_dir_to_readers(&dir.join(&new), gid))?;
    for (path, file) in payload {
        write_file(&dir.join(&new), path, file, gid)?;
    }
    let tmp = dir.join(DATA_TMP);
    gone_is_done(fs::remove_file(&tmp))?;
    symlink(&new, &tmp)?;
    fs::rename(&tmp, dir.join(DATA))?;
    link_names(dir, payload)?;
    remove_stale(dir, payload, &new)?;

    Ok(true)
}

/// Refuses paths that would leave the volume or clash with the layout.
fn check(path: &Path) -> io::Result<()> {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let hidden = path.to_string_lossy().starts_with("..");
    if !plain || hidden || path.as_os_str().is_empty() {
        let message = format!("{} is not a relative path within the volume", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }

    Ok(())
}

/// The name of the directory that `..data` points to.
fn current(dir: &Path) -> Option<PathBuf> {
    let target = fs::read_link(dir.join(DATA)).ok()?;
    let mut parts = target.components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));

    one.then_some(target)
}

/// Whether the files in `dir` are exactly those of `payload`.
fn holds(dir: &Path, payload: &Payload, gid: Option<u32>) -> bool {
    let same = |(path, file): (&PathBuf, &FileContent)| {
        let path = dir.join(path);
        let found = fs::symlink_metadata(&path).ok()?;
        let right = found.is_file()
            && found.len() == file.data.len() as u64
            && found.mode() & 0o7777 == mode_for(file, gid)
            && found.uid() == file.uid.unwrap_or(0)
            && gid.is_none_or(|gid| found.gid() == gid);
        Some(right && fs::read(&path).ok()? == file.data)
    };
    let all = payload.iter().all(|entry| same(entry).unwrap_or(false));

    all && count_files(dir).is_ok_and(|count| count == payload.len())
}

fn count_files(dir: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }

    Ok(count)
}

fn new_dir(dir: &Path, now: Timestamp) -> io::Result<PathBuf> {
    // Unique within the volume, and sorted by time as the kubelet's names are.
    let name = PathBuf::from(format!("..{}", now.as_nanosecond()));
    let path = dir.join(&name);
    remove_tree(&path)?;
    make_dir(&path)?;

    Ok(name)
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;

    fs::set_permissions(path, Permissions::from_mode(DIR_MODE))
}

/// With an fsGroup the group may do what a volume's group may: read, and write if the owner may.
fn mode_for(file: &FileContent, gid: Option<u32>) -> u32 {
    if gid.is_some() { file.mode | 0o440 } else { file.mode }
}

fn write_file(dir: &Path, path: &Path, file: &FileContent, gid: Option<u32>) -> io::Result<()> {
    let target = dir.join(path);
    let mut parent = dir.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        make_dir(&parent)?;
        gid.map_or(Ok(()), |gid| give_dir_to_readers(&parent, gid))?;
    }
    let mut open = fs::OpenOptions::new();
    let mut open = open.write(true).create_new(true).mode(0o600).open(&target)?;
    open.write_all(&file.data)?;
    if file.uid.is_some() || gid.is_some() {
        std::os::unix::fs::chown(&target, file.uid, gid)?;
    }

    // After chown, which would clear set-id bits, and independent of the umask.
    open.set_permissions(Permissions::from_mode(mode_for(file, gid)))
}

/// The top-level names of a payload.
fn names(payload: &Payload) -> BTreeSet<&Path> {
    payload.keys().filter_map(|path| path.iter().next().map(Path::new)).collect()
}

fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in names(payload) {
        let (link, target) = (dir.join(name), Path::new(DATA).join(name));
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        remove_tree(&link)?;
        symlink(target, link)?;
    }

    Ok(())
}

/// Removes names that no longer exist and timestamped directories no longer pointed to.
fn remove_stale(dir: &Path, payload: &Payload, current: &Path) -> io::Result<()> {
    let keep = names(payload);
    for entry in fs::read_dir(dir)? {
        let name = PathBuf::from(entry?.file_name());
        let ours = name == Path::new(DATA) || name == current || keep.contains(name.as_path());
        if !ours {
            remove_tree(&dir.join(name))?;
        }
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| FileContent { data: data.into(), mode: 0o644, uid: None };
        files.iter().map(|(path, data)| (PathBuf::from(path), file(data))).collect()
    }

    fn at(nanos: i128) -> Timestamp {
        Timestamp::from_nanosecond(nanos).unwrap()
    }

    fn seen(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn all_files_change_at_once_and_stale_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &payload(&[("a", "1"), ("d/b", "2")]), None, at(1)).unwrap());
        assert_eq!(seen(dir), ["..1", "..data", "a", "d"]);
        assert_eq!(fs::read_to_string(dir.join("d/b")).unwrap(), "2");

        assert!(!write(dir, &payload(&[("a", "1"), ("d/b", "2")]), None, at(2)).unwrap());
        assert_eq!(seen(dir), ["..1", "..data", "a", "d"]);

        assert!(write(dir, &payload(&[("a", "new")]), None, at(3)).unwrap());
        assert_eq!(seen(dir), ["..3", "..data", "a"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "new");
    }

    #[test]
    fn what_a_power_cut_left_half_written_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let files = payload(&[("a", "1")]);
        write(dir, &files, None, at(1)).unwrap();
        fs::write(dir.join("..1/a"), "").unwrap();
        fs::remove_file(dir.join("a")).unwrap();

        assert!(write(dir, &files, None, at(2)).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
    }

    #[test]
    fn the_group_gets_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = payload(&[("a", "1"), ("deep/b", "2")]);
        for file in files.values_mut() {
            file.mode = 0o400;
        }
        assert!(write(dir.path(), &files, Some(2000), at(1)).unwrap());
        assert!(!write(dir.path(), &files, Some(2000), at(2)).unwrap());

        let found = fs::metadata(dir.path().join("a")).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o777), (2000, 0o440));
        let found = fs::metadata(dir.path().join("deep")).unwrap();
        assert_eq!((found.gid(), found.mode() & 0o7777), (2000, 0o2755));
    }

    #[test]
    fn paths_out_of_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["/etc/passwd", "../x", "a/../../x", "..data", ""] {
            assert!(write(dir.path(), &payload(&[(path, "")]), None, at(1)).is_err(), "{path}");
        }
    }
}
