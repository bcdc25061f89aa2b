//! A pod of a node that goes down: it is stopped, and is over only if it never restarts.

use jiff::Timestamp;

use super::wind_down::stop_containers;
use super::{Action, Plan, has_completed};
use crate::memory::Ended;
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

/// Stops a pod that is not over, within the grace that it has been given already.
pub(super) fn go_down(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    for container in observed.containers.iter().filter(|c| c.may_run()) {
        plan.memory.container(&container.name).interrupted = Some(container.attempt);
    }
    if stop_containers(pod, observed, now, plan) {
        return;
    }
    // What was initialized is to be again.
    for sandbox in observed.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        plan.act(Action::StopSandbox { id: sandbox.id.clone() });
    }
}
