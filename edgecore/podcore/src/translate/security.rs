//! Users, groups, namespaces, capabilities and profiles of sandboxes and containers.

use cri_api::v1::security_profile::ProfileType;
use cri_api::v1::{
    Capability, IdMapping, Int64Value, LinuxContainerSecurityContext, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy,
    UserNamespace,
};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, SELinuxOptions, SeccompProfile, SecurityContext,
};

use super::ContainerContext;
use crate::pod::PodView;

/// Paths of /proc that containers must not read (kubelet: `defaultMaskedPaths`).
const MASKED_PATHS: [&str; 12] = [
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
    "/sys/devices/virtual/powercap",
];

/// Paths of /proc that containers must not write (kubelet: `defaultReadonlyPaths`).
const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A range of the node's users and groups, which those of a pod are from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRange {
    /// Whom the pod's root is.
    pub first: u32,
    /// How many there are.
    pub length: u32,
}

impl UserRange {
    pub(super) fn mappings(self) -> Vec<IdMapping> {
        vec![IdMapping { host_id: self.first, container_id: 0, length: self.length }]
    }
}

/// The namespaces that the containers of the pod share; with a `target`, the id of a container, its
/// process namespace.
fn namespaces(pod: &PodView, target: Option<&str>, users: Option<UserRange>) -> NamespaceOption {
    let spec = pod.spec();
    let node_or = |of_node: Option<bool>, otherwise: NamespaceMode| {
        if of_node == Some(true) { NamespaceMode::Node } else { otherwise }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };

    let pid = if target.is_some() { NamespaceMode::Target } else { node_or(spec.host_pid, pid) };

    NamespaceOption {
        network: node_or(spec.host_network, NamespaceMode::Pod).into(),
        pid: pid.into(),
        target_id: target.unwrap_or_default().to_owned(),
        ipc: node_or(spec.host_ipc, NamespaceMode::Pod).into(),
        userns_options: users.map(|users| UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: users.mappings(),
            gids: users.mappings(),
        }),
    }
}

fn int(value: Option<i64>) -> Option<Int64Value> {
    value.map(|value| Int64Value { value })
}

/// Whether the groups that the image names for the user are left out.
fn groups_policy(pod: &PodView) -> SupplementalGroupsPolicy {
    let context = pod.spec().security_context.as_ref();
    match context.and_then(|context| context.supplemental_groups_policy.as_deref()) {
        Some("Strict") => SupplementalGroupsPolicy::Strict,
        _ => SupplementalGroupsPolicy::Merge,
    }
}

fn supplemental_groups(pod: &PodView) -> Vec<i64> {
    let context = pod.spec().security_context.as_ref();
    let groups = context.and_then(|context| context.supplemental_groups.clone());
    let fs_group = context.and_then(|context| context.fs_group);

    fs_group.into_iter().chain(groups.unwrap_or_default()).collect()
}

fn seccomp(profile: Option<&SeccompProfile>, privileged: bool, root: &str) -> SecurityProfile {
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
            localhost_ref: format!(
                "{root}/{}",
                profile.localhost_profile.as_deref().unwrap_or_default()
            ),
        },
        _ => unconfined(),
    }
}

/// A profile that is asked for; the runtime decides if none is. Also as older runtimes read it.
fn apparmor(profile: &AppArmorProfile) -> (SecurityProfile, String) {
    let named = profile.localhost_profile.clone().unwrap_or_default();
    let (profile_type, localhost_ref, text) = match profile.type_.as_str() {
        "Unconfined" => (ProfileType::Unconfined, String::new(), "unconfined".to_owned()),
        "Localhost" => (ProfileType::Localhost, named.clone(), format!("localhost/{named}")),
        _ => (ProfileType::RuntimeDefault, String::new(), "runtime/default".to_owned()),
    };

    (SecurityProfile { profile_type: profile_type.into(), localhost_ref }, text)
}

/// Largest user id (API: `IsValidUserID`).
const UID_MAX: i64 = i32::MAX as i64;

/// The user that an image names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    /// Its number; 0 if the image names none.
    Id(i64),
    /// Its name, which only the image's /etc/passwd could resolve.
    Name(String),
}

