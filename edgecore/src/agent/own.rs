//! What the agent makes of its configuration and the machine: the node as others see it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use podcore::admission::{self, Requests};
use podcore::env::NodeFields;
use podcore::pressure::Signal;

use crate::config::{self, Config, Reserved};
use crate::events::{self, EventType};
use crate::link::Upstream;
use crate::node::cgroups::Cgroups;
use crate::node::facts::Facts;
use crate::node::machine;
use crate::node::pressure::{self, Places, Shortages, Watched};
use crate::node::status::{self, Wanted};

/// Both ends of what is told of a node that is short of something.
pub(super) fn watch_pressure(
    config: &Config,
    facts: &Facts,
    cgroups: &Cgroups,
) -> (Watched, Shortages) {
    let places = Places {
        root: config.root_dir.clone(),
        images: None,
        pid_max: facts.pid_max,
        cgroups: cgroups.clone(),
        cgroup_root: config.cgroup_root.clone(),
    };

    pressure::channel(config.eviction.clone(), places)
}

/// What pods may not request of what the machine has.
fn reserved(config: &Config, facts: &Facts) -> Reserved {
    let Reserved { cpu_millis, memory_bytes, ephemeral_storage_bytes } = config.system_reserved;
    let kept = |signal, capacity| config.eviction.kept(signal, capacity);
    let memory = kept(Signal::MemoryAvailable, facts.memory_bytes);
    let disk = kept(Signal::NodeFsAvailable, facts.ephemeral_storage_bytes);

    Reserved {
        cpu_millis,
        memory_bytes: memory_bytes.saturating_add(memory),
        ephemeral_storage_bytes: ephemeral_storage_bytes.saturating_add(disk),
    }
}

/// The node as it is registered.
pub(super) fn wanted(config: &Config, facts: &Facts) -> Wanted {
    Wanted {
        name: config.node.as_str().to_owned(),
        labels: config.node_labels.clone(),
        taints: config.taints.clone(),
        pods_max: config.pods_max,
        reserved: reserved(config, facts),
    }
}

/// The node as pods see it; without addresses.
pub(super) fn fields(config: &Config, facts: &Facts, cgroups: &Cgroups) -> NodeFields {
    let reserved = status::kept_back(&wanted(config, facts), facts);
    let left = |all: u64, kept: u64| i64::try_from(all.saturating_sub(kept)).unwrap_or(i64::MAX);

    NodeFields {
        name: config.node.as_str().to_owned(),
        ips: Vec::new(),
        pod_ips: Vec::new(),
        cpu_milli: left(facts.cpus * 1000, reserved.cpu_millis),
        memory_bytes: left(facts.memory_bytes, reserved.memory_bytes),
        storage_bytes: left(facts.ephemeral_storage_bytes, reserved.ephemeral_storage_bytes),
        machine: Arc::new(machine::read(facts, cgroups, &config.root_dir)),
    }
}

/// The node as pods are taken in by it, as long as the cloud says nothing else.
pub(super) fn node(config: &Config, facts: &Facts, fields: &NodeFields) -> admission::Node {
    let taint = |taint: &config::Taint| Taint {
        key: taint.key.clone(),
        value: Some(taint.value.clone()),
        effect: taint.effect.clone(),
        time_added: None,
    };
    let huge_pages = facts.huge_pages.iter().map(|(size, bytes)| {
        (status::huge_pages_name(*size), i64::try_from(*bytes).unwrap_or(i64::MAX))
    });

    admission::Node {
        labels: status::labels(&wanted(config, facts), facts),
        taints: config.taints.iter().map(taint).collect(),
        allocatable: Requests {
            cpu_milli: fields.cpu_milli,
            memory: fields.memory_bytes,
            storage: fields.storage_bytes,
            scalars: huge_pages.collect(),
        },
        name: fields.name.clone(),
        pods_max: config.pods_max,
        ..admission::Node::default()
    }
}

/// Tells that the agent starts (kubelet: `BirthCry`).
pub(super) fn say_start(config: &Config, upstream: &Upstream) {
    let told = ("Starting", "Starting kubelet.");
    upstream.event(events::about_node(config.node.as_str(), EventType::Normal, told));
}
