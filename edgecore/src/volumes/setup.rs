//! Setting up all volumes of one pod, and taking them down again. Doing it twice is doing it once:
//! what is in place stays, changed files are swapped, lost tmpfs mounts are made again.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use podcore::volumes::{Medium, VolumeSetup};

use super::atomic::{self, FileContent, Payload};
use super::host_path::{self, HostPathError};
use super::local::{Local, LocalError};
use super::nfs::{Export, NfsError};
use super::{mounts, ownership};

/// Modes as the kubelet's: a pod's directory is the node's, a volume's is its containers'.
const POD_DIR_MODE: u32 = 0o750;
const VOLUME_MODE: u32 = 0o777;
const LOGS_MODE: u32 = 0o755;

/// Why a volume is not there; the message is that of the kubelet's FailedMount Event.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A directory of the pod cannot be made.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A volume cannot be set up.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" ")]
    Volume {
        /// Which.
        volume: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A volume cannot be used here.
    #[error("MountVolume.NewMounter initialization failed for volume \"{volume}\" ")]
    Local {
        /// Which.
        volume: String,
        /// Why not.
        #[source]
        source: LocalError,
    },
    /// A server's export cannot be mounted.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" ")]
    Nfs {
        /// Which.
        volume: String,
        /// Why not.
        #[source]
        source: NfsError,
    },
    /// The host lacks a path.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" ")]
    HostPath {
        /// Which.
        volume: String,
        /// Why not.
        #[source]
        source: HostPathError,
    },
}

/// One volume of the pod.
#[derive(Debug)]
pub struct PodVolume {
    /// Its name in the pod.
    pub name: String,
    /// Its directory; of no meaning for hostPath.
    pub dir: PathBuf,
    /// What to make.
    pub setup: VolumeSetup,
}

/// What setting a volume up may have to wait for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// The node's own disk.
    Own,
    /// Whatever is at a path of the host.
    HostPath,
    /// The disk behind a local volume.
    Disk,
    /// This server.
    Server(String),
}

impl PodVolume {
    fn reach(&self) -> Reach {
        match &self.setup {
            // Anything will do: the path is not looked at.
            VolumeSetup::HostPath { kind, .. } if kind.is_empty() => Reach::Own,
            VolumeSetup::HostPath { .. } => Reach::HostPath,
            VolumeSetup::Local { .. } => Reach::Disk,
            VolumeSetup::Nfs { server, .. } => Reach::Server(server.clone()),
            VolumeSetup::EmptyDir(_) | VolumeSetup::Files { .. } => Reach::Own,
        }
    }
}

/// Everything of one pod in the file system but its containers' own files.
#[derive(Debug)]
pub struct PodVolumes {
    /// The directory of all pods.
    pub pods_dir: PathBuf,
    /// The pod's directory.
    pub pod_dir: PathBuf,
    /// The directory of its logs.
    pub logs_dir: PathBuf,
    /// Its volumes.
    pub volumes: Vec<PodVolume>,
    /// `securityContext.fsGroup`.
    pub fs_group: Option<u32>,
    /// Most that each volume in memory may hold.
    pub memory_bytes: Option<u64>,
    /// Containers want to see what is mounted in volumes, or to show it.
    pub propagate: bool,
}

impl PodVolumes {
    /// In parts by what they may have to wait for; the first is never left out.
    pub fn by_reach(self) -> Vec<(Reach, Self)> {
        let mut parts = BTreeMap::from([(Reach::Own, Vec::new())]);
        for volume in self.volumes {
            parts.entry(volume.reach()).or_default().push(volume);
        }
        let part = |(reach, volumes)| {
            let (pods_dir, pod_dir) = (self.pods_dir.clone(), self.pod_dir.clone());
            let (logs_dir, fs_group) = (self.logs_dir.clone(), self.fs_group);
            let (memory_bytes, propagate) = (self.memory_bytes, self.propagate);
            let part =
                Self { pods_dir, pod_dir, logs_dir, volumes, fs_group, memory_bytes, propagate };
            (reach, part)
        };

        parts.into_iter().map(part).collect()
    }

