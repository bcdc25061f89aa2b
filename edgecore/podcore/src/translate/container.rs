//! One container of a pod.

use std::collections::{BTreeMap, BTreeSet};

use cri_api::v1::{
    ContainerConfig, ContainerMetadata, HugepageLimit, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources,
};
use k8s_openapi::api::core::v1::Container;
use proto::object::{ContentHash, hex};

use super::mounts::{MountError, mounts};
use super::security::{ImageUser, UserRange};
use super::{
    CONTAINER_NAME_LABEL, GRACE_ANNOTATION, HASH_ANNOTATION, MESSAGE_PATH_ANNOTATION,
    MESSAGE_POLICY_ANNOTATION, RESTARTS_ANNOTATION, linux_resources, pod_labels, security,
};
use crate::claims::extra_groups;
use crate::env::{EnvError, NodeFields, environment, expand};
use crate::materials::Materials;
use crate::pod::PodView;
use crate::resources::{self, Machine};

/// Where the termination message of a container is unless it says otherwise.
const MESSAGE_PATH: &str = "/dev/termination-log";

/// Where on the node things are that the container mounts.
#[derive(Clone, Debug, Default)]
pub struct ContainerPaths {
    /// Directory or file of each volume.
    pub volumes: BTreeMap<String, String>,
    /// Volumes that belong to the pod alone, which may be labelled for it.
    pub relabelled: BTreeSet<String>,
    /// Where the parts of volumes are that it mounts, by the place of the mount in its list.
    pub sub_paths: BTreeMap<usize, String>,
    /// The images that it mounts, by the place of the mount in its list.
    pub images: BTreeMap<usize, MountedImage>,
    /// The file for /etc/hosts; `None` leaves the image's.
    pub etc_hosts: Option<String>,
    /// The file for the termination message of this attempt.
    pub termination_log: String,
}

/// An image whose files are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountedImage {
    /// As the pod names it.
    pub reference: String,
    /// What was found for it.
    pub image_ref: String,
    /// The part of it that is mounted; empty for all.
    pub sub_path: String,
}

/// Everything besides the pod that a container is made from.
#[derive(Clone, Debug)]
pub struct ContainerContext<'a> {
    /// ConfigMaps, Secrets and Services.
    pub materials: &'a Materials,
    /// For the downward API.
    pub node: &'a NodeFields,
    /// For the mounts.
    pub paths: &'a ContainerPaths,
    /// Id of the container whose processes it sees.
    pub target: Option<&'a str>,
    /// The user of its image: who it runs as unless the pod says otherwise.
    pub image_user: Option<&'a ImageUser>,
    /// The users of the node that those of the pod are, if it has its own.
    pub users: Option<UserRange>,
    /// The runtime can make mounts read-only with all that is below them.
    pub recursive_read_only: bool,
}

/// Why a container cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A variable cannot be set.
    #[error(transparent)]
    Env(#[from] EnvError),
    /// A volume cannot be mounted as asked.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// Hash of what a change of means a restart of the container: its name and image, as the kubelet
/// (`pkg/kubelet/container/helpers.go`, `HashContainer`).
pub fn container_hash(container: &Container) -> String {
    let image = container.image.as_deref().unwrap_or_default();
    let hash = ContentHash::of(&[container.name.as_bytes(), image.as_bytes()]);

    hex(&hash.0[..4])
}

/// The container of an attempt, made from the image that was found for it.
pub fn container_config(
    pod: &PodView,
    container: &Container,
    attempt: u32,
    image_ref: &str,
    context: &ContainerContext<'_>,
) -> Result<ContainerConfig, ConfigError> {
    let envs = environment(pod, container, context.materials, context.node)?;
    let lookup = |name: &str| {
        envs.iter().find(|variable| variable.key == name).map(|variable| variable.value.clone())
    };
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, lookup)).collect()
    };
    let mut labels = pod_labels(pod);
    labels.insert(CONTAINER_NAME_LABEL.to_owned(), container.name.clone());
    let mut security_context = security::container(pod, container, context);
    security_context.supplemental_groups.extend(extra_groups(pod, context.materials));

    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(ImageSpec {
            image: image_ref.to_owned(),
            user_specified_image: container.image.clone().unwrap_or_default(),
            ..ImageSpec::default()
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts(pod, container, context)?,
        labels,
        annotations: annotations(pod, container, attempt),
        log_path: format!("{}/{attempt}.log", container.name),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(LinuxContainerConfig {
            resources: Some(container_resources(pod, container, context.node)),
            security_context: Some(security_context),
        }),
        envs: envs
            .iter()
            .map(|v| KeyValue { key: v.key.clone(), value: v.value.clone() })
            .collect(),
        ..ContainerConfig::default()
    })
}

fn annotations(pod: &PodView, container: &Container, attempt: u32) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([
        (HASH_ANNOTATION.to_owned(), container_hash(container)),
        (RESTARTS_ANNOTATION.to_owned(), attempt.to_string()),
        (MESSAGE_PATH_ANNOTATION.to_owned(), message_path(container).to_owned()),
        (
            MESSAGE_POLICY_ANNOTATION.to_owned(),
            container.termination_message_policy.clone().unwrap_or_else(|| "File".to_owned()),
        ),
    ]);
    if let Some(grace) = pod.spec().termination_grace_period_seconds {
        annotations.insert(GRACE_ANNOTATION.to_owned(), grace.to_string());
    }
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty())
        && let Ok(ports) = serde_json::to_string(ports)
    {
        annotations.insert("io.kubernetes.container.ports".to_owned(), ports);
    }

    annotations
}

pub(super) fn message_path(container: &Container) -> &str {
    let own = container.termination_message_path.as_deref();

    own.filter(|path| !path.is_empty()).unwrap_or(MESSAGE_PATH)
}

/// What the runtime is told of the container's resources (kubelet: `generateLinuxContainerResources`).
pub fn container_resources(
    pod: &PodView,
    container: &Container,
    node: &NodeFields,
) -> LinuxContainerResources {
    let machine = &node.machine;
    let amounts = resources::container_amounts(pod, container);
    let mut told = LinuxContainerResources {
        oom_score_adj: resources::oom_score_adj(pod, container, machine.memory_bytes),
        hugepage_limits: huge_pages(pod, container, machine),
        ..linux_resources(&amounts)
    };
    if machine.unified {
        // All processes of a container go together when its memory is used up.
        told.unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    // No swap beyond the memory limit.
    match (machine.swap, machine.unified) {
        (true, true) => {
            told.unified.insert("memory.swap.max".to_owned(), "0".to_owned());
        }
        (true, false) => told.memory_swap_limit_in_bytes = amounts.memory_limit,
        (false, _) => {}
    }

    told
}

/// Of each size that the machine has, none unless asked for.
fn huge_pages(pod: &PodView, container: &Container, machine: &Machine) -> Vec<HugepageLimit> {
    let limits = resources::huge_page_limits(pod, container);
    let limit = |size| limits.get(size).and_then(|limit| u64::try_from(*limit).ok()).unwrap_or(0);
    let sizes = machine.huge_pages.iter();

    sizes
        .map(|size| HugepageLimit {
            page_size: resources::page_size_name(*size),
            limit: limit(size),
        })
        .collect()
}
