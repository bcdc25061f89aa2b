//! What the Secret of the authority holds.
//!
//! `ca.crt` has the certificates that are believed; `ca.key` is of the first, which signs what cloudcore shows.
//! Nodes' certificates are signed by the same, or by the second if `next.key` is there: then one takes the other's
//! place. A cloudcore that knows no `next.key` signs with the first, which every node believes.
//! `tickets.key` outlives them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use proto::admission::TicketKey;
use proto::codec::AUTHORITIES_MAX;
use proto::wire::Fingerprint;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

use super::{Authority, CA_SECRET, CLUSTER, PkiError, valid_for};

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const NEXT_KEY: &str = "next.key";
const TICKETS_KEY: &str = "tickets.key";

/// Bytes of the key of tickets.
const TICKETS_KEY_LEN: usize = 32;

const CA_LIFE: Duration = Duration::from_hours(24 * 3650);

/// A Secret with a new authority.
pub(super) fn make(cluster: &str) -> Result<Secret, PkiError> {
    let failed = |source| PkiError::Make { what: "the authority".to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "holdfast");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    valid_for(&mut params, CA_LIFE);
    let certificate = params.self_signed(&key).map_err(failed)?;
    let mut secret = Secret::default();
    secret.metadata.name = Some(CA_SECRET.to_owned());
    secret.metadata.annotations = Some(BTreeMap::from([(CLUSTER.to_owned(), cluster.to_owned())]));
    secret.data = Some(BTreeMap::from([
        (CA_CERT.to_owned(), ByteString(certificate.pem().into_bytes())),
        (CA_KEY.to_owned(), ByteString(key.serialize_pem().into_bytes())),
    ]));
    keep_ticket_key(&mut secret)?;

    Ok(secret)
}

/// Puts the key of tickets into a Secret that has none; whether it had none. It is the one that was made of the
/// authority's key before it was kept, so that tickets stay good.
pub(super) fn keep_ticket_key(secret: &mut Secret) -> Result<bool, PkiError> {
    if data(secret, TICKETS_KEY).is_some() {
        return Ok(false);
    }
    let made = ticket_key_of(&key(secret, CA_KEY)?);
    secret.data.get_or_insert_default().insert(TICKETS_KEY.to_owned(), ByteString(made));

    Ok(true)
}

/// Reads the authority.
pub(super) fn read(secret: &Secret) -> Result<Authority, PkiError> {
    let ca_pem = text(secret, CA_CERT)?;
    let ca_der: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca_pem.as_bytes()).collect();
    let ca_der = ca_der.map_err(|_| PkiError::Content(CA_CERT))?;
    if ca_der.len() > AUTHORITIES_MAX {
        return Err(PkiError::Content(CA_CERT));
    }
    let first = key(secret, CA_KEY)?;
    let tickets = match data(secret, TICKETS_KEY) {
        Some(kept) if kept.len() >= TICKETS_KEY_LEN => TicketKey::new(kept),
        Some(_) => return Err(PkiError::Content(TICKETS_KEY)),
        None => TicketKey::new(&ticket_key_of(&first)),
    };
    let issuer = issuer(ca_der.first(), first).ok_or(PkiError::Content(CA_CERT))?;
    let next = if data(secret, NEXT_KEY).is_some() {
        let next = self::issuer(ca_der.get(1), key(secret, NEXT_KEY)?);
        Some(next.ok_or(PkiError::Content(NEXT_KEY))?)
    } else {
        None
    };
    let prints = ca_der.iter().map(|der| Fingerprint::of(der)).collect();

    Ok(Authority { ca_pem, ca_der, prints, issuer, next, tickets })
}

fn data<'a>(secret: &'a Secret, name: &str) -> Option<&'a [u8]> {
    Some(secret.data.as_ref()?.get(name)?.0.as_slice())
}

fn text(secret: &Secret, name: &'static str) -> Result<String, PkiError> {
    let bytes = data(secret, name).ok_or(PkiError::Content(name))?;

    String::from_utf8(bytes.to_vec()).map_err(|_| PkiError::Content(name))
}

