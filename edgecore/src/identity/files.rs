//! The files of an identity. What replaces one is whole: a power cut at any step leaves a key and the
//! certificate for it, because both are in one file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};

use super::IdentityError;

/// Certificates of the authority.
pub const CA_FILE: &str = "ca.crt";
/// The node's key and certificate.
pub const NODE_FILE: &str = "node.pem";
/// The node's certificate where there is no [`NODE_FILE`].
pub(super) const CERT_FILE: &str = "node.crt";
/// The node's key where there is no [`NODE_FILE`].
pub(super) const KEY_FILE: &str = "node.key";

/// What comes before the id of the join, in hexadecimal digits, in a line of [`NODE_FILE`].
const JOIN_ID: &str = "join-id: ";
/// Bytes of a new one.
const JOIN_ID_LEN: usize = 16;

/// What is to be in the folder.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) join_id: &'a [u8],
    /// PEM; as before if none.
    pub(super) ca: Option<&'a str>,
    /// PEM.
    pub(super) certificate: &'a str,
    /// PEM.
    pub(super) key: &'a str,
}

/// Whether the folder is laid out as before there was a [`NODE_FILE`].
pub(super) fn is_old(dir: &Path) -> bool {
    !dir.join(NODE_FILE).exists() && dir.join(CERT_FILE).exists()
}

/// One change of the folder that happens or does not.
enum Step {
    /// Only who reads it by this name sees it.
    Write {
        path: PathBuf,
        text: String,
        mode: u32,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Sync(PathBuf),
    /// No error if it is not there.
    Remove(PathBuf),
}

impl Step {
    fn path(&self) -> &Path {
        match self {
            Self::Write { path, .. } | Self::Sync(path) | Self::Remove(path) => path,
            Self::Rename { to, .. } => to,
        }
    }

