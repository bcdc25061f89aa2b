//! The PodStatus to report: a function of pod, memory and what is observed, as the kubelet reports it
//! (`pkg/kubelet/kubelet_pods.go`, `pkg/kubelet/status/generate.go`).

mod conditions;
mod containers;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, HostIP, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use self::conditions::{Facts, facts, update};
use crate::memory::{Ended, Memory};
use crate::observed::Observed;
use crate::pod::{PodView, is_sidecar};
use crate::resize;
use crate::resources::qos_class;
use crate::shutdown;

/// What of the node a status names.
#[derive(Clone, Debug, Default)]
pub struct StatusContext {
    /// The edge's own addresses, the primary first.
    pub host_ips: Vec<String>,
    /// Prefix of container ids: the runtime's name, for example `containerd`.
    pub runtime: String,
    /// It can make mounts read-only with all that is below them.
    pub recursive_read_only: bool,
}

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not every container has started.
    Pending,
    /// It runs, or will again.
    Running,
    /// Every container ended well, for good.
    Succeeded,
    /// Ended, not well.
    Failed,
}

impl Phase {
    /// The name in `status.phase`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// The status of the pod.
pub fn status(
    pod: &PodView,
    memory: &Memory,
    observed: &Observed,
    context: &StatusContext,
    now: Timestamp,
) -> PodStatus {
    if let Some(ended) = memory.ended.as_ref().filter(|ended| ended.is_refusal()) {
        return refused(pod, ended, memory);
    }
    let granted = resize::granted(pod, memory);
    let pod = granted.as_ref().unwrap_or(pod);
    let container_statuses = containers::main(pod, memory, observed, context, now);
    let init_statuses = containers::init(pod, memory, observed, context, now);
    let ephemeral_statuses = containers::ephemeral(pod, memory, observed, context, now);
    let ended = memory.ended.as_ref().filter(|ended| ended.stopped);
    let phase = phase(pod, ended, &init_statuses, &container_statuses);
    let pod_ips = if pod.host_network() { &context.host_ips } else { &memory.ips };
    let why = why(ended, observed);
    let optional = |statuses: Vec<ContainerStatus>| (!statuses.is_empty()).then_some(statuses);

    PodStatus {
        phase: Some(phase.as_str().to_owned()),
        conditions: Some(conditions::conditions(pod, memory, observed)),
        container_statuses: optional(container_statuses),
        init_container_statuses: optional(init_statuses),
        ephemeral_container_statuses: optional(ephemeral_statuses),
        host_ip: context.host_ips.first().cloned(),
        host_ips: Some(context.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty())
            .then(|| pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        message: why.1,
        reason: why.0,
        observed_generation: pod.generation(),
        qos_class: Some(qos_class(pod).as_str().to_owned()),
        start_time: memory.start_time.map(Time),
        ..PodStatus::default()
    }
}

/// Reason and message: of the end, or of a stop that is none.
fn why(ended: Option<&Ended>, observed: &Observed) -> (Option<String>, Option<String>) {
    match (ended, observed.shutdown_s) {
        (Some(ended), _) => (ended.reason.clone(), ended.message.clone()),
        (None, Some(_)) => (Some(shutdown::REASON.to_owned()), Some(shutdown::MESSAGE.to_owned())),
        (None, None) => (None, None),
    }
}

/// A pod that was never taken in has no containers to tell of (kubelet: `rejectPod`).
fn refused(pod: &PodView, ended: &Ended, memory: &Memory) -> PodStatus {
    PodStatus {
        phase: Some(Phase::Failed.as_str().to_owned()),
        message: ended.message.clone(),
        reason: ended.reason.clone(),
        observed_generation: pod.generation(),
        qos_class: Some(qos_class(pod).as_str().to_owned()),
        start_time: memory.start_time.map(Time),
        ..PodStatus::default()
    }
}

/// How often each way of being, over the containers of a role.
#[derive(Default)]
struct Count {
    running: usize,
    /// Of these, whose startup probe or hook is not through.
    starting: usize,
    /// Never started.
    waiting: usize,
}

fn count<'a>(statuses: impl IntoIterator<Item = &'a ContainerStatus>) -> Count {
    let mut count = Count::default();
    for status in statuses {
        let state = status.state.as_ref();
        let has_ended =
            |state: Option<&ContainerState>| state.is_some_and(|state| state.terminated.is_some());
        if state.is_some_and(|state| state.running.is_some()) {
            count.running += 1;
            count.starting += usize::from(status.started != Some(true));
        } else if !has_ended(state) && !has_ended(status.last_state.as_ref()) {
            count.waiting += 1;
        }
    }

    count
}

/// `getPhase`. That a pod has ended is decided by the plan, and told when nothing of it can run any
/// more (kubelet: `mergePodStatus`).
fn phase(
    pod: &PodView,
    ended: Option<&Ended>,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Phase {
    match ended {
        Some(ended) if ended.succeeded => return Phase::Succeeded,
        Some(_) => return Phase::Failed,
        None => {}
    }
    let sidecars: Vec<_> = pod.init_containers().iter().filter(|c| is_sidecar(c)).collect();
    let is_sidecar = |status: &&ContainerStatus| sidecars.iter().any(|c| c.name == status.name);
    let (sidecars, init): (Vec<_>, Vec<_>) = init.iter().partition(is_sidecar);
    let (sidecars, init, main_count) = (count(sidecars), count(init), count(main));
    // Sidecars that start again while the containers run change nothing.
    let is_initialized = main.len() > main_count.waiting;
    let starting = if is_initialized { 0 } else { sidecars.starting };
    let pending = init.running + init.waiting + main_count.waiting + sidecars.waiting + starting;

    if pending > 0 { Phase::Pending } else { Phase::Running }
}