fn key(secret: &Secret, name: &'static str) -> Result<KeyPair, PkiError> {
    KeyPair::from_pem(&text(secret, name)?).map_err(|_| PkiError::Content(name))
}

fn ticket_key_of(key: &KeyPair) -> Vec<u8> {
    let secret = [b"holdfast tickets", key.serialize_der().as_slice()].concat();

    ring::digest::digest(&ring::digest::SHA256, &secret).as_ref().to_vec()
}

/// None if the key is of another certificate.
fn issuer(
    certificate: Option<&CertificateDer<'static>>,
    key: KeyPair,
) -> Option<Issuer<'static, KeyPair>> {
    let certificate = certificate?;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let is_of_key = parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw();

    is_of_key.then(|| Issuer::from_ca_cert_der(certificate, key).ok()).flatten()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An authority that is in no Secret.
    pub(crate) fn made() -> Authority {
        read(&make("c-1").unwrap()).unwrap()
    }

    fn pem(secret: &Secret, name: &'static str) -> String {
        text(secret, name).unwrap()
    }

    fn put(secret: &mut Secret, name: &str, text: String) {
        secret.data.get_or_insert_default().insert(name.to_owned(), ByteString(text.into_bytes()));
    }

    #[test]
    fn one_authority_signs_everything_and_of_two_the_next_signs_nodes() {
        let (mut secret, other) = (make("c-1").unwrap(), make("c-1").unwrap());
        let alone = read(&secret).unwrap();
        assert_eq!(alone.fingerprints(), [alone.signer()]);

        let both = format!("{}{}", pem(&secret, CA_CERT), pem(&other, CA_CERT));
        put(&mut secret, CA_CERT, both);
        let trusted = read(&secret).unwrap();
        assert_eq!(trusted.fingerprints().len(), 2);
        assert_eq!(trusted.signer(), alone.signer());
        assert!(!trusted.is_same(&alone));

        put(&mut secret, NEXT_KEY, pem(&other, CA_KEY));
        let rolling = read(&secret).unwrap();
        assert_eq!(rolling.signer(), read(&other).unwrap().signer());
        assert!(!rolling.is_same(&trusted));
        // What cloudcore shows is by the one that every node believes.
        let (chain, _) = rolling.serving(vec!["x".to_owned()]).unwrap();
        assert_eq!(rolling.issuer_of(&chain[0]), None, "it is of no node");
        assert_eq!(chain[1], alone.certificates()[0]);

        // A key of another, and one that is no key.
        for wrong in [pem(&secret, CA_KEY), "key".to_owned()] {
            put(&mut secret, NEXT_KEY, wrong);
            assert!(matches!(read(&secret), Err(PkiError::Content(NEXT_KEY))));
        }
    }

    #[test]
    fn tickets_outlive_the_authority() {
        let (mut secret, other) = (make("c-1").unwrap(), make("c-1").unwrap());
        let node = proto::ids::NodeName::new("edge-1").unwrap();
        secret.data.as_mut().unwrap().remove(TICKETS_KEY);
        // As an older cloudcore gave it out.
        let ticket = read(&secret).unwrap().tickets().issue(&node, 7, [0; 16]);
        let verified = |secret: &Secret| read(secret).unwrap().tickets().verify(&node, &ticket);
        assert_eq!(verified(&other), None);
        assert!(keep_ticket_key(&mut secret).unwrap());
        assert!(!keep_ticket_key(&mut secret).unwrap());
        put(&mut secret, CA_CERT, pem(&other, CA_CERT));
        put(&mut secret, CA_KEY, pem(&other, CA_KEY));
        assert_eq!(verified(&secret), Some(7));
        put(&mut secret, TICKETS_KEY, "short".to_owned());
        assert!(matches!(read(&secret), Err(PkiError::Content(TICKETS_KEY))));
    }
}
