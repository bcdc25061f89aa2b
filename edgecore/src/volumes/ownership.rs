//! fsGroup: giving the directory of a volume to the group of its pod, as the kubelet does. What is in it
//! is not touched: containers may change it meanwhile, and lead a walk elsewhere.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

/// Gives the empty directory of a volume to group `gid`: writable for it and setgid, so that what
/// containers make there belongs to the group too.
pub fn give_dir_to_writers(dir: &Path, gid: u32) -> io::Result<()> {
    give(dir, gid, 0o2770)
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

#[cfg(test)]
mod tests {
    use super::*;

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
