//! A pod that should run: volumes, images and sandbox at once, then what initializes it, then the
//! containers together; and ephemeral containers beside all that.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::start::{ensure_image, next_attempt, restart, start};
use super::stop::stop;
use super::{Action, Plan, has_completed, initialize, is_followed, wind_down};
use crate::backoff;
use crate::hook;
use crate::memory::Memory;
use crate::observed::{
    ContainerState, ContainerView, Missing, Observed, SandboxView, VolumesState,
};
use crate::pod::{PodView, RestartPolicy};
use crate::probe::{self, ProbeKind};
use crate::resize;
use crate::translate::container_hash;

/// What a container should do next.
pub(super) enum Wish {
    /// Leave it: it runs, or it ended and stays so.
    Nothing,
    /// Start this attempt.
    Start { attempt: u32 },
    /// Start the attempt after the last end, when its back-off is over.
    Restart,
    /// Remove this never-started instance first.
    Clear { id: String },
    /// Stop this instance first: of the attempt `replaces` if another follows in any case, with a grace of
    /// its own if a probe asks for one.
    Stop { id: String, why: String, replaces: Option<u32>, grace_s: Option<i64> },
}

/// Where and when a plan is made.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    pub(super) sandbox: &'a SandboxView,
    pub(super) observed: &'a Observed,
    pub(super) now: Timestamp,
    /// The cgroup of the pod gets other limits before a container starts in it.
    pub(super) holds_starts: bool,
}

/// Plans the next steps of a pod that is neither deleted nor ended.
pub(super) fn converge(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if let Some(ended) = has_completed(pod, observed, &plan.memory) {
        plan.memory.ended = Some(ended);
        wind_down::end(pod, observed, now, plan);
        return;
    }
    set_up_volumes(observed, now, plan);
    let Some(sandbox) = observed.sandbox() else {
        // Without their sandbox they have no network, and must not run beside their successors.
        if !wind_down::stop_containers(pod, observed, now, plan) {
            create_sandbox(observed, now, plan);
        }
        // Images are looked for beside the sandbox: neither needs the other.
        if let Some((container, attempt)) = first_start(pod, &plan.memory) {
            ensure_image(container, attempt, now, plan);
        }
        return;
    };
    plan.memory.transient.stopping = None;
    let holds_starts = resize::goes_before_starts(pod, &plan.memory);
    let step = Step { sandbox, observed, now, holds_starts };
    clear_strays(pod, &step, plan);
    start_ephemeral(pod, &step, plan);
    if initialize::initialize(pod, &step, plan) {
        for container in pod.containers() {
            let wish = wish(pod, container, &step, &plan.memory);
            pursue(pod, container, wish, &step, plan);
        }
    }
    resize::actuate(pod, observed, now, plan);
    clean_up(pod, sandbox, observed, plan);
}

/// Starts the ephemeral containers that never ran: nothing starts them twice, and they wait for no other.
/// One that was never started goes first; in an earlier sandbox it is a stray.
fn start_ephemeral(pod: &PodView, step: &Step<'_>, plan: &mut Plan) {
    for container in pod.ephemeral_containers() {
        let kept = plan.memory.containers.get(&container.name);
        let has_run = kept.is_some_and(|kept| kept.attempt.is_some());
        match step.observed.newest(&container.name) {
            Some(view)
                if view.state == ContainerState::Created && view.sandbox_id == step.sandbox.id =>
            {
                plan.act(Action::RemoveContainer { id: view.id.clone() });
            }
            None if !has_run => {
                start(container, 0, step, plan);
            }
            Some(_) | None => {}
        }
    }
}

fn set_up_volumes(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if observed.volumes == VolumesState::Ready {
        return;
    }
    if !observed.missing.is_empty() {
        tell_missing(observed, plan);
        return;
    }
    let failure = plan.memory.transient.volumes_failure.as_ref();
    match failure.and_then(|failure| backoff::held_until(failure, now)) {
        Some(until) => plan.wake(until),
        None => plan.act(Action::SetUpVolumes),
    }
}

