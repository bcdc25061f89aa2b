//! Parts of volumes that containers mount: opened without ever leaving the volume, whatever links
//! containers have put there, and bound to a place of the agent's own (kubelet:
//! `pkg/volume/util/subpath`). The runtime is given that place, which nobody can change.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, chmod, fstat, mkdirat, open, openat2};
use rustix::io::Errno;
use rustix::mount::mount_bind;

use super::mounts;

/// Why a part of a volume cannot be mounted. Whoever wrote the pod is told no more than which part it is
/// about: the rest could tell of the host's files (kubelet: `makeMounts`).
#[derive(Debug, thiserror::Error)]
pub enum SubPathError {
    /// It is not there and cannot be made.
    #[error("create subPath directory")]
    Make(#[source] io::Error),
    /// It cannot be opened or bound.
    #[error("prepare subPath")]
    Prepare(#[from] io::Error),
}

impl From<Errno> for SubPathError {
    fn from(error: Errno) -> Self {
        Self::Prepare(error.into())
    }
}

/// Binds the part `path` of `volume` to `target`, a file or directory that is made. A directory that
/// is not there is made as the volume is.
pub fn bind(volume: &Path, path: &Path, target: &Path) -> Result<(), SubPathError> {
    let root = open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let part = find(&root, path)?;
    mounts::unmount_below(target)?;
    let is_dir = FileType::from_raw_mode(fstat(&part)?.st_mode).is_dir();
    make(target, is_dir)?;
    let opened = PathBuf::from(format!("/proc/self/fd/{}", part.as_fd().as_raw_fd()));

    Ok(mount_bind(&opened, target)?)
}

/// An empty place of the right kind.
fn make(target: &Path, is_dir: bool) -> io::Result<()> {
    if target.symlink_metadata().is_ok_and(|found| found.is_dir() != is_dir) {
        super::remove::remove_tree(target)?;
    }
    if is_dir {
        return std::fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }

    File::create(target).map(drop)
}

fn find(root: &OwnedFd, path: &Path) -> Result<OwnedFd, SubPathError> {
    match inside(root, path) {
        Err(Errno::NOENT) => make_part(root, path).map_err(SubPathError::Make),
        found => Ok(found?),
    }
}

fn make_part(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(fstat(root)?.st_mode & 0o7777);
    let mut at = PathBuf::new();
    for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
        let parent = inside(root, if at.as_os_str().is_empty() { Path::new(".") } else { &at })?;
        match mkdirat(&parent, Path::new(part.as_os_str()), mode) {
            Ok(()) => {
                at.push(part);
                // Whatever the agent's own mask takes away.
                let made = inside(root, &at)?;
                let path = format!("/proc/self/fd/{}", made.as_fd().as_raw_fd());
                chmod(path, mode)?;
            }
            Err(Errno::EXIST) => at.push(part),
            Err(error) => return Err(error.into()),
        }
    }

    Ok(inside(root, path)?)
}

/// Opens what is at `path` below `root`; a way that leads out is an error.
fn inside(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let stay = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;

    openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), stay)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Place {
        _folder: tempfile::TempDir,
        volume: PathBuf,
        target: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().canonicalize().unwrap();
            let volume = path.join("volume");
            std::fs::create_dir(&volume).unwrap();

            Self { target: path.join("targets/0"), volume, _folder: folder }
        }

        fn bind(&self, path: &str) -> Result<(), SubPathError> {
            bind(&self.volume, Path::new(path), &self.target)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            mounts::unmount_below(&self.target).unwrap();
        }
    }

    #[test]
    fn a_part_is_made_as_the_volume_is_and_seen_at_the_target() {
        let place = Place::new();
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(&place.volume, mode.clone()).unwrap();
        place.bind("a/b").unwrap();
        std::fs::write(place.target.join("file"), "x").unwrap();
        assert_eq!(std::fs::read(place.volume.join("a/b/file")).unwrap(), b"x");

        // Again, as at the next start of the container; then a file.
        place.bind("a/b").unwrap();
        assert!(place.target.join("file").exists());
        place.bind("a/b/file").unwrap();
        assert_eq!(std::fs::read(&place.target).unwrap(), b"x");
        assert_eq!(mounts::below(&place.target).unwrap().len(), 1);
    }

    #[test]
    fn links_are_followed_inside_the_volume_and_never_out_of_it() {
        let place = Place::new();
        std::fs::create_dir(place.volume.join("real")).unwrap();
        symlink("real", place.volume.join("inner")).unwrap();
        symlink("/etc", place.volume.join("absolute")).unwrap();
        symlink("../..", place.volume.join("upwards")).unwrap();
        place.bind("inner").unwrap();
        std::fs::write(place.target.join("file"), "x").unwrap();
        assert!(place.volume.join("real/file").exists());

        for path in ["absolute", "absolute/new", "upwards", "upwards/new", "inner/../../x"] {
            let error = place.bind(path).unwrap_err();
            let SubPathError::Prepare(why) = &error else { panic!("{path}: {error:?}") };
            assert_eq!(why.raw_os_error(), Some(Errno::XDEV.raw_os_error()), "{path}: {why}");
            // Nothing of where it led.
            assert_eq!(error.to_string(), "prepare subPath");
        }
        assert!(!Path::new("/etc/new").exists());
    }
}
