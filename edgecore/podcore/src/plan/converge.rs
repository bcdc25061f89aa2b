//! A pod that should run: volumes, images and sandbox at once, then init containers one by one, then
//! the containers together.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::{Action, Plan, has_completed, wind_down};
use crate::backoff;
use crate::memory::{ImageNote, Memory, Termination};
use crate::observed::{ContainerState, ContainerView, Observed, SandboxView, VolumesState};
use crate::pod::{PodView, RestartPolicy};
use crate::translate::container_hash;

/// What a container should do next.
enum Wish {
    /// Leave it: it runs, or it ended and stays so.
    Nothing,
    /// Init containers after it may go on.
    Completed,
    /// Start this attempt, not before the time if there is one.
    Start { attempt: u32, not_before: Option<Timestamp> },
    /// Remove this never-started instance first.
    Clear { id: String },
    /// Stop this instance first.
    Stop { id: String, why: String },
}

/// Plans the next steps of a pod that is neither deleted nor ended.
pub(super) fn converge(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if let Some(ended) = has_completed(pod, observed, &plan.memory) {
        plan.memory.ended = Some(ended);
        wind_down::end(pod, observed, plan);
        return;
    }
    set_up_volumes(observed, now, plan);
    let Some(sandbox) = observed.sandbox() else {
        create_sandbox(observed, now, plan);
        // Images are looked for beside the sandbox: neither needs the other.
        if let Some((container, attempt)) = first_start(pod, &plan.memory) {
            ensure_image(container, attempt, now, plan);
        }
        return;
    };
    if initialize(pod, sandbox, observed, now, plan) {
        for container in pod.containers() {
            let wish = wish(pod, container, sandbox, observed, &plan.memory, now);
            pursue(container, wish, sandbox, observed, now, plan);
        }
    }
    clean_up(pod, sandbox, observed, plan);
}

fn set_up_volumes(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if observed.volumes == VolumesState::Ready || !observed.missing.is_empty() {
        return;
    }
    match &plan.memory.transient.volumes_failure {
        Some(failure) if now < failure.retry_at => plan.wake(failure.retry_at),
        _ => plan.act(Action::SetUpVolumes),
    }
}

fn create_sandbox(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if !observed.missing.is_empty() {
        return;
    }
    let attempt = plan.memory.sandbox_attempt.map_or(0, |attempt| attempt + 1);
    match plan.memory.transient.sandbox_failure.clone() {
        Some(failure) if now < failure.retry_at => {
            // What is left of earlier sandboxes may hold the address or port that is missing.
            for sandbox in &observed.sandboxes {
                plan.act(Action::RemoveSandbox { id: sandbox.id.clone() });
            }
            plan.wake(failure.retry_at);
        }
        _ => plan.act(Action::CreateSandbox { attempt }),
    }
}

/// The container that a new sandbox will start first.
fn first_start<'a>(pod: &'a PodView, memory: &Memory) -> Option<(&'a Container, u32)> {
    let container = pod.all_containers().next()?;
    let attempt = next_attempt(memory, &container.name);

    Some((container, attempt))
}

fn next_attempt(memory: &Memory, container: &str) -> u32 {
    let kept = memory.containers.get(container);

    kept.and_then(|kept| kept.attempt).map_or(0, |attempt| attempt + 1)
}

/// Runs the init containers in order; true when all have completed in this sandbox.
fn initialize(
    pod: &PodView,
    sandbox: &SandboxView,
    observed: &Observed,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    // A container of the pod proper has run here: initialization is over, whatever was removed since.
    let is_past =
        pod.containers().iter().any(|c| observed.newest_in(&sandbox.id, &c.name).is_some());
    if is_past {
        return true;
    }
    for container in pod.init_containers() {
        let wish = init_wish(pod, container, sandbox, observed, &plan.memory, now);
        if !matches!(wish, Wish::Completed) {
            pursue(container, wish, sandbox, observed, now, plan);
            return false;
        }
    }

    true
}

