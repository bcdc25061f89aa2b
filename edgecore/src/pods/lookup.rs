//! What the kubelet API wants to know of a pod: where its logs are and what can be executed in.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{ContainerStateWaiting, ContainerStatus, PodStatus};
use podcore::memory::Memory;
use podcore::observed::{ContainerState as Seen, ContainerView, Observed};
use podcore::pod::PodView;

use crate::kubelet_api::{ContainerRef, ContainerState, Incarnation, PodRef};

/// What the pod's task holds of log files.
#[derive(Clone, Copy, Debug)]
pub struct Logs<'a> {
    /// Log files by container id.
    pub files: &'a BTreeMap<String, String>,
    /// The directory of the pod's log files.
    pub dir: &'a Path,
}

/// Collects it from what the pod's task holds.
pub fn pod_ref(
    pod: &PodView,
    observed: &Observed,
    memory: &Memory,
    status: &PodStatus,
    logs: Logs<'_>,
) -> PodRef {
    // An end that the runtime has forgotten, for example with the sandbox that a power cut ended: its
    // log is still there.
    let remembered = |name: &str, newest: Option<u32>| {
        let last = memory.containers.get(name)?.last.as_ref()?;
        let log = logs.dir.join(name).join(format!("{}.log", last.attempt));

        newest
            .is_none_or(|newest| last.attempt < newest)
            .then(|| Incarnation { id: last.id.clone(), log })
    };
    let incarnation = |container: &ContainerView| Incarnation {
        id: container.id.clone(),
        log: logs.files.get(&container.id).map(Into::into).unwrap_or_default(),
    };
    let containers = pod.all_containers().map(|container| {
        let mut instances: Vec<_> =
            observed.containers.iter().filter(|seen| seen.name == container.name).collect();
        instances.sort_by_key(|seen| seen.attempt);
        let newest = instances.pop();
        let waiting = waiting_reason(status, &container.name);
        let state = match newest {
            None => ContainerState::Waiting { reason: waiting },
            Some(seen) => match &seen.state {
                Seen::Created | Seen::Unknown => ContainerState::Waiting { reason: waiting },
                Seen::Running { .. } => ContainerState::Running(incarnation(seen)),
                Seen::Exited { .. } => ContainerState::Terminated(incarnation(seen)),
            },
        };
        // One that waits for its next attempt has the last as the previous one.
        let ended = newest.filter(|seen| {
            matches!(seen.state, Seen::Exited { .. }) && is_waiting(status, &container.name)
        });
        ContainerRef {
            name: container.name.clone(),
            tty: container.tty.unwrap_or(false),
            state,
            previous: ended
                .or_else(|| instances.pop())
                .map(incarnation)
                .or_else(|| remembered(&container.name, newest.map(|newest| newest.attempt))),
        }
    });

    PodRef {
        uid: pod.uid.clone(),
        sandbox: observed.sandbox().map(|sandbox| sandbox.id.clone()),
        containers: containers.collect(),
    }
}

/// As the status says it; a pod without a status is being made.
fn waiting_reason(status: &PodStatus, container: &str) -> String {
    waiting(status, container)
        .and_then(|waiting| waiting.reason.clone())
        .unwrap_or_else(|| "ContainerCreating".to_owned())
}

fn is_waiting(status: &PodStatus, container: &str) -> bool {
    waiting(status, container).is_some()
}

fn waiting<'a>(status: &'a PodStatus, container: &str) -> Option<&'a ContainerStateWaiting> {
    let statuses = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let found = statuses
        .into_iter()
        .flatten()
        .flatten()
        .find(|status: &&ContainerStatus| status.name == container);

    found?.state.as_ref()?.waiting.as_ref()
}
