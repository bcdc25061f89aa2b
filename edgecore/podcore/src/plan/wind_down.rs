//! A pod that should stop: because it was deleted, or because it has ended.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::{Action, Plan, volumes_gone};
use crate::memory::{Ended, Memory, Stopping};
use crate::observed::{ContainerView, Observed};
use crate::pod::{GRACE_MIN_S, PodView, is_sidecar};

/// Stops and removes everything of a deleted pod.
pub(super) fn delete(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if stop_containers(pod, observed, now, plan) {
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
pub(super) fn end(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    if stop_containers(pod, observed, now, plan) {
        return;
    }
    for sandbox in observed.sandboxes.iter().filter(|sandbox| sandbox.ready) {
        plan.act(Action::StopSandbox { id: sandbox.id.clone() });
    }
    if observed.sandboxes.iter().all(|sandbox| !sandbox.ready) && !volumes_gone(observed) {
        plan.act(Action::TearDownVolumes);
    }
}

/// Asks the live containers to stop, the sidecars after the containers that they serve; false if none is
/// left.
pub(super) fn stop_containers(
    pod: &PodView,
    observed: &Observed,
    now: Timestamp,
    plan: &mut Plan,
) -> bool {
    let live: Vec<_> = observed.containers.iter().filter(|c| c.may_run()).collect();
    if live.is_empty() {
        plan.memory.transient.stopping = None;
        return false;
    }
    let evicted = plan.memory.ended.as_ref().and_then(|ended| ended.grace_s);
    let whole_s = evicted.map_or_else(|| pod.grace_seconds(), |own| own.min(pod.grace_seconds()));
    let begun = Stopping { since: now, turns: BTreeMap::new() };
    let mut stopping = plan.memory.transient.stopping.take().unwrap_or(begun);
    stopping.turns.retain(|id, _| live.iter().any(|container| container.id == *id));
    for container in &live {
        // The whole grace each time: a deletion with a smaller one gives another action, the passing of
        // time does not. After a restart of the agent the grace begins anew, as with the kubelet.
        let grace_s = match followers(pod, container) {
            None => whole_s,
            Some(followers) => {
                let waits = live.iter().any(|other| followers.contains(&other.name.as_str()));
                match turn(&mut stopping, container, whole_s, waits, now) {
                    Ok(grace_s) => grace_s,
                    Err(at) => {
                        plan.wake(at);
                        continue;
                    }
                }
            }
        };
        plan.act(Action::StopContainer {
            id: container.id.clone(),
            container: container.name.clone(),
            grace_s,
            why: format!("Stopping container {}", container.name),
        });
    }
    plan.memory.transient.stopping = Some(stopping);

    true
}

/// Who must have ended before a sidecar is stopped: the containers of the pod proper and the sidecars
/// after it (kubelet: `terminationOrdering`). `None` if it is no sidecar.
fn followers<'a>(pod: &'a PodView, container: &ContainerView) -> Option<Vec<&'a str>> {
    let init = pod.init_containers();
    let at = init.iter().position(|init| is_sidecar(init) && init.name == container.name)?;
    let later = init[at + 1..].iter().filter(|init| is_sidecar(init));

    Some(later.chain(pod.containers()).map(|container| container.name.as_str()).collect())
}

/// What is left of the pod's grace for a sidecar when its turn comes: when nobody needs it any more, at
/// the latest when the grace is over. Until then, when that is.
fn turn(
    stopping: &mut Stopping,
    sidecar: &ContainerView,
    grace_s: i64,
    waits: bool,
    now: Timestamp,
) -> Result<i64, Timestamp> {
    if let Some(left_s) = stopping.turns.get(&sidecar.id) {
        return Ok(grace_s.min(*left_s));
    }
    let end = stopping.since.saturating_add(SignedDuration::from_secs(grace_s)).unwrap_or(now);
    if waits && now < end {
        return Err(end);
    }
    let left_s = end.duration_since(now).as_secs().clamp(GRACE_MIN_S, grace_s.max(GRACE_MIN_S));
    stopping.turns.insert(sidecar.id.clone(), left_s);

    Ok(left_s)
}
