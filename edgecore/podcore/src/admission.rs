//! Whether the node takes a pod in, with the kubelet's reasons and messages (`pkg/kubelet/lifecycle`,
//! `pkg/kubelet/eviction`, `pkg/kubelet/sysctl`, `pkg/kubelet/preemption`). Asked once in a pod's life.

pub(crate) mod affinity;
mod preempt;
mod requests;
mod sysctls;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{AppArmorProfile, Taint, Toleration};
use proto::ids::Uid;

pub use self::requests::Requests;
use self::requests::shortages;
use crate::abilities::Abilities;
use crate::pod::{PodView, is_sidecar};
use crate::resources::{CRITICAL_PRIORITY, QosClass, qos_class};

/// Reasons of refusals that may be lifted.
const NODE_AFFINITY: &str = "NodeAffinity";
const NODE_SHUTDOWN: &str = "NodeShutdown";
/// Label of the operating system, on nodes and pods.
const OS_LABEL: &str = "kubernetes.io/os";
const OS: &str = "linux";
/// Where a pod comes from, if not from the API server.
const SOURCE_ANNOTATION: &str = "kubernetes.io/config.source";
/// On what stands in the API server for a pod that does not come from there.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// What counts of the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node object.
    pub taints: Vec<Taint>,
    /// What it has for pods.
    pub allocatable: Requests,
    /// Most pods.
    pub pods_max: u32,
    /// Conditions that tell of too little of something, for example `DiskPressure`.
    pub pressure: Vec<&'static str>,
    /// The machine is about to go off.
    pub shuts_down: bool,
    /// What machine and runtime can do.
    pub abilities: Arc<Abilities>,
}

/// A port of the node that a container is reached by.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    ip: String,
    protocol: String,
    port: i32,
}

const ANY_IP: &str = "0.0.0.0";

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        let shares = self.ip == ANY_IP || other.ip == ANY_IP || self.ip == other.ip;

        shares && self.port == other.port && self.protocol == other.protocol
    }
}

/// What a pod that was taken in has of the node, until nothing of it runs any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What it requests.
    pub requests: Requests,
    /// Its priority, if it has one.
    pub priority: Option<i32>,
    ports: Vec<HostPort>,
    qos: QosClass,
    is_critical: bool,
}

impl Claim {
    /// What the pod claims.
    pub fn of(pod: &PodView) -> Self {
        Self {
            requests: Requests::of(pod),
            priority: pod.spec().priority,
            ports: host_ports(pod),
            qos: qos_class(pod),
            is_critical: is_critical(pod),
        }
    }
}

/// Why a pod is not taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `status.reason`.
    pub reason: String,
    /// Why.
    pub message: String,
}

/// What may lift a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lift {
    /// Another state of the Node object.
    NodeObject,
    /// The end of the shutdown.
    EndOfShutdown,
}

impl Refusal {
    /// What may still lift it, if anything. A pod of a file waits until the node is up again: nobody makes
    /// another in its place.
    pub fn lifted_by(&self, pod: &PodView) -> Option<Lift> {
        match self.reason.as_str() {
            NODE_AFFINITY => Some(Lift::NodeObject),
            NODE_SHUTDOWN => is_static(pod).then_some(Lift::EndOfShutdown),
            _ => None,
        }
    }

    fn new(reason: &str, message: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), message: message.into() }
    }

    fn predicate(name: &str, description: &str) -> Self {
        Self::new(name, format!("Predicate {name} failed: {description}"))
    }
}

/// Takes the pod in, at the cost of these pods, which must end first; or says why not. `others` are the
/// claims of all other pods.
pub fn admit(
    pod: &PodView,
    node: &Node,
    others: &BTreeMap<Uid, Claim>,
) -> Result<BTreeSet<Uid>, Refusal> {
    under_pressure(pod, node)?;
    sysctls::check(pod)?;
    of_system(pod, node)?;
    let short = shortages(pod, node, others);
    let unfit = predicate(pod, node, others);
    let preempted = match (unfit, short.first()) {
        (None, None) => BTreeSet::new(),
        (None, Some(_)) if is_critical(pod) => preempt::choose(pod, others, &short)?,
        // Nothing that is requested keeps a critical pod out.
        (Some(refusal), _) if is_critical(pod) => return Err(refusal),
        (_, Some(shortage)) => return Err(shortage.refusal()),
        (Some(refusal), None) => return Err(refusal),
    };
    if !node.abilities.app_armor && needs_app_armor(pod) {
        let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
        return Err(Refusal::new("AppArmor", message));
    }
    if node.shuts_down {
        let message = "Pod was rejected as the node is shutting down.";
        return Err(Refusal::new(NODE_SHUTDOWN, message));
    }

    Ok(preempted)
}

/// Whether the pod is there whatever it costs (`kubetypes.IsCriticalPod`).
pub fn is_critical(pod: &PodView) -> bool {
    let is_mirror = annotation(pod, MIRROR_ANNOTATION).is_some();

    is_static(pod) || is_mirror || pod.spec().priority >= Some(CRITICAL_PRIORITY)
}

