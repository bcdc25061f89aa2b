//! The Node object as this node wants it: labels, taints and status, as the kubelet writes them.
//!
//! The cloud adds what only it knows: addresses, the kubelet port, heartbeat times.

use std::collections::BTreeMap;

use jiff::Timestamp;
use podcore::abilities::{Abilities, Handler};
use serde::Serialize;

use super::facts::{Facts, KUBELET_VERSION};
use crate::config::{Reserved, Taint};

/// Images listed in the status, as the kubelet's `nodeStatusMaxImages`.
const IMAGES_MAX: usize = 50;
/// The condition that says whether the node works.
const READY: &str = "Ready";
/// Names listed for one image, as the kubelet.
const IMAGE_NAMES_MAX: usize = 5;

/// One image the runtime holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Digests, then tags.
    pub names: Vec<String>,
    /// In bytes.
    pub size_bytes: u64,
}

/// What changes while the node runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// For example `containerd://1.6.20`.
    pub runtime_version: String,
    /// Why the node is not ready; empty means ready.
    pub not_ready: Vec<String>,
    /// Free memory is below the threshold.
    pub memory_pressure: bool,
    /// Free disk is below the threshold.
    pub disk_pressure: bool,
    /// Free process numbers are below the threshold.
    pub pid_pressure: bool,
    /// All images of the runtime.
    pub images: Vec<Image>,
    /// What the runtime can do.
    pub runtime: RuntimeAbilities,
}

/// What a runtime says of itself; an old one says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeAbilities {
    /// By the name that a RuntimeClass uses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runtime_handlers: Vec<RuntimeHandler>,
    /// What is the same for all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<NodeFeatures>,
}

/// One runtime handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuntimeHandler {
    /// Empty for the default one.
    pub name: String,
    /// What it can do.
    pub features: HandlerFeatures,
}

/// What one runtime handler can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HandlerFeatures {
    /// Mounts within mounts can be made read-only.
    pub recursive_read_only_mounts: bool,
    /// Containers can have users of their own.
    pub user_namespaces: bool,
}

/// What every runtime handler can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFeatures {
    /// `supplementalGroupsPolicy` is honoured.
    pub supplemental_groups_policy: bool,
}

impl RuntimeAbilities {
    /// A runtime that lists no handlers is too old to know of such things.
    pub fn of(abilities: &Abilities) -> Self {
        let handler = |handler: &Handler| RuntimeHandler {
            name: handler.name.clone(),
            features: HandlerFeatures {
                recursive_read_only_mounts: handler.recursive_read_only_mounts,
                user_namespaces: handler.user_namespaces,
            },
        };
        let features =
            NodeFeatures { supplemental_groups_policy: abilities.supplemental_groups_policy };

        Self {
            runtime_handlers: abilities.handlers.iter().map(handler).collect(),
            features: (!abilities.handlers.is_empty()).then_some(features),
        }
    }
}

/// What is configured.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Name of the node.
    pub name: String,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node object.
    pub taints: Vec<Taint>,
    /// Most pods.
    pub pods_max: u32,
    /// Kept back from pods.
    pub reserved: Reserved,
}

/// A `core/v1 Node` with the fields this node speaks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Metadata {
    name: String,
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Spec {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    taints: Vec<Taint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    capacity: BTreeMap<String, String>,
    allocatable: BTreeMap<String, String>,
    conditions: Vec<Condition>,
    node_info: NodeInfo,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<Image>,
    #[serde(flatten)]
    runtime: RuntimeAbilities,
}

/// A node condition without its heartbeat time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    r#type: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
    last_transition_time: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeInfo {
    #[serde(rename = "machineID")]
    machine_id: String,
    #[serde(rename = "systemUUID")]
    system_uuid: String,
    #[serde(rename = "bootID")]
    boot_id: String,
    kernel_version: String,
    os_image: String,
    container_runtime_version: String,
    kubelet_version: &'static str,
    kube_proxy_version: &'static str,
    operating_system: &'static str,
    architecture: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<Swap>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Swap {
    /// In bytes.
    capacity: u64,
}

impl NodeReport {
    /// Reasons of the Events that tell what has changed since `before`, those of the last report (kubelet:
    /// `recordNodeStatusEvent`). A first report tells how it is with memory, disk and processes. Whether the
    /// node is ready is told by the cloud, which knows of lost links too.
    pub fn changes(&self, before: &[Condition]) -> Vec<&'static str> {
        let is_news = |condition: &&Condition| {
            let old = before.iter().find(|old| old.r#type == condition.r#type);
            old.is_none_or(|old| old.status != condition.status)
        };

        self.conditions().iter().filter(is_news).filter_map(Condition::event).collect()
    }

    /// The conditions, to carry their transition times into the next report.
    pub fn conditions(&self) -> &[Condition] {
        &self.status.conditions
    }
}

impl Condition {
    /// The reason of the Event that says it, if the node does.
    fn event(&self) -> Option<&'static str> {
        let (yes, no) = match self.r#type {
            "MemoryPressure" => ("NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            "DiskPressure" => ("NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            "PIDPressure" => ("NodeHasInsufficientPID", "NodeHasSufficientPID"),
            _ => return None,
        };

        Some(if self.status == "True" { yes } else { no })
    }
}

