//! Takes pods in, one after the other: what was taken in once stays so, then the oldest come first
//! (kubelet: `HandlePodAdditions`). The rules are podcore's.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podcore::admission::{Claim, Lift, Node, Refusal, admit};
use podcore::memory::Memory;
use podcore::observed::{Admission, Eviction};
use podcore::pod::PodView;
use podcore::quantity;
use podcore::resize::granted;
use podcore::support;
use proto::ids::{ObjectKey, Uid};
use proto::object::Object;
use proto::resource::is_extended;
use serde::Deserialize;

use super::Loop;
use super::context::Context;
use crate::clock;
use crate::desired::Desired;

/// How long a pod that selects another node waits for a newer Node object: the two come by different
/// ways (the kubelet asks the API server).
const AFFINITY_WAIT: Duration = Duration::from_secs(10);
/// How long a pod waits at most for those that end to make room for it.
const VICTIMS_WAIT: Duration = Duration::from_mins(2);

/// A pod without a task.
pub(super) struct Newcomer {
    pub(super) uid: Uid,
    pub(super) object: Object,
    was_admitted: bool,
    created: String,
}

/// Why a pod waits.
#[derive(Debug)]
pub(super) struct Pending {
    /// For as long as it takes if there is no end.
    until: Option<Instant>,
    /// Pods that end first; of none if the node may change.
    victims: BTreeSet<Uid>,
}

#[derive(Deserialize)]
struct Born {
    metadata: Birth,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Birth {
    #[serde(default)]
    creation_timestamp: Option<String>,
}

/// Those of the pods that are desired, in the order in which they are taken in.
pub(super) fn in_order(
    desired: &Desired,
    memories: &BTreeMap<Uid, Vec<u8>>,
    uids: Vec<Uid>,
) -> Vec<Newcomer> {
    let newcomer = |uid: Uid| {
        let object = desired.get(&ObjectKey::pod(&uid)).or_else(|| desired.leaving(&uid))?;
        let memory = memories.get(&uid).map(|stored| recall(desired, &uid, stored));
        let was_admitted = memory.is_some_and(|memory| memory.is_admitted());
        let born: Option<Born> = serde_json::from_slice(&object.bytes).ok();
        let created = born.and_then(|born| born.metadata.creation_timestamp).unwrap_or_default();
        Some(Newcomer { uid, object, was_admitted, created })
    };
    let mut all: Vec<_> = uids.into_iter().filter_map(newcomer).collect();
    all.sort_by(order);

    all
}

fn order(a: &Newcomer, b: &Newcomer) -> Ordering {
    let key = |one: &Newcomer| (!one.was_admitted, one.created.clone(), one.uid.clone());

    key(a).cmp(&key(b))
}

/// A pod's memory as it was stored. A pod of a file that was refused is decided about anew, as by a
/// kubelet that starts again: it keeps nothing.
pub(super) fn recall(desired: &Desired, pod: &Uid, stored: &[u8]) -> Memory {
    let memory: Memory = serde_json::from_slice(stored).unwrap_or_else(|error| {
        if !stored.is_empty() {
            tracing::warn!(%error, "the memory of a pod is not understood, starting afresh");
        }
        Memory::default()
    });

    if desired.is_static(pod) { memory.without_refusal() } else { memory }
}

/// What a pod that was taken in has of the node.
pub(super) fn claim(pod: &PodView, memory: &Memory) -> Option<Claim> {
    let has_stopped = memory.ended.as_ref().is_some_and(|ended| ended.stopped);
    let is_over = has_stopped || memory.is_refused();
    let granted = granted(pod, memory);

    (!is_over).then(|| Claim::of(granted.as_ref().unwrap_or(pod)))
}

impl Context {
    /// The node as pods are taken in by it now.
    fn admitting(&self) -> Node {
        let mut node = self.own.clone();
        node.abilities = Arc::clone(&self.abilities.borrow());
        if let Some(NodeObject { metadata, spec, status }) = self.node_object() {
            (node.labels, node.taints) = (metadata.labels, spec.taints);
            node.allocatable.scalars.extend(status.extended());
        }

        self.gate.apply(node)
    }

