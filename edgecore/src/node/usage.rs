//! Looks at what the node, its pods and their containers use: the runtime says what there is, the
//! kernel's files say how much. Nothing is read unless somebody asks.

pub(crate) mod read;
mod volumes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cri::{CriError, Runtime};
use cri_api::v1;
use jiff::Timestamp;
use podcore::translate::POD_UID_LABEL;
use podcore::usage::rates::Rates;
use podcore::usage::{Look, Process, Taken};

use super::cgroups::Cgroups;
use super::facts::Facts;
use crate::config::Config;
use crate::kubelet_api::{PodFacts, PodLookup};
use crate::layout::Layout;
use crate::{blocking, clock};

/// Between two looks when there was none for long: shorter, and a rate would be noise.
const RATE_TIME: Duration = Duration::from_millis(200);

/// How much is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// CPU and memory.
    CpuAndMemory,
    /// Everything.
    All,
}

/// Looks at usage.
#[derive(Clone)]
pub struct Usages {
    place: Arc<Place>,
    runtime: Runtime,
    pods: Arc<dyn PodLookup>,
    rates: Arc<Mutex<Rates>>,
}

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of the node.
    pub node: String,
    /// What the machine is.
    pub facts: Facts,
    /// Its cgroups.
    pub cgroups: Cgroups,
    /// Under which `kubepods` is.
    pub cgroup_root: String,
    /// Where volumes are.
    pub root_dir: PathBuf,
    /// Where logs are.
    pub layout: Layout,
}

impl Place {
    /// As it is configured.
    pub fn new(config: &Config, layout: &Layout, cgroups: &Cgroups, facts: &Facts) -> Self {
        Self {
            node: config.node.as_str().to_owned(),
            facts: facts.clone(),
            cgroups: cgroups.clone(),
            cgroup_root: config.cgroup_root.clone(),
            root_dir: config.root_dir.clone(),
            layout: layout.clone(),
        }
    }
}

impl std::fmt::Debug for Usages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usages").field("place", &self.place).finish_non_exhaustive()
    }
}

/// What the runtime says there is.
#[derive(Debug, Default)]
struct Held {
    sandboxes: Vec<v1::PodSandbox>,
    containers: Vec<v1::Container>,
    /// By container id.
    layers: BTreeMap<String, Taken>,
    /// Where images are, and what they take.
    images: Option<(PathBuf, Taken)>,
}

/// A pod with what the runtime holds of it.
#[derive(Debug)]
struct Found {
    facts: PodFacts,
    sandbox: Option<v1::PodSandbox>,
    containers: Vec<v1::Container>,
}

impl Usages {
    /// For the pods of this node.
    pub fn new(place: Place, runtime: Runtime, pods: Arc<dyn PodLookup>) -> Self {
        Self { place: Arc::new(place), runtime, pods, rates: Arc::default() }
    }

    /// One look. What cannot be read is left out; an error only if the runtime does not say what runs.
    pub async fn look(&self, detail: Detail) -> Result<Look, CriError> {
        let held = self.ask(detail).await?;
        let place = Arc::clone(&self.place);
        let pods = self.pods.all();

        Ok(blocking::run(move || read::look(&place, pods, held, clock::now(), detail)).await)
    }

    /// One look that also tells how much CPU is used just now.
    pub async fn look_with_rates(&self, detail: Detail) -> Result<Look, CriError> {
        if self.rates().is_stale(clock::instant()) {
            let mut first = self.look(Detail::CpuAndMemory).await?;
            self.rates().apply(&mut first, clock::instant());
            tokio::time::sleep(RATE_TIME).await;
        }
        let mut look = self.look(detail).await?;
        self.rates().apply(&mut look, clock::instant());

        Ok(look)
    }

    /// What the agent itself uses.
    pub async fn own(&self) -> Process {
        blocking::run(read::own).await
    }

    fn rates(&self) -> std::sync::MutexGuard<'_, Rates> {
        // Whole after every statement.
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, detail: Detail) -> Result<Held, CriError> {
        let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady.into() };
        let running =
            v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
        let (sandboxes, containers) = tokio::try_join!(
            self.runtime.list_pod_sandboxes(Some(v1::PodSandboxFilter {
                state: Some(ready),
                ..v1::PodSandboxFilter::default()
            })),
            self.runtime.list_containers(Some(v1::ContainerFilter {
                state: Some(running),
                ..v1::ContainerFilter::default()
            }))
        )?;
        let mut held = Held { sandboxes, containers, ..Held::default() };
        if detail == Detail::All {
            let (layers, images) =
                tokio::join!(self.runtime.list_container_stats(None), self.runtime.image_fs_info());
            held.layers = layers.unwrap_or_default().into_iter().filter_map(layer).collect();
            held.images = images.ok().and_then(images_of);
        }

        Ok(held)
    }
}

fn taken(usage: &v1::FilesystemUsage) -> Taken {
    Taken {
        bytes: usage.used_bytes.map_or(0, |bytes| bytes.value),
        inodes: usage.inodes_used.map(|inodes| inodes.value),
    }
}

fn layer(stats: v1::ContainerStats) -> Option<(String, Taken)> {
    Some((stats.attributes?.id, taken(&stats.writable_layer?)))
}

fn images_of(answer: v1::ImageFsInfoResponse) -> Option<(PathBuf, Taken)> {
    let usage = answer.image_filesystems.into_iter().next()?;
    let taken = taken(&usage);

    Some((usage.fs_id?.mountpoint.into(), taken))
}

/// Pods that have something that runs, with that.
fn found(pods: Vec<PodFacts>, held: &mut Held) -> Vec<Found> {
    let mut found: Vec<Found> = pods
        .into_iter()
        .map(|facts| Found { facts, sandbox: None, containers: Vec::new() })
        .collect();
    let of = |labels: &BTreeMap<String, String>, found: &[Found]| {
        let uid = labels.get(POD_UID_LABEL)?;
        found.iter().position(|pod| pod.facts.uid.as_str() == uid)
    };
    for sandbox in std::mem::take(&mut held.sandboxes) {
        if let Some(at) = of(&sandbox.labels, &found) {
            found[at].sandbox = Some(sandbox);
        }
    }
    for container in std::mem::take(&mut held.containers) {
        if let Some(at) = of(&container.labels, &found) {
            found[at].containers.push(container);
        }
    }
    found.retain(|pod| pod.sandbox.is_some() || !pod.containers.is_empty());

    found
}

/// The runtime's times are in nanoseconds, 0 for none.
fn time(ns: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(ns.into()).ok().filter(|at| at.as_nanosecond() > 0)
}