    /// Sets everything up.
    pub fn set_up(&self, now: Timestamp) -> Result<(), SetupError> {
        for (path, mode) in [
            (self.pod_dir.clone(), POD_DIR_MODE),
            (self.pod_dir.join("volumes"), POD_DIR_MODE),
            (self.pod_dir.join("plugins"), POD_DIR_MODE),
            (self.pod_dir.join("containers"), POD_DIR_MODE),
            (self.logs_dir.clone(), LOGS_MODE),
        ] {
            make_dir(&path, mode).map_err(|source| SetupError::Directory { path, source })?;
        }
        if self.propagate {
            let path = self.pod_dir.clone();
            mounts::share(&path).map_err(|source| SetupError::Directory { path, source })?;
        }
        for volume in &self.volumes {
            self.one(volume, now)?;
        }

        Ok(())
    }

    fn one(&self, volume: &PodVolume, now: Timestamp) -> Result<(), SetupError> {
        let failed = |source| SetupError::Volume { volume: volume.name.clone(), source };
        match &volume.setup {
            VolumeSetup::HostPath { path, kind } => host_path::check(Path::new(path), kind)
                .map_err(|source| SetupError::HostPath { volume: volume.name.clone(), source }),
            VolumeSetup::Local { path, fs_type, options, read_only, only_if_mismatch } => {
                let local = Local {
                    path: Path::new(path),
                    fs_type,
                    options,
                    read_only: *read_only,
                    group: self.fs_group.map(|gid| (gid, *only_if_mismatch)),
                };
                local
                    .mount(&volume.dir, &self.pods_dir)
                    .map_err(|source| SetupError::Local { volume: volume.name.clone(), source })
            }
            VolumeSetup::Nfs { server, path, options, read_only } => {
                let export = Export { server, path, options, read_only: *read_only };
                export
                    .mount(&volume.dir)
                    .map_err(|source| SetupError::Nfs { volume: volume.name.clone(), source })
            }
            VolumeSetup::EmptyDir(medium) => self.empty_dir(&volume.dir, *medium).map_err(failed),
            VolumeSetup::Files { files, memory } => {
                let payload: Payload = files
                    .iter()
                    .map(|(path, file)| {
                        let content =
                            FileContent { data: file.data.clone(), mode: file.mode, uid: file.uid };
                        (PathBuf::from(path), content)
                    })
                    .collect();
                let medium =
                    if *memory { Medium::Memory { size_limit: None } } else { Medium::Disk };
                self.make_volume(&volume.dir, medium)
                    .and_then(|_is_new| match self.fs_group {
                        Some(gid) => ownership::give_dir_to_readers(&volume.dir, gid),
                        None => Ok(()),
                    })
                    .and_then(|()| atomic::write(&volume.dir, &payload, self.fs_group, now))
                    .map(|_changed| ())
                    .map_err(failed)
            }
        }
    }

    /// The group gets the directory when it is made, and empty: what containers do in it later, and with
    /// it, is theirs.
    fn empty_dir(&self, dir: &Path, medium: Medium) -> io::Result<()> {
        let is_new = self.make_volume(dir, medium)?;
        let is_begun = || Ok::<_, io::Error>(fs::read_dir(dir)?.next().is_some());
        match self.fs_group {
            // A crash may have come between the two.
            Some(gid) if is_new || !is_begun()? => ownership::give_dir_to_writers(dir, gid),
            Some(_) | None => Ok(()),
        }
    }

