//! What files and directories take of the disk, counted one by one.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use podcore::eviction::Taken;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, statat};

use super::remove::open_dir;

/// Most files that are counted of one directory: of more the rest is not seen.
const FILES_MAX: u64 = 500_000;
/// Bytes of a block in `stat`.
const BLOCK_BYTES: u64 = 512;

/// What a file, or a directory with all that is below it, takes of the disk. What is mounted in the directory
/// is not entered, nor is it asked how it is: its server may be away.
pub fn taken(path: &Path) -> Taken {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty());
    let Ok((root, found)) = root.and_then(|root| fstat(&root).map(|found| (root, found))) else {
        return Taken::default();
    };
    let mut sum = taken_by(&found);
    // Files of several names count once.
    let mut linked = BTreeSet::new();
    let mut dirs: Vec<PathBuf> = if is_dir(&found) { vec![".".into()] } else { Vec::new() };
    while let Some(dir) = dirs.pop() {
        // What goes while it is counted is not there.
        let Ok(mut entries) = open_dir(&root, &dir) else { continue };
        if dir != Path::new(".") {
            let own = entries.stat().map(|own| taken_by(&own));
            sum = sum.plus(own.unwrap_or_default());
        }
        while let Some(Ok(entry)) = entries.next() {
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            if sum.inodes + dirs.len() as u64 >= FILES_MAX {
                tracing::warn!(path = %path.display(), "more files than are counted");
                return sum;
            }
            if entry.file_type() == FileType::Directory {
                dirs.push(dir.join(name));
                continue;
            }
            let entry = entries.fd().and_then(|dir| statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
            let Ok(entry) = entry else { continue };
            if is_dir(&entry) {
                dirs.push(dir.join(name));
            } else if entry.st_dev == found.st_dev
                && (entry.st_nlink == 1 || linked.insert(entry.st_ino))
            {
                sum = sum.plus(taken_by(&entry));
            }
        }
    }

    sum
}

fn is_dir(found: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::Directory
}

fn taken_by(found: &Stat) -> Taken {
    let blocks = u64::try_from(found.st_blocks).unwrap_or(0);

    Taken { bytes: blocks.saturating_mul(BLOCK_BYTES), inodes: 1 }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::volumes::mounts;

    #[test]
    fn what_is_on_the_disk_counts_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let empty = taken(dir.path());
        fs::create_dir(dir.path().join("below")).unwrap();
        let file = dir.path().join("below/file");
        fs::write(&file, vec![7; 1 << 20]).unwrap();
        fs::hard_link(&file, dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("elsewhere")).unwrap();
        let full = taken(dir.path());

        // The directory, the file once, the link.
        assert_eq!(full.inodes, empty.inodes + 3);
        let more = full.bytes - empty.bytes;
        assert!((1 << 20..(1 << 20) + 64 * 1024).contains(&more), "{more}");
        assert_eq!(taken(&dir.path().join("none")), Taken::default());
        assert_eq!(taken(&file).inodes, 1);
    }

    #[test]
    fn what_is_mounted_in_a_directory_is_not_entered() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (volume, other) = (root.join("volume"), root.join("other"));
        for folder in ["a/same", "a/else", "b"] {
            fs::create_dir_all(volume.join(folder)).unwrap();
        }
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), vec![7; 1 << 20]).unwrap();
        let before = taken(&volume);
        assert_eq!(before.inodes, 5);

        // Of the same file system: no other device tells.
        rustix::mount::mount_bind(&other, volume.join("a/same")).unwrap();
        mounts::ensure_tmpfs(&volume.join("a/else"), Some(1 << 20)).unwrap();
        fs::write(volume.join("a/else/file"), vec![7; 1 << 10]).unwrap();
        let after = taken(&volume);
        mounts::unmount_below(&volume).unwrap();
        // Even the directories below the mounts are hidden.
        assert_eq!(after.inodes, 3);
        assert!(after.bytes <= before.bytes, "{after:?}");
    }
}
