//! Everything of the agent but the link: store, desired state, pods, the node's own status.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cri::{CriError, Runtime, RuntimeVersion};
use podcore::abilities::Abilities;
use podcore::admission;
use podcore::env::NodeFields;
use podcore::resources::{CgroupDriver, cpu_shares};
use proto::ids::Uid;
use proto::wire::Health;
use store::{Opened, Options, Store};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{AgentError, own, repair};
use crate::clock;
use crate::config::{self, Config};
use crate::desired::{self, DELIVERIES_MAX, Desired};
use crate::layout::Layout;
use crate::link::addresses::{self, Addresses};
use crate::link::{Delivery, LinkState, Upstream};
use crate::node::abilities;
use crate::node::cgroups::{Cgroups, Limits};
use crate::node::facts;
use crate::node::monitor::{self, Beat, Monitor};
use crate::node::pressure::Shortages;
use crate::node::shutdown::Shutdowns;
use crate::node::usage::{Place, Usages};
use crate::pods;
use crate::pods::context::{Context, STARTS_MAX};
use crate::pods::images::Images;
use crate::pods::registry::Registry;
use crate::pods::sweep::class_cgroup;
use crate::static_pods::{self, StaticPods};
use crate::tasks::{BoxError, Tasks};
use crate::telemetry::chain;

/// Between tries to reach a runtime that does not answer: doubled each time.
const RUNTIME_WAIT: Duration = Duration::from_millis(200);
const RUNTIME_WAIT_MAX: Duration = Duration::from_secs(10);

/// What the link works with.
#[derive(Debug)]
pub struct Local {
    /// Takes what the cloud wants.
    pub deliveries: mpsc::Sender<Delivery>,
    /// Tells the rest whether the cloud is in reach.
    pub link: watch::Sender<LinkState>,
    /// For pings.
    pub health: watch::Receiver<Health>,
    /// What is to be told to the cloud.
    pub upstream: Upstream,
    /// What is held, for the digest.
    pub desired: Desired,
    /// Keeps the link's ticket.
    pub store: Store,
    /// What the store held.
    pub settings: std::collections::BTreeMap<String, Vec<u8>>,
    /// The node's addresses now.
    pub addresses: watch::Receiver<Vec<String>>,
    /// Finds pods for the kubelet API.
    pub registry: Registry,
    /// The container runtime.
    pub runtime: Runtime,
    /// Looks at what everything uses.
    pub usages: Usages,
    /// Changes with every boot.
    pub boot_id: String,
}

impl Local {
    /// Opens the store and starts the tasks. Must be called within the tokio runtime.
    pub fn start(config: &Config, tasks: &mut Tasks) -> Result<Self, AgentError> {
        let layout = make_layout(config)?;
        let cgroups = Cgroups::detect().map_err(AgentError::Cgroups)?;
        let runtime = runtime_at(&config.runtime_socket)?;
        let (store, opened) = open_store(&config.state_dir)?;
        let facts = facts::read(&config.root_dir, &config.boot_id_file);
        let (link, link_seen) = watch::channel(not_connected());
        let (health_told, health) = watch::channel(Health::default());
        let (watched, addresses) = Addresses::new(config.node_ip);
        let (version_told, version) = watch::channel(None);
        let (abilities_told, abilities) = watch::channel(Arc::new(abilities::of_machine()));
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let Held { desired, memories, settings, statics } = Held::of(opened);
        let upstream = Upstream::default();
        let statics = StaticPods::new(config, &desired, &store, &upstream, statics.as_deref());
        let (registry, beat, pulled) = (Registry::default(), Beat::new(), Arc::new(Notify::new()));
        own::say_start(config, &upstream);

        let (pressure, shortages) = own::watch_pressure(config, &facts, &cgroups);
        let monitor = Monitor {
            wanted: own::wanted(config, &facts),
            pressure,
            facts: facts.clone(),
            runtime_version: version,
            runtime: runtime.clone(),
            abilities: abilities_told.clone(),
            pod_loop: beat.clone(),
            pulled: Arc::clone(&pulled),
            health: health_told,
            upstream: upstream.clone(),
        };
        start_watching(tasks, watched, monitor);
        let shutdowns = Shutdowns::new(config, &shortages.gate, &registry, &upstream);
        start_minding(tasks, store.clone(), shutdowns, statics);
        start_desired(tasks, &desired, &store, delivered, link_seen.clone());
        let place = Place::new(config, &layout, &cgroups, &facts);
        let usages = Usages::new(place, runtime.clone(), Arc::new(registry.clone()));
        let fields = own::fields(config, &facts, &cgroups);
        let parts = Parts {
            own: own::node(config, &facts, &fields),
            fields,
            shortages,
            layout,
            runtime: runtime.clone(),
            abilities,
            images: Images::new(runtime.clone(), config.parallel_pulls_max, pulled),
            store: store.clone(),
            desired: desired.clone(),
            registry: registry.clone(),
            upstream: upstream.clone(),
            cgroups,
            addresses: addresses.clone(),
            link: link_seen,
        };
        let config = config.clone();
        let told = Told { version: version_told, abilities: abilities_told };
        tasks.spawn("pods", |stop| run_pods(config, parts, memories, told, beat, stop));

        Ok(Self {
            deliveries,
            link,
            health,
            upstream,
            desired,
            store,
            settings,
            addresses,
            registry,
            runtime,
            usages,
            boot_id: facts.boot_id,
        })
    }
}

