//! What files and directories take of the disk, counted one by one.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use podcore::eviction::Taken;

/// Most files that are counted of one directory: of more the rest is not seen.
const FILES_MAX: u64 = 500_000;
/// Bytes of a block in `stat`.
const BLOCK_BYTES: u64 = 512;

/// What a file, or a directory with all that is below it on its file system, takes of the disk.
pub fn taken(path: &Path) -> Taken {
    let Ok(root) = fs::symlink_metadata(path) else { return Taken::default() };
    let mut sum = Taken { bytes: bytes(&root), inodes: 1 };
    // Files of several names count once.
    let mut linked = BTreeSet::new();
    let mut dirs: Vec<PathBuf> = if root.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(dir) = dirs.pop() {
        // What goes while it is counted is not there.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else { continue };
            let is_counted = found.nlink() > 1 && !found.is_dir() && !linked.insert(found.ino());
            if found.dev() != root.dev() || is_counted {
                continue;
            }
            sum = sum.plus(Taken { bytes: bytes(&found), inodes: 1 });
            if sum.inodes >= FILES_MAX {
                tracing::warn!(path = %path.display(), "more files than are counted");
                return sum;
            }
            if found.is_dir() {
                dirs.push(entry.path());
            }
        }
    }

    sum
}

fn bytes(found: &Metadata) -> u64 {
    found.blocks().saturating_mul(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
