//! TLS to a cloudcore that is known by its token alone.
//!
//! The server's chain ends with the certificate of its authority. That certificate must be the one
//! whose hash the token carries; then everything else is verified as by the agent, against it: a machine joins
//! whatever its clock says.

use std::sync::Arc;

use edgecore::clock::KnownTime;
use edgecore::identity::verifier;
use edgecore::link::dial::SERVER_NAME;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme, version,
};

use crate::token::Token;

/// How the verifier says that the authority is not the token's. Nothing else of ours, and nothing
/// of rustls, uses this.
pub const OTHER_AUTHORITY: TlsError =
    TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure);

/// TLS that takes only the server the token was made for.
pub fn tls(token: &Token) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(Pinned { token: token.clone(), provider: Arc::clone(&provider) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.time_provider = Arc::new(KnownTime::of_build());

    Ok(Arc::new(config))
}

/// TLS that takes no server, to see who speaks it.
pub fn nobody() -> Result<Arc<ClientConfig>, TlsError> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();

    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Pinned {
    token: Token,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn authority(&self, ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
        if !self.token.is_for(ca) {
            return Err(OTHER_AUTHORITY);
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;

        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| TlsError::General(error.to_string()))
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some((ca, between)) = above.split_last() else { return Err(OTHER_AUTHORITY) };
        let authority = self.authority(ca)?;

        verifier::verify(&authority, certificate, between, name, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(TlsError::General(format!("{SERVER_NAME} speaks TLS 1.3")))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        tokio_rustls::rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
