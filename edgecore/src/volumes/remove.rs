//! Removing what a pod left behind, without ever leaving its directory.

use std::io;
use std::path::Path;

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

    match std::fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => gone_is_done(std::fs::remove_dir_all(dir)),
        Ok(_file_or_link) => gone_is_done(std::fs::remove_file(dir)),
        Err(error) => gone_is_done(Err(error)),
    }
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
    fn a_link_in_place_of_the_directory_is_removed_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, pod) = (dir.path().join("host"), dir.path().join("pod"));
        std::fs::create_dir_all(&outside).unwrap();
        symlink(&outside, &pod).unwrap();

        remove_tree(&pod).unwrap();

        assert!(outside.exists() && !pod.exists());
    }
}
