//! The identity of this node: its key, its certificate, and the certificate of the authority.
//!
//! Three files of one folder, written by `edgeadm join`; the key is readable by root alone and never
//! leaves the node.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The authority's certificate.
pub const CA_FILE: &str = "ca.crt";
/// The node's certificate.
pub const CERT_FILE: &str = "node.crt";
/// The node's key.
pub const KEY_FILE: &str = "node.key";

/// Why there is no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing or unreadable.
    #[error("cannot read {}; join this node: edgeadm join --cloudcore HOST:PORT --token TOKEN", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{} holds no {what} in PEM; join this node anew", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Key and certificate do not belong together, or TLS does not take them.
    #[error("TLS does not take {CERT_FILE} and {KEY_FILE} of {}; join this node anew", dir.display())]
    Tls {
        /// The folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Reads the folder and makes the client's half of the link's TLS from it.
pub fn client_tls(dir: &Path) -> Result<Arc<rustls::ClientConfig>, IdentityError> {
    let tls = |source| IdentityError::Tls { dir: dir.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&dir.join(CA_FILE))? {
        roots.add(certificate).map_err(tls)?;
    }
    let chain = certificates(&dir.join(CERT_FILE))?;
    let path = dir.join(KEY_FILE);
    let key = PrivateKeyDer::from_pem_slice(&read(&path)?)
        .map_err(|_| IdentityError::Content { path, what: "private key" })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];

    Ok(Arc::new(config))
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let missing = || IdentityError::Content { path: path.to_owned(), what: "certificate" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();

    found.ok().filter(|found| !found.is_empty()).ok_or_else(missing)
}

/// Writes the folder: each file whole or not at all.
pub fn write(dir: &Path, ca: &str, certificate: &str, key: &str) -> Result<(), IdentityError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::Write { path, source }
    };
    fs::create_dir_all(dir).map_err(failed(dir))?;
    for (name, content, mode) in
        [(KEY_FILE, key, 0o600), (CA_FILE, ca, 0o644), (CERT_FILE, certificate, 0o644)]
    {
        let path = dir.join(name);
        let temporary = dir.join(format!(".{name}.new"));
        // A leftover of a crash may have other permissions.
        drop(fs::remove_file(&temporary));
        let written = || {
            let mut file =
                fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)
        };
        written().map_err(failed(&path))?;
    }

    fs::File::open(dir).and_then(|folder| folder.sync_all()).map_err(failed(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_wrong_is_named_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let error = client_tls(dir.path()).unwrap_err().to_string();
        assert!(error.contains("ca.crt; join this node: edgeadm join"), "{error}");

        fs::write(dir.path().join(CA_FILE), "nonsense").unwrap();
        let error = client_tls(dir.path()).unwrap_err().to_string();
        assert!(
            error.ends_with("ca.crt holds no certificate in PEM; join this node anew"),
            "{error}"
        );
    }

    #[test]
    fn the_key_is_readable_by_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "a", "b", "c").unwrap();
        let mode = fs::metadata(dir.path().join(KEY_FILE)).unwrap().permissions().mode();

        assert_eq!(mode & 0o777, 0o600);
    }
}
