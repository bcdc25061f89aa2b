//! Decides what to do about one pod. The same inputs always give the same plan.
//!
//! The shell looks (Observed), asks for a plan, stores the memory if it changed, carries out the
//! actions and notes their [`Outcome`]s, and looks again: after every outcome, every event of the
//! runtime and at `wake_at`. Every action of one plan may run beside the others; the shell does not
//! start an action that waits for one still under way ([`Action::waits_for`]).

mod beside;
mod converge;
mod go_down;
mod initialize;
mod outcome;
mod remember;
mod start;
mod stop;
#[cfg(test)]
mod tests;
mod wind_down;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

pub use self::outcome::Outcome;
use self::remember::remember;
pub(crate) use self::remember::{UNKNOWN_END, UNKNOWN_EXIT_CODE, termination};
use crate::memory::{Ended, Memory, Termination};
use crate::observed::{Admission, ContainerState, ContainerView, Observed, VolumesState};
use crate::pod::{PodView, RestartPolicy, is_sidecar};
use crate::probe::{self, ProbeKind};
use crate::resize::Outdated;
use crate::{hook, resize, status, support};

/// A clock that moved by less was not set: two clocks are not read at the same moment.
const CLOCK_SET_MIN_S: i64 = 5;
/// Nobody sees how long a node is off. One that was off for longer is rarer than a clock that is wrong by years.
const AWAY_MAX_S: i64 = 300 * 24 * 60 * 60;

/// Work for the shell. Doing it twice is doing it once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Make volumes, /etc/hosts, log directory and cgroup.
    SetUpVolumes,
    /// Find the container's image, by its pull policy pull it.
    EnsureImage {
        /// Container name.
        container: String,
        /// The attempt that it will be used for.
        attempt: u32,
        /// The image as the spec names it.
        image: String,
    },
    /// Make and start a sandbox.
    CreateSandbox {
        /// Counted from 0.
        attempt: u32,
    },
    /// Create and start a container.
    StartContainer {
        /// Container name.
        container: String,
        /// The restart count.
        attempt: u32,
        /// The sandbox to start it in.
        sandbox: String,
        /// What [`Outcome::ImageReady`] told.
        image_ref: String,
    },
    /// Run the hook before a container's stop.
    PreStop {
        /// Container name.
        container: String,
        /// Id in the runtime.
        id: String,
        /// Seconds that it may take.
        grace_s: i64,
    },
    /// SIGTERM, and SIGKILL after the grace.
    StopContainer {
        /// Id in the runtime.
        id: String,
        /// Container name.
        container: String,
        /// Seconds between SIGTERM and SIGKILL.
        grace_s: i64,
    },
    /// Run the hook after a container's start.
    PostStart {
        /// Container name.
        container: String,
        /// Id in the runtime.
        id: String,
        /// The attempt that started.
        attempt: u32,
    },
    /// Give running containers other CPU and memory, and their pod.
    Resize {
        /// Each of them; none if only the pod gets other limits.
        containers: Vec<Outdated>,
    },
    /// Ask a container how it is; the answer is due within the probe's timeout.
    Probe {
        /// Container name.
        container: String,
        /// Id in the runtime.
        id: String,
        /// Which of its probes.
        kind: ProbeKind,
        /// Counts the questions: each is another.
        number: u32,
    },
    /// Remove a container that ended, with its record in the runtime.
    RemoveContainer {
        /// Id in the runtime.
        id: String,
    },
    /// Stop a sandbox: its network is given back.
    StopSandbox {
        /// Id in the runtime.
        id: String,
    },
    /// Stop and remove a sandbox and what is left in it.
    RemoveSandbox {
        /// Id in the runtime.
        id: String,
    },
    /// Unmount and remove everything of the pod in the file system but its logs.
    TearDownVolumes,
    /// Tell the user.
    Event {
        /// Whether it is of type Warning; Normal otherwise.
        warning: bool,
        /// In the words of the kubelet.
        reason: String,
        /// One sentence.
        message: String,
        /// The container it is about.
        container: Option<String>,
    },
}

