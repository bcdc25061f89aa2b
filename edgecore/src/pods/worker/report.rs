//! What a pod's task tells others: the cloud its status, the rest of the agent what it holds and needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use podcore::admission::Requests;
use podcore::eviction::has_limits;
use podcore::materials::Materials;
use podcore::memory::Memory;
use podcore::observed::VolumesState;
use podcore::pod::PodView;
use podcore::probe::{Answers, ProbeKind};
use podcore::resize::{Amount, Room, Wish};
use podcore::resources::{QosClass, cgroup_parent, pod_request, qos_class};
use podcore::status::{StatusContext, status};
use podcore::translate::can_be_recursive;
use proto::wire::{Report, ReportKey};

use super::Worker;
use crate::pods::admit::claim;
use crate::pods::lookup::{Logs, pod_ref};
use crate::pods::observe;
use crate::pods::registry::Entry;

impl Worker {
    /// Tells the others what the pod has and needs.
    pub(super) fn enter(&self, pod: &PodView, status: &PodStatus) {
        let mut held = BTreeMap::new();
        for sandbox in &self.observed.sandboxes {
            held.insert(sandbox.id.clone(), observe::sandbox_code(sandbox));
        }
        for container in &self.observed.containers {
            held.insert(container.id.clone(), observe::container_code(&container.state));
        }
        let dir = self.context.layout.logs(&pod.namespace, &pod.name, &pod.uid);
        let logs = Logs { files: &self.logs, dir: &dir };
        let entry = Entry {
            name: (pod.namespace.clone(), pod.name.clone()),
            held,
            burstable_milli: burstable_milli(pod),
            has_limits: has_limits(pod),
            ends: pod.is_deleted() || self.memory.ended.is_some(),
            is_cleaned: self.memory.ended.as_ref().is_some_and(|ended| ended.stopped)
                && self.observed.volumes == VolumesState::Gone,
            pod: Some(pod_ref(pod, &self.observed, &self.memory, status, logs)),
            cgroup: cgroup_parent(pod, &self.context.cgroup_root, self.context.cgroup_driver),
            started_at: status.start_time.as_ref().map(|time| time.0),
            status: self.status_json.clone(),
            answers: answers(&self.memory),
            claimed: Arc::new(self.memory.claimed.clone()),
        };
        self.context.registry.update(&self.uid, entry);
        // What the API server has forgotten is not counted there either.
        let claim = (!self.is_gone).then(|| claim(pod, &self.memory)).flatten();
        self.context.registry.claim(&self.uid, claim);
    }

    /// What the node has for the pod, if it asks for other than it is granted.
    pub(super) fn room(&self, pod: &PodView) -> Option<Room> {
        let Some(wish) = Wish::of(pod, &self.memory) else {
            self.context.registry.ask_nothing(&self.uid);
            return None;
        };
        let node = self.context.node_fields(Vec::new());
        let (cpu_milli, memory) = (node.cpu_milli, node.memory_bytes);
        let capacity = Requests { cpu_milli, memory, ..Requests::default() };
        let used = self.context.registry.ask(&self.uid, wish, &capacity);

        Some(Room {
            cpu: Amount { capacity: cpu_milli, used: used.cpu_milli },
            memory: Amount { capacity: memory, used: used.memory },
        })
    }

    pub(super) fn status(&self, pod: &PodView, materials: &Materials, now: Timestamp) -> PodStatus {
        let context = StatusContext {
            host_ips: self.context.addresses.borrow().clone(),
            runtime: self.context.runtime_name.clone(),
            recursive_read_only: can_be_recursive(pod, materials, &self.observed.abilities),
        };

        status(pod, &self.memory, &self.observed, &context, now)
    }

    /// Reports the status if it is not the last one reported. Answers when to come back, if it waits.
    pub(super) fn report(
        &mut self,
        status: &PodStatus,
        finished: bool,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let done = finished && self.under_way.is_empty();
        let json = match serde_json::to_vec(status) {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(%error, "the status of the pod cannot be written as JSON");
                return None;
            }
        };
        let next = (Bytes::from(json), done);
        if let Some((told, _)) = self.reported.as_ref().filter(|last| **last == next) {
            // One copy is enough.
            self.status_json = told.clone();
            self.telling.nothing();
            return None;
        }
        self.status_json = next.0.clone();
        let wait = self.telling.news(status.phase.as_deref(), done, now);
        if wait.is_none() {
            let key = ReportKey::PodStatus(self.uid.clone());
            self.context.upstream.report(Report { key, bytes: next.0.clone(), done });
            self.reported = Some(next);
        }

        wait
    }
}

fn answers(memory: &Memory) -> Vec<(String, ProbeKind, Answers)> {
    let answers = memory.transient.answers.iter();

    answers.map(|((container, kind), answers)| (container.clone(), *kind, *answers)).collect()
}

/// The CPU request that counts for the cgroup of burstable pods.
fn burstable_milli(pod: &PodView) -> i64 {
    match qos_class(pod) {
        QosClass::Burstable => pod_request(pod, "cpu"),
        QosClass::Guaranteed | QosClass::BestEffort => 0,
    }
}
