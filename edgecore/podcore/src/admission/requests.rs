//! What pods request of the node, and what there is too little of
//! (`pkg/scheduler/framework/plugins/noderesources`).

use std::collections::BTreeMap;

use proto::ids::Uid;
use proto::resource::is_extended;

use super::{Claim, Node, Refusal};
use crate::pod::PodView;
use crate::resources::{STORAGE, pod_request, scalar_requests};

/// Amounts that pods request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Thousandths of a CPU.
    pub cpu_milli: i64,
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of `ephemeral-storage`.
    pub storage: i64,
    /// Everything else by name: bytes in huge pages, extended resources.
    pub scalars: BTreeMap<String, i64>,
}

impl Requests {
    /// What the pod requests, its overhead included.
    pub fn of(pod: &PodView) -> Self {
        Self {
            cpu_milli: pod_request(pod, "cpu"),
            memory: pod_request(pod, "memory"),
            storage: pod_request(pod, STORAGE),
            scalars: scalar_requests(pod),
        }
    }

    /// Of both.
    pub(crate) fn plus(mut self, other: &Self) -> Self {
        self.cpu_milli = self.cpu_milli.saturating_add(other.cpu_milli);
        self.memory = self.memory.saturating_add(other.memory);
        self.storage = self.storage.saturating_add(other.storage);
        for (name, amount) in &other.scalars {
            let sum = self.scalars.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }

        self
    }

    /// Of one resource.
    pub(super) fn get(&self, resource: &str) -> i64 {
        match resource {
            "cpu" => self.cpu_milli,
            "memory" => self.memory,
            STORAGE => self.storage,
            scalar => self.scalars.get(scalar).copied().unwrap_or(0),
        }
    }
}

/// What there is too little of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) resource: String,
    requested: i64,
    used: i64,
    capacity: i64,
}

impl Shortage {
    pub(super) fn refusal(&self) -> Refusal {
        let Self { resource, requested, used, capacity } = self;
        let message = format!(
            "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
        );

        Refusal::new(&format!("OutOf{resource}"), message)
    }

    pub(super) fn lacks(&self) -> i64 {
        self.requested.saturating_sub(self.capacity.saturating_sub(self.used))
    }
}

pub(super) fn shortages(
    pod: &PodView,
    node: &Node,
    others: &BTreeMap<Uid, Claim>,
) -> Vec<Shortage> {
    let asked = Requests::of(pod);
    // An extended resource that the node does not have is the cluster's.
    let scalars = asked.scalars.keys().map(String::as_str);
    let scalars =
        scalars.filter(|name| !is_extended(name) || node.allocatable.scalars.contains_key(*name));
    let of_pods = Shortage {
        resource: "pods".to_owned(),
        requested: 1,
        used: i64::try_from(others.len()).unwrap_or(i64::MAX),
        capacity: i64::from(node.pods_max),
    };
    let rest = ["cpu", "memory", STORAGE].into_iter().chain(scalars).map(|resource| Shortage {
        resource: resource.to_owned(),
        requested: asked.get(resource),
        used: others.values().fold(0, |sum, one| sum.saturating_add(one.requests.get(resource))),
        capacity: node.allocatable.get(resource),
    });

    let all = std::iter::once(of_pods).chain(rest);

    all.filter(|one| one.requested > 0 && one.lacks() > 0).collect()
}