/// What to do now and when to look again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Replaces the memory that went in.
    pub memory: Memory,
    /// To be carried out, in any order.
    pub actions: Vec<Action>,
    /// When to look again even if nothing happens.
    pub wake_at: Option<Timestamp>,
    /// Nothing of a deleted pod is left on the node: the API server may forget it.
    pub finished: bool,
}

impl Plan {
    pub(crate) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// Whether an Event of this kind about the container is to be told: once for each number.
    fn tell_once(&mut self, kind: &str, container: &str, number: u32) -> bool {
        let prefix = format!("{kind}/{container}/");
        let told = format!("{prefix}{number}");
        let all = &mut self.memory.transient.told;
        if all.contains(&told) {
            return false;
        }
        all.retain(|other| !other.starts_with(&prefix));
        all.push(told);

        true
    }

    fn warn(&mut self, reason: &str, message: impl Into<String>) {
        self.act(Action::Event {
            warning: true,
            reason: reason.to_owned(),
            message: message.into(),
            container: None,
        });
    }
}

/// Decides about one pod.
pub fn plan(pod: &PodView, memory: &Memory, observed: &Observed, now: Timestamp) -> Plan {
    let mut plan = Plan { memory: memory.clone(), ..Plan::default() };
    remember(&mut plan.memory, observed, now);
    if !admit(pod, observed, &mut plan, now) {
        return plan;
    }
    follow_clock(&mut plan.memory, observed, now);
    probe::hear(pod, observed, &mut plan.memory, now);
    resize::grant(pod, observed, now, &mut plan);
    let granted = resize::granted(pod, &plan.memory);
    let pod = granted.as_ref().unwrap_or(pod);
    let hurried = go_down::grace(pod, observed, &plan.memory).map(|grace_s| pod.within(grace_s));
    let pod = hurried.as_ref().unwrap_or(pod);
    if pod.is_deleted() {
        wind_down::delete(pod, observed, now, &mut plan);
    } else {
        evict(pod, observed, &mut plan);
        go_down::end(pod, observed, &mut plan);
        expire(pod, observed, now, &mut plan);
        if plan.memory.ended.is_some() {
            wind_down::end(pod, observed, now, &mut plan);
        } else if hurried.is_some() {
            go_down::go_down(pod, observed, now, &mut plan);
        } else {
            converge::converge(pod, observed, now, &mut plan);
        }
    }
    if let Some(ended) = &mut plan.memory.ended {
        ended.stopped |= !observed.containers.iter().any(ContainerView::may_run);
    }
    hook::run(pod, observed, &mut plan);
    probe::ask(pod, observed, now, &mut plan);
    let facts = status::facts(pod, &plan.memory, observed);
    status::update(&mut plan.memory, &facts, now);

    plan
}

/// Notes by how much the clock was set, so that no deadline passes or moves away by that. While the
/// agent was away nobody measured: where the clock cannot have come by itself from what it was, that time does not
/// count; one that is then before the start begins anew.
fn follow_clock(memory: &mut Memory, observed: &Observed, now: Timestamp) {
    let Some(start) = memory.start_time else { return };
    let noted = memory.transient.clock_set_s;
    if let (None, Some(stored_at)) = (noted, memory.stored_at) {
        let away_s = now.duration_since(stored_at).as_secs();
        if !(-CLOCK_SET_MIN_S..=AWAY_MAX_S).contains(&away_s) {
            memory.clock_set_s = memory.clock_set_s.saturating_add(away_s);
        }
    }
    let set_s = observed.clock_set_s.saturating_sub(noted.unwrap_or(observed.clock_set_s));
    if noted.is_none() || set_s.abs() >= CLOCK_SET_MIN_S {
        memory.clock_set_s = memory.clock_set_s.saturating_add(set_s);
        memory.transient.clock_set_s = Some(observed.clock_set_s);
    }
    let passed_s = now.duration_since(start).as_secs();
    if passed_s.saturating_sub(memory.clock_set_s) < -CLOCK_SET_MIN_S {
        memory.clock_set_s = passed_s;
    }
}

