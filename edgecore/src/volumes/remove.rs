//! Removing what a pod left behind, without ever leaving its directory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

use super::mounts;

/// Unmounts everything below `dir`, then removes it. Done already is done.
///
/// Symbolic links are removed, never followed. If something stays mounted nothing is removed: it
/// could be a directory of the host.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    mounts::unmount_below(dir)?;
    if !mounts::below(dir)?.is_empty() {
        return Err(io::Error::other("something is still mounted below it"));
    }

    remove_unmounted(dir)
}

/// Removes what nothing is mounted below: a server that was given up may answer just now.
fn remove_unmounted(dir: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => gone_is_done(remove_dir(dir)),
        Ok(_file_or_link) => gone_is_done(std::fs::remove_file(dir)),
        Err(error) => gone_is_done(Err(error)),
    }
}

/// As `std::fs::remove_dir_all`, but enters nothing that is mounted meanwhile: that is an error.
fn remove_dir(root: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut open = vec![(enter(&File::open(parent)?, name)?, OsString::new())];
    while let Some((dir, _)) = open.last_mut() {
        let Some(entry) = dir.next() else {
            if let (Some((_, name)), Some((parent, _))) = (open.pop(), open.last()) {
                gone_is_done(unlinkat(parent.fd()?, name, AtFlags::REMOVEDIR).map_err(Into::into))?;
            }
            continue;
        };
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        match unlinkat(dir.fd()?, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => match enter(dir.fd()?, name) {
                Ok(inner) => open.push((inner, name.to_owned())),
                Err(error) => gone_is_done(Err(error))?,
            },
            Err(error) => return Err(error.into()),
        }
    }

    std::fs::remove_dir(root)
}

fn enter(parent: impl AsFd, name: &OsStr) -> io::Result<Dir> {
    open_dir(parent, Path::new(name)).map_err(|error| match error {
        Errno::XDEV => io::Error::other(format!("something is mounted on {}", name.display())),
        error => error.into(),
    })
}

/// Opens a directory below `root`: never through a link or what is mounted there, which is `XDEV`.
pub(super) fn open_dir(root: impl AsFd, path: &Path) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let stay = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;

    Dir::new(openat2(root, path, flags, Mode::empty(), stay)?)
}

/// Takes "does not exist" for success.
pub fn gone_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_out_of_the_tree_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, pod) = (dir.path().join("host"), dir.path().join("pod"));
        std::fs::create_dir_all(&outside).unwrap();
        std::fs::write(outside.join("precious"), "x").unwrap();
        std::fs::create_dir_all(pod.join("volumes")).unwrap();
        symlink(&outside, pod.join("volumes/link")).unwrap();

        remove_tree(&pod).unwrap();
        remove_tree(&pod).unwrap();

        assert!(!pod.exists());
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn what_a_late_server_mounts_meanwhile_is_not_walked_into() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (pod, export) = (root.join("pod"), root.join("export"));
        std::fs::create_dir(&export).unwrap();
        std::fs::write(export.join("precious"), "x").unwrap();
        for place in ["volumes/kubernetes.io~nfs/films", "volume-subpaths/films/main/0", "."] {
            std::fs::create_dir_all(pod.join("volumes/a/b")).unwrap();
            std::fs::write(pod.join("volumes/a/b/file"), "x").unwrap();
            std::fs::create_dir_all(pod.join(place)).unwrap();
            // Of the same file system: no other device tells.
            rustix::mount::mount_bind(&export, pod.join(place)).unwrap();

            let refused = remove_unmounted(&pod).unwrap_err().to_string();
            assert!(refused.starts_with("something is mounted on "), "{place}: {refused}");
            remove_tree(&pod).unwrap();
            assert!(!pod.exists() && export.join("precious").exists(), "{place}");
        }
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_removed_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, pod) = (dir.path().join("host"), dir.path().join("pod"));
        std::fs::create_dir_all(&outside).unwrap();
        symlink(&outside, &pod).unwrap();

        remove_tree(&pod).unwrap();

        assert!(outside.exists() && !pod.exists());
    }
}
