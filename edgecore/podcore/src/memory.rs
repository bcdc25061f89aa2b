//! What a node remembers about a pod that the runtime cannot tell it again.

mod backoff;
mod transient;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::backoff::Backoff;
pub use self::transient::{Failure, ImageFound, ImageNote, Stopping, Transient, Turn};
use crate::admission::Refusal;
use crate::claims::PersistentVolume;
use crate::hook::Hooked;
use crate::observed::{ContainerState, ContainerView, Eviction, UserView};
use crate::probe::ProbeKind;
use crate::resize::{Actual, Resize, Resources};
use crate::shutdown::{MESSAGE, REASON};

/// What is kept for one pod, across restarts of the agent and power loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Memory {
    /// When the node first took the pod in (`status.startTime`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Timestamp>,
    /// By how many seconds the clock was set since then: a deadline counts from both together.
    #[serde(skip_serializing_if = "is_zero")]
    pub clock_set_s: i64,
    /// When the memory was stored, by the clock of then: shows whether it was set while no agent ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored_at: Option<Timestamp>,
    /// How the pod ended for good. Once set, nothing of it is started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
    /// By container name.
    pub containers: BTreeMap<String, ContainerMemory>,
    /// Status and last transition by condition type.
    pub conditions: BTreeMap<String, ConditionMemory>,
    /// What of a resize is still to come.
    #[serde(skip_serializing_if = "is_nothing")]
    pub resize: Resize,
    /// Highest attempt of a sandbox made for the pod, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_attempt: Option<u32>,
    /// Ids of the sandboxes of an ended pod that the runtime has stopped in full. That one is not ready does
    /// not say so: it may have died by itself, or its stop was cut short, and it has its network still.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub stopped_sandboxes: BTreeSet<String>,
    /// By the id of a container that is being stopped: what the hook before that has taken of the grace that
    /// counts now, in seconds. Stored when the hook has run, beside the kill that follows: an agent that
    /// starts again runs it again only if it went just then.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pre_stopped: BTreeMap<String, i64>,
    /// Addresses of the last sandbox, kept in the status of an ended pod.
    pub ips: Vec<String>,
    /// What was last set up of its volumes with claims, by their name in the pod: it serves on when its claim
    /// is gone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub claimed: BTreeMap<String, PersistentVolume>,
    /// What only matters until the agent restarts.
    #[serde(skip)]
    pub transient: Transient,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_nothing(resize: &Resize) -> bool {
    *resize == Resize::default()
}

impl Memory {
    /// Whether the step from `before` to `self` must be durable before it is acted upon or told: an end
    /// must not be forgotten, or a finished pod would run again; nor that it was none, or a pod that ended
    /// well because its node went down would not; nor that the pod was taken in, or it could be refused
    /// while it runs; nor what it was granted, or it could be refused what it has.
    pub fn must_be_durable_after(&self, before: &Self) -> bool {
        let kept = |memory: &Self, name: &str| {
            let kept = memory.containers.get(name);
            kept.map(|kept| (kept.interrupted, kept.allocated.clone())).unwrap_or_default()
        };
        let mut names = self.containers.keys();

        self.ended != before.ended
            || self.is_admitted() != before.is_admitted()
            || names.any(|name| kept(self, name) != kept(before, name))
    }

    /// Whether the node has taken the pod in, or refused it: that is decided once.
    pub fn is_admitted(&self) -> bool {
        self.start_time.is_some()
    }

    /// What is remembered of a pod that is decided about once more: everything but that it was refused.
    #[must_use]
    pub fn without_refusal(self) -> Self {
        if self.is_refused() { Self::default() } else { self }
    }

    /// Whether the node has refused the pod.
    pub fn is_refused(&self) -> bool {
        self.ended.as_ref().is_some_and(Ended::is_refusal)
    }

    /// Whether that is a start that was given up, of which the container knows nothing: nobody who asked for
    /// it was told that it failed, or the runtime says so (containerd: `errorStartReason`).
    pub(crate) fn is_given_up(&self, view: &ContainerView) -> bool {
        let ContainerState::Exited { started_at: None, reason, message, .. } = &view.state else {
            return false;
        };
        let last = self.containers.get(&view.name).and_then(|kept| kept.last.as_ref());
        let is_known = last.is_some_and(|last| last.id == view.id)
            || self.transient.start_failures.contains_key(&view.name);

        reason == "StartError" && (!is_known || message.contains("context canceled"))
    }

    /// Whether that attempt of a container was stopped because the node went down.
    pub fn is_interrupted(&self, container: &str, attempt: u32) -> bool {
        self.containers.get(container).is_some_and(|kept| kept.interrupted == Some(attempt))
    }

    /// Whether that attempt of a container was stopped to make way for another definition, or because
    /// somebody at the node asked for another attempt.
    pub fn is_replaced(&self, container: &str, attempt: u32) -> bool {
        self.containers.get(container).is_some_and(|kept| kept.replaced == Some(attempt))
    }

    /// Whether the stop of an instance has begun: nothing calls it off, as with a kubelet, whose kill always
    /// follows the hook and whose next attempt always follows the kill.
    pub fn is_being_stopped(&self, view: &ContainerView) -> bool {
        self.is_replaced(&view.name, view.attempt)
            || self.pre_stopped.contains_key(&view.id)
            || self.transient.killing.contains_key(&view.id)
    }

