//! Startup, liveness and readiness probes: when one is due and what its answers come to. Asking is the
//! shell's. Rules: `pkg/kubelet/prober/worker.go` and `pkg/kubelet/prober/prober_manager.go`.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Probe};
use serde::{Deserialize, Serialize};

use crate::hook;
use crate::memory::{Memory, Probed};
use crate::observed::{ContainerState, ContainerView, Observed};
use crate::plan::{Action, Plan};
use crate::pod::PodView;

/// Seconds between two questions, unless the pod says otherwise (Probe.periodSeconds).
const PERIOD_DEFAULT_S: i32 = 10;
/// Seconds an answer may take (Probe.timeoutSeconds).
const TIMEOUT_DEFAULT_S: i32 = 1;
/// Failures in a row that count (Probe.failureThreshold).
const FAILURES_DEFAULT: i32 = 3;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeKind {
    /// Whether the container has started: until then the others do not ask.
    Startup,
    /// Whether it must be restarted.
    Liveness,
    /// Whether it takes requests.
    Readiness,
}

impl ProbeKind {
    /// In the order in which they are asked.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// What the container asks for.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// How long an answer may take.
pub fn timeout(probe: &Probe) -> SignedDuration {
    seconds(probe.timeout_seconds, TIMEOUT_DEFAULT_S)
}

/// A number of the API where less than one means the default.
fn at_least_one(number: Option<i32>, default: i32) -> i32 {
    number.filter(|number| *number > 0).unwrap_or(default)
}

fn seconds(number: Option<i32>, default: i32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(at_least_one(number, default)))
}

/// The questions of one probe to one instance of a container. Lost with the process; what they came to
/// is in [`Probed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// Id of the instance.
    pub id: String,
    /// Questions so far.
    pub number: u32,
    /// Where the last one is.
    pub turn: Turn,
    /// The last answer, and how often it came in a row.
    pub in_row: Option<(bool, i32)>,
}

/// Where a question is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The next is asked then.
    Due(Timestamp),
    /// Under way since then.
    Asked(Timestamp),
    /// Asked then, and whether it passed; `None` if it could not be asked.
    Answered(Timestamp, Option<bool>),
}

/// How often a probe gave which answer. Lost with the process, as counters are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// It passed.
    pub successful: u64,
    /// It did not.
    pub failed: u64,
    /// It could not be asked.
    pub unknown: u64,
}

/// By container name and kind.
pub type Askings = BTreeMap<(String, ProbeKind), Asking>;

/// Whether a running instance counts as started: its hook has run, and it has no startup probe or
/// that has passed.
pub fn is_started(container: &Container, view: &ContainerView, memory: &Memory) -> bool {
    let passed = || probed(&container.name, view, memory).is_some_and(|probed| probed.started);

    view.is_running()
        && !hook::is_pending(container, view, memory)
        && (container.startup_probe.is_none() || passed())
}

/// Whether a running instance counts as ready: it has started, and its readiness probe, if it has
/// one, has passed.
pub fn is_ready(container: &Container, view: &ContainerView, memory: &Memory) -> bool {
    let passed = || probed(&container.name, view, memory).is_some_and(|probed| probed.ready);

    is_started(container, view, memory) && (container.readiness_probe.is_none() || passed())
}

/// The probe that an instance has failed for good, so that it must be stopped.
pub fn failed(view: &ContainerView, memory: &Memory) -> Option<ProbeKind> {
    probed(&view.name, view, memory)?.failed
}

fn probed<'a>(name: &str, view: &ContainerView, memory: &'a Memory) -> Option<&'a Probed> {
    let probed = memory.containers.get(name)?.probed.as_ref();

    probed.filter(|probed| probed.attempt == view.attempt)
}

/// Takes in the answers that have come.
pub(crate) fn hear(pod: &PodView, observed: &Observed, memory: &mut Memory, now: Timestamp) {
    let mut askings = std::mem::take(&mut memory.transient.askings);
    for ((name, kind), asking) in &mut askings {
        let Turn::Answered(asked_at, passed) = asking.turn else { continue };
        let container = pod.all_containers().find(|container| container.name == *name);
        let Some(probe) = container.and_then(|container| kind.of(container)) else { continue };
        let period = seconds(probe.period_seconds, PERIOD_DEFAULT_S);
        let next = asked_at.saturating_add(period).unwrap_or(now);
        // An answer may take longer than the period: the next question waits for it.
        asking.turn = Turn::Due(next.max(now));
        let view = observed.newest(name).filter(|view| view.id == asking.id);
        if let (Some(view), Some(passed)) = (view, passed)
            && counts(probe, passed, asking)
        {
            settle(memory, view, *kind, passed);
        }
    }
    memory.transient.askings = askings;
}

