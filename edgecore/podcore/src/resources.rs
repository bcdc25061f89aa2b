//! From requests and limits to QoS class and cgroup values, with the kubelet's arithmetic
//! (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`, `pkg/apis/core/v1/helper/qos`).

mod whole;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};

use self::whole::spare_memory_share;
pub(crate) use self::whole::{HUGE_PAGES, Side, amount};
pub use self::whole::{
    PodLimits, container_amounts, huge_page_limits, overhead_amounts, pod_limit, pod_limits,
    pod_request, sandbox_amounts, scalar_requests, whole_limit,
};
use crate::pod::{PodView, is_sidecar};

/// Fewest shares the kernel takes.
const SHARES_MIN: i64 = 2;
/// Most shares the kernel takes.
const SHARES_MAX: i64 = 262_144;
/// Shares of one CPU.
const SHARES_PER_CPU: i64 = 1024;
/// The period that quotas are given for, in microseconds.
pub const QUOTA_PERIOD_US: i64 = 100_000;
/// Shortest quota the kernel takes, in microseconds.
const QUOTA_MIN_US: i64 = 1000;

/// Priorities from here on are the system's (scheduling: `SystemCriticalPriority`).
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Name of the disk space of containers and their volumes.
pub const STORAGE: &str = "ephemeral-storage";

/// How much a pod is guaranteed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    /// Every container has CPU and memory limits equal to its requests.
    Guaranteed,
    /// Some container has a request or limit.
    Burstable,
    /// None has.
    BestEffort,
}

impl QosClass {
    /// The name in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What a sandbox or container is given of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// In thousandths; `None` if there is no request.
    pub cpu_request: Option<i64>,
    /// In thousandths; 0 for no limit.
    pub cpu_limit: i64,
    /// In bytes; 0 for no limit.
    pub memory_limit: i64,
}

/// CPU request in thousandths.
pub fn cpu_request(container: &Container) -> Option<i64> {
    amount(container.resources.as_ref()?, Side::Requests, "cpu")
}

/// CPU limit in thousandths.
pub fn cpu_limit(container: &Container) -> Option<i64> {
    amount(container.resources.as_ref()?, Side::Limits, "cpu")
}

/// Memory request in bytes.
pub fn memory_request(container: &Container) -> Option<i64> {
    amount(container.resources.as_ref()?, Side::Requests, "memory")
}

/// Memory limit in bytes.
pub fn memory_limit(container: &Container) -> Option<i64> {
    amount(container.resources.as_ref()?, Side::Limits, "memory")
}

/// Limit of disk space in bytes.
pub fn storage_limit(container: &Container) -> Option<i64> {
    amount(container.resources.as_ref()?, Side::Limits, STORAGE)
}

/// The QoS class of a pod: what it asks for as a whole counts, else what its containers do.
pub fn qos_class(pod: &PodView) -> QosClass {
    match &pod.spec().resources {
        Some(whole) => class_of(std::iter::once(Some(whole))),
        None => class_of(pod.admitted_containers().map(|container| container.resources.as_ref())),
    }
}

