//! Local volumes: a directory of the node, bound to the pod's directory of the volume, or a disk, mounted
//! there, as the kubelet's `kubernetes.io/local-volume`. A disk that several pods have is mounted for each:
//! to the kernel it is one file system, which ends with the last mount.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_remount};

use super::options::{self, Options};
use super::{mounts, ownership};

/// Why a local volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The path leads back.
    #[error("invalid path: {path} must not contain '..'")]
    Backsteps {
        /// `spec.local.path`.
        path: String,
    },
    /// There is nothing.
    #[error("path {path:?} does not exist")]
    Missing {
        /// `spec.local.path`.
        path: String,
    },
    /// Something else.
    #[error("{path} is not a directory and no block device")]
    NotADirectory {
        /// `spec.local.path`.
        path: String,
    },
    /// The disk has another file system, or none.
    #[error(
        "{path} cannot be mounted as {fs_type}: it has no such file system or does not take the \
         volume's mount options; format it on the node (mkfs.{fs_type} {path}), or name the file \
         system that it has in the volume's spec.local.fsType"
    )]
    NotFormatted {
        /// `spec.local.path`.
        path: String,
        /// `spec.local.fsType`.
        fs_type: String,
    },
    /// The kernel cannot.
    #[error("this node's kernel knows no file system {fs_type} of disks, which {path} should have")]
    NoFileSystem {
        /// `spec.local.path`.
        path: String,
        /// `spec.local.fsType`.
        fs_type: String,
    },
    /// An option of a file system.
    #[error("mount option {option} is not one of a local volume")]
    Option {
        /// Which.
        option: String,
    },
    /// The file system refused.
    #[error("cannot {attempted}")]
    Io {
        /// What.
        attempted: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One to be mounted.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// The directory or the disk.
    pub path: &'a Path,
    /// The file system of a disk.
    pub fs_type: &'a str,
    /// As the volume says.
    pub options: &'a [String],
    /// Nothing of the pod writes to it.
    pub read_only: bool,
    /// The pod's fsGroup, and whether the volume's own directory shows that it has it.
    pub group: Option<(u32, bool)>,
}

