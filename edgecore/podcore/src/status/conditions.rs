//! The conditions of a pod and when they changed.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::memory::{ConditionMemory, Memory};
use crate::observed::Observed;
use crate::pod::{PodView, is_sidecar};
use crate::probe;

/// What the conditions are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Init containers that have not completed, and sidecars that have not started.
    pub incomplete: Vec<String>,
    /// Containers that do not run, or that their probes do not find ready.
    pub unready: Vec<String>,
    /// What readiness gates keep the pod from being ready, in the kubelet's words.
    pub closed: Vec<String>,
    /// Whether there is a sandbox with a network.
    pub has_sandbox: bool,
}

const SCHEDULED: &str = "PodScheduled";
const DISRUPTED: &str = "DisruptionTarget";
const SANDBOX: &str = "PodReadyToStartContainers";
const INITIALIZED: &str = "Initialized";
const CONTAINERS_READY: &str = "ContainersReady";
const READY: &str = "Ready";

/// Reads the facts.
pub fn facts(pod: &PodView, memory: &Memory, observed: &Observed) -> Facts {
    let is_ready = |container: &Container| {
        let view = observed.newest(&container.name);
        view.is_some_and(|view| probe::is_ready(container, view, memory))
    };
    let any_main = pod.containers().iter().any(|container| {
        memory.containers.get(&container.name).is_some_and(|kept| kept.attempt.is_some())
    });
    let completed = |name: &str| {
        let kept = memory.containers.get(name);
        kept.and_then(|kept| kept.last.as_ref().filter(|last| kept.attempt == Some(last.attempt)))
            .is_some_and(|last| last.exit_code == 0)
    };
    let names = |containers: &[Container], wanted: &dyn Fn(&Container) -> bool| {
        containers.iter().filter(|c| wanted(c)).map(|c| c.name.clone()).collect::<Vec<_>>()
    };

    let is_started = |container: &Container| {
        let view = observed.newest(&container.name);
        view.is_some_and(|view| probe::is_started(container, view, memory))
    };
    let initialized =
        |c: &Container| if is_sidecar(c) { is_started(c) } else { completed(&c.name) };
    let mut unready = names(pod.init_containers(), &|c| is_sidecar(c) && !is_ready(c));
    unready.extend(names(pod.containers(), &|c| !is_ready(c)));

    Facts {
        incomplete: names(pod.init_containers(), &|c| !any_main && !initialized(c)),
        unready,
        closed: closed_gates(pod),
        has_sandbox: observed.sandbox().is_some(),
    }
}

fn closed_gates(pod: &PodView) -> Vec<String> {
    let closed =
        pod.readiness_gates().iter().filter_map(|(name, status)| match status.as_deref() {
            Some("True") => None,
            Some(status) => Some(format!(
                "the status of pod readiness gate \"{name}\" is not \"True\", but {status}"
            )),
            None => Some(format!(
                "corresponding condition of pod readiness gate \"{name}\" does not exist."
            )),
        });

    closed.collect()
}

/// The value of each condition.
fn values(memory: &Memory, facts: &Facts) -> Vec<(&'static str, bool)> {
    let ready = facts.unready.is_empty() && memory.ended.is_none();
    let succeeded = memory.ended.as_ref().is_some_and(|ended| ended.succeeded);
    let disrupted = disruption(memory).map(|_| (DISRUPTED, true));
    let own = [
        (SANDBOX, facts.has_sandbox),
        (INITIALIZED, facts.incomplete.is_empty() || succeeded),
        (READY, ready && facts.closed.is_empty()),
        (CONTAINERS_READY, ready),
        (SCHEDULED, true),
    ];

    own.into_iter().chain(disrupted).collect()
}

/// Why the node ended the pod: told when nothing of it can run any more (kubelet: `mergePodStatus`).
fn disruption(memory: &Memory) -> Option<&String> {
    memory.ended.as_ref().filter(|ended| ended.stopped)?.disruption.as_ref()
}

/// Keeps when each condition last changed.
pub fn update(memory: &mut Memory, facts: &Facts, now: Timestamp) {
    for (name, status) in values(memory, facts) {
        let is_same = memory.conditions.get(name).is_some_and(|kept| kept.status == status);
        if !is_same {
            memory.conditions.insert(name.to_owned(), ConditionMemory { status, since: now });
        }
    }
}

/// The conditions in the kubelet's order.
pub(super) fn conditions(pod: &PodView, memory: &Memory, observed: &Observed) -> Vec<PodCondition> {
    let facts = facts(pod, memory, observed);

    let own = values(memory, &facts).into_iter().map(|(name, status)| {
        let (reason, message) = why(name, status, &facts, memory);
        PodCondition {
            type_: name.to_owned(),
            status: if status { "True" } else { "False" }.to_owned(),
            reason,
            message,
            observed_generation: pod.generation(),
            last_transition_time: memory.conditions.get(name).map(|kept| Time(kept.since)),
            ..PodCondition::default()
        }
    });

    own.chain(resizing(memory)).collect()
}

/// Conditions that are there while a resize waits or goes on.
fn resizing(memory: &Memory) -> impl Iterator<Item = PodCondition> {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let stages = [
        ("PodResizePending", &memory.resize.pending),
        ("PodResizeInProgress", &memory.resize.in_progress),
    ];
    stages.into_iter().filter_map(move |(name, stage)| {
        let stage = stage.as_ref()?;

        Some(PodCondition {
            type_: name.to_owned(),
            status: "True".to_owned(),
            reason: text(&stage.reason),
            message: text(&stage.message),
            observed_generation: stage.generation,
            last_transition_time: Some(Time(stage.since)),
            ..PodCondition::default()
        })
    })
}

fn why(
    name: &str,
    status: bool,
    facts: &Facts,
    memory: &Memory,
) -> (Option<String>, Option<String>) {
    let succeeded = memory.ended.as_ref().map(|ended| ended.succeeded);
    let list = |what: &str, names: &[String]| {
        Some(format!("containers with {what} status: [{}]", names.join(" ")))
    };
    match name {
        INITIALIZED if succeeded == Some(true) => (Some("PodCompleted".to_owned()), None),
        DISRUPTED => (Some("TerminationByKubelet".to_owned()), disruption(memory).cloned()),
        _ if status => (None, None),
        INITIALIZED => {
            (Some("ContainersNotInitialized".to_owned()), list("incomplete", &facts.incomplete))
        }
        READY | CONTAINERS_READY if succeeded.is_some() => {
            let reason = if succeeded == Some(true) { "PodCompleted" } else { "PodFailed" };
            (Some(reason.to_owned()), None)
        }
        READY if facts.unready.is_empty() => {
            (Some("ReadinessGatesNotReady".to_owned()), Some(facts.closed.join(", ")))
        }
        READY | CONTAINERS_READY => {
            (Some("ContainersNotReady".to_owned()), list("unready", &facts.unready))
        }
        _ => (None, None),
    }
}