fn class_of<'a>(all: impl Iterator<Item = Option<&'a ResourceRequirements>>) -> QosClass {
    let mut any = false;
    let mut guaranteed = true;
    for resources in all {
        for name in ["cpu", "memory"] {
            let positive = |side| amount(resources?, side, name).filter(|amount| *amount > 0);
            let (request, limit) = (positive(Side::Requests), positive(Side::Limits));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// Relative CPU weight in the unit of cgroup v1.
pub fn cpu_shares(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 {
        return SHARES_MIN;
    }

    (milli_cpu.saturating_mul(SHARES_PER_CPU) / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

/// CPU time in microseconds for each [`QUOTA_PERIOD_US`]; 0 for no limit.
pub fn cpu_quota(milli_cpu: i64) -> i64 {
    if milli_cpu == 0 {
        return 0;
    }

    (milli_cpu.saturating_mul(QUOTA_PERIOD_US) / 1000).max(QUOTA_MIN_US)
}

/// oom_score_adj of a container: how soon the kernel kills it when memory is short.
pub fn oom_score_adj(pod: &PodView, container: &Container, node_memory: i64) -> i64 {
    const GUARANTEED: i64 = -997;
    const BEST_EFFORT: i64 = 1000;
    let spec = pod.spec();
    let is_node_critical = spec.priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY)
        && spec.priority_class_name.as_deref() == Some("system-node-critical");
    if is_node_critical {
        return GUARANTEED;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => GUARANTEED,
        QosClass::BestEffort => BEST_EFFORT,
        QosClass::Burstable => {
            let share = spare_memory_share(pod);
            let request = |container| memory_request(container).unwrap_or(0).saturating_add(share);
            let mut init = pod.init_containers().iter();
            // A sidecar is not killed before the containers that it serves.
            let request = match init.find(|init| init.name == container.name && is_sidecar(init)) {
                Some(_) => {
                    let least = pod.containers().iter().map(request).min();
                    request(container).max(least.unwrap_or(0))
                }
                None => request(container),
            };
            let score = 1000 - request.saturating_mul(1000) / node_memory.max(1);
            score.clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
        }
    }
}

/// What of the machine decides what the runtime is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// All its memory.
    pub memory_bytes: i64,
    /// Sizes of its huge pages in bytes.
    pub huge_pages: Vec<i64>,
    /// Its controllers are all on cgroup v2.
    pub unified: bool,
    /// Swap can be limited.
    pub swap: bool,
    /// Directory of the seccomp profiles that pods name.
    pub seccomp_root: String,
    /// What containers must not read besides what no machine lets them.
    pub masked_paths: Vec<String>,
}

/// The size of huge pages as the kernel names it in cgroups: `2MB`.
pub fn page_size_name(bytes: i64) -> String {
    const UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];
    let (mut size, mut unit) = (bytes, 0);
    while size > 0 && size % 1024 == 0 && unit + 1 < UNITS.len() {
        size /= 1024;
        unit += 1;
    }

    format!("{size}{}", UNITS[unit])
}

/// How the runtime names cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Paths.
    Cgroupfs,
    /// Slices.
    Systemd,
}

/// The cgroup under which the runtime puts the pod's containers.
pub fn cgroup_parent(pod: &PodView, root: &str, driver: CgroupDriver) -> String {
    let class = match qos_class(pod) {
        QosClass::Guaranteed => None,
        QosClass::Burstable => Some("burstable"),
        QosClass::BestEffort => Some("besteffort"),
    };
    match driver {
        CgroupDriver::Cgroupfs => {
            let root = root.trim_end_matches('/');
            let class = class.map(|class| format!("/{class}")).unwrap_or_default();
            format!("{root}/kubepods{class}/pod{}", pod.uid)
        }
        CgroupDriver::Systemd => {
            let uid = pod.uid.as_str().replace('-', "_");
            let class = class.map(|class| format!("-{class}")).unwrap_or_default();
            format!("kubepods{class}-pod{uid}.slice")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: &serde_json::Value) -> PodView {
        let pod = json!({
            "metadata": { "uid": "u-1", "namespace": "default", "name": "web" },
            "spec": { "containers": [{ "name": "a", "resources": resources }] },
        });
        PodView::parse(pod.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn classes_and_cgroups() {
        let one = json!({ "cpu": "1", "memory": "1Gi" });
        for (resources, class, parent) in [
            (json!({}), QosClass::BestEffort, "/kubepods/besteffort/podu-1"),
            (json!({ "limits": one }), QosClass::Guaranteed, "/kubepods/podu-1"),
            (json!({ "limits": one, "requests": one }), QosClass::Guaranteed, "/kubepods/podu-1"),
            (json!({ "requests": one }), QosClass::Burstable, "/kubepods/burstable/podu-1"),
            (
                json!({ "limits": one, "requests": { "cpu": "500m", "memory": "1Gi" } }),
                QosClass::Burstable,
                "/kubepods/burstable/podu-1",
            ),
        ] {
            let pod = pod(&resources);
            assert_eq!(qos_class(&pod), class, "{resources}");
            assert_eq!(cgroup_parent(&pod, "/", CgroupDriver::Cgroupfs), parent, "{resources}");
        }
        assert_eq!(
            cgroup_parent(&pod(&json!({})), "/site", CgroupDriver::Systemd),
            "kubepods-besteffort-podu_1.slice"
        );
    }

    #[test]
    fn shares_and_quotas_are_the_kubelets() {
        for (milli, shares, quota) in
            [(0, 2, 0), (1, 2, 1000), (100, 102, 10_000), (1000, 1024, 100_000)]
        {
            assert_eq!((cpu_shares(milli), cpu_quota(milli)), (shares, quota), "{milli}");
        }
    }

    #[test]
    fn huge_pages_are_named_by_the_largest_unit() {
        for (bytes, name) in
            [(64 << 10, "64KB"), (2 << 20, "2MB"), (1 << 30, "1GB"), (1000, "1000B")]
        {
            assert_eq!(page_size_name(bytes), name);
        }
    }

    #[test]
    fn oom_scores_order_the_classes() {
        let node = 1 << 34;
        let score = |resources: serde_json::Value| {
            let pod = pod(&resources);
            oom_score_adj(&pod, &pod.containers()[0], node)
        };
        let one = json!({ "cpu": "1", "memory": "1Gi" });

        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({ "limits": one })), -997);
        assert_eq!(score(json!({ "requests": one })), 938);
    }
}
