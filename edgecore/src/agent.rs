//! Puts the agent together: what runs without the cloud ([`Local`]) and the link to it.

mod joined;
mod local;
mod own;
mod repair;
mod runtime;
mod supervised;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::CriError;
use proto::ids::NodeName;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tunnel::TunnelStream;

pub use self::local::Local;
use self::repair::NeedsRepair;
use crate::config::Config;
use crate::control::Control;
use crate::kubelet_api::NodeApi;
use crate::link::proxy::Way;
use crate::link::shell::{ACCEPTED_MAX, LinkParts};
use crate::tasks::{Stragglers, TaskFault, Tasks};
use crate::{control, exit, identity, kubelet_api, link};

/// Why the agent cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Started by another user.
    #[error(
        "edgecore must run as root: it mounts volumes and makes cgroups; use the unit file, or sudo"
    )]
    NotRoot,
    /// The operating system refused something.
    #[error("cannot {attempted}")]
    Os {
        /// What was attempted, on what.
        attempted: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store of this node")]
    Store(#[source] store::StoreError),
    /// The runtime's socket cannot be one.
    #[error("cannot use the configured runtimeEndpoint")]
    Endpoint(#[source] cri::EndpointError),
    /// The machine has no cgroups.
    #[error("cannot run pods here")]
    Cgroups(#[source] crate::node::cgroups::CgroupError),
    /// The node has not joined, or its files are damaged.
    #[error("this node has no usable identity")]
    Identity(#[source] identity::IdentityError),
    /// A task ended.
    #[error("the agent cannot go on")]
    Task(#[source] TaskFault),
    /// Tasks did not end in time.
    #[error("the agent did not stop in time")]
    Stragglers(#[source] Stragglers),
}

impl AgentError {
    /// The exit code, as docs/operations.md lists them.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotRoot => exit::NOT_PERMITTED,
            Self::Os { .. } | Self::Cgroups(_) => exit::OS_ERROR,
            Self::Store(_) => exit::STORE_UNUSABLE,
            Self::Endpoint(_) | Self::Identity(_) => exit::BAD_CONFIG,
            Self::Task(TaskFault::Failed { source, .. }) => {
                let runtime = source.downcast_ref::<CriError>();
                if runtime.is_some_and(CriError::is_unusable) {
                    exit::RUNTIME_UNUSABLE
                } else if source.is::<NeedsRepair>() {
                    exit::STORE_UNUSABLE
                } else {
                    exit::FAULT
                }
            }
            Self::Task(TaskFault::EndedEarly { .. } | TaskFault::Panicked(_))
            | Self::Stragglers(_) => exit::FAULT,
        }
    }
}

/// The agent's own oom_score_adj, as the kubelet's (`KubeletOOMScoreAdj`).
const OOM_SCORE_ADJ: &str = "-999";

/// Where memory is short, pods go before the agent that looks after them.
fn outlive_pods() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ) {
        tracing::warn!(
            %error,
            "cannot lower oom_score_adj: the kernel may kill the agent when memory is short; it lacks CAP_SYS_RESOURCE"
        );
    }
}

/// The running agent.
#[derive(Debug)]
pub struct Agent {
    node: NodeName,
    grace: Duration,
    tasks: Tasks,
}

impl Agent {
    /// Opens the store and starts every task. Pods that the store holds run from here on, whether
    /// or not the cloud answers.
    pub fn start(config: Config) -> Result<Self, AgentError> {
        if !rustix::process::geteuid().is_root() {
            return Err(AgentError::NotRoot);
        }
        outlive_pods();
        let mut tasks = Tasks::default();
        let identity = joined::load(&config.identity_dir);
        let local = Local::start(&config, &mut tasks)?;
        let identity = match identity {
            // A node that was never told to run anything has nothing to do without the cloud.
            Err(error) if local.desired.pods().is_empty() && config.static_pod_path.is_none() => {
                return Err(AgentError::Identity(error));
            }
            identity => identity,
        };
        let (accepted, streams) = mpsc::channel(ACCEPTED_MAX);
        start_serving(&config, &local, streams, &mut tasks);
        let node = config.node.clone();
        let identity_dir = config.identity_dir.clone();
        let way = way(&config);
        let parts = move |identity| LinkParts {
            node,
            way,
            identity,
            identity_dir,
            seed: seed(),
            boot_id: local.boot_id,
            deliveries: local.deliveries,
            link: local.link,
            health: local.health,
            upstream: local.upstream,
            desired: local.desired,
            store: local.store,
            state_dir: config.state_dir,
            settings: local.settings,
            known: local.known,
            addresses: local.addresses,
            accepted,
        };
        let dir = config.identity_dir.clone();
        tasks.spawn("link", |stop| async move {
            if let Some(identity) = joined::wait(dir, identity, &stop).await {
                link::shell::run(parts(identity), stop).await;
            }
            Ok(())
        });

        Ok(Self { node: config.node, grace: config.shutdown_grace, tasks })
    }

    /// The name of this node.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Resolves when a task ends though nobody asked it to.
    pub async fn failed(&mut self) -> AgentError {
        AgentError::Task(self.tasks.failed().await)
    }

    /// Asks all tasks to end and waits for them. Containers go on running.
    pub async fn drain(self) -> Result<(), AgentError> {
        self.tasks.drain(self.grace).await.map_err(AgentError::Stragglers)
    }
}

/// Serves the cloud and root on this machine, and tells systemd how things are.
fn start_serving(
    config: &Config,
    local: &Local,
    streams: mpsc::Receiver<TunnelStream>,
    tasks: &mut Tasks,
) {
    let api = kubelet_api::Context {
        pods: Arc::new(local.registry.clone()),
        runtime: local.runtime.clone(),
        node: Arc::new(NodeApi {
            config: config.clone(),
            desired: local.desired.clone(),
            usages: local.usages.clone(),
            link: local.link.subscribe(),
            health: local.health.clone(),
            upstream: local.upstream.clone(),
        }),
    };
    let control = Control {
        api: api.clone(),
        registry: local.registry.clone(),
        runtime_version: local.runtime_version.clone(),
    };
    start_control(&config.control_socket, control, tasks);
    tasks.spawn("kubelet-api", |stop| async move {
        serve_streams(api, streams, stop).await;
        Ok(())
    });
    let (beat, link) = (local.beat.clone(), local.link.subscribe());
    tasks.spawn("supervisor", |stop| async move {
        supervised::run(beat, link, stop).await;
        Ok(())
    });
}

/// Pods do not need it: without it only `edgeadm` on this machine has nobody to ask.
fn start_control(socket: &Path, control: Control, tasks: &mut Tasks) {
    match control::open(socket) {
        Ok(listener) => tasks.spawn("control", |stop| async move {
            control::run(listener, control, stop).await;
            Ok(())
        }),
        Err(error) => {
            let socket = socket.display();
            tracing::warn!(%socket, %error, "cannot open the control socket: edgeadm cannot ask this agent");
        }
    }
}

/// A variable that is not understood keeps no pod from running.
fn way(config: &Config) -> Way {
    let way = Way::of(config).unwrap_or_else(|problem| {
        tracing::error!(%problem, "going to cloudcore without a proxy; correct it, or set proxy in the configuration");
        Way::direct(config)
    });
    if let Some(proxy) = &way.proxy {
        tracing::info!(%proxy, "going to cloudcore through a proxy");
    }

    way
}

/// Spreads what many nodes would otherwise do at the same moment.
fn seed() -> u64 {
    let mut seed = [0; 8];
    let _fixed_seed_will_do = SystemRandom::new().fill(&mut seed);

    u64::from_ne_bytes(seed)
}

/// Serves the kubelet API on every stream the cloud opens; their number is bounded by the link.
async fn serve_streams(
    api: kubelet_api::Context,
    mut streams: mpsc::Receiver<TunnelStream>,
    stop: CancellationToken,
) {
    let mut serving = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(stream) = streams.recv() => {
                let api = api.clone();
                serving.spawn(async move {
                    if let Err(error) = kubelet_api::serve(stream, api).await {
                        tracing::debug!(%error, "a request of the kubelet API failed");
                    }
                });
            }
            Some(_) = serving.join_next(), if !serving.is_empty() => {}
        }
    }
}
