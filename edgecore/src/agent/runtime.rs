//! The container runtime: waited for, with systemd if that makes the cgroups; then pods run on it.

use std::sync::Arc;
use std::time::Duration;

use cri::{CriError, Runtime, RuntimeVersion};
use podcore::abilities::Abilities;
use podcore::admission;
use podcore::env::NodeFields;
use podcore::resources::{CgroupDriver, cpu_shares};
use proto::ids::Uid;
use store::Store;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::KnownTime;
use crate::config::{self, Config};
use crate::desired::Desired;
use crate::layout::Layout;
use crate::link::{LinkState, Upstream};
use crate::node::cgroups::{CgroupError, Cgroups, Limits};
use crate::node::monitor::{self, Beat};
use crate::node::pressure::Shortages;
use crate::pods;
use crate::pods::context::{Context, STARTS_MAX};
use crate::pods::images::Images;
use crate::pods::registry::Registry;
use crate::pods::sweep::class_cgroup;
use crate::retry::Retry;
use crate::tasks::BoxError;
use crate::telemetry::chain;

/// Between tries to reach a runtime that does not answer: doubled each time.
const RUNTIME_WAIT: Duration = Duration::from_millis(200);
const RUNTIME_WAIT_MAX: Duration = Duration::from_secs(10);

/// What the pods' context is made from once the runtime is known.
pub(super) struct Parts {
    pub(super) fields: NodeFields,
    pub(super) own: admission::Node,
    pub(super) shortages: Shortages,
    pub(super) layout: Layout,
    pub(super) runtime: Runtime,
    pub(super) abilities: watch::Receiver<Arc<Abilities>>,
    pub(super) images: Images,
    pub(super) store: Store,
    pub(super) desired: Desired,
    pub(super) registry: Registry,
    pub(super) upstream: Upstream,
    pub(super) known: KnownTime,
    pub(super) cgroups: Cgroups,
    pub(super) addresses: watch::Receiver<Vec<String>>,
    pub(super) link: watch::Receiver<LinkState>,
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
            known: self.known,
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
pub(super) struct Told {
    pub(super) version: watch::Sender<Option<RuntimeVersion>>,
    pub(super) abilities: watch::Sender<Arc<Abilities>>,
}

impl Told {
    /// Nothing but what the machine can do; and where it is read.
    pub(super) fn new(
        of_machine: Abilities,
    ) -> (Self, watch::Receiver<Option<RuntimeVersion>>, watch::Receiver<Arc<Abilities>>) {
        let (version, version_told) = watch::channel(None);
        let (abilities, abilities_told) = watch::channel(Arc::new(of_machine));

        (Self { version, abilities }, version_told, abilities_told)
    }
}

/// Waits for a runtime, then runs pods on it.
pub(super) async fn run_pods(
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
    if !found_cgroups(&config, &parts, driver, &beat, &stop).await? {
        return Ok(());
    }
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
    let mut retry = Retry::new(RUNTIME_WAIT, RUNTIME_WAIT_MAX);
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
        if !retry.wait(stop).await {
            return Ok(None);
        }
    }
}

/// Makes the cgroups above those of pods, once systemd answers if it makes them. False if the agent stops.
async fn found_cgroups(
    config: &Config,
    parts: &Parts,
    driver: CgroupDriver,
    beat: &Beat,
    stop: &CancellationToken,
) -> Result<bool, CgroupError> {
    let mut retry = Retry::new(RUNTIME_WAIT, RUNTIME_WAIT_MAX);
    loop {
        beat.beat();
        match make_class_cgroups(config, parts, driver).await {
            Err(error @ CgroupError::Slice { .. }) => {
                tracing::warn!(error = %chain(&error), "waiting for systemd");
            }
            made => return made.map(|()| true),
        }
        if !retry.wait(stop).await {
            return Ok(false);
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
/// others leave. What a change of the driver has left would be taken for it, and goes.
async fn make_class_cgroups(
    config: &Config,
    parts: &Parts,
    driver: CgroupDriver,
) -> Result<(), CgroupError> {
    let ensure = async |class, limits| {
        let parent = class_cgroup(&config.cgroup_root, driver, class);
        parts.cgroups.ensure(&parent, limits).await
    };
    if driver == CgroupDriver::Systemd {
        let before = class_cgroup(&config.cgroup_root, CgroupDriver::Cgroupfs, "");
        if let Err(error) = parts.cgroups.remove(&before).await {
            tracing::warn!(error = %chain(&error), "pods are left that were started with cgroupfs");
        }
    }
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
