//! Verifies cloudcore as rustls does, but at a time at which its certificate has begun: the authority signs for no
//! later time than its own, so what it has signed shows how late it is at least, where a clock is behind.

use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::client::{VerifierBuilderError, WantsClientCert, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, Error as TlsError,
    RootCertStore, SignatureScheme, WantsVerifier,
};

/// When a certificate begins that is refused for nothing but that.
pub(super) fn begins(error: &TlsError) -> Option<UnixTime> {
    let TlsError::InvalidCertificate(problem) = error else { return None };
    let CertificateError::NotValidYetContext { not_before, .. } = problem else { return None };

    Some(*not_before)
}

/// Verifies the certificate of a server, if it has not begun at `now` as of when it does.
pub fn verify(
    verifier: &WebPkiServerVerifier,
    certificate: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, TlsError> {
    let verify = |now| verifier.verify_server_cert(certificate, above, name, &[], now);

    verify(now).or_else(|error| match begins(&error) {
        Some(begin) => verify(begin),
        None => Err(error),
    })
}

/// TLS to servers of these authorities.
pub(super) fn servers_of(
    roots: &Arc<RootCertStore>,
    builder: ConfigBuilder<ClientConfig, WantsVerifier>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, VerifierBuilderError> {
    let provider = Arc::new(default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), provider).build()?;

    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(Begun(verifier))))
}

#[derive(Debug)]
struct Begun(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for Begun {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        verify(&self.0, certificate, above, name, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::link::dial::SERVER_NAME;
    use crate::link::dial::tests::Authority;

    #[test]
    fn a_certificate_that_has_not_begun_is_verified_as_of_when_it_does() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let year = |year| {
            let seconds = rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
            UnixTime::since_unix_epoch(Duration::from_secs(seconds.try_into().unwrap()))
        };
        let check = |of: &Authority, name: &str, now, expected: Option<&str>| {
            let certificate = of.between(name, 2026, 2027);
            let provider = Arc::new(default_provider());
            let verifier =
                WebPkiServerVerifier::builder_with_provider(ours.roots(), provider).build();
            let name = ServerName::try_from(SERVER_NAME).unwrap();
            let verdict = verify(&verifier.unwrap(), &certificate, &[], &name, year(now));
            let said = verdict.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(expected.map_or(said.is_empty(), |part| said.contains(part)), "{now}: {said}");
        };
        check(&ours, SERVER_NAME, 1970, None);
        check(&ours, SERVER_NAME, 2026, None);
        check(&ours, SERVER_NAME, 2028, Some("expired"));
        // Whoever is not cloudcore gains nothing.
        check(&theirs, SERVER_NAME, 1970, Some("certificate"));
        check(&ours, "another.internal", 1970, Some("not valid for name"));
    }
}
