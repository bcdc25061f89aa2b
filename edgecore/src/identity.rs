//! The identity of this node: its key, its certificate, and the certificates of the authority.
//!
//! Two files of one folder ([`files`]), written by `edgeadm join`; `node.pem` has key and certificate, is
//! readable by root alone and never leaves the node. The agent replaces it when it renews the certificate,
//! with a new key each time ([`next`]).

pub(crate) mod der;
mod files;
pub mod next;
pub mod verifier;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::codec::AUTHORITIES_MAX;
use proto::wire::{Fingerprint, IdentityHeld};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use tokio_rustls::rustls;
use tokio_rustls::rustls::client::{Resumption, WantsClientCert};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{CertificateError, ClientConfig, ConfigBuilder, RootCertStore};

pub use self::files::{CA_FILE, NODE_FILE};
use self::files::{CERT_FILE, Content, KEY_FILE, Marks};
use crate::clock::KnownTime;

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
    #[error("{} holds no {what}; join this node anew", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// Key and certificate do not belong together, or TLS does not take them.
    #[error("TLS does not take key and certificate of {}; join this node anew", dir.display())]
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
    /// Somebody has joined the node anew meanwhile.
    #[error("the identity in {} was replaced meanwhile", dir.display())]
    Replaced {
        /// The folder.
        dir: PathBuf,
    },
    /// No random bytes are to be had.
    #[error("the operating system gives no random bytes")]
    NoRandomness,
}

/// What the link needs of it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The client's half of the link's TLS.
    pub tls: Arc<ClientConfig>,
    /// Whose the resume ticket is: changes whenever the node joins anew, and only then.
    pub join_id: Vec<u8>,
    /// From when until when the certificate is valid, since 1970; none if that cannot be read.
    pub validity: Option<(Duration, Duration)>,
    /// Why cloudcore will not take the certificate, as far as can be seen from here: it has
    /// expired, or is not by the authority. Pods run nevertheless.
    pub problem: Option<rustls::Error>,
    /// DER.
    pub(crate) certificate: CertificateDer<'static>,
    /// Those that are believed.
    authorities: Vec<Fingerprint>,
    roots: Arc<RootCertStore>,
    marks: Marks,
}

/// Reads the folder. `now` is the time since 1970.
pub fn load(dir: &Path, now: Duration) -> Result<Identity, IdentityError> {
    let marks = Marks::of(dir);
    let ca = read(&dir.join(CA_FILE))?;
    let roots = roots(dir, &ca)?;
    let authorities = certificates(&dir.join(CA_FILE), &ca)?;
    let authorities = authorities.iter().map(|der| Fingerprint::of(der)).collect();
    let is_old = files::is_old(dir);
    let path = dir.join(if is_old { CERT_FILE } else { NODE_FILE });
    let text = read(&path)?;
    let chain = certificates(&path, &text)?;
    let key = key(dir)?;
    // Before there was `node.pem` a join was known by the certificate that it gave.
    let join_id = if is_old {
        digest(&SHA256, &chain[0]).as_ref().to_vec()
    } else {
        let what = "join-id of hexadecimal digits";
        files::join_id(&text).ok_or(IdentityError::Content { path, what })?
    };
    let problem = problem(&chain, &roots, now);
    let validity = der::validity(&chain[0]);
    let certificate = chain[0].clone();
    let tls = tls(dir, &roots, chain, key)?;

    Ok(Identity { tls, join_id, validity, problem, certificate, authorities, roots, marks })
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::Read { path: path.to_owned(), source })
}

fn key(dir: &Path) -> Result<PrivateKeyDer<'static>, IdentityError> {
    let path = dir.join(if files::is_old(dir) { KEY_FILE } else { NODE_FILE });

    PrivateKeyDer::from_pem_slice(&read(&path)?)
        .map_err(|_| IdentityError::Content { path, what: "private key in PEM" })
}

impl Identity {
    /// The identity of the folder, if its files are others than those that this one was read from.
    pub fn reload(&self, dir: &Path, now: Duration) -> Option<Result<Self, IdentityError>> {
        (Marks::of(dir) != self.marks).then(|| load(dir, now))
    }

