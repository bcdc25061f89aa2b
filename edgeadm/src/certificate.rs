//! The certificate that this node shows to cloudcore.

use std::path::Path;

use edgecore::clock;
use edgecore::identity::{self, IdentityError};
use jiff::Timestamp;
use serde::Serialize;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What keys of nodes can sign with.
const SCHEMES: [SignatureScheme; 3] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
];

/// What is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Certificate {
    /// Whom it names.
    pub subject: String,
    /// By whom.
    pub issuer: String,
    /// From when it is good.
    pub not_before: String,
    /// Until when.
    pub not_after: String,
    /// Why cloudcore will not take it, as far as can be seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Reads the identity in `dir` as the agent does.
pub fn read(dir: &Path) -> Result<Option<Certificate>, IdentityError> {
    let identity = identity::load(dir, clock::since_1970())?;
    let shown = identity.tls.client_auth_cert_resolver.resolve(&[], &SCHEMES);
    let problem = identity.problem.map(|problem| problem.to_string());

    Ok(shown.and_then(|key| told(key.cert.first()?, problem)))
}

fn told(der: &CertificateDer<'_>, problem: Option<String>) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    let time = |seconds| {
        Timestamp::from_second(seconds).map_or_else(|_| String::new(), |at| at.to_string())
    };

    Some(Certificate {
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        not_before: time(validity.not_before.timestamp()),
        not_after: time(validity.not_after.timestamp()),
        problem,
    })
}
