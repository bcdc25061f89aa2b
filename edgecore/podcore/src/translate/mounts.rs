//! What a container mounts: its volumes, and the files that every container is given.

use cri_api::v1::{ImageSpec, Mount, MountPropagation};
use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::container::{ContainerContext, message_path};
use crate::abilities::Abilities;
use crate::claims::runtime_handler;
use crate::materials::Materials;
use crate::pod::PodView;
use crate::volumes::is_read_only;

/// Why a container cannot mount what it asks for, in the kubelet's words (`resolveRecursiveReadOnly`).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// It may write to the mount itself.
    #[error("volume {volume:?} requested recursive read-only mode, but it is not read-only")]
    NotReadOnly {
        /// Which.
        volume: String,
    },
    /// What is mounted later would not be read-only.
    #[error(
        "volume {volume:?} requested recursive read-only mode, but it is not compatible with \
         propagation {propagation:?}"
    )]
    Propagated {
        /// Which.
        volume: String,
        /// `mountPropagation`.
        propagation: String,
    },
    /// The runtime cannot.
    #[error(
        "volume {volume:?} requested recursive read-only mode, but it is not supported by the runtime"
    )]
    NotSupported {
        /// Which.
        volume: String,
    },
    /// A mode of a later Kubernetes.
    #[error("unknown recursive read-only mode {mode:?}")]
    UnknownMode {
        /// `recursiveReadOnly`.
        mode: String,
    },
}

/// Whether the runtime can make mounts of the pod read-only with all that is below them.
pub fn can_be_recursive(pod: &PodView, materials: &Materials, abilities: &Abilities) -> bool {
    let handler = runtime_handler(pod, materials).ok();
    let handler = handler.and_then(|name| abilities.handler(&name));

    handler.is_some_and(|handler| handler.recursive_read_only_mounts)
}

/// Whether what is mounted below the volume is read-only too. `can`: the runtime can do that.
pub fn is_recursive(mount: &VolumeMount, can: bool) -> Result<bool, MountError> {
    let volume = || mount.name.clone();
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    if mode == "Disabled" {
        return Ok(false);
    }
    if mount.read_only != Some(true) {
        return Err(MountError::NotReadOnly { volume: volume() });
    }
    if let Some(propagation) = mount.mount_propagation.as_ref().filter(|mode| *mode != "None") {
        let propagation = propagation.clone();
        return Err(MountError::Propagated { volume: volume(), propagation });
    }
    match mode {
        "IfPossible" => Ok(can),
        "Enabled" if can => Ok(true),
        "Enabled" => Err(MountError::NotSupported { volume: volume() }),
        other => Err(MountError::UnknownMode { mode: other.to_owned() }),
    }
}

pub(super) fn mounts(
    pod: &PodView,
    container: &Container,
    context: &ContainerContext<'_>,
) -> Result<Vec<Mount>, MountError> {
    let paths = context.paths;
    let mut mounts: Vec<Mount> = Vec::new();
    for (at, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let image = paths.images.get(&at);
        let host_path = paths.sub_paths.get(&at).or_else(|| paths.volumes.get(&mount.name));
        let host_path = match (image, host_path) {
            (Some(_), _) => String::new(),
            (None, Some(path)) => path.clone(),
            (None, None) => continue,
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => MountPropagation::PropagationBidirectional,
            _ => MountPropagation::PropagationPrivate,
        };
        mounts.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path,
            readonly: mount.read_only.unwrap_or(false)
                || image.is_some()
                || pod.volume(&mount.name).is_some_and(is_read_only),
            propagation: propagation.into(),
            selinux_relabel: paths.relabelled.contains(&mount.name),
            image: image.map(|image| ImageSpec {
                image: image.image_ref.clone(),
                user_specified_image: image.reference.clone(),
                ..ImageSpec::default()
            }),
            image_sub_path: image.map(|image| image.sub_path.clone()).unwrap_or_default(),
            recursive_read_only: is_recursive(mount, context.recursive_read_only)?,
            ..Mount::default()
        });
    }
    let is_mounted =
        |path: &str, mounts: &[Mount]| mounts.iter().any(|mount| mount.container_path == path);
    if let Some(hosts) = &paths.etc_hosts
        && !is_mounted("/etc/hosts", &mounts)
    {
        mounts.push(file("/etc/hosts", hosts));
    }
    if !is_mounted(message_path(container), &mounts) && !paths.termination_log.is_empty() {
        mounts.push(file(message_path(container), &paths.termination_log));
    }
    if let Some(users) = context.users {
        for mount in &mut mounts {
            mount.uid_mappings = users.mappings();
            mount.gid_mappings = users.mappings();
        }
    }

    Ok(mounts)
}

/// A file of the container's own, labelled for it.
fn file(container_path: &str, host_path: &str) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_owned(),
        selinux_relabel: true,
        ..Mount::default()
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(mode: &str, read_only: bool, propagation: Option<&str>, can: bool, expected: &str) {
        let mount = json!({ "name": "v", "mountPath": "/v", "readOnly": read_only,
            "recursiveReadOnly": mode, "mountPropagation": propagation });
        let told = match is_recursive(&serde_json::from_value(mount).unwrap(), can) {
            Ok(is_recursive) => is_recursive.to_string(),
            Err(error) => {
                error.to_string().replace("volume \"v\" requested recursive read-only mode", "#")
            }
        };
        assert_eq!(told, expected, "{mode} {read_only} {propagation:?} {can}");
    }

    #[test]
    fn mounts_are_read_only_all_through_where_the_runtime_can() {
        check("Disabled", false, None, true, "false");
        check("IfPossible", true, None, false, "false");
        check("IfPossible", true, Some("None"), true, "true");
        check("Enabled", true, None, true, "true");
        check("Enabled", true, None, false, "#, but it is not supported by the runtime");
        check("IfPossible", false, None, true, "#, but it is not read-only");
        let propagated = "#, but it is not compatible with propagation \"HostToContainer\"";
        check("Enabled", true, Some("HostToContainer"), true, propagated);
        check("Sometimes", true, None, true, "unknown recursive read-only mode \"Sometimes\"");
    }
}
