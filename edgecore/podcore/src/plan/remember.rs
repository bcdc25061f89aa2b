//! What is kept of a look: ends and attempts, which the runtime forgets.

use jiff::Timestamp;

use crate::memory::{Memory, Termination};
use crate::observed::{ContainerState, ContainerView, Observed};

/// Exit code of a container whose end nobody saw (kubelet).
pub(crate) const UNKNOWN_EXIT_CODE: i32 = 137;

/// Its message (kubelet: `convertToAPIContainerStatuses`).
pub(crate) const UNKNOWN_END: &str =
    "The container could not be located when the pod was terminated";

/// Keeps what the runtime says of ends and attempts: it forgets when a container is removed.
pub(super) fn remember(memory: &mut Memory, observed: &Observed, now: Timestamp) {
    for sandbox in &observed.sandboxes {
        memory.sandbox_attempt = memory.sandbox_attempt.max(Some(sandbox.attempt));
    }
    if let Some(sandbox) = observed.sandbox().filter(|sandbox| !sandbox.ips.is_empty()) {
        memory.ips.clone_from(&sandbox.ips);
    }
    for container in &observed.containers {
        let sandbox_attempt = observed
            .sandboxes
            .iter()
            .find(|sandbox| sandbox.id == container.sandbox_id)
            .map_or(0, |sandbox| sandbox.attempt);
        if container.state == ContainerState::Created {
            // Never ran: its attempt is used again.
            continue;
        }
        let kept = memory.container(&container.name);
        kept.attempt = kept.attempt.max(Some(container.attempt));
        let Some(mut end) = termination(container, sandbox_attempt) else { continue };
        let before = kept.last.as_ref();
        if before.is_none_or(|last| last.attempt <= end.attempt) {
            let known = before.filter(|last| last.id == end.id).and_then(|last| last.finished_at);
            end.finished_at = end.finished_at.or(known).or(Some(now));
            // The file with the message goes with the pod's directory when the pod has ended.
            if let Some(last) = before.filter(|last| last.id == end.id && end.message.is_empty()) {
                end.message.clone_from(&last.message);
            }
            kept.last = Some(end);
        }
    }
    let is_live = |id: &str| observed.containers.iter().any(|c| c.id == id && c.may_run());
    memory.pre_stopped.retain(|id, _| is_live(id));
    memory.transient.killing.retain(|id, _| is_live(id));
    for (name, kept) in &mut memory.containers {
        let newest = observed.newest(name).map(|container| container.attempt);
        if let Some(attempt) = kept.attempt.filter(|attempt| newest < Some(*attempt))
            && kept.last.as_ref().is_none_or(|last| last.attempt < attempt)
        {
            kept.last = Some(lost(attempt, memory.sandbox_attempt, now));
        }
    }
}

/// What the runtime says of the end of an instance.
pub(crate) fn termination(container: &ContainerView, sandbox_attempt: u32) -> Option<Termination> {
    let ContainerState::Exited { started_at, finished_at, exit_code, reason, message } =
        &container.state
    else {
        return None;
    };

    Some(Termination {
        attempt: container.attempt,
        sandbox_attempt,
        id: container.id.clone(),
        exit_code: *exit_code,
        reason: reason.clone(),
        message: message.clone(),
        started_at: *started_at,
        finished_at: *finished_at,
        image: container.image.clone(),
        image_ref: container.image_ref.clone(),
        user: container.user.clone(),
    })
}

/// A container that ran and is not there any more: nobody saw its end (kubelet:
/// `ContainerReasonStatusUnknown`). Without this it would run again whatever the restart policy.
fn lost(attempt: u32, sandbox_attempt: Option<u32>, now: Timestamp) -> Termination {
    Termination {
        attempt,
        sandbox_attempt: sandbox_attempt.unwrap_or(0),
        id: String::new(),
        exit_code: UNKNOWN_EXIT_CODE,
        reason: "ContainerStatusUnknown".to_owned(),
        message: UNKNOWN_END.to_owned(),
        started_at: None,
        finished_at: Some(now),
        image: String::new(),
        image_ref: String::new(),
        user: None,
    }
}
