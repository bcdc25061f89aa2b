//! From requests and limits to QoS class and cgroup values, with the kubelet's arithmetic
//! (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`, `pkg/apis/core/v1/helper/qos`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::pod::{PodView, is_sidecar};
use crate::quantity;

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
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

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

/// A request or limit of a container: `field` is chosen from its resources.
fn amount(container: &Container, limits: bool, name: &str) -> Option<i64> {
    let resources: &ResourceRequirements = container.resources.as_ref()?;
    let amounts: &BTreeMap<String, Quantity> =
        if limits { resources.limits.as_ref()? } else { resources.requests.as_ref()? };
    let quantity = amounts.get(name)?;

    if name == "cpu" { quantity::milli(quantity) } else { quantity::units(quantity) }
}

/// CPU request in thousandths.
pub fn cpu_request(container: &Container) -> Option<i64> {
    amount(container, false, "cpu")
}

/// CPU limit in thousandths.
pub fn cpu_limit(container: &Container) -> Option<i64> {
    amount(container, true, "cpu")
}

/// Memory request in bytes.
pub fn memory_request(container: &Container) -> Option<i64> {
    amount(container, false, "memory")
}

/// Memory limit in bytes.
pub fn memory_limit(container: &Container) -> Option<i64> {
    amount(container, true, "memory")
}

/// The QoS class of a pod.
pub fn qos_class(pod: &PodView) -> QosClass {
    let positive = |amount: Option<i64>| amount.filter(|amount| *amount > 0);
    let mut any = false;
    let mut guaranteed = true;
    for container in pod.admitted_containers() {
        let pairs = [
            (positive(cpu_request(container)), positive(cpu_limit(container))),
            (positive(memory_request(container)), positive(memory_limit(container))),
        ];
        for (request, limit) in pairs {
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
            let request = |container| memory_request(container).unwrap_or(0);
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

/// Limits of the pod as a whole, for its cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// Relative weight, in the unit of cgroup v1.
    pub cpu_shares: i64,
    /// Microseconds for each [`QUOTA_PERIOD_US`], if every container has a limit.
    pub cpu_quota: Option<i64>,
    /// In bytes, if every container has a limit.
    pub memory: Option<i64>,
}

/// What is needed at the same time at most: all containers with the sidecars, or one init container with
/// the sidecars before it (`resourcehelper.PodRequests`).
fn total(pod: &PodView, get: fn(&Container) -> Option<i64>) -> i64 {
    let (mut sidecars, mut peak) = (0_i64, 0);
    for init in pod.init_containers() {
        let own = get(init).unwrap_or(0);
        if is_sidecar(init) {
            sidecars = sidecars.saturating_add(own);
        }
        peak = peak.max(if is_sidecar(init) { sidecars } else { sidecars.saturating_add(own) });
    }
    let sum = pod.containers().iter().filter_map(get).fold(sidecars, i64::saturating_add);

    sum.max(peak)
}

/// What the pod requests of a resource.
pub fn pod_request(pod: &PodView, get: fn(&Container) -> Option<i64>) -> i64 {
    total(pod, get)
}

/// What the runtime is told of the pod as a whole, its overhead apart (kubelet:
/// `calculateSandboxResources`).
pub fn sandbox_amounts(pod: &PodView) -> Amounts {
    let has_request = pod.admitted_containers().any(|c| cpu_request(c).is_some());

    Amounts {
        cpu_request: has_request.then(|| total(pod, cpu_request)),
        cpu_limit: total(pod, cpu_limit),
        memory_limit: total(pod, memory_limit),
    }
}

/// `spec.overhead`, if there is one.
pub fn overhead_amounts(pod: &PodView) -> Option<Amounts> {
    let overhead = pod.spec().overhead.as_ref()?;
    let cpu = overhead.get("cpu").and_then(quantity::milli).unwrap_or(0);
    let memory_limit = overhead.get("memory").and_then(quantity::units).unwrap_or(0);

    Some(Amounts { cpu_request: Some(cpu), cpu_limit: cpu, memory_limit })
}

/// The limits of the pod's cgroup.
pub fn pod_limits(pod: &PodView) -> PodLimits {
    let overhead = pod.spec().overhead.as_ref();
    let of = |name: &str| overhead.and_then(|amounts| amounts.get(name));
    let cpu_overhead = of("cpu").and_then(quantity::milli).unwrap_or(0);
    let memory_overhead = of("memory").and_then(quantity::units).unwrap_or(0);
    let of_all = |get: fn(&Container) -> Option<i64>| -> (i64, bool) {
        let all = pod.admitted_containers().all(|c| get(c).is_some_and(|amount| amount > 0));
        (total(pod, get), all)
    };
    let (cpu_request, _) = of_all(cpu_request);
    let (cpu_limit, cpu_limited) = of_all(cpu_limit);
    let (memory_limit, memory_limited) = of_all(memory_limit);
    let with = i64::saturating_add;
    let best_effort = qos_class(pod) == QosClass::BestEffort;

    PodLimits {
        cpu_shares: if best_effort {
            SHARES_MIN
        } else {
            cpu_shares(with(cpu_request, cpu_overhead))
        },
        cpu_quota: cpu_limited.then(|| cpu_quota(with(cpu_limit, cpu_overhead))),
        memory: memory_limited.then_some(with(memory_limit, memory_overhead)),
    }
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
