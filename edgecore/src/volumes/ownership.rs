//! fsGroup: giving a volume to the group of its pod, as the kubelet does. Of a volume that is the pod's own
//! only the directory is touched, while it is empty. What is in a volume that was there before is given
//! too: opened without following any link, as containers may change it meanwhile.

use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, chownat, fstat, openat};
use rustix::io::Errno;

/// Directories within each other that are walked through; each holds a file descriptor meanwhile.
const DEPTH_MAX: usize = 128;
/// What a group that writes gets of files, and of directories besides.
const WRITERS_OF_FILES: u32 = 0o660;
const WRITERS_OF_DIRECTORIES: u32 = 0o2770;

/// Gives the empty directory of a volume to group `gid`: writable for it and setgid, so that what
/// containers make there belongs to the group too.
pub fn give_dir_to_writers(dir: &Path, gid: u32) -> io::Result<()> {
    give(dir, gid, WRITERS_OF_DIRECTORIES)
}

/// Gives one directory of a volume that only the node writes to group `gid`, setgid as the kubelet
/// leaves it.
pub fn give_dir_to_readers(dir: &Path, gid: u32) -> io::Result<()> {
    give(dir, gid, 0o2550)
}

fn give(dir: &Path, gid: u32, mask: u32) -> io::Result<()> {
    lchown(dir, None, Some(gid))?;
    let mode = fs::symlink_metadata(dir)?.mode() & 0o7777;

    fs::set_permissions(dir, Permissions::from_mode(mode | mask))
}

/// Gives a volume with all that is in it to group `gid`. With `only_if_mismatch` nothing is done if its
/// directory shows that this was done before: it is given last.
pub fn give_tree_to_writers(root: &Path, gid: u32, only_if_mismatch: bool) -> io::Result<()> {
    let opened = openat(rustix::fs::CWD, root, directory() & !OFlags::NOFOLLOW, Mode::empty())?;
    let found = fstat(&opened)?;
    let is_given =
        found.st_gid == gid && found.st_mode & WRITERS_OF_DIRECTORIES == WRITERS_OF_DIRECTORIES;
    if only_if_mismatch && is_given {
        return Ok(());
    }
    let mut failures = Failures::default();
    walk(Dir::read_from(&opened)?, gid, &mut failures)?;
    if let Some(first) = &failures.first {
        // The kubelet goes on as well.
        tracing::warn!(root = %root.display(), gid, first, files = failures.count, "files of a volume were not given to a group");
    }

    give_opened(&opened, gid)
}

#[derive(Debug, Default)]
struct Failures {
    count: usize,
    first: Option<String>,
}

fn directory() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn walk(root: Dir, gid: u32, failures: &mut Failures) -> io::Result<()> {
    let mut open = vec![root];
    while let Some(dir) = open.last_mut() {
        let Some(entry) = dir.next() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match enter(dir.fd()?, name, gid) {
            Ok(Some(inner)) if open.len() < DEPTH_MAX => open.push(inner),
            Ok(Some(_too_deep)) => {
                return Err(io::Error::other(format!(
                    "it is more than {DEPTH_MAX} directories deep"
                )));
            }
            Ok(None) => {}
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                failures.count += 1;
                let told = || format!("{}: {error}", name.to_string_lossy());
                failures.first.get_or_insert_with(told);
            }
        }
    }

    Ok(())
}

/// Gives one entry of a directory; a directory is answered, to be walked through.
fn enter(parent: impl AsFd, name: &CStr, gid: u32) -> io::Result<Option<Dir>> {
    let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = openat(&parent, name, look, Mode::empty())?;
    give_opened(&entry, gid)?;
    if !FileType::from_raw_mode(fstat(&entry)?.st_mode).is_dir() {
        return Ok(None);
    }
    match openat(&parent, name, directory(), Mode::empty()) {
        Ok(inner) => Ok(Some(Dir::new(inner)?)),
        // Another thing has taken its name.
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives what was opened, whatever its name leads to now. The mode of a link means nothing.
fn give_opened(entry: &OwnedFd, gid: u32) -> io::Result<()> {
    let mode = fstat(entry)?.st_mode;
    chownat(entry, c"", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
    let kind = FileType::from_raw_mode(mode);
    if kind.is_symlink() {
        return Ok(());
    }
    let mask = if kind.is_dir() { WRITERS_OF_DIRECTORIES } else { WRITERS_OF_FILES };
    let opened = PathBuf::from(format!("/proc/self/fd/{}", entry.as_raw_fd()));

    fs::set_permissions(opened, Permissions::from_mode(mode & 0o7777 | mask))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_given_with_all_that_is_in_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("volume/a/b")).unwrap();
        for file in ["outside", "volume/a/b/file"] {
            fs::write(at(file), "").unwrap();
            fs::set_permissions(at(file), Permissions::from_mode(0o4600)).unwrap();
        }
        symlink(at("outside"), at("volume/a/link")).unwrap();
        give_tree_to_writers(&at("volume"), 3000, true).unwrap();

        let seen = |name: &str| {
            let found = fs::symlink_metadata(at(name)).unwrap();
            (found.gid(), found.mode() & 0o7770)
        };
        let own = fs::metadata(dir.path()).unwrap().gid();
        assert_eq!(seen("volume/a/b"), (3000, 0o2770));
        assert_eq!(seen("volume/a/b/file"), (3000, 0o4660));
        assert_eq!(seen("volume/a/link").0, 3000);
        assert_eq!(seen("outside"), (own, 0o4600));

        // Its directory shows that it was given: what came later is left, unless always asked for.
        fs::write(at("volume/later"), "").unwrap();
        lchown(at("volume/later"), None, Some(7)).unwrap();
        give_tree_to_writers(&at("volume"), 3000, true).unwrap();
        assert_eq!(seen("volume/later").0, 7);
        give_tree_to_writers(&at("volume"), 3000, false).unwrap();
        assert_eq!(seen("volume/later").0, 3000);
    }

    #[test]
    fn the_group_owns_what_is_made_in_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        for (give, mode) in [
            (give_dir_to_writers as fn(&Path, u32) -> io::Result<()>, 0o2770),
            (give_dir_to_readers, 0o2550),
        ] {
            let volume = dir.path().join(format!("{mode:o}"));
            fs::create_dir(&volume).unwrap();
            give(&volume, 3000).unwrap();
            fs::write(volume.join("file"), "").unwrap();

            let top = fs::metadata(&volume).unwrap();
            assert_eq!((top.gid(), top.mode() & mode), (3000, mode));
            assert_eq!(fs::metadata(volume.join("file")).unwrap().gid(), 3000);
        }
    }
}
