//! cloudcore: watches a Kubernetes cluster and streams what each edge node must hold.
//!
//! The long-lived tasks of [`Cloud`]:
//!
//! - `status` tells probes and Prometheus how it is, from before the API server answers;
//! - `cluster` feeds the index from one watch a kind and fetches what pods refer to;
//! - `evidence` knows which cluster and history that is, and stops what would act on another;
//! - `hub` accepts edges; each admitted session is handed over a bounded channel to
//! - `leader` decides which replica does what is done once: the next two;
//! - `registration` registers nodes again whose Node object was deleted;
//! - `autonomy` keeps pods of nodes that are away from being evicted;
//! - `nodes`, which runs one worker a session: changes down, statuses, events and tokens up;
//! - `ports` keeps the kubelet API of every node open, whichever replica has its session;
//! - `peers` takes what other replicas are asked of nodes whose sessions are here.

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
#[doc(hidden)]
pub mod inputs;
pub mod kubelet_api;
pub mod leader;
pub mod listening;
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
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::Cluster;
pub use crate::config::Config;
use crate::crowd::Crowd;
use crate::evidence::{Doubt, Evidence};
use crate::hub::{Connected, HubError, Sessions};
use crate::leader::{Candidate, Leadership};
use crate::metrics::Metrics;
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

/// To let another replica be the leader.
const LEADER_GRACE: Duration = Duration::from_secs(3);

/// To end the sessions of 10,000 nodes.
const HUB_GRACE: Duration = Duration::from_secs(25);

/// To end streams, and to tell their callers.
const STREAMS_GRACE: Duration = hub::STREAMS_MAX.saturating_add(Duration::from_secs(2));