    /// Whether the scheduler is to keep pods from the node.
    pub(super) fn is_unschedulable(&self) -> bool {
        self.node_object().is_some_and(|node| node.spec.unschedulable)
    }

    /// Labels of the node.
    pub(super) fn node_labels(&self) -> BTreeMap<String, String> {
        let object = self.node_object();

        object.map_or_else(|| self.own.labels.clone(), |object| object.metadata.labels)
    }

    fn node_object(&self) -> Option<NodeObject> {
        let object = self.desired.get(&ObjectKey::node(&self.node))?;

        serde_json::from_slice(&object.bytes).ok()
    }
}

#[derive(Deserialize)]
struct NodeObject {
    metadata: NodeMetadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

#[derive(Deserialize)]
struct NodeMetadata {
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct NodeSpec {
    #[serde(default)]
    taints: Vec<Taint>,
    #[serde(default)]
    unschedulable: bool,
}

#[derive(Default, Deserialize)]
struct NodeStatus {
    #[serde(default)]
    allocatable: BTreeMap<String, Quantity>,
}

impl NodeStatus {
    /// What an administrator has put on the node: the rest the node knows better itself.
    fn extended(self) -> impl Iterator<Item = (String, i64)> {
        let all = self.allocatable.into_iter().filter(|(name, _)| is_extended(name));

        all.filter_map(|(name, amount)| Some((name, quantity::units(&amount)?)))
    }
}

impl Loop {
    /// Decides whether the pod is taken in. `is_held`: the runtime holds something of it.
    pub(super) fn decide(&mut self, object: &Object, memory: &Memory, is_held: bool) {
        let uid = &object.version.uid;
        let pod = PodView::parse(&object.bytes).ok();
        let (admission, claim) = match &pod {
            Some(pod) if memory.is_admitted() || is_held => {
                (Admission::Granted, claim(pod, memory))
            }
            // A deleted pod needs nothing, an unsupported one gets nothing.
            Some(pod) if !pod.is_deleted() && support::refuse(pod).is_none() => self.weigh(pod),
            Some(_) | None => (Admission::Granted, None),
        };
        if admission != Admission::Pending {
            self.pending.remove(uid);
        }
        self.context.registry.decide(uid, admission, claim);
    }

    /// Decides about a pod that was never taken in, and makes room for it if need be.
    fn weigh(&mut self, pod: &PodView) -> (Admission, Option<Claim>) {
        let mut others = self.context.registry.claims();
        others.remove(&pod.uid);
        match admit(pod, &self.context.admitting(), &others) {
            Ok(victims) if victims.is_empty() => (Admission::Granted, Some(Claim::of(pod))),
            Ok(victims) => {
                let names: Vec<_> = victims.iter().map(Uid::as_str).collect();
                tracing::warn!(pod = %pod.uid, ?names, "pods end to make room for a critical one");
                for victim in &victims {
                    self.context.registry.evict(victim, preempted());
                }
                let until = Some(clock::instant() + VICTIMS_WAIT);
                self.pending.insert(pod.uid.clone(), Pending { until, victims });
                (Admission::Pending, Some(Claim::of(pod)))
            }
            Err(refusal) if self.may_change(pod, &refusal) => (Admission::Pending, None),
            Err(refusal) => (Admission::Refused(refusal), None),
        }
    }

    /// Whether something may lift the refusal, and is still waited for.
    fn may_change(&mut self, pod: &PodView, refusal: &Refusal) -> bool {
        let now = clock::instant();
        let before = self.pending.get(&pod.uid).and_then(|pending| pending.until);
        let until = match refusal.lifted_by(pod) {
            Some(Lift::NodeObject) => Some(before.unwrap_or(now + AFFINITY_WAIT)),
            Some(Lift::EndOfShutdown) => None,
            None => return false,
        };
        tracing::debug!(pod = %pod.uid, reason = refusal.reason, "a pod waits until the node takes it in");
        self.pending.insert(pod.uid.clone(), Pending { until, victims: BTreeSet::new() });

        until.is_none_or(|until| now < until)
    }

