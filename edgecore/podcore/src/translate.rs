//! From a pod to the messages of CRI, with the labels, annotations and paths the kubelet gives, so
//! that log collectors and adoption find what they know (`pkg/kubelet/kuberuntime`).

mod container;
mod mounts;
pub(crate) mod security;

use std::collections::BTreeMap;

use cri_api::v1::{
    LinuxContainerResources, LinuxPodSandboxConfig, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, Protocol,
};

pub use self::container::{
    ConfigError, ContainerContext, ContainerPaths, MountedImage, container_config, container_hash,
    container_resources,
};
pub use self::mounts::{MountError, can_be_recursive, is_recursive};
pub use self::security::{ImageUser, NonRootError, UserRange, asks_for_image_user, check_user};
use crate::dns::{Resolvers, resolver};
use crate::pod::{PodView, is_sidecar};
use crate::resources::{self, Amounts, CgroupDriver};

/// Label of every sandbox and container: the pod's name.
pub const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
/// Label: its namespace.
pub const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";
/// Label: its UID, by which it is adopted.
pub const POD_UID_LABEL: &str = "io.kubernetes.pod.uid";
/// Label of containers: the name in the pod spec.
pub const CONTAINER_NAME_LABEL: &str = "io.kubernetes.container.name";
/// Label of sandboxes: the node whose agent made it. Nothing without it is ever swept.
pub const NODE_LABEL: &str = "holdfast.dev/node";
/// Annotation of containers: hash of what a change of means a restart.
pub const HASH_ANNOTATION: &str = "io.kubernetes.container.hash";
/// Annotation of containers: the restart count.
pub const RESTARTS_ANNOTATION: &str = "io.kubernetes.container.restartCount";
/// Annotation of containers: where the termination message is read.
pub const MESSAGE_PATH_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation of containers: what to do if there is none.
pub const MESSAGE_POLICY_ANNOTATION: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation of containers: the pod's grace in seconds.
pub const GRACE_ANNOTATION: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Longest host name the kernel takes.
const HOSTNAME_LEN_MAX: usize = 63;
/// The same with its domain.
const FQDN_LEN_MAX: usize = 64;

/// What of a node matters for a sandbox.
#[derive(Clone, Debug)]
pub struct SandboxContext {
    /// The node's name.
    pub node: String,
    /// DNS of cluster and node.
    pub resolvers: Resolvers,
    /// Where the pod's log files are.
    pub log_directory: String,
    /// Under which `kubepods` is.
    pub cgroup_root: String,
    /// How the runtime names cgroups.
    pub cgroup_driver: CgroupDriver,
    /// The users of the node that those of the pod are, if it has its own.
    pub users: Option<UserRange>,
}

/// The pod's host name: `spec.hostname`, else its name, cut to what the kernel takes.
pub fn hostname(pod: &PodView) -> String {
    let spec = pod.spec();
    let own = [&spec.hostname_override, &spec.hostname];
    let name = own.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or(&pod.name);

    name.chars().take(HOSTNAME_LEN_MAX).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// The domain of the pod's host name, if it has one.
pub fn host_domain(pod: &PodView, cluster_domain: &str) -> Option<String> {
    let spec = pod.spec();
    if spec.hostname_override.is_some() {
        return None;
    }
    let subdomain = spec.subdomain.as_ref().filter(|subdomain| !subdomain.is_empty())?;

    Some(format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace))
}

/// Why there can be no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// `setHostnameAsFQDN` with too long a name.
    #[error(
        "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long ({FQDN_LEN_MAX} characters is the max, {} characters requested)",
        fqdn.len()
    )]
    LongName {
        /// The whole name.
        fqdn: String,
    },
}

/// The host name that the kernel is told (kubelet: `GetNodenameForKernel`).
fn kernel_hostname(pod: &PodView, cluster_domain: &str) -> Result<String, SandboxError> {
    let name = hostname(pod);
    let domain = host_domain(pod, cluster_domain);
    let Some(domain) = domain.filter(|_| pod.spec().set_hostname_as_fqdn == Some(true)) else {
        return Ok(name);
    };
    let fqdn = format!("{name}.{domain}");

    if fqdn.len() > FQDN_LEN_MAX { Err(SandboxError::LongName { fqdn }) } else { Ok(fqdn) }
}

/// The sandbox of an attempt.
pub fn sandbox_config(
    pod: &PodView,
    attempt: u32,
    context: &SandboxContext,
) -> Result<PodSandboxConfig, SandboxError> {
    let (dns, _) = resolver(pod, &context.resolvers);
    // Ours last: a pod must not pass for another by its own labels.
    let mut labels = pod.pod.metadata.labels.clone().unwrap_or_default();
    labels.extend(pod_labels(pod));
    labels.insert(NODE_LABEL.to_owned(), context.node.clone());

    // In the node's network the runtime takes the node's name.
    let hostname = if pod.host_network() {
        String::new()
    } else {
        kernel_hostname(pod, &context.resolvers.domain)?
    };

    Ok(PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: pod.name.clone(),
            uid: pod.uid.to_string(),
            namespace: pod.namespace.clone(),
            attempt,
        }),
        hostname,
        log_directory: context.log_directory.clone(),
        dns_config: Some(dns),
        port_mappings: if pod.host_network() { Vec::new() } else { port_mappings(pod) },
        labels,
        annotations: pod.pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(
                pod,
                &context.cgroup_root,
                context.cgroup_driver,
            ),
            security_context: Some(security::sandbox(pod, context.users)),
            sysctls: sysctls(pod),
            overhead: Some(overhead(pod)),
            resources: Some(linux_resources(&resources::sandbox_amounts(pod))),
        }),
    })
}

/// The labels by which containers and sandboxes are found again.
pub fn pod_labels(pod: &PodView) -> BTreeMap<String, String> {
    BTreeMap::from([
        (POD_NAME_LABEL.to_owned(), pod.name.clone()),
        (POD_NAMESPACE_LABEL.to_owned(), pod.namespace.clone()),
        (POD_UID_LABEL.to_owned(), pod.uid.to_string()),
    ])
}

/// `calculateLinuxResources`.
fn linux_resources(amounts: &Amounts) -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: resources::QUOTA_PERIOD_US,
        cpu_quota: resources::cpu_quota(amounts.cpu_limit),
        // Without a request the limit is its weight.
        cpu_shares: resources::cpu_shares(amounts.cpu_request.unwrap_or(amounts.cpu_limit)),
        memory_limit_in_bytes: amounts.memory_limit,
        ..LinuxContainerResources::default()
    }
}

fn overhead(pod: &PodView) -> LinuxContainerResources {
    resources::overhead_amounts(pod).as_ref().map(linux_resources).unwrap_or_default()
}

fn port_mappings(pod: &PodView) -> Vec<PortMapping> {
    let sidecars = pod.init_containers().iter().filter(|init| is_sidecar(init));

    sidecars
        .chain(pod.containers())
        .flat_map(|container| container.ports.as_deref().unwrap_or_default())
        .filter_map(|port| {
            let host_port = port.host_port.filter(|port| *port > 0)?;
            let protocol = match port.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            Some(PortMapping {
                protocol: protocol.into(),
                container_port: port.container_port,
                host_port,
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}

fn sysctls(pod: &PodView) -> BTreeMap<String, String> {
    let context = pod.spec().security_context.as_ref();

    context
        .and_then(|context| context.sysctls.as_ref())
        .into_iter()
        .flatten()
        .map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()))
        .collect()
}
