//! A pod as a whole: what it asks for itself (`spec.resources`), else what its containers need at the same
//! time at most (`resourcehelper.PodRequests`, `ResourceConfigForPod`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};

use super::{
    Amounts, QosClass, SHARES_MIN, STORAGE, cpu_quota, cpu_request, cpu_shares, qos_class,
};
use crate::pod::{PodView, is_sidecar};
use crate::quantity;

/// What the resources with huge pages begin with; the size of a page follows.
pub(crate) const HUGE_PAGES: &str = "hugepages-";

/// Which of the two amounts of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Requests,
    Limits,
}

/// CPU in thousandths, everything else in units; `None` if nothing is said of it.
pub(crate) fn amount(resources: &ResourceRequirements, side: Side, name: &str) -> Option<i64> {
    let quantity = match side {
        Side::Requests => resources.requests.as_ref()?.get(name)?,
        Side::Limits => resources.limits.as_ref()?.get(name)?,
    };

    if name == "cpu" { quantity::milli(quantity) } else { quantity::units(quantity) }
}

fn of_container(container: &Container, side: Side, name: &str) -> Option<i64> {
    amount(container.resources.as_ref()?, side, name)
}

/// What the pod asks for as a whole.
fn of_whole(pod: &PodView, side: Side, name: &str) -> Option<i64> {
    amount(pod.spec().resources.as_ref()?, side, name)
}

/// The limit that the pod as a whole has, and each container that has none of its own.
pub fn whole_limit(pod: &PodView, name: &str) -> Option<i64> {
    of_whole(pod, Side::Limits, name).filter(|amount| *amount > 0)
}

/// All containers with the sidecars, or one init container with the sidecars before it.
fn of_containers(pod: &PodView, side: Side, name: &str) -> Option<i64> {
    let get = |container: &Container| of_container(container, side, name);
    let (mut sidecars, mut peak) = (0_i64, 0);
    for init in pod.init_containers() {
        let own = get(init).unwrap_or(0);
        if is_sidecar(init) {
            sidecars = sidecars.saturating_add(own);
        }
        peak = peak.max(if is_sidecar(init) { sidecars } else { sidecars.saturating_add(own) });
    }
    let sum = pod.containers().iter().filter_map(get).fold(sidecars, i64::saturating_add);

    pod.admitted_containers().any(|container| get(container).is_some()).then_some(sum.max(peak))
}

/// The pod's own amount, else that of its containers.
fn total(pod: &PodView, side: Side, name: &str) -> Option<i64> {
    of_whole(pod, side, name).or_else(|| of_containers(pod, side, name))
}

/// `spec.overhead` of a resource.
fn overhead(pod: &PodView, name: &str) -> i64 {
    let overhead = pod.spec().overhead.as_ref().and_then(|amounts| amounts.get(name));
    let read = if name == "cpu" { quantity::milli } else { quantity::units };

    overhead.and_then(read).unwrap_or(0)
}

/// What the pod requests of a resource, with its overhead.
pub fn pod_request(pod: &PodView, name: &str) -> i64 {
    total(pod, Side::Requests, name).unwrap_or(0).saturating_add(overhead(pod, name))
}

/// What the pod requests besides CPU, memory and disk space, by name.
pub fn scalar_requests(pod: &PodView) -> BTreeMap<String, i64> {
    let containers = pod.admitted_containers().filter_map(|container| container.resources.as_ref());
    let lists = containers.chain(&pod.spec().resources).map(|all| &all.requests);
    let names = lists.chain([&pod.spec().overhead]).flat_map(|list| list.iter().flatten());
    let names = names.map(|(name, _)| name).filter(|name| !is_plain(name));
    let amounts = names.map(|name| (name.clone(), pod_request(pod, name)));

    amounts.filter(|(_, amount)| *amount > 0).collect()
}

fn is_plain(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory" | STORAGE)
}

/// What all of the pod may have of a resource at most, if anything is said of it.
pub fn pod_limit(pod: &PodView, name: &str) -> Option<i64> {
    total(pod, Side::Limits, name)
}

/// What of the pod's own memory request no container asks for: each counts an equal part of it (kubelet:
/// `remainingPodMemReqPerContainer`).
pub(super) fn spare_memory_share(pod: &PodView) -> i64 {
    let whole = of_whole(pod, Side::Requests, "memory").unwrap_or(0);
    let containers = i64::try_from(pod.admitted_containers().count()).unwrap_or(i64::MAX);
    let spare = whole - of_containers(pod, Side::Requests, "memory").unwrap_or(0);

    if whole > 0 { spare / containers.max(1) } else { 0 }
}