/// Asks what is due of the containers that run. A pod that ends, and a container that a probe has stopped,
/// is only asked whether it is ready.
pub(crate) fn ask(pod: &PodView, observed: &Observed, now: Timestamp, plan: &mut Plan) {
    let is_ending = pod.is_deleted() || plan.memory.ended.is_some();
    let mut live = Askings::new();
    for container in pod.all_containers() {
        let Some(view) = observed.newest(&container.name) else { continue };
        let ContainerState::Running { started_at } = view.state else { continue };
        let started = is_started(container, view, &plan.memory);
        let waits = hook::is_pending(container, view, &plan.memory);
        let is_unhealthy = plan.memory.is_unhealthy(&view.name, view.attempt);
        for kind in ProbeKind::ALL {
            let Some(probe) = kind.of(container) else { continue };
            let is_over = match kind {
                ProbeKind::Startup => is_ending || is_unhealthy || started || waits,
                ProbeKind::Liveness => is_ending || is_unhealthy || !started,
                ProbeKind::Readiness => !started || hook::has_failed(view, &plan.memory),
            };
            if is_over {
                continue;
            }
            let key = (container.name.clone(), kind);
            let known = plan.memory.transient.askings.remove(&key).filter(|a| a.id == view.id);
            let mut asking = known.unwrap_or_else(|| begin(probe, view, started_at, now));
            asking.take_turn(probe, now, plan);
            if let Turn::Asked(_) = asking.turn {
                let (container, id) = (container.name.clone(), view.id.clone());
                plan.act(Action::Probe { container, id, kind, number: asking.number });
            }
            live.insert(key, asking);
        }
    }
    plan.memory.transient.askings = live;
}

impl Asking {
    fn take_turn(&mut self, probe: &Probe, now: Timestamp, plan: &mut Plan) {
        match self.turn {
            // Further away than any wait means that the clock was set back.
            Turn::Due(at) if now < at && at <= latest(probe, now) => plan.wake(at),
            Turn::Due(_) => {
                self.turn = Turn::Asked(now);
                self.number = self.number.wrapping_add(1);
            }
            Turn::Asked(_) | Turn::Answered(..) => {}
        }
    }
}

/// The first question: when the initial delay after the start is over.
fn begin(probe: &Probe, view: &ContainerView, started_at: Timestamp, now: Timestamp) -> Asking {
    let due = started_at.saturating_add(initial_delay(probe)).unwrap_or(now);

    Asking { id: view.id.clone(), number: 0, turn: Turn::Due(due), in_row: None }
}

fn initial_delay(probe: &Probe) -> SignedDuration {
    SignedDuration::from_secs(i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0)))
}

/// No question is due later than that.
fn latest(probe: &Probe, now: Timestamp) -> Timestamp {
    let longest = seconds(probe.period_seconds, PERIOD_DEFAULT_S).max(initial_delay(probe));

    now.saturating_add(longest).unwrap_or(now)
}

/// Whether an answer is the one of as many alike in a row as it takes.
fn counts(probe: &Probe, passed: bool, asking: &mut Asking) -> bool {
    let in_row = match asking.in_row {
        Some((before, count)) if before == passed => count.saturating_add(1),
        Some(_) | None => 1,
    };
    asking.in_row = Some((passed, in_row));
    let needed = if passed {
        at_least_one(probe.success_threshold, 1)
    } else {
        at_least_one(probe.failure_threshold, FAILURES_DEFAULT)
    };

    in_row >= needed
}

fn settle(memory: &mut Memory, view: &ContainerView, kind: ProbeKind, passed: bool) {
    let kept = memory.container(&view.name);
    let before = kept.probed.take().filter(|probed| probed.attempt == view.attempt);
    let mut probed = before.unwrap_or_else(|| Probed::of(view.attempt));
    match kind {
        ProbeKind::Readiness => probed.ready = passed,
        ProbeKind::Startup if passed => probed.started = true,
        ProbeKind::Startup | ProbeKind::Liveness if !passed => probed.failed = Some(kind),
        ProbeKind::Startup | ProbeKind::Liveness => {}
    }
    kept.probed = Some(probed);
}

impl Memory {
    /// Takes in the answer to a question; `None` if it could not be asked.
    pub(crate) fn answered(
        &mut self,
        key: &(String, ProbeKind),
        id: &str,
        number: u32,
        passed: Option<bool>,
    ) {
        let asking = self.transient.askings.get_mut(key);
        let Some(asking) = asking.filter(|asking| asking.id == id && asking.number == number)
        else {
            return;
        };
        if let Turn::Asked(at) = asking.turn {
            asking.turn = Turn::Answered(at, passed);
            let answers = self.transient.answers.entry(key.clone()).or_default();
            let count = match passed {
                Some(true) => &mut answers.successful,
                Some(false) => &mut answers.failed,
                None => &mut answers.unknown,
            };
            *count += 1;
        }
    }
}
