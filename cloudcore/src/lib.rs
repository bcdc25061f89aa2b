//! cloudcore: watches a Kubernetes cluster and streams what each edge node must hold.
//!
//! The long-lived tasks of [`Cloud`]:
//!
//! - `status` tells probes and Prometheus how it is, from before the API server answers;
//! - `cluster` feeds the index from one watch a kind and fetches what pods refer to;
//! - `evidence` knows which cluster and history that is, and stops what would act on another;
//! - `hub` accepts edges; each admitted session is handed over a bounded channel to
//! - `registration` registers nodes again whose Node object was deleted;
//! - `autonomy` keeps pods of nodes that are away from being evicted;
//! - `nodes`, which runs one worker a session: changes down, statuses, events and tokens up.

pub mod args;
pub mod autonomy;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod crowd;
pub mod events;
pub mod evidence;
pub mod exit;
pub mod hub;
pub mod kubelet_api;
pub mod metrics;
pub mod nodes;
pub mod pki;
pub mod pods;
pub mod registration;
mod startup;
pub mod status;
pub mod watch;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use daemon::{signals, tasks, telemetry};
use kube::Client;
use kube::config::KubeconfigError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::mpsc;

use crate::cluster::Cluster;
pub use crate::config::Config;
use crate::crowd::Crowd;
use crate::evidence::{Doubt, Evidence};
use crate::hub::{HubError, Sessions};
use crate::pki::PkiError;
use crate::registration::Registrations;
use crate::startup::Prepared;
use crate::status::Status;
use crate::tasks::{TaskFault, Tasks};

/// How cloudcore speaks.
pub const PROGRAM: telemetry::Program =
    telemetry::Program { name: "cloudcore", crates: &["cloudcore", "index", "proto", "daemon"] };

/// Sessions admitted and not yet given a worker.
const CONNECTED_MAX: usize = 64;

/// Open files with which a thousand nodes can be served.
const OPEN_FILES_WANTED: u64 = 4_096;

/// Tasks have this long to finish on SIGTERM.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

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
    /// The authority cannot be had.
    #[error("cannot start the certificate authority")]
    Pki(#[source] PkiError),
    /// No node's kubelet port could be opened.
    #[error(
        "advertiseAddress {0} is not an address of this machine, on which node ports are opened"
    )]
    Advertise(IpAddr, #[source] io::Error),
    /// Nobody can ask how cloudcore is.
    #[error(
        "cannot listen on {0} for probes; is another cloudcore running? Its config names the address as statusListen"
    )]
    Status(SocketAddr, #[source] io::Error),
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
            Self::Kubeconfig(..) | Self::NotInCluster(_) | Self::Advertise(..) => exit::BAD_CONFIG,
            Self::Client(..) | Self::Pki(_) => exit::API_SERVER,
            Self::Status(..) | Self::Hub(_) | Self::Os { .. } => exit::OS_ERROR,
            Self::Task(TaskFault::Failed { source, .. }) if source.is::<Doubt>() => {
                exit::OTHER_CLUSTER
            }
            Self::Task(_) => exit::FAULT,
        }
    }
}

/// Lets cloudcore have as many open files as the system allows: a connection is one, and nodes come by the
/// thousand.
fn allow_open_files() -> Result<(), CloudError> {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).map_err(|errno| {
        CloudError::Os { attempted: "raise the limit of open files", source: errno.into() }
    })?;
    if let Some(limit) = limit.filter(|limit| *limit < OPEN_FILES_WANTED) {
        tracing::warn!(
            limit,
            "few nodes can be served: each takes two open files, and strangers up to 1024; raise the \
             limit of cloudcore (LimitNOFILE, ulimit -Hn)"
        );
    }

    Ok(())
}

/// The runtime: one thread, because one thread serves thousands of idle links.
pub fn runtime() -> Result<tokio::runtime::Runtime, CloudError> {
    allow_open_files()?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .map_err(|source| CloudError::Os { attempted: "start the async runtime", source })
}

/// Whether ports can be opened at that address.
async fn check_address(address: IpAddr) -> Result<(), CloudError> {
    let tried = kubelet_api::bind(address, 0).await;

    tried.map(drop).map_err(|source| CloudError::Advertise(address, source))
}

/// A running cloudcore.
#[derive(Debug)]
pub struct Cloud {
    tasks: Tasks,
    status: Status,
}