/// After that, tasks have this long to finish.
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
    /// Other replicas cannot be served.
    #[error(
        "cannot listen on {0} for other replicas; is another cloudcore running, or is the address not of this machine?"
    )]
    Peers(SocketAddr, #[source] io::Error),
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
            Self::Status(..) | Self::Peers(..) | Self::Hub(_) | Self::Os { .. } => exit::OS_ERROR,
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
fn check_address(address: IpAddr) -> Result<(), CloudError> {
    let tried = kubelet_api::bind(SocketAddr::new(address, 0));

    tried.map(drop).map_err(|source| CloudError::Advertise(address, source))
}

fn hub_of(
    config: &Config,
    authority: &pki::Current,
    evidence: &Evidence,
    client: &Client,
    metrics: &Metrics,
    connected: mpsc::Sender<Connected>,
) -> Arc<hub::Shared> {
    Arc::new(hub::Shared {
        authority: authority.clone(),
        client: client.clone(),
        namespace: config.namespace.clone(),
        replica: config.replica.clone(),
        peer: SocketAddr::new(config.advertise_address, config.peer_listen.port()),
        evidence: evidence.clone(),
        sessions: Sessions::default(),
        joins: hub::Rate::default(),
        renewals: hub::Rate::default(),
        node_life: config.node_certificate_life,
        turns: hub::Turns::default(),
        alarms: hub::Alarms::default(),
        metrics: metrics.clone(),
        connected,
    })
}

/// A running cloudcore.
#[derive(Debug)]
pub struct Cloud {
    tasks: Tasks,
    status: Status,
    drain: Duration,
    /// Open streams of callers of the kubelet API.
    streams: TaskTracker,
}

impl Cloud {
    /// Starts every task: first the one that tells how cloudcore is, which waits for no API server.
    pub async fn start(config: Config) -> Result<Self, CloudError> {
        let (status, streams) = (Status::default(), TaskTracker::new());
        let mut cloud = Self { tasks: Tasks::default(), status, drain: config.drain, streams };
        let address = config.status_listen;
        let listener =
            status::bind(address).map_err(|source| CloudError::Status(address, source))?;
        let told = cloud.status.clone();
        cloud.spawn("status", |stop| status::run(listener, told, stop));
        let prepared = startup::prepare(&config, cloud.status.metrics()).await?;
        cloud.serve(&config, prepared)?;

        Ok(cloud)
    }

    fn serve(&mut self, config: &Config, prepared: Prepared) -> Result<(), CloudError> {
        let Prepared { authority, evidence, watches, writes } = prepared;
        let listener = hub::bind(config.listen).map_err(CloudError::Hub)?;
        check_address(config.advertise_address)?;
        let peers = kubelet_api::bind(config.peer_listen)
            .map_err(|source| CloudError::Peers(config.peer_listen, source))?;
        let authority = pki::Current::new(authority);
        let (connected, sessions) = mpsc::channel(CONNECTED_MAX);
        let metrics = self.status.metrics().clone();
        let hub = hub_of(config, &authority, &evidence, &writes, &metrics, connected);
        let cluster = Cluster::new(evidence.epoch());
        let registrations = Registrations::default();
        let kubelet_api = Arc::new(kubelet_api::Shared {
            client: writes.clone(),
            cluster: cluster.clone(),
            address: config.advertise_address,
            sessions: hub.sessions.clone(),
            peers: kubelet_api::Peers::new(authority.clone(), config.replica.clone()),
            authority: authority.clone(),
            kept: kubelet_api::Kept::default(),
            crowd: Crowd::default(),
            metrics,
            streams: self.streams.clone(),
        });
        let ports = nodes::Ports::new(Arc::clone(&kubelet_api));
        let nodes = Arc::new(nodes::Shared {
            registrations: registrations.clone(),
            cluster: cluster.clone(),
            evidence: evidence.clone(),
            client: writes.clone(),
            ports: ports.clone(),
            lease_renewal: config.node_lease_renewal,
        });
        let leadership = Leadership::default();
        self.status.serves(cluster.clone(), hub.sessions.clone(), leadership.clone());
        let (reread, reader) = (authority, writes.clone());
        let namespace = config.namespace.clone();
        self.spawn("authority", |stop| pki::reread(reread, reader, namespace, stop));
        self.watch(cluster.clone(), evidence.clone(), watches.clone(), writes.clone());
        let seen = (hub.sessions.clone(), registrations);
        self.lead(config, cluster, evidence, writes, seen, leadership);
        self.spawn("nodes", |stop| nodes::run(nodes, sessions, stop));
        self.spawn("ports", |stop| nodes::keep_ports(ports, stop));
        self.spawn("peers", |stop| kubelet_api::serve_peers(peers, kubelet_api, stop));
        let fenced = Arc::clone(&hub);
        self.spawn("fencing", |stop| async move { hub::fence(&fenced, &watches, stop).await });
        self.tasks.spawn("hub", |stop| async move { Ok(hub::run(listener, hub, stop).await?) });

        Ok(())
    }

    /// What cloudcore knows of the cluster, and which cluster that is.
    fn watch(&mut self, cluster: Cluster, evidence: Evidence, watches: Client, reads: Client) {
        let watching = evidence.clone();
        self.spawn("cluster", |stop| cluster::run(cluster, watching, watches, reads, stop));
        self.tasks
            .spawn("evidence", |stop| async move { Ok(evidence::run(evidence, stop).await?) });
    }

    /// What one replica does for all.
    fn lead(
        &mut self,
        config: &Config,
        cluster: Cluster,
        evidence: Evidence,
        client: Client,
        (sessions, registrations): (Sessions, Registrations),
        leadership: Leadership,
    ) {
        let candidate = Candidate {
            leadership: leadership.clone(),
            client: client.clone(),
            namespace: config.namespace.clone(),
            replica: config.replica.clone(),
        };
        let registration = registration::Shared {
            cluster: cluster.clone(),
            evidence,
            client: client.clone(),
            namespace: config.namespace.clone(),
            registrations,
            leadership: leadership.clone(),
        };
        let default_seconds = config.default_toleration_seconds;
        let autonomy = autonomy::Shared { cluster, sessions, client, default_seconds, leadership };
        self.spawn("leader", |stop| leader::run(candidate, stop));
        self.spawn("registration", |stop| registration::run(registration, stop));
        self.spawn("autonomy", |stop| autonomy::run(autonomy, stop));
    }

    /// Starts a task that ends only when it is asked to.
    fn spawn<F>(&mut self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(name, |stop| {
            let work = task(stop);
            async move {
                work.await;
                Ok(())
            }
        });
    }

    /// Resolves when a task ends unasked.
    pub async fn failed(&mut self) -> CloudError {
        CloudError::Task(self.tasks.failed().await)
    }

    /// Leaves everything to other replicas, then ends. Another signal to stop makes it `hurry`.
    pub async fn drain(mut self, hurry: impl Future<Output = &'static str>) {
        self.status.drains();
        let leave = async {
            self.tasks.finish("leader", LEADER_GRACE).await;
            sleep(self.drain).await;
            // Those that other replicas have to end are not the hub's.
            self.streams.close();
            let streams = timeout(STREAMS_GRACE, self.streams.wait());
            drop(tokio::join!(self.tasks.finish("hub", HUB_GRACE), streams));
        };
        tokio::select! {
            () = leave => {}
            signal = hurry => tracing::warn!(signal, "told to stop again: not everything is drained"),
        }
        self.stop().await;
    }

    /// Ends every task.
    pub async fn stop(self) {
        if let Err(stragglers) = self.tasks.drain(SHUTDOWN_GRACE).await {
            tracing::warn!(%stragglers, "not everything ended in time");
        }
    }
}