    /// When a pod has waited for long enough.
    pub(super) fn decide_at(&self) -> Option<Instant> {
        self.pending.values().filter_map(|pending| pending.until).min()
    }

    /// Decides about those that wait, as far as they need not wait any longer.
    pub(super) fn decide_pending(&mut self) {
        let now = clock::instant();
        let claims = self.context.registry.claims();
        let waiting: Vec<_> = self.pending.keys().cloned().collect();
        for newcomer in in_order(&self.context.desired, &BTreeMap::new(), waiting) {
            let uid = &newcomer.uid;
            let Some(pending) = self.pending.get(uid) else { continue };
            if pending.victims.is_empty() {
                self.decide(&newcomer.object, &Memory::default(), false);
            } else if pending.until.is_some_and(|until| now >= until)
                || !pending.victims.iter().any(|victim| claims.contains_key(victim))
            {
                self.pending.remove(uid);
                let claim = claims.get(uid).cloned();
                self.context.registry.decide(uid, Admission::Granted, claim);
            }
        }
        // What is not desired any more waits for nothing.
        self.pending.retain(|uid, _| self.context.desired.get(&ObjectKey::pod(uid)).is_some());
    }
}

/// The end of a pod for a critical one.
fn preempted() -> Eviction {
    Eviction {
        reason: "Preempting".to_owned(),
        message: "Preempted in order to admit critical pod".to_owned(),
        disruption: Some("Pod was preempted by Kubelet to accommodate a critical pod.".to_owned()),
        grace_s: None,
    }
}

/// Waits until then, without an end if there is no then.
pub(super) async fn wait_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use proto::object::{ContentHash, Version};
    use serde_json::json;

    use super::*;
    use crate::desired::StaticObject;

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    fn object(name: &str, created: &str) -> Object {
        let bytes = json!({ "metadata": { "uid": name, "creationTimestamp": created } });
        let bytes = bytes.to_string().into_bytes();
        let hash = ContentHash::of(&[&bytes]);
        let version = Version { uid: uid(name), epoch: 0, revision: 1, hash };

        Object { key: ObjectKey::pod(&uid(name)), version, bytes: bytes.into() }
    }

    #[test]
    fn what_was_taken_in_comes_before_what_is_older() {
        let objects = vec![
            object("a-young", "2026-01-03T00:00:00Z"),
            object("b-old", "2026-01-01T00:00:00Z"),
            object("c-runs", "2026-01-04T00:00:00Z"),
            object("d-old-too", "2026-01-01T00:00:00Z"),
        ];
        let desired = Desired::new(objects, []);
        let admitted = json!({ "startTime": "2026-01-04T00:00:01Z" }).to_string().into_bytes();
        let memories = [(uid("c-runs"), admitted), (uid("b-old"), b"{}".to_vec())].into();
        let all = ["a-young", "b-old", "c-runs", "d-old-too", "gone"].map(uid).to_vec();
        let ordered = in_order(&desired, &memories, all);
        let names: Vec<_> = ordered.iter().map(|one| one.uid.as_str()).collect();

        assert_eq!(names, ["c-runs", "b-old", "d-old-too", "a-young"]);
    }

    #[test]
    fn a_pod_of_a_file_that_was_refused_is_decided_about_anew() {
        let pod = object("static", "2026-01-01T00:00:00Z");
        let desired = Desired::new(vec![object("other", "2026-01-01T00:00:00Z")], []);
        desired.set_statics(vec![StaticObject { name: "ns/static".to_owned(), object: pod }]);
        let memory = |ended: serde_json::Value| {
            json!({ "startTime": "2026-01-04T00:00:01Z", "ended": ended }).to_string().into_bytes()
        };
        let refused = memory(json!({ "succeeded": false, "refused": true }));
        let over = memory(json!({ "succeeded": true, "stopped": true }));
        for (pod, stored, is_kept) in
            [("static", &refused, false), ("static", &over, true), ("other", &refused, true)]
        {
            let recalled = recall(&desired, &uid(pod), stored);
            assert_eq!(recalled != Memory::default(), is_kept, "{pod}");
        }
    }
}