/// Why a container that must not run as root is not started: it waits with
/// `CreateContainerConfigError` (kubelet: `verifyRunAsNonRoot`).
#[derive(Debug, thiserror::Error)]
pub enum NonRootError {
    /// `runAsUser: 0`.
    #[error(
        "container's runAsUser breaks non-root policy (pod: \"{pod}\", container: {container})"
    )]
    Asked {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is root.
    #[error(
        "container has runAsNonRoot and image will run as root (pod: \"{pod}\", container: {container})"
    )]
    Root {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user is none that there can be.
    #[error(
        "container has runAsNonRoot and image has an invalid user id ({uid}). (Must be 1-({UID_MAX})): must be between 0 and {UID_MAX}, inclusive (pod: \"{pod}\", container: {container})"
    )]
    Invalid {
        /// The user.
        uid: i64,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
    /// The image's user may be root under another name.
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: \"{pod}\", container: {container})"
    )]
    Name {
        /// The user.
        user: String,
        /// The pod.
        pod: String,
        /// The container.
        container: String,
    },
}

/// `runAsNonRoot` and `runAsUser`: the container's, else the pod's.
fn asked_user(pod: &PodView, container: &Container) -> (bool, Option<i64>) {
    let own = container.security_context.as_ref();
    let all = pod.spec().security_context.as_ref();
    let non_root =
        own.and_then(|c| c.run_as_non_root).or_else(|| all.and_then(|c| c.run_as_non_root));
    let user = own.and_then(|c| c.run_as_user).or_else(|| all.and_then(|c| c.run_as_user));

    (non_root == Some(true), user)
}

/// The user that the container is asked to run as.
pub(crate) fn user(pod: &PodView, container: &Container) -> Option<i64> {
    asked_user(pod, container).1
}

/// Whether the user is the image's.
pub fn asks_for_image_user(pod: &PodView, container: &Container) -> bool {
    user(pod, container).is_none()
}

/// The user that the runtime is told: always one, so that a group can be asked for without.
fn runs_as(
    pod: &PodView,
    container: &Container,
    of_image: Option<&ImageUser>,
) -> (Option<Int64Value>, String) {
    match (user(pod, container), of_image) {
        (Some(asked), _) => (int(Some(asked)), String::new()),
        (None, Some(ImageUser::Id(id))) => (int(Some(*id)), String::new()),
        (None, Some(ImageUser::Name(name))) => (None, name.clone()),
        (None, None) => (None, String::new()),
    }
}

/// Checks `runAsNonRoot` against the user that the container will run as.
pub fn check_user(
    pod: &PodView,
    container: &Container,
    of_image: &ImageUser,
) -> Result<(), NonRootError> {
    let (pod_name, name) = (pod.described(), container.name.clone());
    match (asked_user(pod, container), of_image) {
        ((true, Some(0)), _) => Err(NonRootError::Asked { pod: pod_name, container: name }),
        ((true, None), ImageUser::Id(0)) => {
            Err(NonRootError::Root { pod: pod_name, container: name })
        }
        ((true, None), ImageUser::Id(uid)) if !(0..=UID_MAX).contains(uid) => {
            Err(NonRootError::Invalid { uid: *uid, pod: pod_name, container: name })
        }
        ((true, None), ImageUser::Name(user)) => {
            Err(NonRootError::Name { user: user.clone(), pod: pod_name, container: name })
        }
        ((false, _) | (true, Some(_)), _) | ((true, None), ImageUser::Id(_)) => Ok(()),
    }
}

/// Of the sandbox.
pub(super) fn sandbox(pod: &PodView, users: Option<UserRange>) -> LinuxSandboxSecurityContext {
    let context = pod.spec().security_context.as_ref();
    let privileged = pod.admitted_containers().any(|container| {
        container.security_context.as_ref().and_then(|c| c.privileged) == Some(true)
    });

    LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None, users)),
        run_as_user: int(context.and_then(|context| context.run_as_user)),
        run_as_group: int(context.and_then(|context| context.run_as_group)),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        privileged,
        selinux_options: context.and_then(|c| c.se_linux_options.as_ref()).map(selinux),
        // The pause process needs nothing: the runtime's own profile always fits.
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..LinuxSandboxSecurityContext::default()
    }
}

