//! A pod that should stop: because it was deleted, or because it has ended.

use super::{Action, Plan, volumes_gone};
use crate::memory::{Ended, Memory};
use crate::observed::Observed;
use crate::pod::PodView;

/// Stops and removes everything of a deleted pod.
pub(super) fn delete(pod: &PodView, observed: &Observed, plan: &mut Plan) {
    // The whole grace each time: a deletion with a smaller one gives another action, the passing of
    // time does not. After a restart of the agent the grace begins anew, as with the kubelet.
    let grace_s = pod.grace_seconds();
    if stop_containers(observed, grace_s, plan) {
        return;
    }
    if plan.memory.ended.is_none() {
        plan.memory.ended = Some(how_it_ended(pod, &plan.memory));
    }
    if !observed.sandboxes.is_empty() {
        for sandbox in &observed.sandboxes {
            plan.act(Action::RemoveSandbox { id: sandbox.id.clone() });
        }
        return;
    }
    for container in &observed.containers {
        plan.act(Action::RemoveContainer { id: container.id.clone() });
    }
    if !observed.containers.is_empty() {
        return;
    }
    if !volumes_gone(observed) {
        plan.act(Action::TearDownVolumes);
        return;
    }
    plan.finished = true;
}

/// Deleted while it ran: it did well if every container ended well.
fn how_it_ended(pod: &PodView, memory: &Memory) -> Ended {
    let succeeded = pod.containers().iter().all(|container| {
        let last = memory.containers.get(&container.name).and_then(|kept| kept.last.as_ref());
        last.is_some_and(|last| last.exit_code == 0)
    });

    Ended::by_itself(succeeded)
}

/// Stops a pod that ended and gives back its network and mounts; its records stay until deletion.
pub(super) fn end(pod: &PodView, observed: &Observed, plan: &mut Plan) {
    if stop_containers(observed, pod.grace_seconds(), plan) {
        return;
    }
    for sandbox in observed.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        plan.act(Action::StopSandbox { id: sandbox.id.clone() });
    }
    if observed.sandboxes.iter().all(|sandbox| !sandbox.ready) && !volumes_gone(observed) {
        plan.act(Action::TearDownVolumes);
    }
}

/// Asks every live container to stop; false if none is left.
pub(super) fn stop_containers(observed: &Observed, grace_s: i64, plan: &mut Plan) -> bool {
    let mut any = false;
    for container in &observed.containers {
        if container.may_run() {
            any = true;
            plan.act(Action::StopContainer {
                id: container.id.clone(),
                container: container.name.clone(),
                grace_s,
                why: format!("Stopping container {}", container.name),
            });
        }
    }

    any
}
