//! The Node object as this node wants it: labels, taints and status, as the kubelet writes them.
//!
//! The cloud adds what only it knows: addresses, the kubelet port, heartbeat times.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::facts::{Facts, KUBELET_VERSION};
use crate::config::{Reserved, Taint};

/// Images listed in the status, as the kubelet's `nodeStatusMaxImages`.
const IMAGES_MAX: usize = 50;
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
    capacity: BTreeMap<&'static str, String>,
    allocatable: BTreeMap<&'static str, String>,
    conditions: Vec<Condition>,
    node_info: NodeInfo,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<Image>,
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
}

impl NodeReport {
    /// The conditions, to carry their transition times into the next report.
    pub fn conditions(&self) -> &[Condition] {
        &self.status.conditions
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
            allocatable: resources(facts, wanted.pods_max, wanted.reserved),
            conditions: conditions(live, before, now),
            node_info: node_info(facts, live),
            images: listed(&live.images),
        },
    }
}

/// What pods may request, per resource.
pub fn resources(
    facts: &Facts,
    pods_max: u32,
    reserved: Reserved,
) -> BTreeMap<&'static str, String> {
    let millis = (facts.cpus * 1000).saturating_sub(reserved.cpu_millis);
    let cpu = if millis.is_multiple_of(1000) {
        (millis / 1000).to_string()
    } else {
        format!("{millis}m")
    };
    let memory = facts.memory_bytes.saturating_sub(reserved.memory_bytes);
    let disk = facts.ephemeral_storage_bytes.saturating_sub(reserved.ephemeral_storage_bytes);

    BTreeMap::from([
        ("cpu", cpu),
        ("memory", format!("{}Ki", memory / 1024)),
        ("ephemeral-storage", format!("{}Ki", disk / 1024)),
        ("pods", pods_max.to_string()),
    ])
}

fn labels(wanted: &Wanted, facts: &Facts) -> BTreeMap<String, String> {
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
            ("Ready", true, "KubeletReady", "kubelet is posting ready status".to_owned())
        } else {
            ("Ready", false, "KubeletNotReady", live.not_ready.join(", "))
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
    fn images_are_the_largest_with_few_names() {
        let image =
            |n: u64| Image { names: (0..7).map(|i| format!("i{n}:{i}")).collect(), size_bytes: n };
        let images: Vec<_> = (0..60).map(image).collect();
        let listed = listed(&images);

        assert_eq!((listed.len(), listed[0].size_bytes, listed[0].names.len()), (50, 59, 5));
    }
}