impl Local<'_> {
    /// Binds the directory to `dir` or mounts the disk there, if it is not; never without its options. The
    /// group gets what is in it first, unless another pod in `pods_dir` has the same volume mounted.
    pub fn mount(&self, dir: &Path, pods_dir: &Path) -> Result<(), LocalError> {
        let failed = |attempted: String| move |source| LocalError::Io { attempted, source };
        let aside = aside(dir);
        let points = mounts::below(pods_dir).map_err(failed("read the mounts".to_owned()))?;
        if points.contains(&aside) {
            // An agent was killed while it made it.
            take_away(&aside).map_err(failed(format!("unmount {}", aside.display())))?;
        }
        if points.iter().any(|point| point == dir) {
            return Ok(());
        }
        let is_disk = self.is_disk()?;
        let options = options::read(self.options, self.read_only);
        if let Some(option) = options.rest.first().filter(|_| !is_disk) {
            return Err(LocalError::Option { option: option.clone() });
        }
        std::fs::create_dir_all(dir).map_err(failed(format!("make {}", dir.display())))?;
        if !is_disk && options.flags.is_empty() {
            self.give(self.path, dir, &points)?;
            let bound = mount_bind(self.path, dir).map_err(io::Error::from);
            return bound.map_err(failed(self.attempted(dir)));
        }
        // Aside first, because a bind takes options only when it is there. A bind of that has them from its
        // first moment.
        std::fs::create_dir_all(&aside).map_err(failed(format!("make {}", aside.display())))?;
        let made = if is_disk {
            self.mount_disk(&aside, &options)
        } else {
            let bound = mount_bind(self.path, &aside).map_err(io::Error::from);
            bound.map_err(failed(self.attempted(&aside)))
        };
        let shown = made.and_then(|()| {
            self.give(&aside, dir, &points)?;
            let bound = limit(&aside, options.flags).and_then(|()| Ok(mount_bind(&aside, dir)?));
            bound.map_err(failed(self.attempted(dir)))
        });
        take_away(&aside).map_err(failed(format!("unmount {}", aside.display())))?;

        shown
    }

    fn attempted(&self, dir: &Path) -> String {
        format!("bind {} to {}", self.path.display(), dir.display())
    }

    /// Gives what is at `root` to the group, if nobody has the volume of `dir` yet.
    fn give(&self, root: &Path, dir: &Path, points: &[PathBuf]) -> Result<(), LocalError> {
        let group = self.group.filter(|_| !self.read_only && !is_used(dir, points));
        let Some((gid, only_if_mismatch)) = group else { return Ok(()) };
        let given = ownership::give_tree_to_writers(root, gid, only_if_mismatch);

        given.map_err(|source| {
            let attempted = format!("give {} to group {gid}", self.path.display());
            LocalError::Io { attempted, source }
        })
    }

    fn is_disk(&self) -> Result<bool, LocalError> {
        let path = self.path.display().to_string();
        if self.path.components().any(|part| part == Component::ParentDir) {
            return Err(LocalError::Backsteps { path });
        }
        match std::fs::metadata(self.path) {
            Ok(found) if found.is_dir() => Ok(false),
            Ok(found) if found.file_type().is_block_device() => Ok(true),
            Ok(_other) => Err(LocalError::NotADirectory { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(LocalError::Missing { path })
            }
            Err(source) => Err(LocalError::Io { attempted: format!("look at {path}"), source }),
        }
    }

    /// A file system that others write to cannot be mounted read-only: that is left to the bind, unless the
    /// disk itself is.
    fn mount_disk(&self, dir: &Path, options: &Options) -> Result<(), LocalError> {
        let path = || self.path.display().to_string();
        let fs_type = || self.fs_type.to_owned();
        let failed = |source| {
            let attempted = format!("mount {} as {}", path(), fs_type());
            LocalError::Io { attempted, source }
        };
        let unknown = || LocalError::NoFileSystem { path: path(), fs_type: fs_type() };
        let table = std::fs::read_to_string("/proc/filesystems").map_err(failed)?;
        if table.lines().any(|line| line.split_once('\t') == Some(("nodev", self.fs_type))) {
            return Err(unknown());
        }
        let data = CString::new(options.rest.join(",")).map_err(|error| failed(error.into()))?;
        let try_with = |flags| mount(self.path, dir, self.fs_type, flags, data.as_c_str());
        let flags = options.flags;
        let mounted = try_with(flags - MountFlags::RDONLY).or_else(|error| match error {
            Errno::ROFS | Errno::ACCESS if flags.contains(MountFlags::RDONLY) => try_with(flags),
            other => Err(other),
        });

        mounted.map_err(|error| match error {
            Errno::INVAL => LocalError::NotFormatted { path: path(), fs_type: fs_type() },
            Errno::NODEV => unknown(),
            other => failed(other.into()),
        })
    }
}

/// Whether a pod has the volume of `dir` mounted: its directory is called the same in each.
fn is_used(dir: &Path, points: &[PathBuf]) -> bool {
    let called =
        |path: &Path| Some((path.parent()?.file_name()?.to_owned(), path.file_name()?.to_owned()));

    points.iter().any(|point| called(point) == called(dir))
}

/// Where the volume of `dir` is made: no volume has such a name.
fn aside(dir: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(dir.file_name().unwrap_or_default());

    dir.with_file_name(name)
}

/// Nothing stays of what was made aside.
fn take_away(aside: &Path) -> io::Result<()> {
    mounts::unmount_below(aside)?;

    std::fs::remove_dir(aside)
}

