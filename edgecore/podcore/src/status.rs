//! The PodStatus to report: a function of pod, memory and what is observed, as the kubelet reports it
//! (`pkg/kubelet/kubelet_pods.go`, `pkg/kubelet/status/generate.go`).

mod conditions;
mod containers;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub use self::conditions::{Facts, facts, update};
use crate::memory::Memory;
use crate::observed::Observed;
use crate::pod::{PodView, RestartPolicy};
use crate::resources::qos_class;

/// What of the node a status names.
#[derive(Clone, Debug, Default)]
pub struct StatusContext {
    /// The edge's own addresses, the primary first.
    pub host_ips: Vec<String>,
    /// Prefix of container ids: the runtime's name, for example `containerd`.
    pub runtime: String,
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
    let container_statuses = containers::main(pod, memory, observed, context, now);
    let init_statuses = containers::init(pod, memory, observed, context, now);
    let phase = phase(pod, memory, &init_statuses, &container_statuses);
    let ended = memory.ended.as_ref();
    let pod_ips = if pod.host_network() { &context.host_ips } else { &memory.ips };
    let has_sandbox = observed.sandbox().is_some() || ended.is_some() || !memory.ips.is_empty();
    let pod_ips: &[String] = if has_sandbox { pod_ips } else { &[] };
    let optional = |statuses: Vec<ContainerStatus>| (!statuses.is_empty()).then_some(statuses);

    PodStatus {
        phase: Some(phase.as_str().to_owned()),
        conditions: Some(conditions::conditions(pod, memory, observed, phase)),
        container_statuses: optional(container_statuses),
        init_container_statuses: optional(init_statuses),
        host_ip: context.host_ips.first().cloned(),
        host_ips: Some(context.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: (!pod_ips.is_empty())
            .then(|| pod_ips.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        message: ended.and_then(|ended| ended.message.clone()),
        reason: ended.and_then(|ended| ended.reason.clone()),
        observed_generation: pod.generation(),
        qos_class: Some(qos_class(pod).as_str().to_owned()),
        start_time: memory.start_time.map(Time),
        ..PodStatus::default()
    }
}

/// Whether the container has started at least once, as its status tells.
fn has_started(status: &ContainerStatus) -> bool {
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let state = status.state.as_ref();

    last.is_some() || state.is_some_and(|s| s.running.is_some() || s.terminated.is_some())
}

fn phase(
    pod: &PodView,
    memory: &Memory,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Phase {
    match &memory.ended {
        Some(ended) if ended.succeeded => return Phase::Succeeded,
        Some(_) => return Phase::Failed,
        None => {}
    }
    let any_running = main
        .iter()
        .any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let initialized = init.iter().all(|status| status.ready);
    let all_started = main.iter().all(has_started);
    if !(all_started && (initialized || any_running)) {
        return Phase::Pending;
    }
    if any_running || pod.restart_policy() != RestartPolicy::Never {
        return Phase::Running;
    }

    // Every container ended; the next plan says how the pod did.
    Phase::Running
}