/// What the runtime is told of the pod as a whole, its overhead apart (kubelet:
/// `calculateSandboxResources`).
pub fn sandbox_amounts(pod: &PodView) -> Amounts {
    Amounts {
        cpu_request: total(pod, Side::Requests, "cpu"),
        cpu_limit: total(pod, Side::Limits, "cpu").unwrap_or(0),
        memory_limit: total(pod, Side::Limits, "memory").unwrap_or(0),
    }
}

/// `spec.overhead`, if there is one.
pub fn overhead_amounts(pod: &PodView) -> Option<Amounts> {
    pod.spec().overhead.as_ref()?;
    let cpu = overhead(pod, "cpu");

    Some(Amounts { cpu_request: Some(cpu), cpu_limit: cpu, memory_limit: overhead(pod, "memory") })
}

/// What the runtime is told of a container: a limit that it has not is the pod's.
pub fn container_amounts(pod: &PodView, container: &Container) -> Amounts {
    let limit = |name| {
        let own = of_container(container, Side::Limits, name).filter(|amount| *amount > 0);
        own.or_else(|| whole_limit(pod, name)).unwrap_or(0)
    };

    Amounts {
        cpu_request: cpu_request(container),
        cpu_limit: limit("cpu"),
        memory_limit: limit("memory"),
    }
}

/// Limits of the pod as a whole, for its cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// Relative weight, in the unit of cgroup v1.
    pub cpu_shares: i64,
    /// Microseconds for each [`super::QUOTA_PERIOD_US`], if the pod or every container has a limit.
    pub cpu_quota: Option<i64>,
    /// In bytes, if the pod or every container has a limit.
    pub memory: Option<i64>,
    /// Bytes in huge pages, by the size of a page in bytes.
    pub huge_pages: BTreeMap<i64, i64>,
}

/// The limits of the pod's cgroup.
pub fn pod_limits(pod: &PodView) -> PodLimits {
    let limit = |name| {
        let sum = total(pod, Side::Limits, name).unwrap_or(0);
        is_limited(pod, name).then(|| sum.saturating_add(overhead(pod, name)))
    };
    let best_effort = qos_class(pod) == QosClass::BestEffort;

    PodLimits {
        cpu_shares: if best_effort { SHARES_MIN } else { cpu_shares(pod_request(pod, "cpu")) },
        cpu_quota: limit("cpu").map(cpu_quota),
        memory: limit("memory"),
        huge_pages: huge_pages(pod),
    }
}

/// Whether there is a limit of the resource for all of the pod; an init container has that of the sidecars
/// before it.
fn is_limited(pod: &PodView, name: &str) -> bool {
    if whole_limit(pod, name).is_some() {
        return true;
    }
    let has = |container: &Container| {
        of_container(container, Side::Limits, name).is_some_and(|amount| amount > 0)
    };
    let mut is_limited = false;
    let all_init = pod.init_containers().iter().all(|init| {
        let own = has(init);
        is_limited |= own && is_sidecar(init);
        own || is_limited
    });

    all_init && pod.containers().iter().all(has)
}

/// The pod's bytes in huge pages, by the size of a page.
fn huge_pages(pod: &PodView) -> BTreeMap<i64, i64> {
    let containers = pod.admitted_containers().filter_map(|container| container.resources.as_ref());
    let all = containers.chain(&pod.spec().resources);
    let names = all.flat_map(|all| all.requests.iter().chain(&all.limits).flatten());
    let sized = names.filter_map(|(name, _)| Some((page_size(name)?, name)));

    sized.map(|(size, name)| (size, total(pod, Side::Requests, name).unwrap_or(0))).collect()
}

/// The container's bytes in huge pages, by the size of a page: its own limits, else the pod's (kubelet:
/// `GetHugepageLimitsFromResources`).
pub fn huge_page_limits(pod: &PodView, container: &Container) -> BTreeMap<i64, i64> {
    // The container's last: they win.
    let all = [pod.spec().resources.as_ref(), container.resources.as_ref()];
    let limits = all.into_iter().flatten().filter_map(|all| all.limits.as_ref()).flatten();

    limits.filter_map(|(name, limit)| Some((page_size(name)?, quantity::units(limit)?))).collect()
}