    fn take(&self) -> io::Result<()> {
        match self {
            Self::Write { path, text, mode } => {
                // A leftover of a crash may have other permissions.
                remove(path)?;
                let mut file =
                    OpenOptions::new().write(true).create_new(true).mode(*mode).open(path)?;
                file.write_all(text.as_bytes())?;
                file.sync_all()
            }
            Self::Rename { from, to } => fs::rename(from, to),
            Self::Sync(folder) => File::open(folder)?.sync_all(),
            Self::Remove(path) => remove(path),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn steps(dir: &Path, content: &Content<'_>) -> Vec<Step> {
    let Content { join_id, ca, certificate, key } = content;
    let (key, certificate) = (key.trim_end(), certificate.trim_end());
    let node = format!("{JOIN_ID}{}\n{key}\n{certificate}\n", proto::object::hex(join_id));
    let ca = ca.map(|ca| (CA_FILE, ca.to_owned(), 0o644));
    let mut steps = Vec::new();
    for (name, text, mode) in ca.into_iter().chain([(NODE_FILE, node, 0o600)]) {
        let (path, to) = (dir.join(format!(".{name}.new")), dir.join(name));
        steps.push(Step::Write { path: path.clone(), text, mode });
        steps.push(Step::Rename { from: path, to });
    }
    // What is older counts again if the new file is not there after a power cut.
    steps.push(Step::Sync(dir.to_owned()));
    steps.extend([CERT_FILE, KEY_FILE].map(|name| Step::Remove(dir.join(name))));
    steps.push(Step::Sync(dir.to_owned()));

    steps
}

/// Makes the folder hold this and nothing of what it held before.
pub(super) fn replace(dir: &Path, content: &Content<'_>) -> Result<(), IdentityError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::Write { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    for step in steps(dir, content) {
        step.take().map_err(failed(step.path()))?;
    }

    Ok(())
}

/// The id of the join in the text of a [`NODE_FILE`].
pub(super) fn join_id(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let id = text.lines().find_map(|line| line.strip_prefix(JOIN_ID))?.trim();
    let digits: Option<Vec<_>> = id.chars().map(|digit| digit.to_digit(16)).collect();
    let bytes = digits.filter(|digits| !digits.is_empty() && digits.len() % 2 == 0)?;

    bytes.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect()
}

/// A new one.
pub(super) fn new_join_id() -> Option<[u8; JOIN_ID_LEN]> {
    let mut id = [0; JOIN_ID_LEN];
    SystemRandom::new().fill(&mut id).ok()?;

    Some(id)
}

/// Tells whether the files of a folder are the same as before: each is replaced, never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Marks([Option<(u64, i64, i64, u64)>; 4]);

impl Marks {
    pub(super) fn of(dir: &Path) -> Self {
        let mark = |name: &str| {
            let file = fs::metadata(dir.join(name)).ok()?;
            Some((file.ino(), file.mtime(), file.mtime_nsec(), file.len()))
        };

        Self([CA_FILE, NODE_FILE, CERT_FILE, KEY_FILE].map(mark))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock;
    use crate::identity::{Identity, load};
    use rcgen::{CertificateParams, KeyPair};

    /// A key and a certificate that is its own authority, PEM.
    pub(crate) fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2200, 1, 1);

        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    /// As they were before there was `node.pem`.
    pub(crate) fn write_old(dir: &Path, ca: &str, certificate: &str, key: &str) {
        for (name, text) in [(CA_FILE, ca), (CERT_FILE, certificate), (KEY_FILE, key)] {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    fn read(dir: &Path) -> Identity {
        load(dir, clock::since_1970()).unwrap()
    }

    /// What a power cut right after the first `count` steps leaves, the next one half done.
    fn cut(dir: &Path, content: &Content<'_>, count: usize) {
        let steps = steps(dir, content);
        for step in &steps[..count] {
            step.take().unwrap();
        }
        if let Some(Step::Write { path, text, .. }) = steps.get(count) {
            fs::write(path, &text[..text.len() / 2]).unwrap();
        }
    }

    #[test]
    fn a_power_cut_at_any_step_leaves_a_key_with_its_certificate() {
        let ((ca, old_key), (certificate, key)) = (pair(), pair());
        let old = Content { join_id: b"old", ca: Some(&ca), certificate: &ca, key: &old_key };
        let new = Content { join_id: b"new", ca: None, certificate: &certificate, key: &key };
        for old_layout in [false, true] {
            let begin = || {
                let dir = tempfile::tempdir().unwrap();
                if old_layout {
                    write_old(dir.path(), &ca, &ca, &old_key);
                } else {
                    replace(dir.path(), &old).unwrap();
                }
                dir
            };
            let before = read(begin().path()).join_id;
            let total = steps(begin().path(), &new).len();
            let found: Vec<_> = (0..=total)
                .map(|count| {
                    let dir = begin();
                    cut(dir.path(), &new, count);
                    let join_id = read(dir.path()).join_id;
                    // What was begun is no hindrance.
                    replace(dir.path(), &new).unwrap();
                    assert_eq!(read(dir.path()).join_id, b"new");
                    let names = fs::read_dir(dir.path()).unwrap().count();
                    assert_eq!(names, 2, "ca.crt and node.pem");
                    join_id
                })
                .collect();
            let renamed = found.iter().position(|id| id == b"new").unwrap();
            assert!(found[..renamed].iter().all(|id| *id == before));
            assert!(found[renamed..].iter().all(|id| id == b"new"));
        }
    }

    #[test]
    fn another_identity_is_noticed() {
        let ((ca, key), dir) = (pair(), tempfile::tempdir().unwrap());
        let content = Content { join_id: b"x", ca: Some(&ca), certificate: &ca, key: &key };
        replace(dir.path(), &content).unwrap();
        let identity = read(dir.path());
        assert!(identity.reload(dir.path(), clock::since_1970()).is_none());
        replace(dir.path(), &Content { join_id: b"y", ..content }).unwrap();
        let reloaded = identity.reload(dir.path(), clock::since_1970()).unwrap().unwrap();
        assert_eq!(reloaded.join_id, b"y");
        assert!(reloaded.reload(dir.path(), clock::since_1970()).is_none());
    }

    #[test]
    fn ids_of_joins() {
        for (text, expected) in [
            ("join-id: 00ff\n", Some(vec![0, 255])),
            ("join-id: 0\n", None),
            ("join-id: \n", None),
            ("join-id: xy\n", None),
            ("", None),
        ] {
            assert_eq!(join_id(text.as_bytes()), expected, "{text:?}");
        }
    }
}