/// Takes the pod in or refuses it, once, and tells what this build does not know; false while that is
/// undecided.
fn admit(pod: &PodView, observed: &Observed, plan: &mut Plan, now: Timestamp) -> bool {
    if plan.memory.is_admitted() {
        return true;
    }
    let refusal = match &observed.admission {
        // What is deleted needs nothing of the node.
        _ if pod.is_deleted() => support::refuse(pod),
        Admission::Pending if observed.eviction.is_none() => return false,
        Admission::Refused(refusal) => Some(refusal.clone()),
        Admission::Granted | Admission::Pending => support::refuse(pod),
    };
    plan.memory.start_time = Some(now);
    if !pod.unknown_fields.is_empty() {
        let fields = pod.unknown_fields.join(", ");
        plan.warn("UnknownPodFields", format!("this node does not know and ignores: {fields}"));
    }
    if let Some(refusal) = refusal {
        plan.warn(&refusal.reason, refusal.message.clone());
        plan.memory.ended = Some(Ended::refused(&refusal));
    }

    true
}

/// Ends the pod if the node needs what it has.
fn evict(pod: &PodView, observed: &Observed, plan: &mut Plan) {
    let Some(eviction) = &observed.eviction else { return };
    if plan.memory.ended.is_some() || has_completed(pod, observed, &plan.memory).is_some() {
        return;
    }
    plan.warn(&eviction.reason, eviction.message.clone());
    plan.memory.ended = Some(Ended::evicted(eviction));
}

/// Ends the pod when its activeDeadlineSeconds have passed.
fn expire(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let (Some(limit), Some(start)) = (pod.spec().active_deadline_seconds, plan.memory.start_time)
    else {
        return;
    };
    if plan.memory.ended.is_some() || has_completed(pod, observed, &plan.memory).is_some() {
        return;
    }
    let active = limit.saturating_add(plan.memory.clock_set_s);
    let deadline = start.saturating_add(SignedDuration::from_secs(active)).unwrap_or(now);
    if now < deadline {
        plan.wake(deadline);
        return;
    }
    let message = "Pod was active on the node longer than the specified deadline";
    // Of type Normal, as the kubelet's.
    plan.act(Action::Event {
        warning: false,
        reason: "DeadlineExceeded".to_owned(),
        message: message.to_owned(),
        container: None,
    });
    plan.memory.ended = Some(Ended::failed("DeadlineExceeded", message));
}

/// How the pod ended, if every container ended and none will be started again. Sidecars and ephemeral
/// containers do not keep it.
pub(crate) fn has_completed(pod: &PodView, observed: &Observed, memory: &Memory) -> Option<Ended> {
    let last_end = |container: &Container| {
        let is_live = observed
            .newest(&container.name)
            .is_some_and(|c| !matches!(c.state, ContainerState::Exited { .. }));
        let kept = memory.containers.get(&container.name)?;
        kept.last.as_ref().filter(|last| !is_live && kept.attempt == Some(last.attempt))
    };
    for init in pod.init_containers().iter().filter(|init| !is_sidecar(init)) {
        let end = last_end(init).filter(|end| end.exit_code != 0);
        if end.is_some_and(|end| !is_followed(pod, memory, init, end)) {
            return Some(Ended::by_itself(false));
        }
    }
    let ended =
        |container| last_end(container).filter(|end| !is_followed(pod, memory, container, end));
    let ends: Option<Vec<_>> = pod.containers().iter().map(ended).collect();
    let succeeded = ends?.iter().all(|end| end.exit_code == 0);

    Some(Ended::by_itself(succeeded))
}

/// Whether another attempt follows that end: by the restart policy, because its definition changed,
/// because a probe or hook of it failed, or because the node went down. An init container that completed is
/// the caller's to know.
pub(crate) fn is_followed(
    pod: &PodView,
    memory: &Memory,
    container: &Container,
    end: &Termination,
) -> bool {
    let may_restart = pod.restart_policy(container) != RestartPolicy::Never;

    pod.restarts(container, end.exit_code)
        || memory.is_replaced(&container.name, end.attempt)
        || may_restart
            && (memory.is_unhealthy(&container.name, end.attempt)
                || memory.is_interrupted(&container.name, end.attempt))
}

fn volumes_gone(observed: &Observed) -> bool {
    observed.volumes == VolumesState::Gone
}
