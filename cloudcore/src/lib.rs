//! cloudcore: watches a Kubernetes cluster and streams what each edge node must hold.
//!
//! The long-lived tasks of [`Cloud`]:
//!
//! - `cluster` feeds the index from one watch a kind and fetches what pods refer to;
//! - `hub` accepts edges; each admitted session is handed over a bounded channel to
//! - `autonomy` keeps pods of nodes that are away from being evicted;
//! - `nodes`, which runs one worker a session: changes down, statuses, events and tokens up.

pub mod args;
pub mod autonomy;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod events;
pub mod exit;
pub mod hub;
pub mod kubelet_api;
pub mod nodes;
pub mod pki;
pub mod pods;
pub mod signals;
pub mod tasks;
pub mod telemetry;
pub mod watch;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use tokio::sync::mpsc;

use crate::cluster::Cluster;
pub use crate::config::Config;
use crate::hub::{HubError, Sessions};
use crate::pki::{Authority, PkiError};
use crate::tasks::{TaskFault, Tasks};

/// Sessions admitted and not yet given a worker.
const CONNECTED_MAX: usize = 64;

/// Tasks have this long to finish on SIGTERM.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Until restores of the API server are detected, there is one epoch.
const EPOCH: u64 = 1;

/// Why cloudcore cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// The kubeconfig cannot be used.
    #[error("cannot use kubeconfig {0}")]
    Kubeconfig(String, #[source] KubeconfigError),
    /// There is no service account.
    #[error("no kubeconfig is configured, and this is not a pod with a service account")]
    NotInCluster(#[source] kube::config::InClusterError),
    /// No client can be made.
    #[error("cannot make a client for the API server at {0}")]
    Client(String, #[source] kube::Error),
    /// The namespace cannot be had.
    #[error("cannot create namespace {0}")]
    Namespace(String, #[source] kube::Error),
    /// The authority cannot be had.
    #[error("cannot start the certificate authority")]
    Pki(#[source] PkiError),
    /// The hub cannot start.
    #[error("cannot serve edges")]
    Hub(#[source] HubError),
    /// The operating system refused something.
    #[error("cannot {attempted}")]
    Os {
        /// What.
        attempted: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A task ended.
    #[error("cannot go on")]
    Task(#[source] TaskFault),
}

impl CloudError {
    /// The exit code, as documented.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Kubeconfig(..) | Self::NotInCluster(_) => exit::BAD_CONFIG,
            Self::Client(..) | Self::Namespace(..) | Self::Pki(_) => exit::API_SERVER,
            Self::Hub(_) | Self::Os { .. } => exit::OS_ERROR,
            Self::Task(_) => exit::FAULT,
        }
    }
}

/// The runtime: one thread, because one thread serves thousands of idle links.
pub fn runtime() -> Result<tokio::runtime::Runtime, CloudError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(|source| CloudError::Os { attempted: "start the async runtime", source })
}

/// A running cloudcore.
#[derive(Debug)]
pub struct Cloud {
    tasks: Tasks,
}

impl Cloud {
    /// Starts every task.
    pub async fn start(config: Config) -> Result<Self, CloudError> {
        // Watches block a connection for minutes; writes have their own.
        let (watches, writes) = (client(&config).await?, client(&config).await?);
        ensure_namespace(&writes, &config.namespace).await?;
        let authority = Authority::load_or_create(writes.clone(), &config.namespace)
            .await
            .map_err(CloudError::Pki)?;
        let authority = Arc::new(authority);
        let listener = hub::bind(config.listen).await.map_err(CloudError::Hub)?;
        let (connected, sessions) = mpsc::channel(CONNECTED_MAX);
        let hub = Arc::new(hub::Shared {
            authority: Arc::clone(&authority),
            client: writes.clone(),
            namespace: config.namespace.clone(),
            replica: config.replica.clone(),
            epoch: EPOCH,
            sessions: Sessions::default(),
            joins: hub::Rate::default(),
            connected,
        });
        let cluster = Cluster::new(EPOCH);
        let (seen, sessions_now, patches) = (cluster.clone(), hub.sessions.clone(), writes.clone());
        let default_seconds = config.default_toleration_seconds;
        let nodes = Arc::new(nodes::Shared {
            cluster: cluster.clone(),
            client: writes.clone(),
            advertise_address: config.advertise_address,
            kubelet_api: Arc::new(kubelet_api::Shared {
                authority,
                client: writes.clone(),
                cluster: cluster.clone(),
                address: config.advertise_address,
                kept: kubelet_api::Kept::default(),
            }),
            lease_renewal: config.node_lease_renewal,
        });
        let mut tasks = Tasks::default();
        tasks.spawn("cluster", |stop| async move {
            cluster::run(cluster, watches, writes, stop).await;
            Ok(())
        });
        tasks.spawn("nodes", |stop| async move {
            nodes::run(nodes, sessions, stop).await;
            Ok(())
        });
        tasks.spawn("autonomy", |stop| async move {
            autonomy::run(seen, sessions_now, patches, default_seconds, stop).await;
            Ok(())
        });
        tasks.spawn("hub", |stop| async move { Ok(hub::run(listener, hub, stop).await?) });

        Ok(Self { tasks })
    }

    /// Resolves when a task ends unasked.
    pub async fn failed(&mut self) -> CloudError {
        CloudError::Task(self.tasks.failed().await)
    }

    /// Ends sessions in good order, then every task.
    pub async fn drain(self) {
        if let Err(stragglers) = self.tasks.drain(SHUTDOWN_GRACE).await {
            tracing::warn!(%stragglers, "not everything ended in time");
        }
    }
}

async fn client(config: &Config) -> Result<kube::Client, CloudError> {
    let kube = match &config.kubeconfig {
        Some(path) => {
            let failed = |source| CloudError::Kubeconfig(path.display().to_string(), source);
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => kube::Config::incluster().map_err(CloudError::NotInCluster)?,
    };
    let server = kube.cluster_url.to_string();

    kube::Client::try_from(kube).map_err(|source| CloudError::Client(server, source))
}

async fn ensure_namespace(client: &kube::Client, name: &str) -> Result<(), CloudError> {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::Api;
    use kube::api::PostParams;

    let failed = |source| CloudError::Namespace(name.to_owned(), source);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    if namespaces.get_opt(name).await.map_err(failed)?.is_some() {
        return Ok(());
    }
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.to_owned());
    match namespaces.create(&PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(source) => Err(failed(source)),
    }
}