fn init_wish(
    pod: &PodView,
    container: &Container,
    sandbox: &SandboxView,
    observed: &Observed,
    memory: &Memory,
    now: Timestamp,
) -> Wish {
    let kept = memory.containers.get(&container.name).and_then(|kept| kept.last.as_ref());
    let done_here = kept.is_some_and(|last| {
        last.sandbox_attempt == sandbox.attempt
            && last.exit_code == 0
            && memory.containers[&container.name].attempt == Some(last.attempt)
    });
    if done_here {
        return Wish::Completed;
    }
    match observed.newest_in(&sandbox.id, &container.name) {
        Some(view) => instance_wish(pod, view, memory, now, Role::Init),
        None => Wish::Start { attempt: next_attempt(memory, &container.name), not_before: None },
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Main,
}

fn wish(
    pod: &PodView,
    container: &Container,
    sandbox: &SandboxView,
    observed: &Observed,
    memory: &Memory,
    now: Timestamp,
) -> Wish {
    let Some(view) = observed.newest_in(&sandbox.id, &container.name) else {
        return wish_in_new_sandbox(pod, container, sandbox, memory, now);
    };
    let changed = view.is_running()
        && view.spec_hash.as_ref().is_some_and(|hash| *hash != container_hash(container));
    if changed {
        let why = format!("Container {} definition changed, will be restarted", container.name);
        return Wish::Stop { id: view.id.clone(), why };
    }

    instance_wish(pod, view, memory, now, Role::Main)
}

/// The sandbox has no instance: it is new, or the runtime forgot an end that we remember.
fn wish_in_new_sandbox(
    pod: &PodView,
    container: &Container,
    sandbox: &SandboxView,
    memory: &Memory,
    now: Timestamp,
) -> Wish {
    let last = memory.containers.get(&container.name).and_then(|kept| kept.last.as_ref());
    let start = Wish::Start { attempt: next_attempt(memory, &container.name), not_before: None };
    match (last, pod.restart_policy()) {
        (Some(last), RestartPolicy::Never) if last.started_at.is_some() => Wish::Nothing,
        (Some(last), RestartPolicy::OnFailure) if last.exit_code == 0 => Wish::Nothing,
        (Some(last), _) if last.sandbox_attempt == sandbox.attempt => {
            after_end(last, memory, &container.name, now)
        }
        _ => start,
    }
}

fn instance_wish(
    pod: &PodView,
    view: &ContainerView,
    memory: &Memory,
    now: Timestamp,
    role: Role,
) -> Wish {
    match &view.state {
        ContainerState::Created => Wish::Clear { id: view.id.clone() },
        ContainerState::Running { .. } => Wish::Nothing,
        ContainerState::Unknown => {
            let why = format!("Container {} is in an unknown state, will be restarted", view.name);
            Wish::Stop { id: view.id.clone(), why }
        }
        ContainerState::Exited { exit_code, .. } => {
            let is_over = match (pod.restart_policy(), role) {
                (RestartPolicy::Never, _) => true,
                (RestartPolicy::OnFailure, _) | (RestartPolicy::Always, Role::Init) => {
                    *exit_code == 0
                }
                (RestartPolicy::Always, Role::Main) => false,
            };
            let last = memory.containers.get(&view.name).and_then(|kept| kept.last.as_ref());
            match last {
                _ if is_over => Wish::Nothing,
                Some(last) => after_end(last, memory, &view.name, now),
                None => Wish::Start { attempt: view.attempt + 1, not_before: None },
            }
        }
    }
}

/// A restart after an end in the same sandbox: its crash back-off holds.
fn after_end(last: &Termination, memory: &Memory, container: &str, now: Timestamp) -> Wish {
    let backoff = memory.containers.get(container).map(|kept| kept.backoff.clone());
    let finished = last.finished_at.unwrap_or(now);
    let start = backoff::start_at(&backoff.unwrap_or_default(), finished, now);

    Wish::Start { attempt: next_attempt(memory, container), not_before: Some(start) }
}

fn pursue(
    container: &Container,
    wish: Wish,
    sandbox: &SandboxView,
    observed: &Observed,
    now: Timestamp,
    plan: &mut Plan,
) {
    match wish {
        Wish::Nothing | Wish::Completed => {}
        Wish::Clear { id } => plan.act(Action::RemoveContainer { id }),
        Wish::Stop { id, why } => {
            let container = container.name.clone();
            plan.act(Action::StopContainer { id, container, grace_s: 30, why });
        }
        Wish::Start { attempt, not_before } => {
            if let Some(at) = not_before.filter(|at| now < *at) {
                plan.wake(at);
                back_off_event(container, attempt, plan);
                return;
            }
            start(container, attempt, not_before.is_some(), sandbox, observed, now, plan);
        }
    }
}

fn back_off_event(container: &Container, attempt: u32, plan: &mut Plan) {
    let told = format!("BackOff/{}/{attempt}", container.name);
    if plan.memory.transient.told.contains(&told) {
        return;
    }
    let prefix = format!("BackOff/{}/", container.name);
    plan.memory.transient.told.retain(|other| !other.starts_with(&prefix));
    plan.memory.transient.told.push(told);
    plan.act(Action::Event {
        warning: true,
        reason: "BackOff".to_owned(),
        message: format!("Back-off restarting failed container {}", container.name),
        container: Some(container.name.clone()),
    });
}

/// Starts the container if its image and the volumes are there; otherwise asks for what is missing.
fn start(
    container: &Container,
    attempt: u32,
    is_restart: bool,
    sandbox: &SandboxView,
    observed: &Observed,
    now: Timestamp,
    plan: &mut Plan,
) {
    let Some(image_ref) = ensure_image(container, attempt, now, plan) else { return };
    if observed.volumes != VolumesState::Ready {
        return;
    }
    if let Some(failure) = plan.memory.transient.start_failures.get(&container.name)
        && now < failure.retry_at
    {
        plan.wake(failure.retry_at);
        return;
    }
    if is_restart {
        let kept = plan.memory.container(&container.name);
        let is_new = kept.backoff_attempt != Some(attempt);
        if is_new {
            kept.backoff = backoff::after_restart(&kept.backoff, now);
            kept.backoff_attempt = Some(attempt);
        }
    }
    plan.act(Action::StartContainer {
        container: container.name.clone(),
        attempt,
        sandbox: sandbox.id.clone(),
        image_ref,
    });
}

/// The image for this attempt, or asks for it and returns `None`.
fn ensure_image(
    container: &Container,
    attempt: u32,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<String> {
    match plan.memory.transient.images.get(&container.name) {
        Some(ImageNote::Ready { attempt: of, image_ref }) if *of == attempt => {
            return Some(image_ref.clone());
        }
        Some(ImageNote::Failed(failure)) if now < failure.retry_at => {
            plan.wake(failure.retry_at);
            return None;
        }
        Some(ImageNote::Ready { .. } | ImageNote::Failed(_)) | None => {}
    }
    plan.act(Action::EnsureImage { container: container.name.clone(), attempt });

    None
}

/// Removes what earlier attempts left, once it is of no more use: old sandboxes when this one has
/// its containers, and all dead instances of a container but the last.
fn clean_up(pod: &PodView, sandbox: &SandboxView, observed: &Observed, plan: &mut Plan) {
    let has_containers =
        pod.containers().iter().all(|c| observed.newest_in(&sandbox.id, &c.name).is_some());
    if has_containers {
        for old in observed.sandboxes.iter().filter(|old| old.id != sandbox.id) {
            plan.act(Action::RemoveSandbox { id: old.id.clone() });
        }
    }
    for dead in observed.containers.iter().filter(|c| c.sandbox_id == sandbox.id) {
        let is_dead = matches!(dead.state, ContainerState::Exited { .. });
        let newest = observed.newest(&dead.name).map_or(0, |newest| newest.attempt);
        let previous = observed
            .containers
            .iter()
            .filter(|c| c.name == dead.name && c.attempt < newest)
            .map(|c| c.attempt)
            .max();
        if is_dead && dead.attempt < newest && Some(dead.attempt) != previous {
            plan.act(Action::RemoveContainer { id: dead.id.clone() });
        }
    }
}
