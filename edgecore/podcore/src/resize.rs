//! In-place resize (KEP-1287): what a running pod is granted of the resources that it asks for, and what
//! its containers have of that. Rules: `pkg/kubelet/allocation`, `computePodResizeAction`.

mod resources;
mod turn;
mod usage;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::backoff;
use crate::memory::Memory;
use crate::observed::{ContainerView, Observed};
use crate::plan::{Action, Plan};
use crate::pod::{PodView, is_sidecar};
use crate::resources::{pod_limits, pod_request};

pub use self::resources::Resources;
pub use self::turn::{Share, Wish, take_turn};
pub use self::usage::{Lowered, below_usage};

/// When a resize that does not fit is looked at again: somebody else may have gone.
const RETRY: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

/// What the node has for pods, and what the others have of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of CPU, in thousandths.
    pub cpu: Amount,
    /// Of memory, in bytes.
    pub memory: Amount,
}

/// Of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// All there is for pods.
    pub capacity: i64,
    /// What the other pods request.
    pub used: i64,
}

/// What an instance of a container was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Actual {
    /// The attempt.
    pub attempt: u32,
    /// The image, as the spec names it.
    #[serde(default)]
    pub image: String,
    /// Its resources.
    pub resources: Resources,
}

/// A running container that has other resources than it is granted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outdated {
    /// Its name.
    pub name: String,
    /// Id in the runtime.
    pub id: String,
    /// Its attempt.
    pub attempt: u32,
    /// Its limit of memory becomes less, or is its first.
    pub lowers_memory: bool,
}

/// What of a resize is still to come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resize {
    /// Not granted yet, or never (condition `PodResizePending`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<Stage>,
    /// Granted, not yet done (condition `PodResizeInProgress`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_progress: Option<Stage>,
}

/// A condition that is there while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// `metadata.generation` that it is about.
    pub generation: Option<i64>,
    /// In the kubelet's words; empty while all goes well.
    pub reason: String,
    /// Why.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

/// Containers that may be resized.
fn resizable(pod: &PodView) -> impl Iterator<Item = &Container> {
    let sidecars = pod.init_containers().iter().filter(|init| is_sidecar(init));

    sidecars.chain(pod.containers())
}

/// The pod with what its containers are granted, where that is not what it asks for.
pub fn granted(pod: &PodView, memory: &Memory) -> Option<PodView> {
    let differing = resizable(pod).filter_map(|container| {
        let allocated = memory.containers.get(&container.name)?.allocated.as_ref()?;

        (!allocated.equals(&Resources::of(container)))
            .then(|| (container.name.clone(), allocated.clone()))
    });
    let differing: BTreeMap<_, _> = differing.collect();

    (!differing.is_empty()).then(|| pod.with_resources(&differing))
}

/// Grants what the pod asks for if there is room, or says why not.
pub(crate) fn grant(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if pod.is_deleted() || plan.memory.ended.is_some() {
        return;
    }
    for container in resizable(pod) {
        let asked = Resources::of(container);
        plan.memory.container(&container.name).allocated.get_or_insert(asked);
    }
    if granted(pod, &plan.memory).is_none() {
        plan.memory.resize.pending = None;
        return;
    }
    let refusal = observed.room.and_then(|room| refusal(pod, &room));
    let generation = pod.generation();
    match refusal {
        None => {
            for container in resizable(pod) {
                let asked = Resources::of(container);
                plan.memory.container(&container.name).allocated = Some(asked);
            }
            plan.memory.resize.pending = None;
            plan.memory.transient.resize_failure = None;
            let (reason, message) = (String::new(), String::new());
            plan.memory.resize.in_progress =
                Some(Stage { generation, reason, message, since: now });
            tell(plan, pod, false, "ResizeStarted", "Pod resize started", "");
        }
        Some((reason, message)) => {
            if reason == "Deferred" {
                plan.wake(now.saturating_add(RETRY).unwrap_or(now));
            }
            let before = plan.memory.resize.pending.take();
            let is_told = before
                .as_ref()
                .is_some_and(|before| before.reason == reason && before.generation == generation);
            if !is_told {
                let (event, prefix) = (format!("Resize{reason}"), format!("Pod resize {reason}"));
                tell(plan, pod, true, &event, &prefix, &message);
            }
            let since = before.map_or(now, |before| before.since);
            let reason = reason.to_owned();
            plan.memory.resize.pending = Some(Stage { generation, reason, message, since });
        }
    }
}

/// Why the pod cannot have what it asks for, never or not now (kubelet: `canResizePod`).
fn refusal(pod: &PodView, room: &Room) -> Option<(&'static str, String)> {
    let asked = [
        ("memory", pod_request(pod, "memory"), room.memory),
        ("cpu", pod_request(pod, "cpu"), room.cpu),
    ];
    for (name, asked, amount) in asked {
        if asked > amount.capacity {
            let capacity = amount.capacity;
            let message = format!(
                "Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}"
            );
            return Some(("Infeasible", message));
        }
    }
    for (name, asked, Amount { capacity, used }) in asked.into_iter().rev() {
        if asked > capacity.saturating_sub(used) {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
            );
            return Some(("Deferred", message));
        }
    }

    None
}

/// What the running instance was told to have, if that is known.
fn actual<'a>(view: &ContainerView, memory: &'a Memory) -> Option<&'a Resources> {
    let actual = memory.containers.get(&view.name)?.actual.as_ref();

    actual.filter(|actual| actual.attempt == view.attempt).map(|actual| &actual.resources)
}

