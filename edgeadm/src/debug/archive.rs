//! A .tar.gz of small files, in the format of POSIX (ustar).

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

const BLOCK: usize = 512;
/// Longest name that fits.
const NAME_MAX: usize = 100;

/// An archive that is being written. Only its owner can read it.
#[derive(Debug)]
pub(super) struct Archive {
    gzip: GzEncoder<File>,
    folder: String,
}

impl Archive {
    /// All files will be in `folder`.
    pub(super) fn create(path: &Path, folder: &str) -> io::Result<Self> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;

        Ok(Self { gzip: GzEncoder::new(file, Compression::default()), folder: folder.to_owned() })
    }

    /// Adds a file.
    pub(super) fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.gzip.write_all(&header(&format!("{}/{name}", self.folder), content.len())?)?;
        self.gzip.write_all(content)?;
        let rest = content.len().next_multiple_of(BLOCK) - content.len();

        self.gzip.write_all(&[0; BLOCK][..rest])
    }

    /// Ends it: it is safe on disk then.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.gzip.write_all(&[0; 2 * BLOCK])?;

        self.gzip.finish()?.sync_all()
    }
}

fn header(name: &str, length: usize) -> io::Result<[u8; BLOCK]> {
    if name.len() > NAME_MAX {
        return Err(io::Error::other(format!("{name} is too long a name for an archive")));
    }
    let mut header = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, "00000000000\0");
    // Counted as spaces where the sum will be.
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\u{0}00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());

    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn files_are_where_tar_looks_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar.gz");
        let mut archive = Archive::create(&path, "node").unwrap();
        archive.add("one.txt", b"hello").unwrap();
        archive.add("two.txt", &[b'x'; BLOCK]).unwrap();
        assert!(archive.add(&"x".repeat(100), b"").is_err());
        archive.finish().unwrap();

        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 6 * BLOCK);
        assert!(bytes.starts_with(b"node/one.txt\0"));
        assert_eq!(&bytes[124..136], b"00000000005\0");
        assert_eq!(&bytes[257..265], b"ustar\x0000");
        assert_eq!(&bytes[BLOCK..BLOCK + 6], b"hello\0");
        assert!(bytes[2 * BLOCK..].starts_with(b"node/two.txt\0"));
        let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
}