/// Of a container: its own settings win over the pod's.
pub(super) fn container(
    pod: &PodView,
    container: &Container,
    around: &ContainerContext<'_>,
) -> LinuxContainerSecurityContext {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let context = pod.spec().security_context.as_ref();
    let privileged = own.privileged.unwrap_or(false);
    let capabilities = own.capabilities.as_ref();
    let app_armor = own
        .app_armor_profile
        .as_ref()
        .or_else(|| context.and_then(|c| c.app_armor_profile.as_ref()));
    let (app_armor, app_armor_text) = app_armor.map(apparmor).unzip();
    let profile =
        own.seccomp_profile.as_ref().or_else(|| context.and_then(|c| c.seccomp_profile.as_ref()));
    let machine = &around.node.machine;
    let is_open = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let (run_as_user, run_as_username) = runs_as(pod, container, around.image_user);

    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
            drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged,
        namespace_options: Some(namespaces(pod, around.target, around.users)),
        run_as_user,
        run_as_username,
        run_as_group: int(own.run_as_group.or_else(|| context.and_then(|c| c.run_as_group))),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: supplemental_groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(&MASKED_PATHS, &machine.masked_paths, is_open),
        readonly_paths: paths(&READONLY_PATHS, &[], is_open),
        apparmor: app_armor,
        apparmor_profile: app_armor_text.unwrap_or_default(),
        seccomp: Some(seccomp(profile, privileged, &machine.seccomp_root)),
        selinux_options: own
            .se_linux_options
            .as_ref()
            .or_else(|| context.and_then(|c| c.se_linux_options.as_ref()))
            .map(selinux),
        ..LinuxContainerSecurityContext::default()
    }
}

/// For the runtime, which ignores it where the machine has no SELinux.
fn selinux(options: &SELinuxOptions) -> SeLinuxOption {
    SeLinuxOption {
        user: options.user.clone().unwrap_or_default(),
        role: options.role.clone().unwrap_or_default(),
        r#type: options.type_.clone().unwrap_or_default(),
        level: options.level.clone().unwrap_or_default(),
    }
}

fn paths(paths: &[&str], more: &[String], is_open: bool) -> Vec<String> {
    if is_open {
        return Vec::new();
    }

    paths.iter().map(|path| (*path).to_owned()).chain(more.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(of_pod: &Value, own: &Value, image: &ImageUser, expected: &str) {
        let pod = json!({
            "metadata": { "uid": "u-1", "namespace": "default", "name": "web" },
            "spec": { "securityContext": of_pod, "containers": [{ "name": "a", "securityContext": own }] },
        });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let checked = check_user(&pod, &pod.containers()[0], image);
        let error = checked.map_or_else(|error| error.to_string(), |()| String::new());
        let expected = if expected.is_empty() {
            String::new()
        } else {
            format!("{expected} (pod: \"web_default(u-1)\", container: a)")
        };
        assert_eq!(error, expected, "{of_pod} {own} {image:?}");
    }

    #[test]
    fn who_must_not_be_root_is_not() {
        let (none, non_root) = (json!({}), json!({ "runAsNonRoot": true }));
        let user = |user: i64| json!({ "runAsNonRoot": true, "runAsUser": user });
        let (root, other) = (ImageUser::Id(0), ImageUser::Id(1000));
        let named = ImageUser::Name("app".to_owned());
        let is_root = "container has runAsNonRoot and image will run as root";
        check(&none, &none, &root, "");
        check(&non_root, &none, &root, is_root);
        check(&none, &non_root, &root, is_root);
        check(&non_root, &json!({ "runAsNonRoot": false }), &root, "");
        check(&non_root, &none, &other, "");
        check(
            &non_root,
            &none,
            &ImageUser::Id(1 << 31),
            "container has runAsNonRoot and image has an invalid user id (2147483648). (Must be 1-(2147483647)): must be between 0 and 2147483647, inclusive",
        );
        check(
            &non_root,
            &none,
            &named,
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root",
        );
        check(&non_root, &json!({ "runAsUser": 7 }), &root, "");
        check(&user(7), &none, &named, "");
        check(&user(0), &none, &other, "container's runAsUser breaks non-root policy");
        check(
            &user(7),
            &json!({ "runAsUser": 0 }),
            &other,
            "container's runAsUser breaks non-root policy",
        );
    }
}