    /// Whether that attempt of a container was stopped because a probe or its hook failed.
    pub fn is_unhealthy(&self, container: &str, attempt: u32) -> bool {
        let Some(kept) = self.containers.get(container) else { return false };
        let hooked = kept.hooked.as_ref();

        kept.has_failed_probe(attempt)
            || hooked.is_some_and(|hooked| hooked.attempt == attempt && hooked.failed)
    }

    /// Something that the pod refers to has changed: who waits for that is tried at once.
    pub fn references_changed(&mut self) {
        self.transient.volumes_failure = None;
        self.transient.start_failures.retain(|_, failure| failure.reason != CONFIG_ERROR);
    }

    /// What is remembered of a container, made on first use.
    pub fn container(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }
}

/// Why a container waits that lacks something, or asks for what it may not have.
pub const CONFIG_ERROR: &str = "CreateContainerConfigError";

/// The end of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// Succeeded or Failed.
    pub succeeded: bool,
    /// Nothing of it runs any more: from here on the phase tells that it has ended.
    #[serde(default)]
    pub stopped: bool,
    /// `status.reason`, for example `DeadlineExceeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `status.message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// It was never taken in.
    #[serde(default, skip_serializing_if = "is_false")]
    pub refused: bool,
    /// Message of the condition `DisruptionTarget`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<String>,
    /// Seconds that its containers have to stop, if not those of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_s: Option<i64>,
}

/// `status.reason` of a pod that this build cannot run as it asks.
pub const UNSUPPORTED: &str = "UnsupportedPodSpec";

impl Ended {
    /// The end of a pod whose containers ended.
    pub fn by_itself(succeeded: bool) -> Self {
        Self {
            succeeded,
            stopped: false,
            reason: None,
            message: None,
            refused: false,
            disruption: None,
            grace_s: None,
        }
    }

    /// A failure that is not one of its containers.
    pub fn failed(reason: &str, message: &str) -> Self {
        let (reason, message) = (Some(reason.to_owned()), Some(message.to_owned()));

        Self { reason, message, ..Self::by_itself(false) }
    }

    /// The end of a pod that was never taken in.
    pub fn refused(refusal: &Refusal) -> Self {
        let message = format!("Pod was rejected: {}", refusal.message);

        Self { refused: true, ..Self::failed(&refusal.reason, &message) }
    }

    /// The end of a pod that the node needs the resources of.
    pub fn evicted(eviction: &Eviction) -> Self {
        Self {
            disruption: eviction.disruption.clone(),
            grace_s: eviction.grace_s,
            ..Self::failed(&eviction.reason, &eviction.message)
        }
    }

    /// The end of a pod that was stopped because its node went down.
    pub fn shut_down() -> Self {
        Self { disruption: Some(MESSAGE.to_owned()), ..Self::failed(REASON, MESSAGE) }
    }

    /// Whether the pod was never taken in.
    pub fn is_refusal(&self) -> bool {
        // Earlier builds noted only the reason.
        self.refused || self.reason.as_deref() == Some(UNSUPPORTED)
    }
}

/// What is kept for one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerMemory {
    /// Highest attempt seen, counted from 0; the restart count continues from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The last end of the container, also after the runtime forgot it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Termination>,
    /// Crash back-off.
    pub backoff: Backoff,
    /// The attempt that `backoff` was last raised for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_attempt: Option<u32>,
    /// The attempt that is stopped because its definition changed, or because somebody at the node asked
    /// for it: it is followed by another whatever the restart policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced: Option<u32>,
    /// The attempt that was stopped because the node went down: another follows, unless it never restarts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<u32>,
    /// What the node grants it (`status.containerStatuses.allocatedResources`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated: Option<Resources>,
    /// What its newest instance has of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<Actual>,
    /// What its probes came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probed: Option<Probed>,
    /// How the hook after its start went.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hooked: Option<Hooked>,
}

/// What the probes of one attempt came to. Kept, so that an agent that starts again does not call a
/// ready pod unready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probed {
    /// The attempt that was asked.
    pub attempt: u32,
    /// Its startup probe has passed.
    #[serde(default)]
    pub started: bool,
    /// Its readiness probe passes.
    #[serde(default)]
    pub ready: bool,
    /// It must be stopped, because of this probe.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<ProbeKind>,
}

impl Probed {
    /// Nothing was asked yet.
    pub fn of(attempt: u32) -> Self {
        Self { attempt, started: false, ready: false, failed: None }
    }
}

/// One end of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// Which attempt ended.
    pub attempt: u32,
    /// The sandbox attempt it ran in.
    pub sandbox_attempt: u32,
    /// Id in the runtime.
    pub id: String,
    /// Exit code, 128 + signal number for a signal.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled` or what the runtime says.
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// When it started; `None` if it never did.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Image and resolved image of that attempt.
    pub image: String,
    /// Resolved image.
    pub image_ref: String,
    /// Whom it ran as, from runtimes that tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserView>,
}

/// A condition as last reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionMemory {
    /// True or False.
    pub status: bool,
    /// When it became so.
    pub since: Timestamp,
}