/// Says what the volumes lack.
fn tell_missing(observed: &Observed, plan: &mut Plan) {
    let (mut volumes, mut claims) = (Vec::new(), Vec::new());
    for missing in &observed.missing {
        match missing {
            Missing::Object(what) => {
                if plan.tell_once("Missing", what, 0) {
                    plan.warn("FailedMount", format!("MountVolume.SetUp failed {what}"));
                }
            }
            Missing::Claim { volume, why } => {
                volumes.push(volume.as_str());
                claims.push(why.as_str());
            }
            Missing::Token { .. } => {}
        }
    }
    let (volumes, claims) = (volumes.join(" "), claims.join("; "));
    if !claims.is_empty() && plan.tell_once("MissingClaims", &claims, 0) {
        // The kubelet's (`WaitForAttachAndMount`).
        let told = format!(
            "Unable to attach or mount volumes: unmounted volumes=[{volumes}], \
             unattached volumes=[], failed to process volumes=[{volumes}]: {claims}"
        );
        plan.warn("FailedMount", told);
    }
}

fn create_sandbox(observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if !observed.missing.is_empty() && observed.volumes != VolumesState::Stale {
        return;
    }
    let attempt = plan.memory.sandbox_attempt.map_or(0, |attempt| attempt.saturating_add(1));
    let failure = plan.memory.transient.sandbox_failure.as_ref();
    match failure.and_then(|failure| backoff::held_until(failure, now)) {
        Some(until) => {
            // What is left of earlier sandboxes may hold the address or port that is missing.
            for sandbox in &observed.sandboxes {
                plan.act(Action::RemoveSandbox { id: sandbox.id.clone() });
            }
            plan.wake(until);
        }
        None => plan.act(Action::CreateSandbox { attempt }),
    }
}

/// The container that a new sandbox will start first.
fn first_start<'a>(pod: &'a PodView, memory: &Memory) -> Option<(&'a Container, u32)> {
    let main = pod.containers().iter().find(|c| !stays_ended(pod, c, memory));
    let container = pod.init_containers().first().or(main)?;
    let attempt = next_attempt(memory, &container.name);

    Some((container, attempt))
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Init,
    Main,
}

/// Of a container that runs together with others, a sidecar too.
pub(super) fn wish(pod: &PodView, container: &Container, step: &Step<'_>, memory: &Memory) -> Wish {
    let Some(view) = step.observed.newest_in(&step.sandbox.id, &container.name) else {
        return wish_in_new_sandbox(pod, container, step.sandbox, memory);
    };
    let is_changed = view.is_running()
        && view.spec_hash.as_ref().is_some_and(|hash| *hash != container_hash(container));
    if is_changed {
        let why = why_stopped(pod, container, "definition changed", true);
        let (id, replaces) = (view.id.clone(), Some(view.attempt));
        return Wish::Stop { id, why, replaces, grace_s: None };
    }
    if view.is_running() && step.observed.restarts.contains(&view.id) {
        let why = why_stopped(pod, container, "restart requested", true);
        let (id, replaces) = (view.id.clone(), Some(view.attempt));
        return Wish::Stop { id, why, replaces, grace_s: None };
    }
    if resize::needs_restart(container, view, memory) {
        let why = format!("Container {} resize requires restart", container.name);
        let (id, replaces) = (view.id.clone(), Some(view.attempt));
        return Wish::Stop { id, why, replaces, grace_s: None };
    }
    if view.is_running()
        && let Some(kind) = probe::failed(view, memory)
    {
        return unhealthy(pod, container, view, kind);
    }

    if view.is_running() && hook::has_failed(view, memory) {
        // The kubelet's word for it.
        let (id, why) = (view.id.clone(), "FailedPostStartHook".to_owned());
        return Wish::Stop { id, why, replaces: None, grace_s: None };
    }

    instance_wish(pod, container, view, memory, Role::Main)
}

/// A probe failed for good: the instance is stopped, and followed by another if the pod allows.
fn unhealthy(pod: &PodView, container: &Container, view: &ContainerView, kind: ProbeKind) -> Wish {
    let restarts = pod.restart_policy(container) != RestartPolicy::Never;
    let failed = format!("failed {} probe", kind.name().to_ascii_lowercase());
    let why = why_stopped(pod, container, &failed, restarts);
    let grace_s = kind.of(container).and_then(|probe| probe.termination_grace_period_seconds);

    Wish::Stop { id: view.id.clone(), why, replaces: None, grace_s }
}

/// In the kubelet's words, which are others for an init container (`computeInitContainerActions`).
fn why_stopped(pod: &PodView, container: &Container, why: &str, restarts: bool) -> String {
    let name = &container.name;
    if pod.init_containers().iter().any(|init| init.name == *name) {
        return format!("Init container {name} {why}");
    }
    let next = if restarts { ", will be restarted" } else { "" };

    format!("Container {name} {why}{next}")
}