/// A bind has the limits of what it is of until it is given others.
fn limit(bound: &Path, flags: MountFlags) -> io::Result<()> {
    if flags.is_empty() {
        return Ok(());
    }
    let held = statvfs(bound)?.f_flag;
    let limits = [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ];
    let kept = limits.iter().filter(|(limit, _)| held.contains(*limit));
    let kept = kept.fold(MountFlags::empty(), |all, (_, flag)| all | *flag);

    Ok(mount_remount(bound, MountFlags::BIND | flags | kept, c"")?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// Sights of a mount, enough to see one that is done in two steps.
    const LOOKS: usize = 300;

    fn local<'a>(path: &'a Path, options: &'a [String]) -> Local<'a> {
        Local { path, fs_type: "ext4", options, read_only: false, group: None }
    }

    fn said(path: &Path, options: &[String]) -> String {
        let local = local(path, options);
        local.mount(Path::new("/nowhere/volume"), Path::new("/nowhere")).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_local_volume_is_said() {
        assert_eq!(said(Path::new("/no/such"), &[]), "path \"/no/such\" does not exist");
        assert_eq!(
            said(Path::new("/tmp/../etc"), &[]),
            "invalid path: /tmp/../etc must not contain '..'"
        );
        assert_eq!(
            said(Path::new("/etc/hostname"), &[]),
            "/etc/hostname is not a directory and no block device"
        );
        let option = said(Path::new("/etc"), &["discard".to_owned()]);
        assert_eq!(option, "mount option discard is not one of a local volume");
    }

    #[test]
    fn a_disk_has_a_file_system_of_disks() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (disk, volume) = (root.join("disk"), root.join("pods/a/v"));
        let device = rustix::fs::makedev(7, 0);
        mknodat(CWD, &disk, FileType::BlockDevice, Mode::RUSR, device).unwrap();
        let disk = Local { fs_type: "tmpfs", ..local(&disk, &[]) };
        let error = disk.mount(&volume, &root).unwrap_err().to_string();
        assert!(error.starts_with("this node's kernel knows no file system tmpfs of disks"));
        assert!(mounts::below(&root).unwrap().is_empty() && !aside(&volume).exists());
    }

    #[test]
    fn it_is_bound_once_with_its_options_and_given_to_the_first_pods_group() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let data = root.join("data");
        std::fs::create_dir_all(data.join("sub")).unwrap();
        std::fs::write(data.join("sub/file"), "kept").unwrap();
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(data.join("sub/file"), private).unwrap();
        let pods = root.join("pods");
        let at = |pod: &str| pods.join(pod).join("volumes/kubernetes.io~local-volume/disk");
        let options = ["noexec".to_owned()];
        let local = |gid, read_only| Local {
            read_only,
            group: Some((gid, false)),
            ..local(&data, &options)
        };
        for _ in 0..2 {
            local(3000, false).mount(&at("a"), &pods).unwrap();
        }
        // Another pod has it: its group does not take it over.
        local(4000, false).mount(&at("b"), &pods).unwrap();
        local(5000, true).mount(&at("c"), &pods).unwrap();

        assert_eq!(mounts::below(&pods).unwrap().len(), 3);
        let file = std::fs::metadata(at("b").join("sub/file")).unwrap();
        assert_eq!((file.gid(), file.mode() & 0o7777), (3000, 0o660));
        assert_eq!(std::fs::metadata(&data).unwrap().mode() & 0o2770, 0o2770);
        std::fs::write(at("b").join("new"), "").unwrap();
        let refused = std::fs::write(at("c").join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(statvfs(at("a")).unwrap().f_flag.contains(StatVfsMountFlags::NOEXEC));

        super::super::remove::remove_tree(&pods).unwrap();
        assert_eq!(std::fs::read_to_string(data.join("sub/file")).unwrap(), "kept");
    }

    #[test]
    fn it_is_never_seen_without_its_options() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().canonicalize().unwrap();
        let (volume, options) = (pods.join("a/disk"), ["ro".to_owned(), "noexec".to_owned()]);
        let shown = volume.to_str().unwrap().to_owned();
        let local = local(Path::new("/etc"), &options);
        let watch = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while seen.len() < LOOKS {
                let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
                let of_volume = |line: &&str| line.split(' ').nth(4) == Some(&shown);
                let options = |line: &str| line.split(' ').nth(5).unwrap_or_default().to_owned();
                seen.extend(table.lines().filter(of_volume).map(options));
            }
            seen
        });
        while !watch.is_finished() {
            local.mount(&volume, &pods).unwrap();
            mounts::unmount_below(&volume).unwrap();
        }

        let has = |options: &str, wanted: &str| options.split(',').any(|option| option == wanted);
        for options in watch.join().unwrap() {
            assert!(has(&options, "ro") && has(&options, "noexec"), "{options}");
        }
    }

    #[test]
    fn what_a_killed_agent_was_making_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().canonicalize().unwrap();
        let (volume, options) = (pods.join("a/disk"), ["noexec".to_owned()]);
        let local = local(Path::new("/etc"), &options);
        for is_done in [false, true] {
            std::fs::create_dir_all(aside(&volume)).unwrap();
            mount_bind("/etc", aside(&volume)).unwrap();
            local.mount(&volume, &pods).unwrap();
            assert_eq!(mounts::below(&pods).unwrap(), std::slice::from_ref(&volume), "{is_done}");
            assert!(statvfs(&volume).unwrap().f_flag.contains(StatVfsMountFlags::NOEXEC));
        }
        super::super::remove::remove_tree(&pods.join("a")).unwrap();
    }
}