/// The report for now. `before` are the conditions of the last one: a transition time moves only
/// when a status changes, so that equal states give equal reports.
pub fn report(
    wanted: &Wanted,
    facts: &Facts,
    live: &Live,
    before: &[Condition],
    now: Timestamp,
) -> NodeReport {
    NodeReport {
        api_version: "v1",
        kind: "Node",
        metadata: Metadata { name: wanted.name.clone(), labels: labels(wanted, facts) },
        spec: Spec { taints: wanted.taints.clone() },
        status: Status {
            capacity: resources(facts, wanted.pods_max, Reserved::default()),
            allocatable: resources(facts, wanted.pods_max, kept_back(wanted, facts)),
            conditions: conditions(live, before, now),
            node_info: node_info(facts, live),
            images: listed(&live.images),
            runtime: live.runtime.clone(),
        },
    }
}

/// Huge pages are no memory for anything else.
pub fn kept_back(wanted: &Wanted, facts: &Facts) -> Reserved {
    let huge_pages: u64 = facts.huge_pages.values().sum();
    let memory_bytes = wanted.reserved.memory_bytes.saturating_add(huge_pages);

    Reserved { memory_bytes, ..wanted.reserved }
}

/// What pods may request, per resource.
pub fn resources(facts: &Facts, pods_max: u32, reserved: Reserved) -> BTreeMap<String, String> {
    let millis = (facts.cpus * 1000).saturating_sub(reserved.cpu_millis);
    let cpu = if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    };
    let memory = facts.memory_bytes.saturating_sub(reserved.memory_bytes);
    let disk = facts.ephemeral_storage_bytes.saturating_sub(reserved.ephemeral_storage_bytes);
    let huge_pages = facts.huge_pages.iter();
    let huge_pages = huge_pages.map(|(size, bytes)| (huge_pages_name(*size), binary(*bytes)));
    let plain = [
        ("cpu", cpu),
        ("memory", format!("{}Ki", memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", disk / 1024)),
        ("pods", pods_max.to_string()),
    ];
    let plain = plain.map(|(name, amount)| (name.to_owned(), amount));

    plain.into_iter().chain(huge_pages).collect()
}

/// The resource of huge pages of that size: `hugepages-2Mi`.
pub fn huge_pages_name(size: u64) -> String {
    format!("hugepages-{}", binary(size))
}

/// As a quantity with the largest binary suffix that loses nothing.
fn binary(bytes: u64) -> String {
    let suffixes = [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")];
    let suffix = suffixes.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));

    match suffix {
        Some((unit, suffix)) => format!("{}{suffix}", bytes / unit),
        None => bytes.to_string(),
    }
}

/// Labels that the Node object is registered with.
pub fn labels(wanted: &Wanted, facts: &Facts) -> BTreeMap<String, String> {
    let own = [
        ("kubernetes.io/hostname", wanted.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", &facts.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", &facts.architecture),
    ];
    let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));

    own.into_iter().chain(wanted.labels.clone()).collect()
}

