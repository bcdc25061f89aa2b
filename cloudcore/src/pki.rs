//! The authority of this installation: it names nodes, and proves to them who cloudcore is.
//!
//! Its key is in a Secret of cloudcore's namespace, made once by whichever replica comes first.

mod current;
pub mod peers;
pub mod token;

pub use self::current::{Current, reread};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use proto::admission::TicketKey;
use proto::codec::AUTHORITIES_MAX;
use proto::ids::NodeName;
use proto::object::hex;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType,
    DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKey,
    PublicKeyData as _,
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use tokio_rustls::rustls;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

/// The name in cloudcore's certificate; edges ask for it whatever address they dial, so that a
/// change of address needs no new certificate.
pub const SERVER_NAME: &str = "cloudcore.holdfast.internal";

/// The Secret with certificate and key of the authority.
const CA_SECRET: &str = "holdfast-ca";
const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
/// Annotation of the Secret: UID of namespace kube-system of the cluster whose nodes trust it.
const CLUSTER: &str = "holdfast.dev/cluster-uid";

const CA_LIFE: Duration = Duration::from_hours(24 * 3650);
/// Made anew at every start of cloudcore and every month.
const SERVER_LIFE: Duration = Duration::from_hours(24 * 365);
/// Clocks of edges are not exact.
const CLOCK_SKEW: Duration = Duration::from_hours(24);

/// Prefix of the common name of nodes' certificates (Kubernetes: `system:node:`).
const NODE_PREFIX: &str = "system:node:";
/// Organization of nodes' certificates.
const NODES_GROUP: &str = "system:nodes";

