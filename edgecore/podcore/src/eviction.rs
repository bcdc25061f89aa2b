//! Which pod goes when the node is short of something, and which has taken more than its limit, in the
//! kubelet's order and words (`pkg/kubelet/eviction`).

mod limits;
#[cfg(test)]
mod tests;

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;

pub use self::limits::{has_limits, over_limit};
use crate::admission::{Requests, is_critical};
use crate::observed::Eviction;
use crate::pod::PodView;
use crate::pressure::{Observations, Policy, Signal, Threshold};
use crate::quantity::{binary, decimal, units};

/// Grace of a pod that must go at once (kubelet: `immediateEvictionGracePeriodSeconds`).
const IMMEDIATE_S: i64 = 1;
/// `status.reason` of pods that went.
const REASON: &str = "Evicted";

/// Space and inodes of a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl Taken {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

/// What a pod has of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodUsage {
    /// Processes.
    pub processes: u64,
    /// What its volumes take of the disk, by name.
    pub volumes: BTreeMap<String, Taken>,
    /// What belongs to no container, for example its /etc/hosts.
    pub other: Taken,
    /// Its containers.
    pub containers: Vec<ContainerUsage>,
}

/// What a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Its name.
    pub name: String,
    /// Bytes of memory that are in use, if known.
    pub memory: Option<u64>,
    /// Its writable layer, if known.
    pub layer: Option<Taken>,
    /// Its log files, if known.
    pub logs: Option<Taken>,
}

impl PodUsage {
    fn memory(&self) -> u64 {
        self.containers.iter().filter_map(|one| one.memory).fold(0, u64::saturating_add)
    }

    /// What it takes of the file systems that the scope names.
    fn disk(&self, scope: Scope) -> Taken {
        let layers = self.containers.iter().filter_map(|one| one.layer);
        let logs = self.containers.iter().filter_map(|one| one.logs);
        let none = Taken::default();
        let layers = if scope.layers { layers.fold(none, Taken::plus) } else { none };
        let volumes = self.volumes.values().copied();
        let rest = if scope.rest { logs.chain(volumes).fold(none, Taken::plus) } else { none };

        layers.plus(rest)
    }
}

/// What of a pod is on a file system.
#[derive(Clone, Copy, Debug)]
struct Scope {
    /// Writable layers.
    layers: bool,
    /// Logs and volumes.
    rest: bool,
}

impl Scope {
    /// What the signal tells of, with images on a disk of their own or not (`buildSignalToRankFunc`).
    fn of(signal: Signal, has_image_disk: bool) -> Self {
        let is_image = matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree);

        Self { layers: is_image || !has_image_disk, rest: !is_image || !has_image_disk }
    }
}

/// A pod that may go, with what it uses, if that is known.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The pod, with the resources that it is granted.
    pub pod: PodView,
    /// What it has.
    pub usage: Option<PodUsage>,
}

/// Puts who goes first to the front: those of whom nothing is known, then who uses more than it requests,
/// then by priority, then by how much more (kubelet: `rankMemoryPressure` and its kin).
pub fn rank(candidates: &mut [Candidate], signal: Signal, has_image_disk: bool) {
    candidates.sort_by(|a, b| {
        let by_uid = || a.pod.uid.cmp(&b.pod.uid);
        compare(a, b, signal, has_image_disk).then_with(by_uid)
    });
}

fn compare(a: &Candidate, b: &Candidate, signal: Signal, has_image_disk: bool) -> Ordering {
    let priority = |one: &Candidate| one.pod.spec().priority.unwrap_or(0);
    let by_priority = priority(a).cmp(&priority(b));
    let known = |one: &Candidate| one.usage.is_some();
    let excess = |one: &Candidate| excess(one, signal, has_image_disk);
    let (excess_a, excess_b) = (excess(a), excess(b));
    let by_excess = known(a)
        .cmp(&known(b))
        .then_with(|| Reverse(excess_a.exceeds).cmp(&Reverse(excess_b.exceeds)));
    let by_amount = Reverse(excess_a.amount).cmp(&Reverse(excess_b.amount));
    if signal == Signal::PidAvailable {
        return by_priority.then(by_amount);
    }

    by_excess.then(by_priority).then(by_amount)
}