impl Cloud {
    /// Starts every task: first the one that tells how cloudcore is, which waits for no API server.
    pub async fn start(config: Config) -> Result<Self, CloudError> {
        let mut cloud = Self { tasks: Tasks::default(), status: Status::default() };
        let address = config.status_listen;
        let listener = status::bind(address).await;
        let listener = listener.map_err(|source| CloudError::Status(address, source))?;
        let told = cloud.status.clone();
        cloud.tasks.spawn("status", |stop| async move {
            status::run(listener, told, stop).await;
            Ok(())
        });
        let prepared = startup::prepare(&config, cloud.status.metrics()).await?;
        cloud.serve(config, prepared).await?;

        Ok(cloud)
    }

    async fn serve(&mut self, config: Config, prepared: Prepared) -> Result<(), CloudError> {
        let Prepared { authority, evidence, watches, writes } = prepared;
        let listener = hub::bind(config.listen).map_err(CloudError::Hub)?;
        check_address(config.advertise_address).await?;
        let (connected, sessions) = mpsc::channel(CONNECTED_MAX);
        let metrics = self.status.metrics().clone();
        let hub = Arc::new(hub::Shared {
            authority: Arc::clone(&authority),
            client: writes.clone(),
            namespace: config.namespace.clone(),
            replica: config.replica.clone(),
            evidence: evidence.clone(),
            sessions: Sessions::default(),
            joins: hub::Rate::default(),
            metrics: metrics.clone(),
            connected,
        });
        let cluster = Cluster::new(evidence.epoch());
        let registrations = Registrations::default();
        let nodes = Arc::new(nodes::Shared {
            registrations: registrations.clone(),
            cluster: cluster.clone(),
            evidence: evidence.clone(),
            client: writes.clone(),
            advertise_address: config.advertise_address,
            kubelet_api: Arc::new(kubelet_api::Shared {
                authority,
                client: writes.clone(),
                cluster: cluster.clone(),
                address: config.advertise_address,
                kept: kubelet_api::Kept::default(),
                metrics,
                crowd: Crowd::default(),
            }),
            lease_renewal: config.node_lease_renewal,
        });
        let registration = registration::Shared {
            cluster: cluster.clone(),
            evidence: evidence.clone(),
            client: writes.clone(),
            namespace: config.namespace.clone(),
            registrations,
        };
        self.status.serves(cluster.clone(), hub.sessions.clone());
        self.watch(cluster.clone(), evidence, watches.clone(), writes.clone());
        let tasks = &mut self.tasks;
        tasks.spawn("nodes", |stop| async move {
            nodes::run(nodes, sessions, stop).await;
            Ok(())
        });
        tasks.spawn("registration", |stop| async move {
            registration::run(registration, stop).await;
            Ok(())
        });
        let (sessions, seconds) = (hub.sessions.clone(), config.default_toleration_seconds);
        tasks.spawn("autonomy", move |stop| async move {
            autonomy::run(cluster, sessions, writes, seconds, stop).await;
            Ok(())
        });
        let fenced = Arc::clone(&hub);
        tasks.spawn("fencing", |stop| async move {
            hub::fence(&fenced, &watches, stop).await;
            Ok(())
        });
        tasks.spawn("hub", |stop| async move { Ok(hub::run(listener, hub, stop).await?) });

        Ok(())
    }

    /// What cloudcore knows of the cluster, and which cluster that is.
    fn watch(&mut self, cluster: Cluster, evidence: Evidence, watches: Client, reads: Client) {
        let watching = evidence.clone();
        self.tasks.spawn("cluster", |stop| async move {
            cluster::run(cluster, watching, watches, reads, stop).await;
            Ok(())
        });
        self.tasks
            .spawn("evidence", |stop| async move { Ok(evidence::run(evidence, stop).await?) });
    }

    /// Resolves when a task ends unasked.
    pub async fn failed(&mut self) -> CloudError {
        CloudError::Task(self.tasks.failed().await)
    }

    /// Ends sessions in good order, then every task.
    pub async fn drain(self) {
        self.status.drains();
        if let Err(stragglers) = self.tasks.drain(SHUTDOWN_GRACE).await {
            tracing::warn!(%stragglers, "not everything ended in time");
        }
    }
}
