//! hostPath volumes: what the host must have, and what is made where it may be missing.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Modes of what is made, as the kubelet's.
const DIR_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// Why a host path cannot be a volume; worded as the kubelet does.
#[derive(Debug, thiserror::Error)]
pub enum HostPathError {
    /// The path is not what the volume's type wants.
    #[error("hostPath type check failed: {path} is not {wanted}")]
    WrongType {
        /// The path on the host.
        path: String,
        /// For example `a directory`.
        wanted: &'static str,
    },
    /// The path could not be made.
    #[error("cannot make {path} on the host")]
    Make {
        /// The path on the host.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A type the API does not know.
    #[error("{kind} is an invalid volume type")]
    UnknownType {
        /// As written in the pod.
        kind: String,
    },
}

/// Checks that `path` is of type `kind` (`hostPath.type`; empty means anything), making it for the
/// types that say `OrCreate`. Links are followed: the path is the host's own.
pub fn check(path: &Path, kind: &str) -> Result<(), HostPathError> {
    // Anything will do, and a dead network mount would hold up whoever looks.
    if kind.is_empty() {
        return Ok(());
    }
    let found = fs::metadata(path).ok().map(|found| found.file_type());
    let wrong = |wanted| Err(HostPathError::WrongType { path: path.display().to_string(), wanted });
    let made = |result: io::Result<()>| {
        let path = path.display().to_string();
        result.map_err(|source| HostPathError::Make { path, source })
    };

    match (kind, found) {
        ("DirectoryOrCreate", None) => made(make_dir(path)),
        ("FileOrCreate", None) => made(make_file(path)),
        ("Directory" | "DirectoryOrCreate", Some(found)) if found.is_dir() => Ok(()),
        ("File" | "FileOrCreate", Some(found)) if found.is_file() => Ok(()),
        ("Socket", Some(found)) if found.is_socket() => Ok(()),
        ("CharDevice", Some(found)) if found.is_char_device() => Ok(()),
        ("BlockDevice", Some(found)) if found.is_block_device() => Ok(()),
        ("Directory" | "DirectoryOrCreate", _) => wrong("a directory"),
        ("File" | "FileOrCreate", _) => wrong("a file"),
        ("Socket", _) => wrong("a socket file"),
        ("CharDevice", _) => wrong("a character device"),
        ("BlockDevice", _) => wrong("a block device"),
        (other, _) => Err(HostPathError::UnknownType { kind: other.to_owned() }),
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;

    fs::set_permissions(path, Permissions::from_mode(DIR_MODE))
}

fn make_file(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_takes_what_it_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let fits = |name: &str, kind| check(&at(name), kind).is_ok();

        for (name, kinds) in [
            ("dir", vec!["", "Directory", "DirectoryOrCreate"]),
            ("file", vec!["", "File", "FileOrCreate"]),
            ("socket", vec!["", "Socket"]),
            ("missing", vec![""]),
        ] {
            let all = ["", "Directory", "File", "Socket", "CharDevice", "BlockDevice"];
            for kind in all {
                assert_eq!(fits(name, kind), kinds.contains(&kind), "{name} as {kind:?}");
            }
        }
        assert!(check(Path::new("/dev/null"), "CharDevice").is_ok());
        assert!(fits("new/dir", "DirectoryOrCreate") && at("new/dir").is_dir());
        assert!(fits("new/file", "FileOrCreate") && at("new/file").is_file());
        assert!(!fits("no/parent", "FileOrCreate"));
    }

    #[test]
    fn a_mismatch_is_worded_as_the_kubelet_does() {
        let error = check(Path::new("/nowhere/at/all"), "Directory").unwrap_err();
        let expected = "hostPath type check failed: /nowhere/at/all is not a directory";
        assert_eq!(error.to_string(), expected);
    }
}
