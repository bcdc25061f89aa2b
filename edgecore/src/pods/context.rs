//! What every pod's task works with.

use std::path::PathBuf;
use std::sync::Arc;

use cri::Runtime;
use k8s_openapi::api::core::v1::Container;
use podcore::abilities::Abilities;
use podcore::admission;
use podcore::dns::{ResolvConf, Resolvers};
use podcore::env::NodeFields;
use podcore::pod::PodView;
use podcore::resources::CgroupDriver;
use podcore::translate::SandboxContext;
use proto::ids::NodeName;
use store::Store;
use tokio::sync::{Semaphore, watch};

use super::image_gc;
use super::images::Images;
use super::registry::Registry;
use super::rotate;
use crate::blocking::read_trimmed;
use crate::clock::{self, KnownTime};
use crate::desired::Desired;
use crate::events::{self, EventType, Subject};
use crate::layout::Layout;
use crate::link::{LinkState, Upstream};
use crate::node::cgroups::Cgroups;
use crate::node::gate::Gate;

/// Sandboxes and containers started at once. More only compete for the runtime's locks and the
/// CPUs: on 2 CPUs containerd starts 20 pods in the same time whether 6 or 20 are asked for at once.
pub const STARTS_MAX: usize = 10;

/// Shared by all pods' tasks.
#[derive(Debug)]
pub struct Context {
    /// This node.
    pub node: NodeName,
    /// Where things of pods are.
    pub layout: Layout,
    /// The container runtime.
    pub runtime: Runtime,
    /// What it and the machine can do.
    pub abilities: watch::Receiver<Arc<Abilities>>,
    /// Its name, the scheme of container ids in a status.
    pub runtime_name: String,
    /// Finds and pulls images.
    pub images: Images,
    /// What outlives the process.
    pub store: Store,
    /// What should run.
    pub desired: Desired,
    /// Who owns which container.
    pub registry: Registry,
    /// To the cloud.
    pub upstream: Upstream,
    /// What is known of the time.
    pub known: KnownTime,
    /// The machine's cgroups.
    pub cgroups: Cgroups,
    /// Under which `kubepods` is.
    pub cgroup_root: String,
    /// How the runtime names cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Most processes of one pod; as many as the machine has if `None`.
    pub pod_pids_max: Option<i64>,
    /// Addresses of the cluster DNS.
    pub cluster_dns: Vec<String>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The node's resolv.conf.
    pub resolv_conf: PathBuf,
    /// For the downward API; without addresses.
    pub fields: NodeFields,
    /// The node as pods are taken in by it, where the cloud says nothing else.
    pub own: admission::Node,
    /// What keeps pods from being taken in.
    pub gate: Gate,
    /// The node's addresses now.
    pub addresses: watch::Receiver<Vec<String>>,
    /// Whether the cloud is in reach.
    pub link: watch::Receiver<LinkState>,
    /// When images are removed.
    pub image_policy: image_gc::Policy,
    /// How much of their logs containers keep.
    pub log_policy: rotate::Policy,
    /// Bounds starts (backpressure: the others wait).
    pub starts: Semaphore,
}

impl Context {
    /// What podcore wants to know of the node, for a pod with these addresses.
    pub fn node_fields(&self, pod_ips: Vec<String>) -> NodeFields {
        NodeFields { ips: self.addresses.borrow().clone(), pod_ips, ..self.fields.clone() }
    }

    /// What podcore wants to know for the sandbox of a pod.
    pub fn sandbox_context(&self, pod: &PodView) -> SandboxContext {
        let conf = read_trimmed(self.resolv_conf.clone()).unwrap_or_default();
        let logs = self.layout.logs(&pod.namespace, &pod.name, &pod.uid);

        SandboxContext {
            node: self.node.as_str().to_owned(),
            resolvers: Resolvers {
                cluster: self.cluster_dns.clone(),
                domain: self.cluster_domain.clone(),
                node: ResolvConf::parse(&conf),
            },
            log_directory: logs.to_string_lossy().into_owned(),
            cgroup_root: self.cgroup_root.clone(),
            cgroup_driver: self.cgroup_driver,
            users: None,
        }
    }

    /// Whether the cloud is out of reach.
    pub fn is_offline(&self) -> bool {
        matches!(&*self.link.borrow(), LinkState::Down { .. })
    }
}

/// Tells the users of one pod what happens to it.
#[derive(Clone, Debug)]
pub struct Teller {
    context: Arc<Context>,
    pod: Arc<PodView>,
}

impl Teller {
    /// Tells about `pod`.
    pub fn new(context: Arc<Context>, pod: Arc<PodView>) -> Self {
        Self { context, pod }
    }

    /// Tells something about the pod, or about one of its containers.
    pub fn tell(&self, kind: EventType, reason: &str, message: &str, container: Option<&str>) {
        let pod = &self.pod;
        let path = container.map(|name| {
            let is_in = |list: &[Container]| list.iter().any(|container| container.name == name);
            let field = if is_in(pod.init_containers()) {
                "initContainers"
            } else if is_in(pod.ephemeral_containers()) {
                "ephemeralContainers"
            } else {
                "containers"
            };
            format!("spec.{field}{{{name}}}")
        });
        let subject = Subject::pod(&pod.namespace, &pod.name, pod.uid.as_str(), path);
        let node = self.context.node.as_str();
        let event = events::event(node, &subject, kind, (reason, message), clock::now());
        self.context.upstream.event(event);
        match kind {
            EventType::Normal => tracing::debug!(reason, message, container, "event"),
            EventType::Warning => tracing::warn!(reason, message, container, "event"),
        }
    }
}