/// Watches the machine.
fn start_watching(tasks: &mut Tasks, watched: Addresses, monitor: Monitor) {
    tasks.spawn("addresses", |stop| ends_well(addresses::run(watched, stop)));
    tasks.spawn("node", |stop| ends_well(monitor::run(monitor, stop)));
}

/// Minds the store, shutdowns and files of pods.
fn start_minding(tasks: &mut Tasks, store: Store, shutdowns: Shutdowns, statics: StaticPods) {
    tasks.spawn("store", |stop| repair::run(store, stop));
    tasks.spawn("shutdown", |stop| ends_well(shutdowns.run(stop)));
    tasks.spawn("static-pods", |stop| ends_well(statics.run(stop)));
}

fn start_desired(
    tasks: &mut Tasks,
    desired: &Desired,
    store: &Store,
    delivered: mpsc::Receiver<Delivery>,
    link: watch::Receiver<LinkState>,
) {
    let (desired, store) = (desired.clone(), store.clone());
    tasks.spawn("desired", |stop| ends_well(desired::run(desired, store, delivered, link, stop)));
}

fn runtime_at(socket: &Path) -> Result<Runtime, AgentError> {
    Runtime::new(&socket.to_string_lossy()).map_err(AgentError::Endpoint)
}

fn open_store(dir: &Path) -> Result<(Store, Opened), AgentError> {
    Store::open(&Options::in_folder(dir)).map_err(AgentError::Store)
}

fn not_connected() -> LinkState {
    LinkState::Down { since: clock::now(), reason: "not connected yet".to_owned() }
}

/// A task that ends only when asked to.
async fn ends_well(task: impl Future<Output = ()>) -> Result<(), BoxError> {
    task.await;

    Ok(())
}

fn make_layout(config: &Config) -> Result<Layout, AgentError> {
    let layout = Layout {
        root: config.root_dir.clone(),
        pod_logs: config.pod_logs_dir.clone(),
        container_logs: config.container_logs_dir.clone(),
    };
    for dir in [layout.pods(), layout.pod_logs.clone(), layout.container_logs.clone()] {
        make_dir(&dir)?;
    }

    Ok(layout)
}

/// What the store gave back.
struct Held {
    desired: Desired,
    memories: Vec<(Uid, Vec<u8>)>,
    settings: std::collections::BTreeMap<String, Vec<u8>>,
    statics: Option<Vec<u8>>,
}

impl Held {
    fn of(mut opened: Opened) -> Self {
        let intact = opened.is_intact();
        if let Some(damage) = &opened.damage {
            tracing::error!(damage = %chain(damage), "the store was damaged and made anew");
        }
        for key in &opened.damaged {
            tracing::error!(%key, "an object in the store is damaged, the cloud will send it again");
        }
        tracing::info!(objects = opened.objects.len(), intact, "opened the store");
        // Tombstones count only if the store is all that was ever committed (invariant 6).
        let tombstones = if intact { opened.tombstones } else { Vec::new() };

        Self {
            statics: opened.settings.remove(static_pods::SETTING),
            desired: Desired::new(opened.objects, tombstones),
            memories: opened.memories,
            settings: opened.settings,
        }
    }
}

/// What the pods' context is made from once the runtime is known.
struct Parts {
    fields: NodeFields,
    own: admission::Node,
    shortages: Shortages,
    layout: Layout,
    runtime: Runtime,
    abilities: watch::Receiver<Arc<Abilities>>,
    images: Images,
    store: Store,
    desired: Desired,
    registry: Registry,
    upstream: Upstream,
    cgroups: Cgroups,
    addresses: watch::Receiver<Vec<String>>,
    link: watch::Receiver<LinkState>,
}

impl Parts {
    fn context(self, config: &Config, runtime: &RuntimeVersion, driver: CgroupDriver) -> Context {
        Context {
            node: config.node.clone(),
            layout: self.layout,
            runtime: self.runtime,
            abilities: self.abilities,
            runtime_name: runtime.name.clone(),
            images: self.images,
            store: self.store,
            desired: self.desired,
            registry: self.registry,
            upstream: self.upstream,
            cgroups: self.cgroups,
            cgroup_root: config.cgroup_root.clone(),
            cgroup_driver: driver,
            pod_pids_max: config.pod_pids_max,
            cluster_dns: config.cluster_dns.iter().map(ToString::to_string).collect(),
            cluster_domain: config.cluster_domain.clone(),
            resolv_conf: config.resolv_conf.clone(),
            fields: self.fields,
            own: self.own,
            gate: self.shortages.gate,
            addresses: self.addresses,
            link: self.link,
            image_policy: config.image_policy,
            log_policy: config.log_policy,
            starts: Semaphore::new(STARTS_MAX),
        }
    }
}

