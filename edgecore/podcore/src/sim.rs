//! A small node for tests: a runtime, a file system and a clock that carry out plans and fail when
//! told to. Every round checks what must hold for any plan.

mod runtime;
mod script;
mod show;

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

pub(crate) use self::script::{check, play};
pub(crate) use self::show::{show_action, show_status};
use crate::memory::Memory;
use crate::observed::{ContainerView, Observed, VolumesState};
use crate::plan::{Action, Outcome, Plan, plan};
use crate::pod::{GRACE_MIN_S, PodView};
use crate::resize::Outdated;
use crate::resources::{PodLimits, pod_limits};
use crate::status::{StatusContext, status};

/// Plans without an event between them before the pod counts as restless.
const ROUNDS_MAX: usize = 40;

/// What fails from now on, until it is mended: the message to fail with, by what fails
/// (`volumes`, `sandbox`, `image a`, `start a`).
pub(crate) type Faults = BTreeMap<String, (String, String)>;

/// A node with one pod.
pub(crate) struct World {
    /// The API server's object.
    pub(crate) object: Value,
    pub(crate) pod: PodView,
    pub(crate) memory: Memory,
    /// What a crash of the agent leaves of the memory.
    pub(crate) stored: Memory,
    pub(crate) observed: Observed,
    /// The limits of the pod's cgroup, once there is one.
    pub(crate) cgroup: Option<PodLimits>,
    pub(crate) now: Timestamp,
    pub(crate) faults: Faults,
    /// Kinds of action that take forever, until released.
    pub(crate) slow: BTreeSet<String>,
    pub(crate) under_way: BTreeSet<Action>,
    /// Exit code of a container that is asked to stop; 143 unless said.
    pub(crate) on_stop: BTreeMap<String, i32>,
    /// How long a hook before a stop takes.
    pub(crate) hook_takes_s: i64,
    /// Actions since the last look at it.
    pub(crate) trace: Vec<String>,
    pub(crate) events: Vec<String>,
    pub(crate) wake_at: Option<Timestamp>,
    pub(crate) finished: bool,
    pub(crate) next_id: u32,
    counts: BTreeMap<String, i32>,
    terminal: Option<String>,
}

/// A pod with this spec, as the API server would hand it over.
pub(crate) fn object(spec: &Value) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if container["image"].is_null() {
                container["image"] = json!("x");
            }
        }
    }

    json!({
        "metadata": { "uid": "u-1", "namespace": "default", "name": "web", "generation": 1 },
        "spec": spec,
    })
}

impl World {
    pub(crate) fn new(spec: &Value) -> Self {
        let object = object(spec);

        Self {
            pod: PodView::parse(object.to_string().as_bytes()).unwrap(),
            object,
            memory: Memory::default(),
            stored: Memory::default(),
            observed: Observed::default(),
            cgroup: None,
            now: "2026-01-01T00:00:00Z".parse().unwrap(),
            faults: Faults::new(),
            slow: BTreeSet::new(),
            under_way: BTreeSet::new(),
            on_stop: BTreeMap::new(),
            hook_takes_s: 0,
            trace: Vec::new(),
            events: Vec::new(),
            wake_at: None,
            finished: false,
            next_id: 0,
            counts: BTreeMap::new(),
            terminal: None,
        }
    }

    /// The object changed.
    pub(crate) fn apply(&mut self) {
        let parsed = PodView::parse(self.object.to_string().as_bytes());
        self.pod = parsed.unwrap();
    }

