//! A pod of a node that goes down: it is stopped, and is over only if it never restarts. What has begun to stop
//! does, also when the node goes on.

use jiff::Timestamp;

use super::wind_down::stop_containers;
use super::{Action, Plan, has_completed};
use crate::memory::{Ended, Memory};
use crate::observed::Observed;
use crate::pod::PodView;

/// Ends the pod if it never restarts.
pub(super) fn end(pod: &PodView, observed: &Observed, plan: &mut Plan) {
    if observed.shutdown_s.is_none() || plan.memory.ended.is_some() {
        return;
    }
    let completed = has_completed(pod, observed, &plan.memory);
    plan.memory.ended = completed.or_else(|| pod.never_restarts().then(Ended::shut_down));
}

/// Seconds that the pod has; `None` if it need not stop. A stop that has begun is carried through when the
/// node goes on, as nothing calls one off with a kubelet: what was told to stop does not run on half dead.
pub(super) fn grace(pod: &PodView, observed: &Observed, memory: &Memory) -> Option<i64> {
    if observed.shutdown_s.is_some() {
        return observed.shutdown_s;
    }
    let sandbox = observed.sandbox()?;
    let mut newest = pod
        .all_containers()
        .filter_map(|container| observed.newest_in(&sandbox.id, &container.name));
    let has_begun = newest.any(|view| memory.is_interrupted(&view.name, view.attempt));
    let given = memory.transient.stopping.as_ref().map(|stopping| stopping.grace_s);

    has_begun.then(|| given.unwrap_or_else(|| pod.grace_seconds()))
}

/// Stops a pod that is not over, within the grace that it has been given already.
pub(super) fn go_down(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let sandbox = observed.sandbox();
    for container in observed.containers.iter().filter(|c| c.may_run()) {
        let newest = sandbox.and_then(|sandbox| observed.newest_in(&sandbox.id, &container.name));
        let attempt =
            newest.map_or(container.attempt, |newest| container.attempt.min(newest.attempt));
        let interrupted = &mut plan.memory.container(&container.name).interrupted;
        // By the one in the sandbox [`grace`] knows that the stop has begun: not by an earlier one that still
        // runs, nor by a stray that is later.
        *interrupted = (*interrupted).max(Some(attempt));
    }
    if stop_containers(pod, observed, now, plan) {
        return;
    }
    // What was initialized is to be again.
    for sandbox in observed.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        plan.act(Action::StopSandbox { id: sandbox.id.clone() });
    }
}
