//! The identity of this node: its key, its certificate, and the certificate of the authority.
//!
//! Three files of one folder, written by `edgeadm join`; the key is readable by root alone and never
//! leaves the node.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ring::digest::{SHA256, digest};
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

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

/// What the link needs of it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The client's half of the link's TLS.
    pub tls: Arc<ClientConfig>,
    /// SHA-256 of the certificate: changes whenever the node joins anew.
    pub fingerprint: Vec<u8>,
    /// Why cloudcore will not take the certificate, as far as can be seen from here: it has
    /// expired, is not yet valid, or is not by the authority. Pods run nevertheless.
    pub problem: Option<rustls::Error>,
}

/// Reads the folder. `now` is the time since 1970.
pub fn load(dir: &Path, now: Duration) -> Result<Identity, IdentityError> {
    let tls = |source| IdentityError::Tls { dir: dir.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&dir.join(CA_FILE))? {
        roots.add(certificate).map_err(tls)?;
    }
    let chain = certificates(&dir.join(CERT_FILE))?;
    let path = dir.join(KEY_FILE);
    let key = PrivateKeyDer::from_pem_slice(&read(&path)?)
        .map_err(|_| IdentityError::Content { path, what: "private key" })?;
    let fingerprint = digest(&SHA256, &chain[0]).as_ref().to_vec();
    let roots = Arc::new(roots);
    let problem = problem(&chain, &roots, now);
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];

    Ok(Identity { tls: Arc::new(config), fingerprint, problem })
}

/// Looks at the certificate as cloudcore will.
fn problem(
    chain: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    now: Duration,
) -> Option<rustls::Error> {
    let provider = Arc::new(default_provider());
    let cloud = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider).build();
    let now = UnixTime::since_unix_epoch(now);

    cloud.ok()?.verify_client_cert(&chain[0], &chain[1..], now).err()
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
mod tests;