    /// Makes the directory, and its mount if it is to be in memory; whether it was made just now.
    fn make_volume(&self, dir: &Path, medium: Medium) -> io::Result<bool> {
        let is_new = !dir.exists();
        if is_new {
            make_dir(dir, VOLUME_MODE)?;
        }
        match medium {
            Medium::Disk => Ok(is_new),
            Medium::Memory { size_limit } => {
                let size = [size_limit, self.memory_bytes].into_iter().flatten().min();
                mounts::ensure_tmpfs(dir, size)
            }
            Medium::HugePages(size) => mounts::ensure_huge_pages(dir, size, VOLUME_MODE),
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir_all(path)?;

    fs::set_permissions(path, Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use podcore::volumes::File;

    use super::super::remove;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn volumes(dir: &Path, token: &str) -> PodVolumes {
        let volume = |name: &str, setup| PodVolume {
            name: name.into(),
            dir: dir.join("pod/volumes").join(name),
            setup,
        };
        let file = File { data: token.into(), mode: 0o644, uid: None };
        PodVolumes {
            pods_dir: dir.to_owned(),
            pod_dir: dir.join("pod"),
            logs_dir: dir.join("logs"),
            volumes: vec![
                volume("disk", VolumeSetup::EmptyDir(Medium::Disk)),
                volume("ram", VolumeSetup::EmptyDir(Medium::Memory { size_limit: Some(1 << 20) })),
                volume(
                    "token",
                    VolumeSetup::Files { files: [("t".into(), file)].into(), memory: true },
                ),
                volume(
                    "host",
                    VolumeSetup::HostPath { path: "/etc".into(), kind: "Directory".into() },
                ),
            ],
            fs_group: Some(3000),
            memory_bytes: Some(1 << 22),
            propagate: false,
        }
    }

    #[test]
    fn volumes_are_made_updated_mended_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let token = dir.join("pod/volumes/token/t");

        volumes(&dir, "one").set_up(at(1)).unwrap();
        let disk = dir.join("pod/volumes/disk");
        assert_eq!(fs::metadata(&disk).unwrap().gid(), 3000);
        fs::write(disk.join("data"), "kept").unwrap();
        // Modes and owners within are the containers' from then on, and links of theirs lead nowhere.
        let private = Permissions::from_mode(0o600);
        fs::set_permissions(disk.join("data"), private).unwrap();
        std::os::unix::fs::symlink("/etc", disk.join("link")).unwrap();
        assert_eq!(mounts::below(&dir).unwrap().len(), 2);
        assert_eq!(fs::read_to_string(&token).unwrap(), "one");

        volumes(&dir, "two").set_up(at(2)).unwrap();
        assert_eq!(mounts::below(&dir).unwrap().len(), 2);
        assert_eq!(fs::read_to_string(&token).unwrap(), "two");
        let kept = fs::metadata(disk.join("data")).unwrap();
        assert_eq!(kept.mode() & 0o7777, 0o600);

        // A power cut takes the mounts and leaves the directories.
        mounts::unmount_below(&dir).unwrap();
        volumes(&dir, "two").set_up(at(3)).unwrap();
        assert_eq!(mounts::below(&dir).unwrap().len(), 2);
        assert_eq!(fs::read_to_string(&token).unwrap(), "two");
        assert_eq!(fs::read_to_string(dir.join("pod/volumes/disk/data")).unwrap(), "kept");

        remove::remove_tree(&dir.join("pod")).unwrap();
        assert!(mounts::below(&dir).unwrap().is_empty());
        assert!(!dir.join("pod").exists() && Path::new("/etc").is_dir());
    }

    #[test]
    fn a_volume_that_fails_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut wrong = volumes(dir.path(), "x");
        wrong.volumes = vec![PodVolume {
            name: "videos".into(),
            dir: dir.path().join("unused"),
            setup: VolumeSetup::HostPath { path: "/etc/hostname".into(), kind: "Directory".into() },
        }];
        let error = wrong.set_up(at(1)).unwrap_err();

        assert_eq!(
            crate::telemetry::chain(&error),
            "MountVolume.SetUp failed for volume \"videos\" : hostPath type check failed: \
             /etc/hostname is not a directory"
        );
    }
}
