//! Removing what a pod left behind, without ever leaving its directory.

use std::io;
use std::path::Path;

use super::mounts;

/// Directories in a pod's `volumes` whose entries are places for mounts, and hold nothing by themselves.
const MOUNT_PLACES: [&str; 2] = ["kubernetes.io~nfs", "kubernetes.io~local-volume"];

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

/// Removes what nothing is mounted below, unless a server that was given up answers just now.
fn remove_unmounted(dir: &Path) -> io::Result<()> {
    remove_mount_places(dir)?;

    match std::fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => gone_is_done(std::fs::remove_dir_all(dir)),
        Ok(_file_or_link) => gone_is_done(std::fs::remove_file(dir)),
        Err(error) => gone_is_done(Err(error)),
    }
}

/// Removes the empty directories on which data of others are mounted. The kernel mounts nothing on what is
/// removed, and what it has mounted meanwhile is busy: none of it is walked into.
fn remove_mount_places(pod_dir: &Path) -> io::Result<()> {
    for plugin in MOUNT_PLACES {
        let dir = pod_dir.join("volumes").join(plugin);
        // A link leads to nothing that is the pod's.
        if !std::fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        for place in std::fs::read_dir(&dir)? {
            match std::fs::remove_dir(place?.path()) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Err(error),
                // What is not a mount is removed with the rest.
                Ok(()) | Err(_) => {}
            }
        }
    }

    Ok(())
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
        let pod = dir.path().canonicalize().unwrap().join("pod");
        let [films, other] = ["films", "other"].map(|name| {
            let place = pod.join("volumes/kubernetes.io~nfs").join(name);
            std::fs::create_dir_all(&place).unwrap();
            place
        });
        mounts::ensure_tmpfs(&films, None).unwrap();
        std::fs::write(films.join("precious"), "x").unwrap();
        std::fs::write(other.join("stray"), "x").unwrap();

        let busy = remove_unmounted(&pod).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
        assert!(films.join("precious").exists());
        remove_tree(&pod).unwrap();
        assert!(!pod.exists());
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
