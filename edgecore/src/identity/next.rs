//! The next key of a node, and the certificate that is asked for it.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::ids::NodeName;
use proto::wire::Issued;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::files::{self, CA_FILE, Content, Marks};
use super::{Identity, IdentityError, certificates, der, load, roots, tls};

/// Organization of nodes (Kubernetes).
const NODES_GROUP: &str = "system:nodes";

/// Characters in a line of PEM.
const PEM_LINE: usize = 64;

/// A key that no certificate is for yet.
pub struct NextKey {
    pkcs8: Vec<u8>,
    csr: Vec<u8>,
}

impl fmt::Debug for NextKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NextKey(..)")
    }
}

impl NextKey {
    /// Makes one, with a request for a certificate of `node`.
    pub fn generate(node: &NodeName) -> Result<Self, IdentityError> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
        let failed = |_| IdentityError::NoRandomness;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(failed)?;
        let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random)
            .map_err(|_| IdentityError::NoRandomness)?;
        let name = format!("system:node:{node}");
        let info = der::request_info(NODES_GROUP, &name, key.public_key().as_ref());
        let signature = key.sign(&random, &info).map_err(failed)?;
        let csr = der::request(&info, signature.as_ref());

        Ok(Self { pkcs8: pkcs8.as_ref().to_vec(), csr })
    }

    /// The request (PKCS #10), DER.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// Takes the certificate for it: from now on this is the identity in the folder, in the place of `before`.
    /// What TLS would not take replaces nothing, and nothing replaces what somebody has put there meanwhile.
    pub fn keep(
        &self,
        dir: &Path,
        before: &Identity,
        issued: &Issued,
        now: Duration,
    ) -> Result<Identity, IdentityError> {
        let certificate = pem("CERTIFICATE", &issued.certificate);
        let key = pem("PRIVATE KEY", &self.pkcs8);
        let kept = std::fs::read_to_string(dir.join(CA_FILE)).unwrap_or_default();
        let given: String = issued.authorities.iter().map(|ca| pem("CERTIFICATE", ca)).collect();
        let is_new = !given.is_empty() && !are_same(&kept, &given);
        let ca = is_new.then_some(given.as_str());
        let chain = certificates(dir, certificate.as_bytes())?;
        let trusted = roots(dir, ca.unwrap_or(&kept).as_bytes())?;
        tls(dir, &trusted, chain, PrivatePkcs8KeyDer::from(self.pkcs8.clone()).into())?;
        if Marks::of(dir) != before.marks {
            return Err(IdentityError::Replaced { dir: dir.to_owned() });
        }
        let join_id = &before.join_id;
        let content = Content { join_id, ca, certificate: &certificate, key: &key };
        files::replace(dir, &content)?;

        load(dir, now)
    }
}

/// Whether both texts have the same certificates.
fn are_same(one: &str, other: &str) -> bool {
    let all = |text: &str| -> Option<Vec<_>> {
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().ok()
    };

    all(one) == all(other)
}

/// The text form of a certificate or key (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut lines = vec![format!("-----BEGIN {label}-----")];
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(PEM_LINE.min(rest.len()));
        lines.push(line.to_owned());
        rest = after;
    }
    lines.push(format!("-----END {label}-----\n"));

    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use rcgen::{CertificateSigningRequestParams, DnType, DnValue, Issuer, KeyPair};

    use super::*;
    use crate::clock;
    use crate::identity::files::tests::{pair, write_old};

    fn node() -> NodeName {
        NodeName::new("edge-1").unwrap()
    }

    #[test]
    fn a_request_is_what_others_read() {
        let next = NextKey::generate(&node()).unwrap();
        let read = CertificateSigningRequestParams::from_der(&next.csr().into()).unwrap();
        let name = read.params.distinguished_name;
        let expected = |text: &str| Some(DnValue::Utf8String(text.to_owned()));
        assert_eq!(name.get(&DnType::OrganizationName).cloned(), expected("system:nodes"));
        assert_eq!(name.get(&DnType::CommonName).cloned(), expected("system:node:edge-1"));
        // One that somebody has changed is not.
        let mut changed = next.csr().to_vec();
        let at = changed.len() / 3;
        changed[at] ^= 1;
        assert!(CertificateSigningRequestParams::from_der(&changed.as_slice().into()).is_err());
    }

    /// What the authority with this certificate and key gives for a request.
    fn issue(csr: &[u8], ca: &str, key: &str) -> Bytes {
        let issuer = Issuer::from_ca_cert_pem(ca, KeyPair::from_pem(key).unwrap()).unwrap();
        let request = CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
        let certificate = request.signed_by(&issuer).unwrap();

        Bytes::copy_from_slice(certificate.der())
    }

    #[test]
    fn a_certificate_is_kept_with_its_key_and_the_join_stays_the_same() {
        let ((ca, key), (other_ca, _)) = (pair(), pair());
        for old_layout in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            if old_layout {
                write_old(dir.path(), &ca, &ca, &key);
            } else {
                super::super::write(dir.path(), &ca, &ca, &key).unwrap();
            }
            let before = load(dir.path(), clock::since_1970()).unwrap();
            let next = NextKey::generate(&node()).unwrap();
            let keep = |before: &Identity, issued: &Issued| {
                next.keep(dir.path(), before, issued, clock::since_1970())
            };
            let certificate = issue(next.csr(), &ca, &key);
            // For another key: the one that is there stays.
            let foreign = issue(NextKey::generate(&node()).unwrap().csr(), &ca, &key);
            for wrong in [foreign, Bytes::from_static(b"nonsense")] {
                keep(&before, &Issued { certificate: wrong, authorities: Vec::new() }).unwrap_err();
                assert!(before.reload(dir.path(), clock::since_1970()).is_none());
            }
            let der = |pem: &str| {
                let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
                Bytes::copy_from_slice(&der)
            };
            let same = Issued { certificate: certificate.clone(), authorities: vec![der(&ca)] };
            let after = keep(&before, &same).unwrap();
            assert_eq!(after.join_id, before.join_id);
            assert_eq!(std::fs::read_to_string(dir.path().join(CA_FILE)).unwrap(), ca);
            let both = vec![der(&ca), der(&other_ca)];
            let both = Issued { certificate, authorities: both };
            assert!(matches!(keep(&before, &both), Err(IdentityError::Replaced { .. })));
            keep(&after, &both).unwrap();
            let kept = std::fs::read_to_string(dir.path().join(CA_FILE)).unwrap();
            assert!(are_same(&kept, &format!("{ca}{other_ca}")), "{kept}");
        }
    }
}
