//! Asks a proxy for a tunnel. What it answers is bounded, in length and in time.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::carrier::{Carrier, Inner};
use super::{reach, until};
use crate::blocking;
use crate::link::proxy::answer::{self, Head};
use crate::link::proxy::{Proxy, ProxyError};

/// All authorities of the web have a quarter of that.
const AUTHORITIES_BYTES_MAX: u64 = 1024 * 1024;

/// Read at once: most answers are shorter.
const READ_BYTES: usize = 1024;

/// A tunnel to HOST:PORT.
pub(super) async fn open(
    by: Instant,
    proxy: &Proxy,
    authorities: &Path,
    to: &str,
) -> Result<Carrier, ProxyError> {
    let reached = reach(by, &proxy.address(), None).await;
    let mut socket = reached.map_err(|error| ProxyError::Unreachable(Box::new(error)))?;
    if !proxy.is_encrypted() {
        ask(by, &mut socket, proxy, to).await?;
        return Ok(Carrier::new(Inner::Plain(socket)));
    }
    let path = authorities.to_owned();
    let tls = blocking::run(move || trusting(&path)).await;
    let tls = tls.map_err(|source| ProxyError::Authorities { path: authorities.into(), source })?;
    let name = ServerName::try_from(proxy.host().to_owned())
        .map_err(|error| ProxyError::Tls(io::Error::other(error)))?;
    let stream = until(by, TlsConnector::from(tls).connect(name, socket)).await;
    let mut stream = Box::new(stream.map_err(ProxyError::Tls)?);
    ask(by, &mut stream, proxy, to).await?;

    Ok(Carrier::new(Inner::Encrypted(stream)))
}

async fn ask(
    by: Instant,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    to: &str,
) -> Result<(), ProxyError> {
    let request = answer::request(to, proxy.authorization());
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let (mut read, mut bytes) = (Vec::new(), [0; READ_BYTES]);
        loop {
            match stream.read(&mut bytes).await? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                length => read.extend_from_slice(&bytes[..length]),
            }
            match answer::read(&read) {
                Head::Partial => {}
                head @ (Head::Foreign | Head::Whole { .. }) => return Ok(head),
            }
        }
    };
    match until(by, exchange).await.map_err(ProxyError::Broken)? {
        Head::Whole { status: 200..300, is_more: false, .. } => Ok(()),
        Head::Whole { status: 407, schemes, .. } => {
            Err(ProxyError::Credentials { are_given: proxy.has_credentials(), schemes })
        }
        Head::Whole { status, .. } => Err(ProxyError::Refused { status }),
        Head::Partial | Head::Foreign => Err(ProxyError::NoProxy),
    }
}

/// TLS that takes a proxy whose certificate is by one of the authorities in the file. Read for each dial: they
/// are too large to be kept for so rare a use.
fn trusting(path: &Path) -> io::Result<Arc<ClientConfig>> {
    let mut text = Vec::new();
    File::open(path)?.take(AUTHORITIES_BYTES_MAX).read_to_end(&mut text)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&text).flatten());
    if roots.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no certificate"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();

    Ok(Arc::new(config))
}