/// Whether the running instance has other resources than it is granted. `container` is the granted one.
fn is_outdated(container: &Container, view: &ContainerView, memory: &Memory) -> bool {
    let granted = Resources::of(container);

    // Of one that asks for nothing nothing was to be told.
    let known = actual(view, memory).cloned().unwrap_or_default();

    view.is_running() && !known.equals(&granted)
}

/// What of a container that runs is to be changed. `container` is the granted one.
fn outdated(container: &Container, view: &ContainerView, memory: &Memory) -> Option<Outdated> {
    if !is_outdated(container, view, memory) || needs_restart(container, view, memory) {
        return None;
    }
    let before = actual(view, memory).and_then(Resources::memory_limit);
    let limit = Resources::of(container).memory_limit();

    Some(Outdated {
        name: view.name.clone(),
        id: view.id.clone(),
        attempt: view.attempt,
        lowers_memory: limit.is_some_and(|limit| before.is_none_or(|before| limit < before)),
    })
}

/// Whether the cgroup of the pod has other limits than those of what the pod is granted. `pod` is the
/// granted one.
fn is_cgroup_outdated(pod: &PodView, memory: &Memory) -> bool {
    memory.resize.in_progress.is_some() && memory.transient.limits != Some(pod_limits(pod))
}

/// Whether containers start only after the cgroup of their pod has changed. One that could not be changed
/// keeps nobody waiting.
pub(crate) fn goes_before_starts(pod: &PodView, memory: &Memory) -> bool {
    memory.transient.resize_failure.is_none() && is_cgroup_outdated(pod, memory)
}

/// Whether that instance must start again to have what it is granted (`resizePolicy`).
pub(crate) fn needs_restart(container: &Container, view: &ContainerView, memory: &Memory) -> bool {
    let Some(actual) = actual(view, memory) else { return false };
    let granted = Resources::of(container);

    view.is_running()
        && container.resize_policy.iter().flatten().any(|policy| {
            policy.restart_policy == "RestartContainer"
                && !actual.equals_in(&policy.resource_name, &granted)
        })
}

/// The resources that a status tells of a running instance: those that it has.
pub(crate) fn told(
    container: &Container,
    view: &ContainerView,
    memory: &Memory,
) -> ResourceRequirements {
    let mut resources = container.resources.clone().unwrap_or_default();
    if let Some(actual) = actual(view, memory).filter(|_| view.is_running())
        && !actual.equals(&Resources::of(container))
    {
        actual.put_into(&mut resources);
    }

    resources
}

/// Gives the running containers and the cgroup of the pod what they are granted, and notes when all have
/// it. What starts again for it is stopped first: it needs the limits that it had. `pod` is the granted one.
pub(crate) fn actuate(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let mut containers = Vec::new();
    let (mut waits, mut stops) = (false, false);
    for container in resizable(pod) {
        let Some(view) = observed.newest(&container.name) else { continue };
        let is_replaced = plan.memory.is_replaced(&view.name, view.attempt);
        waits |= is_replaced;
        stops |= is_replaced && view.may_run();
        containers.extend(outdated(container, view, &plan.memory));
    }
    if stops {
        return;
    }
    if containers.is_empty() && !is_cgroup_outdated(pod, &plan.memory) {
        if !waits && plan.memory.resize.in_progress.take().is_some() {
            tell(plan, pod, false, "ResizeCompleted", "Pod resize completed", "");
        }
        return;
    }
    let failure = plan.memory.transient.resize_failure.clone();
    if let Some(failure) = &failure {
        let before = plan.memory.resize.in_progress.as_ref();
        let is_told = before.is_some_and(|stage| stage.message == failure.message);
        let stage = Stage {
            generation: before.map_or_else(|| pod.generation(), |stage| stage.generation),
            reason: "Error".to_owned(),
            message: failure.message.clone(),
            since: before.map_or(now, |stage| stage.since),
        };
        plan.memory.resize.in_progress = Some(stage);
        if !is_told {
            tell(plan, pod, true, "ResizeError", "Pod resize error", &failure.message);
        }
    }
    if let Some(until) = failure.and_then(|failure| backoff::held_until(&failure, now)) {
        plan.wake(until);
        return;
    }
    // What one has less of, another may have more of.
    containers.sort_by_key(|container| !container.lowers_memory);
    plan.act(Action::Resize { containers });
}

/// What is asked for, in the form of the kubelet's Events (`podResizeMessage`).
fn tell(plan: &mut Plan, pod: &PodView, warning: bool, reason: &str, prefix: &str, error: &str) {
    let list = |containers: &[Container]| {
        let of = |c: &Container| json!({ "name": c.name, "resources": c.resources.clone().unwrap_or_default() });
        containers.iter().map(of).collect::<Vec<_>>()
    };
    let mut summary =
        json!({ "containers": list(pod.containers()), "generation": pod.generation() });
    if !pod.init_containers().is_empty() {
        summary["initContainers"] = json!(list(pod.init_containers()));
    }
    if !error.is_empty() {
        summary["error"] = json!(error);
    }
    plan.act(Action::Event {
        warning,
        reason: reason.to_owned(),
        message: format!("{prefix}: {summary}"),
        container: None,
    });
}
