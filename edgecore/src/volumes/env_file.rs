//! Files of variables in volumes, which containers wrote: read without ever leaving the volume.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The text at `path` in the volume. Links count as if the volume were all there is.
pub fn read(volume: &Path, path: &Path) -> io::Result<String> {
    let root = open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let stay = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Without waiting for whoever would write into a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(openat2(&root, path, flags, Mode::empty(), stay)?);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;

    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_read_and_a_link_does_not_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(&outside, "secret").unwrap();
        std::fs::write(volume.join("env"), "A='1'").unwrap();
        symlink("/env", volume.join("link")).unwrap();
        symlink("../outside", volume.join("out")).unwrap();
        symlink(&outside, volume.join("absolute")).unwrap();

        assert_eq!(read(&volume, Path::new("env")).unwrap(), "A='1'");
        assert_eq!(read(&volume, Path::new("link")).unwrap(), "A='1'");
        for path in ["out", "absolute", "../outside", "none", "."] {
            assert!(read(&volume, Path::new(path)).is_err(), "{path}");
        }
    }
}
