//! The authority of this installation: it names nodes, and proves to them who cloudcore is.
//!
//! Its key is in a Secret of cloudcore's namespace, made once by whichever replica comes first.

mod current;
mod kept;
mod nodes;
pub mod peers;
pub mod token;

pub use self::current::{Current, reread};
#[cfg(test)]
pub(crate) use self::kept::tests::made;
#[cfg(test)]
pub(crate) use self::nodes::tests::holder;
pub use self::nodes::{Holder, KeyHash, NodeRequest, holder_of};

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use proto::admission::TicketKey;
use proto::ids::NodeName;
use proto::wire::Fingerprint;
use rcgen::{
    Certificate, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose,
};
use tokio_rustls::rustls;
use tokio_rustls::rustls::RootCertStore;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};

use self::nodes::{NODE_PREFIX, NODES_GROUP};

/// The name in cloudcore's certificate; edges ask for it whatever address they dial, so that a
/// change of address needs no new certificate.
pub const SERVER_NAME: &str = "cloudcore.holdfast.internal";

/// The Secret with the authority: see [`kept`].
const CA_SECRET: &str = "holdfast-ca";
/// Annotation of the Secret: UID of namespace kube-system of the cluster whose nodes trust it.
const CLUSTER: &str = "holdfast.dev/cluster-uid";

/// Made anew at every start of cloudcore and every month.
const SERVER_LIFE: Duration = Duration::from_hours(24 * 365);
/// Clocks of edges are not exact.
const CLOCK_SKEW: Duration = Duration::from_hours(24);

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

/// Certificate and key of the authority; of two while one takes the other's place.
pub struct Authority {
    ca_pem: String,
    /// What signs, and then whatever else nodes are believed by.
    ca_der: Vec<CertificateDer<'static>>,
    /// Of each, in the same order.
    prints: Vec<Fingerprint>,
    /// The first: signs what cloudcore shows, and what nodes show if there is no other for that.
    issuer: Issuer<'static, KeyPair>,
    /// The second, during a rollover: signs what nodes show. Who has such a certificate has been given both
    /// authorities with it.
    next: Option<Issuer<'static, KeyPair>>,
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
            match secrets.create(&PostParams::default(), &kept::make(cluster)?).await {
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
        // What an older cloudcore has made lacks it.
        let mut is_other = kept::keep_ticket_key(&mut secret)?;
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
                is_other = true;
            }
        }
        if is_other {
            // Replaced only as it was read: another replica writes the same.
            match secrets.replace(CA_SECRET, &PostParams::default(), &secret).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(source) => return Err(failed("update")(source)),
            }
        }

        kept::read(&secret)
    }

    /// The certificates that nodes are to believe, DER.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.ca_der
    }

    /// The same, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// SHA-256 of each certificate that nodes are to believe.
    pub fn fingerprints(&self) -> &[Fingerprint] {
        &self.prints
    }

    /// Which of them signs certificates of nodes.
    pub fn signer(&self) -> Fingerprint {
        self.prints[usize::from(self.next.is_some())]
    }

    fn is_same(&self, other: &Self) -> bool {
        let keys = |of: &Self| {
            [Some(&of.issuer), of.next.as_ref()]
                .map(|issuer| issuer.map(|issuer| issuer.key().serialize_der()))
        };

        self.ca_der == other.ca_der && keys(self) == keys(other)
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
            .signed_by(self.next.as_ref().unwrap_or(&self.issuer))
            .map_err(|source| PkiError::Make { what: format!("node {node}"), source })?;

        Ok(signed)
    }

    /// Whose a certificate is that was good once, whether or not it has expired.
    pub fn once_signed(&self, certificate: &CertificateDer<'_>) -> Result<Holder, PkiError> {
        was_signed_by(&self.ca_der, certificate)?;

        holder_of(certificate)
            .ok_or_else(|| tls(rustls::Error::General("it names no node".to_owned())))
    }

    /// By which authority a certificate is, whether or not it has expired; none if by no one of these.
    pub fn issuer_of(&self, certificate: &CertificateDer<'_>) -> Option<Fingerprint> {
        let signed =
            |ca: &CertificateDer<'static>| was_signed_by(slice::from_ref(ca), certificate).is_ok();
        let at = self.ca_der.iter().position(signed)?;

        self.prints.get(at).copied()
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        roots_of(&self.ca_der)
    }

    /// TLS for the port that edges dial: they may show a certificate, and routes ask for it.
    pub fn link_tls(&self) -> Result<rustls::ServerConfig, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = client_verifier(&self.ca_der)?;
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

fn roots_of(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in authorities {
        roots.add(certificate.clone()).map_err(tls)?;
    }

    Ok(Arc::new(roots))
}

fn client_verifier(
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<dyn ClientCertVerifier>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());

    WebPkiClientVerifier::builder_with_provider(roots_of(authorities)?, provider)
        .allow_unauthenticated()
        .build()
        .map_err(tls)
}

/// Whether a certificate was good at its last moment.
fn was_signed_by(
    authorities: &[CertificateDer<'static>],
    certificate: &CertificateDer<'_>,
) -> Result<(), PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(tls)?;
    let until = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(until));

    client_verifier(authorities)?.verify_client_cert(certificate, &[], time).map(drop).map_err(tls)
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