/// Why the authority cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The API server refuses the Secret.
    #[error("cannot {verb} secret {CA_SECRET} in namespace {namespace}")]
    Secret {
        /// get, create or update.
        verb: &'static str,
        /// Where.
        namespace: String,
        /// Why.
        #[source]
        source: kube::Error,
    },
    /// The Secret does not hold what it should.
    #[error(
        "secret {CA_SECRET} has no usable {0}; restore it from a backup, or delete it and join every node anew"
    )]
    Content(&'static str),
    /// The Secret was made for another cluster.
    #[error(
        "secret {CA_SECRET} in namespace {namespace} is of the cluster {bound_to}, and this one is {cluster}: what \
         its nodes run is not known here; if they are to be served here all the same, remove the annotation \
         {CLUSTER} from the secret"
    )]
    OtherCluster {
        /// Where.
        namespace: String,
        /// The UID that it says.
        bound_to: String,
        /// The UID of the cluster that it was found in.
        cluster: String,
    },
    /// A certificate could not be made.
    #[error("cannot make the certificate of {what}")]
    Make {
        /// Whose.
        what: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// A node asks for a certificate it may not have.
    #[error("the certificate request is not for node {node}: {reason}")]
    Request {
        /// Which node asks.
        node: NodeName,
        /// What is wrong.
        reason: String,
    },
    /// TLS does not take the certificates.
    #[error("TLS does not take the certificates of the authority")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Certificate and key of the authority.
pub struct Authority {
    ca_pem: String,
    /// What signs, and then whatever else nodes are believed by.
    ca_der: Vec<CertificateDer<'static>>,
    issuer: Issuer<'static, KeyPair>,
    tickets: TicketKey,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the authority, or makes it if this is the first start. `cluster` is the UID of namespace
    /// kube-system: what is kept with the authority must be that.
    pub async fn load_or_create(
        client: Client,
        namespace: &str,
        cluster: &str,
    ) -> Result<Self, PkiError> {
        let secrets: Api<Secret> = Api::namespaced(client, namespace);
        let failed =
            |verb| move |source| PkiError::Secret { verb, namespace: namespace.to_owned(), source };
        let found = secrets.get_opt(CA_SECRET).await.map_err(failed("get"))?;
        let mut secret = if let Some(secret) = found {
            secret
        } else {
            match secrets.create(&PostParams::default(), &Self::make(cluster)?).await {
                Ok(secret) => {
                    tracing::info!(
                        cluster,
                        "made an authority: machines that have joined another must join again"
                    );
                    secret
                }
                // Another replica was faster: its authority is ours.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    secrets.get(CA_SECRET).await.map_err(failed("get"))?
                }
                Err(source) => return Err(failed("create")(source)),
            }
        };
        match cluster_of(&secret) {
            Some(bound_to) if bound_to == cluster => {}
            Some(bound_to) => {
                let (namespace, cluster) = (namespace.to_owned(), cluster.to_owned());
                return Err(PkiError::OtherCluster { namespace, bound_to, cluster });
            }
            // An operator has decided, or it is from before there was an annotation.
            None => {
                let annotations = secret.metadata.annotations.get_or_insert_default();
                annotations.insert(CLUSTER.to_owned(), cluster.to_owned());
                // Replaced only as it was read: another replica writes the same.
                match secrets.replace(CA_SECRET, &PostParams::default(), &secret).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if status.code == 409 => {}
                    Err(source) => return Err(failed("update")(source)),
                }
            }
        }

        Self::read(&secret)
    }

    fn make(cluster: &str) -> Result<Secret, PkiError> {
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
        secret.metadata.annotations =
            Some(BTreeMap::from([(CLUSTER.to_owned(), cluster.to_owned())]));
        secret.data = Some(BTreeMap::from([
            (CA_CERT.to_owned(), ByteString(certificate.pem().into_bytes())),
            (CA_KEY.to_owned(), ByteString(key.serialize_pem().into_bytes())),
        ]));

        Ok(secret)
    }

    fn read(secret: &Secret) -> Result<Self, PkiError> {
        let text = |name: &'static str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
            text.ok_or(PkiError::Content(name))
        };
        let ca_pem = text(CA_CERT)?;
        let key = KeyPair::from_pem(&text(CA_KEY)?).map_err(|_| PkiError::Content(CA_KEY))?;
        let tickets = TicketKey::new(
            ring::digest::digest(
                &ring::digest::SHA256,
                &[b"holdfast tickets", key.serialize_der().as_slice()].concat(),
            )
            .as_ref(),
        );
        let ca_der: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(ca_pem.as_bytes()).collect();
        let ca_der = ca_der.map_err(|_| PkiError::Content(CA_CERT))?;
        let first = ca_der.first().ok_or(PkiError::Content(CA_CERT))?;
        let is_of_key = subject_key(first).is_some_and(|of| of == key.public_key_raw());
        if !is_of_key || ca_der.len() > AUTHORITIES_MAX {
            return Err(PkiError::Content(CA_CERT));
        }
        let issuer =
            Issuer::from_ca_cert_der(first, key).map_err(|_| PkiError::Content(CA_CERT))?;

        Ok(Self { ca_pem, ca_der, issuer, tickets })
    }

    /// The certificates that nodes are to believe, DER.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.ca_der
    }

    /// The same, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    fn is_same(&self, other: &Self) -> bool {
        let key = |of: &Self| of.issuer.key().serialize_der();

        self.ca_der == other.ca_der && key(self) == key(other)
    }

    /// What resume tickets are signed with.
    pub fn tickets(&self) -> &TicketKey {
        &self.tickets
    }

    /// Signs the request of a node that has proved who it is. Only its key is taken from the
    /// request; name, usages and life are ours. The node renews it at two thirds.
    pub fn sign(&self, request: NodeRequest, life: Duration) -> Result<Certificate, PkiError> {
        let NodeRequest { node, public_key } = request;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, NODES_GROUP);
        params.distinguished_name.push(DnType::CommonName, format!("{NODE_PREFIX}{node}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        valid_for(&mut params, life);
        let signed = CertificateSigningRequestParams { params, public_key }
            .signed_by(&self.issuer)
            .map_err(|source| PkiError::Make { what: format!("node {node}"), source })?;

        Ok(signed)
    }

    /// Whose a certificate is that was good once, whether or not it has expired.
    pub fn once_signed(&self, certificate: &CertificateDer<'_>) -> Result<Holder, PkiError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(tls)?;
        let until = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        // At its last moment.
        let time = UnixTime::since_unix_epoch(Duration::from_secs(until));
        self.client_verifier()?.verify_client_cert(certificate, &[], time).map_err(tls)?;

        holder_of(certificate)
            .ok_or_else(|| tls(rustls::Error::General("it names no node".to_owned())))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.ca_der {
            roots.add(certificate.clone()).map_err(tls)?;
        }

        Ok(Arc::new(roots))
    }

    fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());

        WebPkiClientVerifier::builder_with_provider(self.roots()?, provider)
            .allow_unauthenticated()
            .build()
            .map_err(tls)
    }

    /// TLS for the port that edges dial: they may show a certificate, and routes ask for it.
    pub fn link_tls(&self) -> Result<rustls::ServerConfig, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = self.client_verifier()?;
        let (chain, key) = self.serving(vec![SERVER_NAME.to_owned()])?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(tls)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A session that is resumed would count by the certificate that its first one showed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;

        Ok(config)
    }

    /// A serving certificate for these names and addresses, with the authority's behind it.
    pub fn serving(
        &self,
        names: Vec<String>,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let failed = |source| PkiError::Make { what: "cloudcore".to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, "cloudcore");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        valid_for(&mut params, SERVER_LIFE);
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let chain = [certificate.der(), &self.ca_der[0]].map(CertificateDer::clone).into();

        Ok((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

fn subject_key(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;

    Some(parsed.public_key().subject_public_key.data.to_vec())
}

fn cluster_of(secret: &Secret) -> Option<String> {
    secret.metadata.annotations.as_ref()?.get(CLUSTER).cloned()
}

/// The UID of the cluster that the authority found there belongs to.
pub async fn bound_to(client: Client, namespace: &str) -> Result<Option<String>, kube::Error> {
    let secrets: Api<Secret> = Api::namespaced(client, namespace);

    Ok(secrets.get_opt(CA_SECRET).await?.as_ref().and_then(cluster_of))
}

fn tls(error: impl std::error::Error + Send + Sync + 'static) -> PkiError {
    PkiError::Tls(Box::new(error))
}

fn valid_for(params: &mut CertificateParams, life: Duration) {
    let now = crate::clock::system_time();
    // The edge renews at two thirds of all of it: a short life must not begin long ago.
    params.not_before = (now - CLOCK_SKEW.min(life / 10)).into();
    params.not_after = (now + life).into();
}

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
    node: NodeName,
    public_key: PublicKey,
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

    Some(Holder { node: NodeName::new(node).ok()?, key, public_key })
}
