//! Users, groups, namespaces, capabilities and profiles of sandboxes and containers.

use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::{
    Capability, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SecurityProfile,
};
use k8s_openapi::api::core::v1::{Container, SeccompProfile, SecurityContext};

use crate::pod::PodView;

/// Paths of /proc that containers must not read (kubelet: `defaultMaskedPaths`).
const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// Paths of /proc that containers must not write (kubelet: `defaultReadonlyPaths`).
const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The namespaces that the containers of the pod share.
fn namespaces(pod: &PodView) -> NamespaceOption {
    let spec = pod.spec();
    let node_or = |of_node: Option<bool>, otherwise: NamespaceMode| {
        if of_node == Some(true) { NamespaceMode::Node } else { otherwise }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };

    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod).into(),
        pid: node_or(spec.host_pid, pid).into(),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod).into(),
        ..NamespaceOption::default()
    }
}

fn int(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

fn supplemental_groups(pod: &PodView) -> Vec<i64> {
    let context = pod.spec().security_context.as_ref();
    let groups = context.and_then(|context| context.supplemental_groups.clone());
    let fs_group = context.and_then(|context| context.fs_group);

    groups.unwrap_or_default().into_iter().chain(fs_group).collect()
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool) -> SecurityProfile {
    let unconfined = || SecurityProfile {
        profile_type: ProfileType::Unconfined.into(),
        localhost_ref: String::new(),
    };
    if privileged {
        return unconfined();
    }
    let Some(profile) = profile else { return unconfined() };
    match profile.type_.as_str() {
        "RuntimeDefault" => SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        },
        "Localhost" => SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            // Relative to the kubelet's seccomp directory, as everywhere.
            localhost_ref: format!(
                "/var/lib/kubelet/seccomp/{}",
                profile.localhost_profile.as_deref().unwrap_or_default()
            ),
        },
        _ => unconfined(),
    }
}

/// Of the sandbox.
pub(super) fn sandbox(pod: &PodView) -> LinuxSandboxSecurityContext {
    let context = pod.spec().security_context.as_ref();
    let privileged = pod.all_containers().any(|container| {
        container.security_context.as_ref().and_then(|c| c.privileged) == Some(true)
    });

    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(context.and_then(|context| context.run_as_user)),
        run_as_group: int(context.and_then(|context| context.run_as_group)),
        supplemental_groups: supplemental_groups(pod),
        privileged,
        // The pause process needs nothing: the runtime's own profile always fits.
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..LinuxSandboxSecurityContext::default()
    }
}

/// Of a container: its own settings win over the pod's.
pub(super) fn container(pod: &PodView, container: &Container) -> LinuxContainerSecurityContext {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let context = pod.spec().security_context.as_ref();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.as_ref();
    let profile =
        own.seccomp_profile.as_ref().or_else(|| context.and_then(|c| c.seccomp_profile.as_ref()));

    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod)),
        run_as_user: int(own.run_as_user.or_else(|| context.and_then(|c| c.run_as_user))),
        run_as_group: int(own.run_as_group.or_else(|| context.and_then(|c| c.run_as_group))),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: supplemental_groups(pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED_PATHS, privileged),
        readonly_paths: paths(&READONLY_PATHS, privileged),
        seccomp: Some(seccomp(profile, privileged)),
        ..LinuxContainerSecurityContext::default()
    }
}

fn paths(paths: &[&str], privileged: bool) -> Vec<String> {
    if privileged { Vec::new() } else { paths.iter().map(|path| (*path).to_owned()).collect() }
}