fn conditions(live: &Live, before: &[Condition], now: Timestamp) -> Vec<Condition> {
    let pressure = |r#type, present, yes: (&'static str, &str), no: (&'static str, &str)| {
        let (reason, message) = if present { yes } else { no };
        (r#type, present, reason, message.to_owned())
    };
    let ready = live.not_ready.is_empty();
    let states = [
        pressure(
            "MemoryPressure",
            live.memory_pressure,
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            live.disk_pressure,
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            live.pid_pressure,
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
        // Last, as old clients expect it.
        if ready {
            (READY, true, "KubeletReady", "kubelet is posting ready status".to_owned())
        } else {
            (READY, false, "KubeletNotReady", live.not_ready.join(", "))
        },
    ];

    states.into_iter().map(|state| condition(state, before, now)).collect()
}

fn condition(
    (r#type, present, reason, message): (&'static str, bool, &'static str, String),
    before: &[Condition],
    now: Timestamp,
) -> Condition {
    let status = if present { "True" } else { "False" };
    let same = before.iter().find(|old| old.r#type == r#type && old.status == status);
    let last_transition_time =
        same.map_or_else(|| rfc3339(now), |old| old.last_transition_time.clone());

    Condition { r#type, status, reason, message, last_transition_time }
}

/// `metav1.Time`: RFC 3339 in whole seconds.
pub fn rfc3339(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn node_info(facts: &Facts, live: &Live) -> NodeInfo {
    NodeInfo {
        machine_id: facts.machine_id.clone(),
        system_uuid: facts.system_uuid.clone(),
        boot_id: facts.boot_id.clone(),
        kernel_version: facts.kernel.clone(),
        os_image: facts.os_image.clone(),
        container_runtime_version: live.runtime_version.clone(),
        kubelet_version: KUBELET_VERSION,
        kube_proxy_version: "",
        operating_system: "linux",
        architecture: facts.architecture.clone(),
        swap: (facts.swap_bytes > 0).then_some(Swap { capacity: facts.swap_bytes }),
    }
}

/// The largest images first, names cut.
fn listed(images: &[Image]) -> Vec<Image> {
    let mut images: Vec<_> = images
        .iter()
        .filter(|image| !image.names.is_empty())
        .map(|image| Image {
            names: image.names.iter().take(IMAGE_NAMES_MAX).cloned().collect(),
            size_bytes: image.size_bytes,
        })
        .collect();
    images.sort_by(|a, b| (b.size_bytes, &a.names).cmp(&(a.size_bytes, &b.names)));
    images.truncate(IMAGES_MAX);

    images
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            name: "edge-node".into(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            pods_max: 110,
            reserved: Reserved { cpu_millis: 100, memory_bytes: 1 << 20, ..Reserved::default() },
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn reserved_resources_are_not_allocatable() {
        let facts = Facts { cpus: 2, memory_bytes: 4 << 20, ..Facts::default() };
        let report = report(&wanted(), &facts, &Live::default(), &[], at(0));

        assert_eq!(report.status.capacity["cpu"], "2");
        assert_eq!(report.status.allocatable["cpu"], "1900m");
        assert_eq!(report.status.allocatable["memory"], "3072Ki");
    }

    #[test]
    fn huge_pages_are_resources_and_no_other_memory() {
        let huge_pages = BTreeMap::from([(1 << 30, 0), (2 << 20, 4 << 20)]);
        let facts = Facts { memory_bytes: 8 << 20, huge_pages, ..Facts::default() };
        let report = report(&wanted(), &facts, &Live::default(), &[], at(0));
        for resources in [&report.status.capacity, &report.status.allocatable] {
            assert_eq!(resources["hugepages-1Gi"], "0");
            assert_eq!(resources["hugepages-2Mi"], "4Mi");
        }
        assert_eq!(report.status.allocatable["memory"], "3072Ki");
    }

    #[test]
    fn what_the_runtime_can_do_is_told() {
        let handler = Handler {
            name: "runc".into(),
            recursive_read_only_mounts: true,
            user_namespaces: false,
        };
        let abilities = Abilities {
            supplemental_groups_policy: true,
            handlers: vec![handler],
            ..Abilities::default()
        };
        let live = Live { runtime: RuntimeAbilities::of(&abilities), ..Live::default() };
        let report = report(&wanted(), &Facts::default(), &live, &[], at(0));
        let status = serde_json::to_value(&report.status).unwrap();
        assert_eq!(
            status["runtimeHandlers"],
            serde_json::json!([{ "name": "runc", "features": {
                "recursiveReadOnlyMounts": true, "userNamespaces": false } }])
        );
        assert_eq!(status["features"]["supplementalGroupsPolicy"], true);
        let old = report_of_old_runtime();
        assert!(old["runtimeHandlers"].is_null() && old["features"].is_null());
    }

    fn report_of_old_runtime() -> serde_json::Value {
        let report = report(&wanted(), &Facts::default(), &Live::default(), &[], at(0));

        serde_json::to_value(&report.status).unwrap()
    }

    #[test]
    fn transition_times_move_only_with_the_status() {
        let facts = Facts::default();
        let down = Live { not_ready: vec!["container runtime is down".into()], ..Live::default() };
        let first = report(&wanted(), &facts, &Live::default(), &[], at(10));
        let same = report(&wanted(), &facts, &Live::default(), first.conditions(), at(20));
        let changed = report(&wanted(), &facts, &down, same.conditions(), at(30));

        assert_eq!(first, same);
        let ready = changed.conditions().last().unwrap();
        assert_eq!((ready.r#type, ready.status), ("Ready", "False"));
        assert_eq!(ready.last_transition_time, "1970-01-01T00:00:30Z");
        assert_eq!(changed.conditions()[0].last_transition_time, "1970-01-01T00:00:10Z");
    }

    #[test]
    fn events_tell_what_has_changed() {
        let facts = Facts::default();
        let short = Live {
            not_ready: vec!["node is shutting down".into()],
            memory_pressure: true,
            disk_pressure: true,
            pid_pressure: true,
            ..Live::default()
        };
        let well = report(&wanted(), &facts, &Live::default(), &[], at(10));
        let ill = report(&wanted(), &facts, &short, well.conditions(), at(20));
        let good = ["NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID"];

        let bad = ["NodeHasInsufficientMemory", "NodeHasDiskPressure", "NodeHasInsufficientPID"];

        assert_eq!((well.changes(&[]), ill.changes(&[])), (good.to_vec(), bad.to_vec()));
        assert!(well.changes(well.conditions()).is_empty());
        assert_eq!(ill.changes(well.conditions()), bad);
        assert_eq!(well.changes(ill.conditions()), good);
    }

    #[test]
    fn images_are_the_largest_with_few_names() {
        let image =
            |n: u64| Image { names: (0..7).map(|i| format!("i{n}:{i}")).collect(), size_bytes: n };
        let images: Vec<_> = (0..60).map(image).collect();
        let listed = listed(&images);

        assert_eq!((listed.len(), listed[0].size_bytes, listed[0].names.len()), (50, 59, 5));
    }
}