/// Whether the pod comes from the node itself. One of the API server, which counts its versions, may say so
/// too: a kubelet overwrites that.
fn is_static(pod: &PodView) -> bool {
    pod.pod.metadata.resource_version.is_none()
        && annotation(pod, SOURCE_ANNOTATION).is_some_and(|source| source != "api")
}

fn annotation<'a>(pod: &'a PodView, name: &str) -> Option<&'a str> {
    let annotations = pod.pod.metadata.annotations.as_ref()?;

    annotations.get(name).map(String::as_str)
}

/// A node that is short of something takes only what it cannot do without.
fn under_pressure(pod: &PodView, node: &Node) -> Result<(), Refusal> {
    if node.pressure.is_empty() || is_critical(pod) {
        return Ok(());
    }
    if node.pressure == ["MemoryPressure"] {
        let taint = Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Taint::default()
        };
        if qos_class(pod) != QosClass::BestEffort || tolerates(pod, &taint) {
            return Ok(());
        }
    }
    let conditions = node.pressure.join(" ");

    Err(Refusal::new("Evicted", format!("The node had condition: [{conditions}]. ")))
}

fn of_system(pod: &PodView, node: &Node) -> Result<(), Refusal> {
    let labels = pod.pod.metadata.labels.as_ref();
    if labels.and_then(|all| all.get(OS_LABEL)).is_some_and(|os| os != OS) {
        let message =
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
        return Err(Refusal::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    if pod.spec().os.as_ref().is_some_and(|os| os.name != OS) {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Err(Refusal::new("PodOSNotSupported", message));
    }
    let context = pod.spec().security_context.as_ref();
    let policy = context.and_then(|context| context.supplemental_groups_policy.as_deref());
    if policy == Some("Strict") && !node.abilities.supplemental_groups_policy {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node";
        return Err(Refusal::new("SupplementalGroupsPolicyNotSupported", message));
    }

    Ok(())
}

/// What else must fit, in the kubelet's order.
fn predicate(pod: &PodView, node: &Node, others: &BTreeMap<Uid, Claim>) -> Option<Refusal> {
    if !affinity::matches(pod, node) {
        let why = "node(s) didn't match Pod's node affinity/selector";
        return Some(Refusal::predicate(NODE_AFFINITY, why));
    }
    let named = pod.spec().node_name.as_deref().unwrap_or_default();
    if !named.is_empty() && named != node.name {
        return Some(Refusal::predicate(
            "NodeName",
            "node(s) didn't match the requested node name",
        ));
    }
    let wanted = host_ports(pod);
    let mut taken = others.values().flat_map(|claim| &claim.ports);
    if taken.any(|taken| wanted.iter().any(|port| port.conflicts(taken))) {
        let why = "node(s) didn't have free ports for the requested pod ports";
        return Some(Refusal::predicate("NodePorts", why));
    }
    let mut taints = node.taints.iter().filter(|taint| taint.effect == "NoExecute");
    if !is_static(pod) && taints.any(|taint| !tolerates(pod, taint)) {
        let why = "node(s) had taints that the pod didn't tolerate";
        return Some(Refusal::predicate("TaintToleration", why));
    }

    None
}

fn tolerates(pod: &PodView, taint: &Taint) -> bool {
    pod.spec().tolerations.iter().flatten().any(|toleration| is_tolerated(toleration, taint))
}

fn is_tolerated(toleration: &Toleration, taint: &Taint) -> bool {
    let fits = |own: &Option<String>, of_taint: &str| {
        own.as_deref().is_none_or(|own| own.is_empty() || own == of_taint)
    };
    let is_equal = || {
        toleration.value.as_deref().unwrap_or_default()
            == taint.value.as_deref().unwrap_or_default()
    };

    fits(&toleration.effect, &taint.effect)
        && fits(&toleration.key, &taint.key)
        && match toleration.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => is_equal(),
            "Exists" => true,
            _ => false,
        }
}

/// The ports of the node that the pod's containers are to be reached by (`schedutil.GetHostPorts`).
fn host_ports(pod: &PodView) -> Vec<HostPort> {
    let sidecars = pod.init_containers().iter().filter(|init| is_sidecar(init));
    let ports = sidecars.chain(pod.containers()).flat_map(|c| c.ports.iter().flatten());
    let or = |text: &Option<String>, default: &str| {
        text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
    };
    let ports = ports.filter_map(|port| {
        Some(HostPort {
            ip: or(&port.host_ip, ANY_IP),
            protocol: or(&port.protocol, "TCP"),
            port: port.host_port.filter(|port| *port > 0)?,
        })
    });

    ports.collect()
}

/// Whether some container shall be confined by a profile (`apparmor.isRequired`).
fn needs_app_armor(pod: &PodView) -> bool {
    let confines =
        |profile: Option<&AppArmorProfile>| profile.map(|profile| profile.type_ != "Unconfined");
    let of_pod = pod.spec().security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());

    pod.all_containers().any(|container| {
        let own = container.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
        confines(own).or_else(|| confines(of_pod)).unwrap_or(false)
    })
}