/// The size of the huge pages of a resource.
fn page_size(resource: &str) -> Option<i64> {
    quantity::read_units(resource.strip_prefix(HUGE_PAGES)?).filter(|size| *size > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resources::oom_score_adj;

    fn pod(spec: &Value) -> PodView {
        let pod = json!({
            "metadata": { "uid": "u-1", "namespace": "default", "name": "web" }, "spec": spec,
        });
        PodView::parse(pod.to_string().as_bytes()).unwrap()
    }

    fn check(spec: &Value, class: &str, limits: &PodLimits) {
        let pod = pod(spec);
        assert_eq!(qos_class(&pod).as_str(), class, "{spec}");
        assert_eq!(pod_limits(&pod), *limits, "{spec}");
    }

    fn limits(cpu_shares: i64, cpu_quota: Option<i64>, memory: Option<i64>) -> PodLimits {
        PodLimits { cpu_shares, cpu_quota, memory, huge_pages: BTreeMap::new() }
    }

    #[test]
    fn what_the_pod_asks_for_as_a_whole_counts_for_its_class_and_cgroup() {
        let one = json!({ "cpu": "1", "memory": "1Gi" });
        let small = json!({ "cpu": "100m", "memory": "64Mi" });
        let of = |whole: &Value, own: &Value| {
            json!({ "resources": whole, "containers": [{ "name": "a", "resources": own },
                { "name": "b" }] })
        };
        let giga = 1 << 30;
        check(
            &of(&json!({ "limits": one, "requests": one }), &json!({ "requests": small })),
            "Guaranteed",
            &limits(1024, Some(100_000), Some(giga)),
        );
        check(
            &of(&json!({ "limits": one, "requests": small }), &json!({})),
            "Burstable",
            &limits(102, Some(100_000), Some(giga)),
        );
        check(
            &of(&json!({ "limits": { "cpu": "1" }, "requests": { "cpu": "1" } }), &json!({})),
            "Burstable",
            &limits(1024, Some(100_000), None),
        );
        // A pod that asks for nothing as a whole is as its containers are.
        check(
            &json!({ "containers": [{ "name": "a", "resources": { "limits": one } }] }),
            "Guaranteed",
            &limits(2, Some(100_000), Some(giga)),
        );
    }

    #[test]
    fn an_init_container_has_the_limit_of_the_sidecars_before_it() {
        let limited = json!({ "limits": { "memory": "1Mi" } });
        let sidecar = json!({ "name": "s", "restartPolicy": "Always", "resources": limited });
        let check = |init: Value, expected: Option<i64>| {
            let pod = pod(&json!({ "initContainers": init,
                "containers": [{ "name": "a", "resources": limited }] }));
            assert_eq!(pod_limits(&pod).memory, expected, "{init}");
        };
        check(json!([sidecar, { "name": "i" }]), Some(2 << 20));
        check(json!([{ "name": "i" }, sidecar]), None);
    }

    #[test]
    fn memory_that_no_container_asks_for_counts_for_all() {
        let pod = pod(&json!({
            "resources": { "requests": { "memory": "3Gi" } },
            "initContainers": [{ "name": "s", "restartPolicy": "Always" }],
            "containers": [{ "name": "a", "resources": { "requests": { "memory": "1Gi" } } },
                { "name": "b" }, { "name": "c" }],
        }));
        let score = |container| oom_score_adj(&pod, container, 10 << 30);
        let scores: Vec<_> = pod.admitted_containers().map(score).collect();
        // 2 GiB are left for four, 0.5 each.
        assert_eq!(scores, [950, 850, 950, 950]);
    }

    #[test]
    fn huge_pages_are_limited_by_their_size() {
        let two = json!({ "hugepages-2Mi": "4Mi", "memory": "1Mi" });
        let pod = pod(&json!({
            "resources": { "limits": { "hugepages-1Gi": "2Gi" }, "requests": { "hugepages-1Gi": "2Gi" } },
            "containers": [{ "name": "a", "resources": { "limits": two, "requests": two } },
                { "name": "b", "resources": { "limits": two, "requests": two } }],
        }));
        assert_eq!(pod_limits(&pod).huge_pages, [(2 << 20, 8 << 20), (1 << 30, 2 << 30)].into());
        let own = huge_page_limits(&pod, &pod.containers()[0]);
        assert_eq!(own, [(2 << 20, 4 << 20), (1 << 30, 2 << 30)].into());
    }
}