    /// Whether there is no more to it than that its time is over, by this node's clock when it was read.
    pub fn has_expired(&self) -> bool {
        matches!(
            self.problem,
            Some(rustls::Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            ))
        )
    }

    /// What the cloud is told of it.
    pub(crate) fn held(&self) -> IdentityHeld {
        // More than these cloudcore gives to no one.
        let authorities = self.authorities.iter().take(AUTHORITIES_MAX).copied().collect();

        IdentityHeld { certificate: Fingerprint::of(&self.certificate), authorities }
    }

    /// TLS to the same cloudcore that shows no certificate.
    pub(crate) fn without_certificate(
        &self,
        dir: &Path,
    ) -> Result<Arc<ClientConfig>, IdentityError> {
        Ok(Arc::new(finished(client(dir, &self.roots)?.with_no_client_auth())))
    }

    /// Signs with the key, which is read for that: ECDSA on P-256 with SHA-256.
    pub(crate) fn sign(&self, dir: &Path, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        if Marks::of(dir) != self.marks {
            return Err(IdentityError::Replaced { dir: dir.to_owned() });
        }
        let key = key(dir)?;
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
        let what = "key of the kind that joining makes";
        let wrong = || IdentityError::Content { path: dir.join(NODE_FILE), what };
        let key = EcdsaKeyPair::from_pkcs8(algorithm, key.secret_der(), &random);
        let signature = key.map_err(|_| wrong())?.sign(&random, message);

        Ok(signature.map_err(|_| IdentityError::NoRandomness)?.as_ref().to_vec())
    }
}

fn tls(
    dir: &Path,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let failed = |source| IdentityError::Tls { dir: dir.to_owned(), source };
    let config = client(dir, roots)?.with_client_auth_cert(chain, key).map_err(failed)?;

    Ok(Arc::new(finished(config)))
}

fn client(
    dir: &Path,
    roots: &Arc<RootCertStore>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, IdentityError> {
    let failed = |source| IdentityError::Tls { dir: dir.to_owned(), source };
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?;

    verifier::servers_of(roots, builder)
        .map_err(|error| failed(rustls::Error::General(error.to_string())))
}

/// Sessions are not resumed: each shows the certificate of now. The time is what every program knows of it; who
/// knows more says so.
fn finished(mut config: ClientConfig) -> ClientConfig {
    config.time_provider = Arc::new(KnownTime::of_build());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();

    config
}

fn roots(dir: &Path, ca: &[u8]) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&dir.join(CA_FILE), ca)? {
        let failed = |source| IdentityError::Tls { dir: dir.to_owned(), source };
        roots.add(certificate).map_err(failed)?;
    }

    Ok(Arc::new(roots))
}

/// Looks at the certificate as cloudcore will. That it has not begun shows that the clock is behind.
fn problem(
    chain: &[CertificateDer<'_>],
    roots: &Arc<RootCertStore>,
    now: Duration,
) -> Option<rustls::Error> {
    let provider = Arc::new(default_provider());
    let cloud = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider).build();
    let cloud = cloud.ok()?;
    let problem = |now| cloud.verify_client_cert(&chain[0], &chain[1..], now).err();
    let found = problem(UnixTime::since_unix_epoch(now))?;

    match verifier::begins(&found) {
        Some(begin) => problem(begin),
        None => Some(found),
    }
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let missing = || IdentityError::Content { path: path.to_owned(), what: "certificate in PEM" };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();

    found.ok().filter(|found| !found.is_empty()).ok_or_else(missing)
}

/// Writes the identity that the node has got by joining: whole or not at all, and what was there before goes.
pub fn write(dir: &Path, ca: &str, certificate: &str, key: &str) -> Result<(), IdentityError> {
    let join_id = files::new_join_id().ok_or(IdentityError::NoRandomness)?;

    files::replace(dir, &Content { join_id: &join_id, ca: Some(ca), certificate, key })
}

#[cfg(test)]
mod tests;
