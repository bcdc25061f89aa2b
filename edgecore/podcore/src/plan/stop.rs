//! The stop of one container: it is told, its hook runs, and then it is killed (kubelet: `killContainer`).

use super::{Action, Plan};
use crate::observed::ContainerView;
use crate::pod::{GRACE_MIN_S, PodView};

/// Tells of the stop and runs the hook before it; what is left of the grace then, once that is over.
pub(super) fn begin(
    pod: &PodView,
    container: &ContainerView,
    grace_s: i64,
    why: &str,
    plan: &mut Plan,
) -> Option<i64> {
    let name = &container.name;
    let told = plan.memory.transient.killing.insert(container.id.clone(), why.to_owned());
    if told.is_none_or(|told| told != why) {
        plan.act(Action::Event {
            warning: false,
            reason: "Killing".to_owned(),
            message: why.to_owned(),
            container: Some(name.clone()),
        });
    }
    let took_s = plan.memory.pre_stopped.get(&container.id).copied();
    let has_hook = container.is_running() && has_pre_stop(pod, name) && grace_s > 0;
    if has_hook && took_s.is_none() {
        let (container, id) = (name.clone(), container.id.clone());
        plan.act(Action::PreStop { container, id, grace_s });
        return None;
    }

    Some(grace_s.saturating_sub(took_s.unwrap_or(0)))
}

fn has_pre_stop(pod: &PodView, container: &str) -> bool {
    let found = pod.all_containers().find(|other| other.name == container);

    found.and_then(|found| found.lifecycle.as_ref()?.pre_stop.as_ref()).is_some()
}

/// Kills the container: there is always some time between the signals.
pub(super) fn kill(container: &ContainerView, left_s: i64, plan: &mut Plan) {
    plan.act(Action::StopContainer {
        id: container.id.clone(),
        container: container.name.clone(),
        grace_s: left_s.max(GRACE_MIN_S),
    });
}

/// Stops a container that waits for no other.
pub(super) fn stop(
    pod: &PodView,
    container: &ContainerView,
    grace_s: i64,
    why: &str,
    plan: &mut Plan,
) {
    if let Some(left_s) = begin(pod, container, grace_s, why, plan) {
        kill(container, left_s, plan);
    }
}