/// The sandbox has no instance: it is new, or the runtime forgot an end that we remember.
fn wish_in_new_sandbox(
    pod: &PodView,
    container: &Container,
    sandbox: &SandboxView,
    memory: &Memory,
) -> Wish {
    if stays_ended(pod, container, memory) {
        return Wish::Nothing;
    }
    let last = memory.containers.get(&container.name).and_then(|kept| kept.last.as_ref());
    match last {
        Some(last) if last.sandbox_attempt == sandbox.attempt => Wish::Restart,
        Some(_) | None => Wish::Start { attempt: next_attempt(memory, &container.name) },
    }
}

/// Whether a container of the pod proper has ended and the restart policy leaves it so.
fn stays_ended(pod: &PodView, container: &Container, memory: &Memory) -> bool {
    let last = memory.containers.get(&container.name).and_then(|kept| kept.last.as_ref());

    last.is_some_and(|last| !is_followed(pod, memory, container, last))
}

pub(super) fn instance_wish(
    pod: &PodView,
    container: &Container,
    view: &ContainerView,
    memory: &Memory,
    role: Role,
) -> Wish {
    match &view.state {
        ContainerState::Created => Wish::Clear { id: view.id.clone() },
        ContainerState::Running { .. } if memory.is_being_stopped(view) => {
            let told = memory.transient.killing.get(&view.id).cloned();
            let why = told.unwrap_or_else(|| format!("Stopping container {}", view.name));
            Wish::Stop { id: view.id.clone(), why, replaces: None, grace_s: None }
        }
        ContainerState::Running { .. } => Wish::Nothing,
        ContainerState::Unknown => {
            let why = format!("Container {} is in an unknown state, will be restarted", view.name);
            Wish::Stop { id: view.id.clone(), why, replaces: None, grace_s: None }
        }
        ContainerState::Exited { exit_code, .. } => {
            let has_completed = role == Role::Init && *exit_code == 0;
            let last = memory.containers.get(&view.name).and_then(|kept| kept.last.as_ref());
            match last {
                Some(last) if memory.is_replaced(&view.name, last.attempt) => {
                    Wish::Start { attempt: next_attempt(memory, &view.name) }
                }
                Some(last) if !has_completed && is_followed(pod, memory, container, last) => {
                    Wish::Restart
                }
                Some(_) | None => Wish::Nothing,
            }
        }
    }
}

pub(super) fn pursue(
    pod: &PodView,
    container: &Container,
    wish: Wish,
    step: &Step<'_>,
    plan: &mut Plan,
) {
    match wish {
        Wish::Nothing => {}
        Wish::Clear { id } => plan.act(Action::RemoveContainer { id }),
        Wish::Stop { id, why, replaces, grace_s } => {
            if replaces.is_some() {
                plan.memory.container(&container.name).replaced = replaces;
            }
            let grace_s = grace_s.unwrap_or_else(|| pod.grace_seconds());
            if let Some(view) = step.observed.containers.iter().find(|view| view.id == id) {
                stop(pod, view, grace_s, &why, plan);
            }
        }
        Wish::Start { attempt } => {
            start(container, attempt, step, plan);
        }
        Wish::Restart => restart(pod, container, step, plan),
    }
}

/// Stops what runs beside the instance that counts, in another sandbox or of an earlier attempt, and
/// removes what an earlier sandbox never started.
fn clear_strays(pod: &PodView, step: &Step<'_>, plan: &mut Plan) {
    for stray in &step.observed.containers {
        let counts = step.observed.newest_in(&step.sandbox.id, &stray.name);
        if counts.is_some_and(|counts| counts.id == stray.id) {
            continue;
        }
        if stray.state == ContainerState::Created {
            plan.act(Action::RemoveContainer { id: stray.id.clone() });
        } else if stray.may_run() {
            let why = format!("Stopping container {}", stray.name);
            stop(pod, stray, pod.grace_seconds(), &why, plan);
        }
    }
}

/// Removes what earlier attempts left, once it is of no more use: old sandboxes when this one has
/// its containers, and all dead instances of a container but the last.
fn clean_up(pod: &PodView, sandbox: &SandboxView, observed: &Observed, plan: &mut Plan) {
    let has_containers = pod.containers().iter().all(|c| {
        observed.newest_in(&sandbox.id, &c.name).is_some() || stays_ended(pod, c, &plan.memory)
    });
    if has_containers {
        let is_used =
            |id: &str| observed.containers.iter().any(|c| c.sandbox_id == id && c.may_run());
        for old in observed.sandboxes.iter().filter(|old| old.id != sandbox.id) {
            if !is_used(&old.id) {
                plan.act(Action::RemoveSandbox { id: old.id.clone() });
            }
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
