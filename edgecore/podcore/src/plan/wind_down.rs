//! A pod that should stop: because it was deleted, or because it has ended.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use super::stop::{begin, kill};
use super::{Action, Plan, volumes_gone};
use crate::memory::{Ended, Memory, Stopping, Turn};
use crate::observed::{ContainerView, Observed, SandboxView};
use crate::pod::{PodView, is_sidecar};

/// What a pod has at least when it stops as a whole (kubelet: `calculateEffectiveGracePeriod`).
const POD_GRACE_MIN_S: i64 = 1;

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
    let stopped = &mut plan.memory.stopped_sandboxes;
    stopped.retain(|id| observed.sandboxes.iter().any(|sandbox| sandbox.id == *id));
    let holding = |sandbox: &&SandboxView| sandbox.ready || !stopped.contains(&sandbox.id);
    let holding: Vec<_> = observed.sandboxes.iter().filter(holding).collect();
    for sandbox in holding {
        plan.act(Action::StopSandbox { id: sandbox.id.clone() });
    }
    if observed.sandboxes.iter().all(|sandbox| !sandbox.ready) && !volumes_gone(observed) {
        plan.act(Action::TearDownVolumes);
    }
}

/// Stops the live containers: all begin to at once, and the sidecars are killed after the containers that
/// they serve; false if none is left.
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
    let own = pod.grace_seconds();
    let grace_s = evicted.map_or(own, |evicted| evicted.min(own)).max(POD_GRACE_MIN_S);
    let mut turns = turns(grace_s, plan);
    turns.retain(|id, _| live.iter().any(|container| container.id == *id));
    for container in &live {
        let why = format!("Stopping container {}", container.name);
        let Some(left_s) = begin(pod, container, grace_s, &why, plan) else { continue };
        // What is left as of one moment: another grace gives another action, the passing of time does not.
        let Some(followers) = followers(pod, container) else {
            kill(container, left_s, plan);
            continue;
        };
        let waits = live.iter().any(|other| followers.contains(&other.name.as_str()));
        let turn = turns.entry(container.id.clone()).or_insert(Turn { since: now, waited_s: None });
        match wait_for(turn, left_s, waits, now) {
            Ok(left_s) => kill(container, left_s, plan),
            Err(at) => plan.wake(at),
        }
    }
    plan.memory.transient.stopping = Some(Stopping { grace_s, turns });

    true
}

/// The turns of the stop that is under way. With another grace it begins anew but for the hooks that ran,
/// and so it does after a restart of the agent (kubelet: `syncTerminatingPod`).
fn turns(grace_s: i64, plan: &mut Plan) -> BTreeMap<String, Turn> {
    let stopping = plan.memory.transient.stopping.take();
    if let Some(stopping) = stopping.filter(|stopping| stopping.grace_s == grace_s) {
        return stopping.turns;
    }
    plan.memory.pre_stopped.values_mut().for_each(|took_s| *took_s = 0);

    BTreeMap::new()
}

/// Who must have ended before a sidecar is stopped: the containers of the pod proper and the sidecars
/// after it (kubelet: `terminationOrdering`). `None` if it is no sidecar.
fn followers<'a>(pod: &'a PodView, container: &ContainerView) -> Option<Vec<&'a str>> {
    let init = pod.init_containers();
    let at = init.iter().position(|init| is_sidecar(init) && init.name == container.name)?;
    let later = init[at + 1..].iter().filter(|init| is_sidecar(init));

    Some(later.chain(pod.containers()).map(|container| container.name.as_str()).collect())
}

/// What is left of the grace for a sidecar when its turn comes: when nobody needs it any more, at the
/// latest when the grace is over. Until then, when that is.
fn wait_for(turn: &mut Turn, left_s: i64, waits: bool, now: Timestamp) -> Result<i64, Timestamp> {
    if let Some(waited_s) = turn.waited_s {
        return Ok(left_s.saturating_sub(waited_s));
    }
    // A clock that was set back does not make the wait longer than the grace.
    turn.since = turn.since.min(now);
    let end = turn.since.saturating_add(SignedDuration::from_secs(left_s)).unwrap_or(now);
    if waits && now < end {
        return Err(end);
    }
    let waited_s = now.duration_since(turn.since).as_secs();
    turn.waited_s = Some(waited_s);

    Ok(left_s.saturating_sub(waited_s))
}