/// What is told of the runtime once it answers.
struct Told {
    version: watch::Sender<Option<RuntimeVersion>>,
    abilities: watch::Sender<Arc<Abilities>>,
}

/// Waits for a runtime, then runs pods on it.
async fn run_pods(
    config: Config,
    mut parts: Parts,
    memories: Vec<(Uid, Vec<u8>)>,
    told_of: Told,
    beat: Beat,
    stop: CancellationToken,
) -> Result<(), BoxError> {
    let found = find_runtime(&parts.runtime, &told_of.abilities, &beat, &stop).await?;
    let Some(version) = found else { return Ok(()) };
    tracing::info!(name = %version.name, version = %version.version, "found the container runtime");
    let driver = driver(config.cgroup_driver, &parts.runtime).await;
    if driver == CgroupDriver::Systemd {
        parts.cgroups = parts.cgroups.with_systemd(&config.system_bus);
    }
    make_class_cgroups(&config, &parts, driver).await?;
    // Without a receiver the node's task has ended, and the process is about to.
    let _node_ended = told_of.version.send(Some(version.clone()));

    let (events, told) = mpsc::channel(pods::RUNTIME_EVENTS_MAX);
    let (runtime, shortages) = (parts.runtime.clone(), parts.shortages.clone());
    let context = Arc::new(parts.context(&config, &version, driver));
    tokio::select! {
        // Ends only with the receiver of its events, which the other holds.
        () = cri::events::watch(&runtime, &version, events) => {}
        () = pods::run(context, memories, told, shortages, beat, stop.clone()) => {}
    }

    Ok(())
}

/// Asks for the version and what it can do until there is an answer. A runtime that cannot be used is an
/// error.
async fn find_runtime(
    runtime: &Runtime,
    abilities: &watch::Sender<Arc<Abilities>>,
    beat: &Beat,
    stop: &CancellationToken,
) -> Result<Option<RuntimeVersion>, CriError> {
    let mut wait = RUNTIME_WAIT;
    let mut told = String::new();
    loop {
        beat.beat();
        let found = match runtime.version().await {
            Ok(version) => runtime.status().await.map(|status| (version, status)),
            Err(error) => Err(error),
        };
        match found {
            Ok((version, status)) => {
                monitor::tell_abilities(abilities, &status);
                return Ok(Some(version));
            }
            Err(error) if error.is_unusable() => return Err(error),
            Err(error) => {
                let text = error.to_string();
                if told != text {
                    tracing::warn!(error = %text, "waiting for the container runtime");
                    told = text;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RUNTIME_WAIT_MAX),
        }
    }
}

async fn driver(configured: config::CgroupDriver, runtime: &Runtime) -> CgroupDriver {
    match configured {
        config::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
        config::CgroupDriver::Systemd => CgroupDriver::Systemd,
        config::CgroupDriver::Auto => match runtime.cgroup_driver().await {
            Ok(Some(cri_api::v1::CgroupDriver::Systemd)) => CgroupDriver::Systemd,
            Ok(Some(cri_api::v1::CgroupDriver::Cgroupfs) | None) => CgroupDriver::Cgroupfs,
            Err(error) => {
                tracing::warn!(%error, "taking the runtime's cgroup driver for cgroupfs");
                CgroupDriver::Cgroupfs
            }
        },
    }
}

/// `kubepods`, which has what pods may request in all, and its QoS classes; best-effort pods get what
/// others leave.
async fn make_class_cgroups(
    config: &Config,
    parts: &Parts,
    driver: CgroupDriver,
) -> Result<(), crate::node::cgroups::CgroupError> {
    let ensure = async |class, limits| {
        let parent = class_cgroup(&config.cgroup_root, driver, class);
        parts.cgroups.ensure(&parent, limits).await
    };
    ensure("", Limits::default()).await?;
    // What is kept free for everybody is not kept from those who run, nor are huge pages.
    let kept = i64::try_from(config.system_reserved.memory_bytes).unwrap_or(i64::MAX);
    let memory = parts.fields.machine.memory_bytes.saturating_sub(kept).max(0);
    let all = Limits {
        cpu_shares: u64::try_from(cpu_shares(parts.fields.cpu_milli)).ok(),
        memory_bytes: Some(memory),
        ..Limits::default()
    };
    if let Err(error) = ensure("", all).await {
        // They may have more than that now.
        tracing::warn!(error = %chain(&error), "pods are not kept within what is allocatable");
    }
    for class in ["burstable", "besteffort"] {
        ensure(class, Limits { cpu_shares: Some(2), ..Limits::default() }).await?;
    }

    Ok(())
}

fn make_dir(path: &Path) -> Result<(), AgentError> {
    std::fs::create_dir_all(path).map_err(|source| AgentError::Os {
        attempted: format!("make the directory {}", path.display()),
        source,
    })
}
