//! Certificates by which replicas know each other. No node has one: the group of a node's certificate is
//! always another, and so is its purpose.

use std::sync::Arc;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    ClientConfig, ServerConfig, crypto::ring::default_provider, version::TLS13,
};

use super::{Authority, PkiError, SERVER_LIFE, tls, valid_for};

/// The name in the certificate of every replica, which others ask for whatever its address is.
pub const PEER_NAME: &str = "replica.holdfast.internal";

/// Organization of replicas' certificates.
const PEERS_GROUP: &str = "holdfast:replicas";

/// TLS between replicas; each end shows the same certificate.
#[derive(Clone, Debug)]
pub struct PeerTls {
    /// For those that others dial. That they are replicas is to be asked of [`is_replica`].
    pub server: Arc<ServerConfig>,
    /// For dialling others.
    pub client: Arc<ClientConfig>,
}

impl Authority {
    /// A certificate of the replica of this name, and TLS with it.
    pub fn peer_tls(&self, replica: &str) -> Result<PeerTls, PkiError> {
        let (chain, key) = self.peer_certificate(replica)?;
        let provider = Arc::new(default_provider());
        let roots = self.roots()?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(tls)?;
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(tls)?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(tls)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(tls)?;

        Ok(PeerTls { server: Arc::new(server), client: Arc::new(client) })
    }

    fn peer_certificate(
        &self,
        replica: &str,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let failed = |source| PkiError::Make { what: format!("replica {replica}"), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(vec![PEER_NAME.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::OrganizationName, PEERS_GROUP);
        params.distinguished_name.push(DnType::CommonName, replica);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        valid_for(&mut params, SERVER_LIFE);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let chain = [certificate.der(), &self.ca_der[0]].map(CertificateDer::clone).into();

        Ok((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

/// Whether a verified certificate is of a replica.
pub fn is_replica(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else { return false };
    let group = parsed.subject().iter_organization().next();

    group.and_then(|group| group.as_str().ok()) == Some(PEERS_GROUP)
}
