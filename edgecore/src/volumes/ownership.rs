//! fsGroup: giving a volume to the group of its pod, as the kubelet does.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

/// Deepest directory followed: a volume nested deeper is refused rather than overflowing the stack.
const DEPTH_MAX: usize = 128;

/// Gives `dir` and everything below it to group `gid`: readable and writable for the group,
/// directories setgid, so that what containers make there belongs to the group too.
///
/// With `root_only` (`fsGroupChangePolicy: OnRootMismatch`) nothing is done if the top fits already.
pub fn give_to_group(dir: &Path, gid: u32, root_only: bool) -> io::Result<()> {
    let top = fs::symlink_metadata(dir)?;
    if root_only && top.gid() == gid && top.mode() & 0o2770 == 0o2770 {
        return Ok(());
    }

    give(dir, gid, 0)
}

/// Gives one directory of a volume that only the node writes to group `gid`, setgid as the kubelet
/// leaves it.
pub fn give_dir_to_readers(dir: &Path, gid: u32) -> io::Result<()> {
    lchown(dir, None, Some(gid))?;
    let mode = fs::symlink_metadata(dir)?.mode() & 0o7777;

    fs::set_permissions(dir, Permissions::from_mode(mode | 0o2550))
}

fn give(path: &Path, gid: u32, depth: usize) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    lchown(path, None, Some(gid))?;
    if found.is_symlink() {
        return Ok(());
    }
    if found.is_dir() {
        if depth == DEPTH_MAX {
            return Err(io::Error::other(format!("{} is nested too deeply", path.display())));
        }
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), gid, depth + 1)?;
        }
    }
    let mask = if found.is_dir() { 0o2770 } else { 0o660 };

    fs::set_permissions(path, Permissions::from_mode(found.mode() & 0o7777 | mask))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_may_write_everywhere_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (host, volume) = (dir.path().join("host"), dir.path().join("volume"));
        fs::write(&host, "").unwrap();
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(volume.join("sub/file"), "").unwrap();
        std::os::unix::fs::symlink(&host, volume.join("link")).unwrap();

        give_to_group(&volume, 3000, false).unwrap();

        let sub = fs::metadata(volume.join("sub")).unwrap();
        let file = fs::metadata(volume.join("sub/file")).unwrap();
        assert_eq!((sub.gid(), sub.mode() & 0o2070), (3000, 0o2070));
        assert_eq!((file.gid(), file.mode() & 0o060), (3000, 0o060));
        assert_eq!(fs::metadata(&host).unwrap().gid(), 0);
    }
}
