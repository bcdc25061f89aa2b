//! What the Secret of the authority holds, and the steps from one authority to the next; cloudcore reads it
//! (`cloudcore/src/pki/kept.rs`).
//!
//! One authority takes the other's place in steps, and between any two of them every node and every replica believes
//! whoever it talks to:
//!
//! 1. [`Stage::Alone`]: one authority signs everything.
//! 2. [`Stage::Trusted`]: the next one is believed by replicas, and signs nothing.
//! 3. [`Stage::Rolling`]: it signs certificates of nodes, which get both authorities with them. What cloudcore
//!    shows is still by the first, which all nodes believe, those that are away, too.
//! 4. [`Stage::Trusted`]: no node has a certificate by the first any more. The next one is the first now and signs
//!    everything; the other one is still believed, for replicas that have not read this yet.
//! 5. [`Stage::Alone`].

use std::time::SystemTime;

use edgecore::identity::next;
use jiff::{Timestamp, ToSpan as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use proto::wire::Fingerprint;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use serde::Serialize;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

/// The Secret of the authority, made by cloudcore at its first start.
pub const CA_SECRET: &str = "holdfast-ca";

/// The certificates that are believed. The first signs what cloudcore shows.
pub const CA_CERT: &str = "ca.crt";
/// Of the first.
const CA_KEY: &str = "ca.key";
/// Of the second: as long as it is there, that signs certificates of nodes.
pub const NEXT_KEY: &str = "next.key";
/// What resume tickets are signed with. A cloudcore that does not put it there cannot roll over.
const TICKETS_KEY: &str = "tickets.key";

/// Hours that an authority lives, and those before its making: clocks are not exact.
const LIFE_HOURS: i64 = 24 * 3650;
const SKEW_HOURS: i64 = 24;

/// Hexadecimal digits of the hash of an authority's key in its name.
const NAME_LEN: usize = 8;

/// Why the Secret is not what is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeptError {
    /// It does not hold what it should.
    #[error("it has no usable {0}; restore it from a backup")]
    Content(&'static str),
    /// Cloudcore is too old.
    #[error("the cloudcore that runs there knows no rollover: upgrade every replica first")]
    TooOld,
    /// Two are there.
    #[error(
        "a rollover is under way: `edgeadm ca status` says how far it is, `edgeadm ca finish` or `edgeadm ca \
         abort` end it"
    )]
    UnderWay,
    /// One is there.
    #[error("no rollover is under way: `edgeadm ca start` begins one")]
    NotUnderWay,
    /// The way back was taken before.
    #[error(
        "the next authority signs nothing any more, or does not yet: `edgeadm ca finish` removes it"
    )]
    NotRolling,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Stage {
    /// One authority.
    Alone,
    /// The first signs everything, others are believed.
    Trusted,
    /// The second signs certificates of nodes.
    Rolling,
}

/// A Secret that was read.
#[derive(Clone, Debug)]
pub struct Kept {
    secret: Secret,
    certificates: Vec<CertificateDer<'static>>,
    prints: Vec<Fingerprint>,
}

/// An authority that is nowhere yet.
pub struct Next {
    certificate: String,
    key: String,
}

impl Next {
    /// Makes one.
    pub fn make(now: Timestamp) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let name = Fingerprint::of(key.der_bytes()).to_string();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("holdfast-{}", &name[..NAME_LEN]));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = SystemTime::from(now - SKEW_HOURS.hours()).into();
        params.not_after = SystemTime::from(now + LIFE_HOURS.hours()).into();
        let certificate = params.self_signed(&key)?.pem();

        Ok(Self { certificate, key: key.serialize_pem() })
    }
}

impl Kept {
    /// Looks at a Secret.
    pub fn read(secret: Secret) -> Result<Self, KeptError> {
        let text = secret.data.as_ref().and_then(|data| data.get(CA_CERT));
        let text = text.ok_or(KeptError::Content(CA_CERT))?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text.0).collect();
        let certificates = certificates.map_err(|_| KeptError::Content(CA_CERT))?;
        let prints: Vec<_> = certificates.iter().map(|der| Fingerprint::of(der)).collect();
        let kept = Self { secret, certificates, prints };
        let wanted = if kept.has(NEXT_KEY) { 2 } else { 1 };