    /// Plans and acts until there is nothing to do at this moment.
    pub(crate) fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if !self.round() {
                return;
            }
        }
        panic!("the pod does not settle: {:?}", self.trace);
    }

    /// One plan, carried out. False if it did nothing.
    fn round(&mut self) -> bool {
        let next = plan(&self.pod, &self.memory, &self.observed, self.now);
        self.must_hold(&next);
        let is_new = next.memory != self.memory;
        self.memory = next.memory;
        self.wake_at = next.wake_at;
        self.finished = next.finished;
        let is_idle = self.under_way.is_empty();
        if self.memory.must_be_durable_after(&self.stored)
            || self.memory.transient.unstored
            || is_idle
        {
            self.store();
            self.memory.transient.unstored = false;
        }
        let is_over = self.memory.ended.is_some() || self.pod.is_deleted();
        let actions = &next.actions;
        self.under_way.retain(|action| !action.is_vain(is_over) || actions.contains(action));
        let mut done = false;
        for action in next.actions {
            if let Action::Event { reason, message, .. } = &action {
                self.events.push(format!("{reason}: {message}"));
                continue;
            }
            if self.under_way.iter().any(|other| action.waits_for(other)) {
                continue;
            }
            self.trace.push(show_action(&action));
            done = true;
            if self.is_slow(&action) {
                self.under_way.insert(action);
            } else {
                self.carry_out(&action);
            }
        }

        done || is_new
    }

    /// Stores the memory, if it is another.
    pub(crate) fn store(&mut self) {
        let before = self.stored.stored_at;
        let found = Memory { stored_at: before, ..self.remembered() };
        if found != self.stored {
            self.stored = Memory { stored_at: Some(self.now), ..found };
        }
    }

    /// What another process would read from the store.
    pub(crate) fn remembered(&self) -> Memory {
        serde_json::from_value(serde_json::to_value(&self.memory).unwrap()).unwrap()
    }

    /// Lets time pass, looking whenever a plan asked for it.
    pub(crate) fn wait(&mut self, seconds: i64) {
        let until = self.now + SignedDuration::from_secs(seconds);
        self.settle();
        while let Some(at) = self.wake_at.filter(|at| *at <= until) {
            assert!(at > self.now, "a wake-up in the past is a busy loop");
            self.now = at;
            self.settle();
        }
        self.now = until;
        self.settle();
    }

    /// The properties of every plan.
    fn must_hold(&mut self, next: &Plan) {
        let again = plan(&self.pod, &next.memory, &self.observed, self.now);
        let works = |plan: &Plan| -> Vec<Action> {
            let is_work = |action: &&Action| !matches!(action, Action::Event { .. });
            plan.actions.iter().filter(is_work).cloned().collect()
        };
        assert_eq!(works(&again), works(next), "the same look gives the same work");
        assert_eq!(again.memory, next.memory, "a plan is remembered at once");
        assert_eq!(again.wake_at, next.wake_at);
        let events = again.actions.len() - works(&again).len();
        assert_eq!(events, 0, "an Event is told once: {:?}", again.actions);
        // Containers that lack the same may say so in the same words.
        let planned = works(next);
        let unique: BTreeSet<_> = planned.iter().collect();
        assert_eq!(unique.len(), planned.len(), "an action is planned twice");
        for action in &next.actions {
            self.may(action, next);
        }
        self.counts_never_fall(&next.memory);
        let has_sandbox = self.observed.sandbox().is_some() && self.under_way.is_empty();
        if has_sandbox && next.memory == self.memory && self.memory.resize.in_progress.is_none() {
            let limits = Some(pod_limits(&self.granted()));
            assert_eq!(self.cgroup, limits, "no resize to come, and the cgroup has other limits");
        }
    }

    fn may(&self, action: &Action, next: &Plan) {
        let is_over = self.pod.is_deleted() || next.memory.ended.is_some();
        match action {
            Action::StartContainer { container, attempt, sandbox, .. } => {
                assert!(!is_over, "{container} is started though the pod is over");
                let mut same = self.observed.containers.iter().filter(|c| c.name == *container);
                let live = same.clone().find(|c| c.may_run());
                assert!(live.is_none(), "a second instance beside {live:?}");
                // The runtime takes a name once, also of what it never started.
                let is_used = same.any(|c| c.attempt >= *attempt);
                assert!(!is_used, "attempt {attempt} of {container} is used");
                let sandbox = self.observed.sandboxes.iter().find(|s| s.id == *sandbox);
                assert!(sandbox.is_some_and(|s| s.ready), "{container} in a dead sandbox");
                assert_eq!(self.observed.volumes, VolumesState::Ready);
            }
            Action::CreateSandbox { attempt } => {
                assert!(!is_over, "a sandbox is made though the pod is over");
                let is_used = self.observed.sandboxes.iter().any(|s| s.attempt >= *attempt);
                assert!(!is_used, "attempt {attempt} of the sandbox is used");
                assert!(self.observed.sandbox().is_none(), "a sandbox beside one that works");
            }
            Action::EnsureImage { .. } | Action::SetUpVolumes => {
                assert!(!is_over, "{action:?} though the pod is over");
            }
            Action::TearDownVolumes => {
                let live = self.observed.containers.iter().find(|c| c.is_running());
                assert!(is_over && live.is_none(), "volumes are taken from {live:?}");
            }
            Action::RemoveContainer { id }
            | Action::StopSandbox { id }
            | Action::RemoveSandbox { id } => {
                let mut inside = self.observed.containers.iter();
                let live = inside.find(|c| c.may_run() && (c.id == *id || c.sandbox_id == *id));
                assert!(live.is_none(), "removed without being asked to stop: {live:?}");
            }
            Action::Resize { containers } => {
                assert!(!is_over, "{containers:?} get other resources though the pod is over");
                for Outdated { id, .. } in containers {
                    let mut all = self.observed.containers.iter();
                    assert!(all.any(|c| c.id == *id && c.is_running()), "{id} does not run");
                }
            }
            Action::PostStart { id, .. } | Action::Probe { id, .. } => {
                let asked = self.observed.containers.iter().find(|c| c.id == *id);
                assert!(
                    asked.is_some_and(ContainerView::is_running),
                    "{id} is asked, and does not run"
                );
            }
            Action::PreStop { container, id, grace_s } => {
                let asked = self.observed.containers.iter().find(|c| c.id == *id);
                let runs = asked.is_some_and(ContainerView::is_running);
                assert!(runs && *grace_s > 0, "the hook of {container}, which does not run");
                assert!(!self.memory.pre_stopped.contains_key(id), "{container}'s hook runs again");
            }
            Action::StopContainer { id, container, grace_s } => {
                assert!(*grace_s >= GRACE_MIN_S, "{container} is killed at once");
                let spec = self.pod.all_containers().find(|c| c.name == *container);
                let hook = spec.and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref());
                let asked = self.observed.containers.iter().find(|c| c.id == *id);
                let has_time = is_over || self.pod.grace_seconds() > 0;
                let waits =
                    hook.is_some() && has_time && asked.is_some_and(ContainerView::is_running);
                let ran = self.memory.pre_stopped.contains_key(id);
                assert!(ran || !waits, "{container} is killed before its hook ran");
            }
            Action::Event { .. } => {}
        }
    }

    fn counts_never_fall(&mut self, memory: &Memory) {
        let context = StatusContext::default();
        let told = status(&self.pod, memory, &self.observed, &context, self.now);
        let statuses = [
            &told.init_container_statuses,
            &told.container_statuses,
            &told.ephemeral_container_statuses,
        ];
        for status in statuses.into_iter().flatten().flatten() {
            let count = self.counts.entry(status.name.clone()).or_default();
            assert!(status.restart_count >= *count, "{}: {count} restarts before", status.name);
            *count = status.restart_count;
        }
        let phase = told.phase.unwrap();
        if let Some(before) = &self.terminal {
            assert_eq!(&phase, before, "a pod has ended once and for all");
        } else if matches!(phase.as_str(), "Succeeded" | "Failed") {
            self.terminal = Some(phase);
        }
    }

    pub(crate) fn note(&mut self, outcome: Outcome) {
        self.memory.note(outcome, self.now);
    }
}