struct Excess {
    /// It uses more than it requests.
    exceeds: bool,
    /// By how much.
    amount: i128,
}

fn excess(one: &Candidate, signal: Signal, has_image_disk: bool) -> Excess {
    let Some(usage) = &one.usage else { return Excess { exceeds: true, amount: 0 } };
    let requests = Requests::of(&one.pod);
    let disk = usage.disk(Scope::of(signal, has_image_disk));
    // Inodes cannot be requested; what is requested of space lowers their rank all the same.
    let (used, requested, lowered) = match signal {
        Signal::MemoryAvailable | Signal::AllocatableMemoryAvailable => {
            (usage.memory(), requests.memory, requests.memory)
        }
        Signal::NodeFsAvailable | Signal::ImageFsAvailable => {
            (disk.bytes, requests.storage, requests.storage)
        }
        Signal::NodeFsInodesFree | Signal::ImageFsInodesFree => (disk.inodes, 0, requests.storage),
        Signal::PidAvailable => (usage.processes, 0, 0),
    };
    let used = i128::from(used);

    Excess { exceeds: used > i128::from(requested), amount: used - i128::from(lowered) }
}

/// How the candidate goes because of that threshold; `None` if it is one that must not.
pub fn evict(
    candidate: &Candidate,
    threshold: &Threshold,
    policy: &Policy,
    seen: &Observations,
) -> Option<Eviction> {
    if is_critical(&candidate.pod) {
        return None;
    }
    let pod_grace_s = candidate.pod.spec().termination_grace_period_seconds;
    let most_s = policy.pod_grace_max_s;
    let grace_s = if threshold.is_hard() {
        IMMEDIATE_S
    } else {
        pod_grace_s.map_or(most_s, |own| own.min(most_s))
    };
    let message = message(candidate, threshold, seen);

    Some(Eviction {
        reason: REASON.to_owned(),
        disruption: Some(message.clone()),
        message,
        grace_s: Some(grace_s),
    })
}

/// kubelet: `evictionMessage`.
fn message(candidate: &Candidate, threshold: &Threshold, seen: &Observations) -> String {
    let resource = threshold.signal.resource();
    let mut parts = vec![format!("The node was low on resource: {resource}. ")];
    if let Some(seen) = seen.get(&threshold.signal) {
        let quantity = binary(threshold.value.of(seen.capacity));
        let is_bytes = matches!(resource, "memory" | "ephemeral-storage");
        let available = if is_bytes { binary(seen.available) } else { decimal(seen.available) };
        parts.push(format!("Threshold quantity: {quantity}, available: {available}. "));
    }
    let containers = candidate.usage.iter().flat_map(|usage| &usage.containers);
    parts.extend(containers.filter_map(|usage| blame(&candidate.pod, usage, resource)));

    parts.concat()
}

/// That a container uses more than it requests.
fn blame(pod: &PodView, usage: &ContainerUsage, resource: &str) -> Option<String> {
    let container = pod.admitted_containers().find(|c| c.name == usage.name)?;
    let used = match resource {
        "memory" => usage.memory?,
        "ephemeral-storage" => usage.layer?.plus(usage.logs?).bytes,
        _ => return None,
    };
    let requests = container.resources.as_ref().and_then(|all| all.requests.as_ref());
    let request = requests.and_then(|all| all.get(resource));
    let requested = request.and_then(units).unwrap_or(0);
    if i128::from(used) <= i128::from(requested) {
        return None;
    }
    let (name, used) = (&container.name, binary(used));
    let request = request.map_or("0", |request| &request.0);

    Some(format!(
        "Container {name} was using {used}, request is {request}, has larger consumption of {resource}. "
    ))
}