        if kept.prints.len() < wanted { Err(KeptError::Content(CA_CERT)) } else { Ok(kept) }
    }

    /// The certificates that are believed.
    pub fn certificates(&self) -> impl Iterator<Item = (Fingerprint, &CertificateDer<'static>)> {
        self.prints.iter().copied().zip(&self.certificates)
    }

    /// How far it is.
    pub fn stage(&self) -> Stage {
        match self.prints.len() {
            _ if self.has(NEXT_KEY) => Stage::Rolling,
            1 => Stage::Alone,
            _ => Stage::Trusted,
        }
    }

    /// Signs what cloudcore shows.
    pub fn first(&self) -> Fingerprint {
        self.prints[0]
    }

    /// Signs certificates of nodes.
    pub fn signer(&self) -> Fingerprint {
        self.prints[self.signer_at()]
    }

    /// With another authority that is believed and signs nothing.
    pub fn with(&self, next: &Next) -> Result<Secret, KeptError> {
        if self.stage() != Stage::Alone {
            return Err(KeptError::UnderWay);
        }
        if !self.has(TICKETS_KEY) {
            return Err(KeptError::TooOld);
        }
        let mut secret = self.secret.clone();
        put(&mut secret, CA_CERT, pem(&self.certificates[0]) + &next.certificate);

        Ok(secret)
    }

    /// With that authority signing certificates of nodes.
    pub fn rolling(&self, next: &Next) -> Secret {
        let mut secret = self.secret.clone();
        put(&mut secret, NEXT_KEY, next.key.clone());

        secret
    }

    /// With what signs certificates of nodes signing everything, and the others believed.
    pub fn turned(&self) -> Result<Secret, KeptError> {
        let signer = self.signer_at();
        let others = self.certificates.iter().enumerate().filter(|(at, _)| *at != signer);
        let bundle: String = others.map(|(_, der)| pem(der)).collect();
        let mut secret = self.secret.clone();
        let data = secret.data.get_or_insert_default();
        let key = data.remove(NEXT_KEY).ok_or(KeptError::NotRolling)?;
        data.insert(CA_KEY.to_owned(), key);
        put(&mut secret, CA_CERT, pem(&self.certificates[signer]) + &bundle);

        Ok(secret)
    }

    /// With the first signing everything again.
    pub fn back(&self) -> Result<Secret, KeptError> {
        let mut secret = self.secret.clone();
        let key = secret.data.get_or_insert_default().remove(NEXT_KEY);

        match self.stage() {
            Stage::Alone => Err(KeptError::NotUnderWay),
            Stage::Trusted | Stage::Rolling => key.map(|_| secret).ok_or(KeptError::NotRolling),
        }
    }

    /// With the first alone.
    pub fn alone(&self) -> Result<Secret, KeptError> {
        let mut secret = self.secret.clone();
        put(&mut secret, CA_CERT, pem(&self.certificates[0]));

        match self.stage() {
            Stage::Alone => Err(KeptError::NotUnderWay),
            Stage::Rolling => Err(KeptError::UnderWay),
            Stage::Trusted => Ok(secret),
        }
    }

    fn signer_at(&self) -> usize {
        usize::from(self.has(NEXT_KEY))
    }

    fn has(&self, name: &str) -> bool {
        self.secret.data.as_ref().is_some_and(|data| data.contains_key(name))
    }
}

fn put(secret: &mut Secret, name: &str, text: String) {
    let data = secret.data.get_or_insert_default();
    data.insert(name.to_owned(), ByteString(text.into_bytes()));
}

