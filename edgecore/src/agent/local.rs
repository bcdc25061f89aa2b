//! Everything of the agent but the link: store, desired state, pods, the node's own status.

use std::path::Path;
use std::sync::Arc;

use cri::{Runtime, RuntimeVersion};
use proto::ids::Uid;
use proto::wire::Health;
use store::{Opened, Options, Store};
use tokio::sync::{Notify, mpsc, watch};

use super::runtime::{Parts, Told, run_pods};
use super::{AgentError, own, repair};
use crate::clock::{self, KnownTime};
use crate::config::Config;
use crate::desired::{self, DELIVERIES_MAX, Desired};
use crate::layout::Layout;
use crate::link::addresses::{self, Addresses};
use crate::link::{Delivery, LinkState, Upstream};
use crate::node::abilities;
use crate::node::cgroups::Cgroups;
use crate::node::facts;
use crate::node::monitor::{self, Beat, Monitor};
use crate::node::shutdown::Shutdowns;
use crate::node::usage::{Place, Usages};
use crate::pods::images::Images;
use crate::pods::registry::Registry;
use crate::static_pods::{self, StaticPods};
use crate::tasks::{BoxError, Tasks};
use crate::telemetry::chain;

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
    /// What is known of the time.
    pub known: KnownTime,
    /// The node's addresses now.
    pub addresses: watch::Receiver<Vec<String>>,
    /// Finds pods for the kubelet API.
    pub registry: Registry,
    /// The container runtime.
    pub runtime: Runtime,
    /// Which it is, once it answers.
    pub runtime_version: watch::Receiver<Option<RuntimeVersion>>,
    /// Looks at what everything uses.
    pub usages: Usages,
    /// Of the loop of the pods.
    pub beat: Beat,
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
        let (told, version, abilities) = Told::new(abilities::of_machine());
        let (deliveries, delivered) = mpsc::channel(DELIVERIES_MAX);
        let Held { desired, memories, settings, statics } = Held::of(opened);
        let (upstream, known) = (Upstream::default(), KnownTime::of_build());
        let statics = StaticPods::new(config, &desired, &store, &upstream, statics.as_deref());
        let (registry, beat, pulled) = (Registry::default(), Beat::new(), Arc::new(Notify::new()));
        own::say_start(config, &upstream);

        let (pressure, shortages) = own::watch_pressure(config, &facts, &cgroups);
        let monitor = Monitor {
            wanted: own::wanted(config, &facts),
            pressure,
            facts: facts.clone(),
            runtime_version: version.clone(),
            runtime: runtime.clone(),
            abilities: told.abilities.clone(),
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
            known: known.clone(),
            cgroups,
            addresses: addresses.clone(),
            link: link_seen,
        };
        start_pods(tasks, config, parts, memories, told, beat.clone());

        Ok(Self {
            deliveries,
            link,
            health,
            upstream,
            desired,
            store,
            settings,
            known,
            addresses,
            registry,
            runtime,
            runtime_version: version,
            usages,
            beat,
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

fn start_pods(
    tasks: &mut Tasks,
    config: &Config,
    parts: Parts,
    memories: Vec<(Uid, Vec<u8>)>,
    told: Told,
    beat: Beat,
) {
    let config = config.clone();
    tasks.spawn("pods", |stop| run_pods(config, parts, memories, told, beat, stop));
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

fn make_dir(path: &Path) -> Result<(), AgentError> {
    std::fs::create_dir_all(path).map_err(|source| AgentError::Os {
        attempted: format!("make the directory {}", path.display()),
        source,
    })
}
