//! How nodes name themselves: in requests for certificates, and by certificates.

use proto::ids::NodeName;
use proto::object::hex;
use proto::wire::Fingerprint;
use rcgen::{CertificateSigningRequestParams, DnType, DnValue, PublicKey, PublicKeyData as _};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use tokio_rustls::rustls::pki_types::CertificateDer;

use super::PkiError;

/// Prefix of the common name of nodes' certificates (Kubernetes: `system:node:`).
pub(super) const NODE_PREFIX: &str = "system:node:";
/// Organization of nodes' certificates.
pub(super) const NODES_GROUP: &str = "system:nodes";

/// The SHA-256 of a node's public key, in hex: tells machines of one name apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHash(String);

impl KeyHash {
    /// Of the bits of a public key, as they are in a certificate.
    pub(crate) fn of(public_key: &[u8]) -> Self {
        Self(hex(ring::digest::digest(&ring::digest::SHA256, public_key).as_ref()))
    }

    /// 64 hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A certificate request that was checked: it is signed by its key, and its subject is the node.
#[derive(Debug)]
pub struct NodeRequest {
    pub(super) node: NodeName,
    pub(super) public_key: PublicKey,
}

impl NodeRequest {
    /// Checks what a node sent, PEM.
    pub fn parse(node: &NodeName, csr_pem: &str) -> Result<Self, PkiError> {
        Self::check(node, CertificateSigningRequestParams::from_pem(csr_pem))
    }

    /// Checks what a node sent, DER.
    pub fn parse_der(node: &NodeName, csr: &[u8]) -> Result<Self, PkiError> {
        Self::check(node, CertificateSigningRequestParams::from_der(&csr.into()))
    }

    fn check(
        node: &NodeName,
        request: Result<CertificateSigningRequestParams, rcgen::Error>,
    ) -> Result<Self, PkiError> {
        let refused = |reason: String| PkiError::Request { node: node.clone(), reason };
        let request = request.map_err(|error| refused(error.to_string()))?;
        let subject = &request.params.distinguished_name;
        let common_name = format!("{NODE_PREFIX}{node}");
        let is_of_node = text_of(subject.get(&DnType::CommonName)) == Some(&common_name)
            && text_of(subject.get(&DnType::OrganizationName)) == Some(NODES_GROUP);
        if !is_of_node {
            return Err(refused(format!("its subject must be O={NODES_GROUP}, CN={common_name}")));
        }

        Ok(Self { node: node.clone(), public_key: request.public_key })
    }

    /// Of its public key.
    pub fn key_hash(&self) -> KeyHash {
        KeyHash::of(self.public_key.der_bytes())
    }
}

/// A subject has one of two kinds of string in practice (RFC 5280, section 4.1.2.4).
fn text_of(value: Option<&DnValue>) -> Option<&str> {
    let value = value?;
    if let DnValue::PrintableString(text) = value {
        return Some(text.as_str());
    }
    if let DnValue::Utf8String(text) = value { Some(text) } else { None }
}

/// Who has shown a certificate of this authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The node that it names.
    pub node: NodeName,
    /// Of its public key.
    pub key: KeyHash,
    /// Which certificate.
    pub certificate: Fingerprint,
    public_key: Vec<u8>,
}

impl Holder {
    /// Whether this is a signature of the message by the holder's key, which is of the kind that nodes make.
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.public_key)
            .verify(message, signature)
            .is_ok()
    }
}

/// Whose a verified client certificate is.
pub fn holder_of(certificate: &CertificateDer<'_>) -> Option<Holder> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let group = subject.iter_organization().next()?.as_str().ok()?;
    let node = name.strip_prefix(NODE_PREFIX).filter(|_| group == NODES_GROUP)?;
    let public_key = parsed.public_key().subject_public_key.data.to_vec();
    let key = KeyHash::of(&public_key);
    let certificate = Fingerprint::of(certificate);

    Some(Holder { node: NodeName::new(node).ok()?, key, certificate, public_key })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The holder of a certificate that nobody looks into.
    pub(crate) fn holder(node: &str, certificate: Fingerprint) -> Holder {
        let (node, key) = (NodeName::new(node).unwrap(), KeyHash::of(&certificate.0));

        Holder { node, key, certificate, public_key: Vec::new() }
    }
}
