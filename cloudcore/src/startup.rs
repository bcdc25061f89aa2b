//! What cloudcore needs of the API server before it can serve: asked for until it is there.
//!
//! An API server that is away or forbids something is no reason to end: edges run what they hold, and
//! dial until this is through.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::time::sleep;

use crate::config::Config;
use crate::evidence::{self, Doubt, Evidence, gate};
use crate::metrics::Metrics;
use crate::metrics::requests::counted;
use crate::pki::{Authority, PkiError};
use crate::{CloudError, telemetry};

/// Longest silence of the API server in an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Longest silence of a watch: longer than the API server is asked to let one last.
const WATCH_SILENCE_MAX: Duration = Duration::from_mins(5);

/// Delay between attempts: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What the API server gave.
pub(crate) struct Prepared {
    pub(crate) authority: Arc<Authority>,
    pub(crate) evidence: Evidence,
    /// Watches block a connection for minutes; writes have their own.
    pub(crate) watches: Client,
    /// Lets nothing out to a cluster that is not ours.
    pub(crate) writes: Client,
}

/// Why it did not.
#[derive(Debug, thiserror::Error)]
enum NotYet {
    #[error("cannot {verb} namespace {name}")]
    Namespace {
        verb: &'static str,
        name: String,
        #[source]
        source: kube::Error,
    },
    #[error("cannot tell which cluster the API server is of")]
    Doubt(#[source] Doubt),
    #[error("cannot start the certificate authority")]
    Pki(#[source] PkiError),
}

/// Asks until the API server has answered everything; fails only where asking again cannot help.
pub(crate) async fn prepare(config: &Config, metrics: &Metrics) -> Result<Prepared, CloudError> {
    let watches = counted(client(config, WATCH_SILENCE_MAX).await?, metrics.clone());
    let plain = counted(client(config, ANSWER_MAX).await?, metrics.clone());
    let mut delay = RETRY.0;
    let (authority, evidence) = loop {
        let not_yet = match attempt(config, &plain).await {
            Ok(found) => break found,
            Err(NotYet::Pki(error)) if !is_passing(&error) => return Err(CloudError::Pki(error)),
            Err(not_yet) => not_yet,
        };
        let error = telemetry::chain(&not_yet);
        tracing::warn!(error, "the API server does not give what cloudcore needs; trying again");
        sleep(delay).await;
        delay = (delay * 2).min(RETRY.1);
    };
    let writes = gate::gated(plain, evidence.clone());

    Ok(Prepared { authority: Arc::new(authority), evidence, watches, writes })
}

async fn attempt(config: &Config, client: &Client) -> Result<(Authority, Evidence), NotYet> {
    let cluster = evidence::cluster_uid(client).await.map_err(NotYet::Doubt)?;
    ensure_namespace(client, &config.namespace).await?;
    let authority = Authority::load_or_create(client.clone(), &config.namespace, &cluster)
        .await
        .map_err(NotYet::Pki)?;
    let evidence = Evidence::start(client.clone(), &config.namespace, &config.replica, cluster)
        .await
        .map_err(NotYet::Doubt)?;

    Ok((authority, evidence))
}

fn is_passing(error: &PkiError) -> bool {
    match error {
        PkiError::Secret { .. } | PkiError::OtherCluster { .. } => true,
        PkiError::Content(_)
        | PkiError::Make { .. }
        | PkiError::Request { .. }
        | PkiError::Tls(_) => false,
    }
}

/// A client that gives a connection up on which nothing came for `silence`. What failed is tried again
/// by who asked: kube's own retries would hold callers up for minutes after an outage.
async fn client(config: &Config, silence: Duration) -> Result<Client, CloudError> {
    let mut kube = match &config.kubeconfig {
        Some(path) => {
            let failed = |source| CloudError::Kubeconfig(path.display().to_string(), source);
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => kube::Config::incluster().map_err(CloudError::NotInCluster)?,
    };
    kube.default_retry = false;
    kube.read_timeout = Some(silence);
    kube.reset_reader_on_write = true;
    let server = kube.cluster_url.to_string();

    Client::try_from(kube).map_err(|source| CloudError::Client(server, source))
}

async fn ensure_namespace(client: &Client, name: &str) -> Result<(), NotYet> {
    let failed = |verb| move |source| NotYet::Namespace { verb, name: name.to_owned(), source };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(name).await.map_err(failed("get"))?.is_some() {
        return Ok(());
    }
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.to_owned());
    match namespaces.create(&PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(source) => Err(failed("create")(source)),
    }
}