fn pem(der: &CertificateDer<'_>) -> String {
    next::pem("CERTIFICATE", der)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-24T10:00:00Z".parse().unwrap()
    }

    /// A Secret with one authority.
    pub(crate) fn alone() -> Kept {
        let next = Next::make(now()).unwrap();
        let mut secret = Secret::default();
        put(&mut secret, CA_CERT, next.certificate);
        put(&mut secret, CA_KEY, next.key);
        put(&mut secret, TICKETS_KEY, "tickets".to_owned());

        Kept::read(secret).unwrap()
    }

    /// It with another that signs nodes.
    pub(crate) fn rolling(alone: &Kept) -> Kept {
        let next = Next::make(now()).unwrap();
        let trusted = read(alone.with(&next));

        Kept::read(trusted.rolling(&next)).unwrap()
    }

    fn read(secret: Result<Secret, KeptError>) -> Kept {
        Kept::read(secret.unwrap()).unwrap()
    }

    /// The key of what signs what cloudcore shows is the first's.
    fn is_whole(kept: &Kept) -> bool {
        let data = kept.secret.data.as_ref().unwrap();
        let key = std::str::from_utf8(&data[CA_KEY].0).unwrap();
        let key = KeyPair::from_pem(key).unwrap();
        let (_, first) = x509_parser::parse_x509_certificate(&kept.certificates[0]).unwrap();

        first.public_key().subject_public_key.data.as_ref() == key.der_bytes()
    }

    #[test]
    fn one_authority_takes_the_others_place_step_by_step() {
        let start = alone();
        let next = Next::make(now()).unwrap();
        let trusted = read(start.with(&next));
        let rolling = Kept::read(trusted.rolling(&next)).unwrap();
        let turned = read(rolling.turned());
        let end = read(turned.alone());
        let all = [&start, &trusted, &rolling, &turned, &end];
        let stages = [Stage::Alone, Stage::Trusted, Stage::Rolling, Stage::Trusted, Stage::Alone];
        assert_eq!(all.map(Kept::stage), stages);
        assert!(all.iter().all(|kept| is_whole(kept) && kept.has(TICKETS_KEY)));
        let (old, new) = (start.first(), end.first());
        assert_ne!(old, new);
        assert_eq!(all.map(Kept::first), [old, old, old, new, new]);
        assert_eq!(all.map(Kept::signer), [old, old, new, new, new]);
        // Whoever has read a step believes those of the step before and of the next.
        for pair in all.windows(2) {
            let signers = |kept: &Kept| [kept.first(), kept.signer()];
            assert!(signers(pair[0]).iter().all(|by| pair[1].prints.contains(by)));
            assert!(signers(pair[1]).iter().all(|by| pair[0].prints.contains(by)));
        }
    }

    #[test]
    fn the_way_back_ends_with_what_was_there_before() {
        let start = alone();
        let back = read(rolling(&start).back());
        assert_eq!(
            (back.stage(), back.first(), back.signer()),
            (Stage::Trusted, start.first(), start.first())
        );
        let end = read(back.alone());
        assert_eq!((end.stage(), end.first()), (Stage::Alone, start.first()));
        assert!(is_whole(&end));
    }

    #[test]
    fn steps_out_of_turn_are_refused() {
        let start = alone();
        let next = Next::make(now()).unwrap();
        let (trusted, rolling) = (read(start.with(&next)), rolling(&start));
        let refused = |step: Result<Secret, KeptError>| step.unwrap_err();
        assert_eq!(refused(trusted.with(&next)), KeptError::UnderWay);
        assert_eq!(refused(rolling.with(&next)), KeptError::UnderWay);
        assert_eq!(refused(rolling.alone()), KeptError::UnderWay);
        assert_eq!(refused(start.alone()), KeptError::NotUnderWay);
        assert_eq!(refused(start.back()), KeptError::NotUnderWay);
        assert_eq!(refused(trusted.back()), KeptError::NotRolling);
        assert_eq!(refused(trusted.turned()), KeptError::NotRolling);
        let mut old = start.secret.clone();
        old.data.as_mut().unwrap().remove(TICKETS_KEY);
        assert_eq!(refused(Kept::read(old).unwrap().with(&next)), KeptError::TooOld);
        // A key without its certificate.
        let mut broken = start.secret.clone();
        put(&mut broken, NEXT_KEY, next.key);
        assert_eq!(Kept::read(broken).unwrap_err(), KeptError::Content(CA_CERT));
    }
}
