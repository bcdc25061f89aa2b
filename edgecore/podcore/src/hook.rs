//! The hook after a container's start (Lifecycle.postStart): until it has run, the container counts as
//! being created; when it fails, the container is stopped (kubelet: `startContainer`).

use k8s_openapi::api::core::v1::Container;
use serde::{Deserialize, Serialize};

use crate::memory::Memory;
use crate::observed::{ContainerView, Observed};
use crate::plan::{Action, Plan};
use crate::pod::PodView;

/// How the hook of one attempt went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooked {
    /// The attempt whose hook ran.
    pub attempt: u32,
    /// The container must be stopped.
    #[serde(default)]
    pub failed: bool,
}

/// Why the container waits for its next start after a failed hook.
pub const FAILED: &str = "PostStartHookError";

/// Whether a running instance still waits for the end of its hook.
pub fn is_pending(container: &Container, view: &ContainerView, memory: &Memory) -> bool {
    has(container) && view.is_running() && hooked(view, memory).is_none()
}

/// Whether the hook of an instance failed.
pub fn has_failed(view: &ContainerView, memory: &Memory) -> bool {
    hooked(view, memory).is_some_and(|hooked| hooked.failed)
}

fn has(container: &Container) -> bool {
    container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some())
}

fn hooked<'a>(view: &ContainerView, memory: &'a Memory) -> Option<&'a Hooked> {
    let hooked = memory.containers.get(&view.name)?.hooked.as_ref();

    hooked.filter(|hooked| hooked.attempt == view.attempt)
}

/// Runs the hooks of what has just started.
pub(crate) fn run(pod: &PodView, observed: &Observed, plan: &mut Plan) {
    if pod.is_deleted() || plan.memory.ended.is_some() {
        return;
    }
    for container in pod.all_containers() {
        let Some(view) = observed.newest(&container.name) else { continue };
        if is_pending(container, view, &plan.memory) {
            let (container, id, attempt) = (view.name.clone(), view.id.clone(), view.attempt);
            plan.act(Action::PostStart { container, id, attempt });
        }
    }
}
