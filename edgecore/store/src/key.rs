//! The key file: 32 random bytes that only root can read, made once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};

use crate::error::StoreError;
use crate::seal::{KEY_LEN, Sealer};

/// Its name within the store's folder.
pub const KEY: &str = "store.key";

/// A key and whether it was there already.
pub(crate) struct Key {
    pub(crate) sealer: Sealer,
    pub(crate) is_new: bool,
}

/// Reads the key, or makes one if there is none or it is not a key.
pub(crate) fn open(path: &Path) -> Result<Key, StoreError> {
    match fs::read(path) {
        Ok(bytes) => match <[u8; KEY_LEN]>::try_from(bytes.as_slice()) {
            Ok(secret) => Ok(Key { sealer: Sealer::new(&secret), is_new: false }),
            Err(_wrong_length) => make(path),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
        Err(source) => Err(StoreError::from_io("read the key", path, source)),
    }
}

/// The key is durable before a row is sealed with it.
fn make(path: &Path) -> Result<Key, StoreError> {
    let refused = |source| StoreError::from_io("make the key", path, source);
    let mut secret = [0; KEY_LEN];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(|_| refused(io::Error::other("the kernel gave no random bytes")))?;
    write(path, &secret).map_err(refused)?;

    Ok(Key { sealer: Sealer::new(&secret), is_new: true })
}

fn write(path: &Path, secret: &[u8]) -> io::Result<()> {
    let temporary = PathBuf::from(format!("{}.new", path.display()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(secret)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;

    sync_folder(path)
}

/// Makes a rename in the folder of `path` durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        let made = open(&path).unwrap();
        let found = open(&path).unwrap();

        assert!(made.is_new && !found.is_new);
        assert_eq!(made.sealer.key_id(), found.sealer.key_id());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_truncated_key_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        fs::write(&path, [1; 5]).unwrap();

        assert!(open(&path).unwrap().is_new);
        assert!(!open(&path).unwrap().is_new);
    }
}
