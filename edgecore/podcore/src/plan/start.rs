//! The start of a container: what it waits for (its image, the volumes, back-offs), and its next attempt.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::converge::Step;
use super::{Action, Plan};
use crate::backoff;
use crate::memory::{ImageFound, Memory};
use crate::observed::{ContainerState, Observed, VolumesState};
use crate::pod::PodView;
use crate::translate::container_hash;

/// Starts the container if its image and the volumes are there; otherwise asks for what is missing.
/// True if it starts.
pub(super) fn start(container: &Container, attempt: u32, step: &Step<'_>, plan: &mut Plan) -> bool {
    let image_ref = ensure_image(container, attempt, step.now, plan);
    let Some(image_ref) = image_ref.filter(|_| has_volumes(step.observed, &plan.memory)) else {
        return false;
    };
    // One that was never started has the name that this attempt needs, also in an old sandbox.
    let mut same = step.observed.containers.iter().filter(|c| c.name == container.name);
    let is_taken = same.any(|c| c.may_run() || c.state == ContainerState::Created);
    if is_taken || step.holds_starts {
        return false;
    }
    let failure = plan.memory.transient.start_failures.get(&container.name);
    if let Some(until) = failure.and_then(|failure| backoff::held_until(failure, step.now)) {
        plan.wake(until);
        return false;
    }
    plan.act(Action::StartContainer {
        container: container.name.clone(),
        attempt,
        sandbox: step.sandbox.id.clone(),
        image_ref,
    });

    true
}

/// Whether containers can start: volumes that were in place and cannot be brought up to date serve as
/// they are, as with the kubelet.
fn has_volumes(observed: &Observed, memory: &Memory) -> bool {
    match observed.volumes {
        VolumesState::Ready => true,
        VolumesState::Stale => {
            !observed.missing.is_empty() || memory.transient.volumes_failure.is_some()
        }
        VolumesState::Unknown | VolumesState::Gone => false,
    }
}

pub(super) fn next_attempt(memory: &Memory, container: &str) -> u32 {
    let kept = memory.containers.get(container);

    kept.and_then(|kept| kept.attempt).map_or(0, |attempt| attempt.saturating_add(1))
}

/// A restart after an end in the same sandbox: its crash back-off holds.
pub(super) fn restart(pod: &PodView, container: &Container, step: &Step<'_>, plan: &mut Plan) {
    let attempt = next_attempt(&plan.memory, &container.name);
    let hash = container_hash(container);
    let kept = plan.memory.container(&container.name);
    let Some(end) = kept.last.clone() else { return };
    let before = step.observed.ended_before(&container.name, end.attempt);
    if let Some(until) = kept.crash_wait(&end, before, &hash, step.now) {
        plan.wake(until);
        back_off_event(pod, container, attempt, plan);
        return;
    }
    let is_begun = kept.backoff_attempt == Some(attempt);
    if start(container, attempt, step, plan) && !is_begun {
        let kept = plan.memory.container(&container.name);
        kept.backoff = kept.raised_backoff(&end, before, &hash, step.now);
        kept.backoff_attempt = Some(attempt);
    }
}

fn back_off_event(pod: &PodView, container: &Container, attempt: u32, plan: &mut Plan) {
    if !plan.tell_once("Crash", &container.name, attempt) {
        return;
    }
    let pod = pod.described();
    plan.act(Action::Event {
        warning: true,
        reason: "BackOff".to_owned(),
        message: format!("Back-off restarting failed container {} in pod {pod}", container.name),
        container: Some(container.name.clone()),
    });
}

/// The image for this attempt, or asks for it, and for those of its volumes, and returns `None`.
pub(super) fn ensure_image(
    container: &Container,
    attempt: u32,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<String> {
    let image = container.image.as_deref().unwrap_or_default();
    let note = plan.memory.transient.images.get(&container.name);
    match note.filter(|note| note.image == image).map(|note| &note.found) {
        Some(ImageFound::Ready { attempt: of, image_ref }) if *of == attempt => {
            return Some(image_ref.clone());
        }
        Some(ImageFound::Failed { failure, mounted }) => {
            if let Some(until) = backoff::held_until(failure, now) {
                let (is_pull, count) = (failure.reason == "ErrImagePull", failure.count);
                let mounted = mounted.clone();
                plan.wake(until);
                if is_pull {
                    pull_back_off_events(container, mounted.as_deref(), count, plan);
                }
                return None;
            }
        }
        Some(ImageFound::Ready { .. }) | None => {}
    }
    let (container, image) = (container.name.clone(), image.to_owned());
    plan.act(Action::EnsureImage { container, attempt, image });

    None
}

/// A kubelet tells of the image of a volume as the pod's, not the container's.
fn pull_back_off_events(container: &Container, mounted: Option<&str>, count: u32, plan: &mut Plan) {
    let kind = if mounted.is_some() { "PullMounted" } else { "Pull" };
    if !plan.tell_once(kind, &container.name, count) {
        return;
    }
    let name = Some(container.name.clone());
    let image = mounted.or(container.image.as_deref()).unwrap_or_default();
    plan.act(Action::Event {
        warning: false,
        reason: "BackOff".to_owned(),
        message: format!("Back-off pulling image \"{image}\""),
        container: name.clone().filter(|_| mounted.is_none()),
    });
    plan.act(Action::Event {
        warning: true,
        reason: "Failed".to_owned(),
        message: "Error: ImagePullBackOff".to_owned(),
        container: name,
    });
}
