//! What runs before the containers of a pod: init containers one by one, each to its end, and sidecars,
//! which go on for as long as the pod does (kubelet: `computeInitContainerActions`).

use k8s_openapi::api::core::v1::Container;

use super::Plan;
use super::converge::{Role, Step, Wish, instance_wish, pursue, wish};
use super::start::next_attempt;
use crate::memory::Memory;
use crate::pod::{PodView, is_sidecar};
use crate::probe;

/// Goes on with the init containers, and keeps the sidecars among them running; true when the containers
/// of the pod proper may start.
pub(super) fn initialize(pod: &PodView, step: &Step<'_>, plan: &mut Plan) -> bool {
    let has_run = |c: &Container| step.observed.newest_in(&step.sandbox.id, &c.name).is_some();
    let is_over = pod.containers().iter().any(has_run);
    for (at, container) in pod.init_containers().iter().enumerate() {
        // A later one has run here: this one was done, whatever was removed since.
        let is_past = is_over || pod.init_containers()[at + 1..].iter().any(has_run);
        if is_sidecar(container) {
            let has_started = has_started(container, step, &plan.memory);
            let wish = wish(pod, container, step, &plan.memory);
            pursue(pod, container, wish, step, plan);
            if !is_past && !has_started {
                return false;
            }
        } else if !is_past && !is_completed(container, step, &plan.memory) {
            let wish = init_wish(pod, container, step, &plan.memory);
            pursue(pod, container, wish, step, plan);
            return false;
        }
    }

    true
}

fn has_started(sidecar: &Container, step: &Step<'_>, memory: &Memory) -> bool {
    let view = step.observed.newest_in(&step.sandbox.id, &sidecar.name);

    view.is_some_and(|view| probe::is_started(sidecar, view, memory))
}

/// Whether the last attempt completed in this sandbox.
fn is_completed(container: &Container, step: &Step<'_>, memory: &Memory) -> bool {
    let Some(kept) = memory.containers.get(&container.name) else { return false };

    kept.last.as_ref().is_some_and(|last| {
        last.sandbox_attempt == step.sandbox.attempt
            && last.exit_code == 0
            && kept.attempt == Some(last.attempt)
    })
}

fn init_wish(pod: &PodView, container: &Container, step: &Step<'_>, memory: &Memory) -> Wish {
    match step.observed.newest_in(&step.sandbox.id, &container.name) {
        Some(view) => instance_wish(pod, container, view, memory, Role::Init),
        None => Wish::Start { attempt: next_attempt(memory, &container.name) },
    }
}
