//! Limits of disk space: of a pod, its containers and its volumes (kubelet: `localStorageEviction`).

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{IMMEDIATE_S, PodUsage, REASON, Taken};
use crate::admission::is_critical;
use crate::observed::Eviction;
use crate::pod::PodView;
use crate::quantity::{binary, units};
use crate::resources::{STORAGE, pod_limit, storage_limit};

/// Whether the pod has limits that nobody but the node keeps.
pub fn has_limits(pod: &PodView) -> bool {
    sized_dirs(pod).next().is_some()
        || pod.admitted_containers().any(|container| storage_limit(container).is_some())
}

/// How a pod goes that has taken more than one of its limits.
pub fn over_limit(pod: &PodView, usage: &PodUsage, has_image_disk: bool) -> Option<Eviction> {
    if is_critical(pod) {
        return None;
    }
    let message = full_dir(pod, usage)
        .or_else(|| full_pod(pod, usage))
        .or_else(|| full_container(pod, usage, has_image_disk))?;

    Some(Eviction {
        reason: REASON.to_owned(),
        message,
        disruption: None,
        grace_s: Some(IMMEDIATE_S),
    })
}

/// Directories on disk that have a size: name, limit as written and in bytes.
fn sized_dirs(pod: &PodView) -> impl Iterator<Item = (&str, &Quantity, u64)> {
    pod.spec().volumes.iter().flatten().filter_map(|volume| {
        let dir = volume.empty_dir.as_ref().filter(|dir| is_on_disk(dir))?;
        let limit = dir.size_limit.as_ref()?;
        let bytes = units(limit).and_then(|bytes| u64::try_from(bytes).ok());

        Some((volume.name.as_str(), limit, bytes.filter(|bytes| *bytes > 0)?))
    })
}

/// Whether an emptyDir takes space of a disk; in memory its size is kept by the kernel.
fn is_on_disk(dir: &EmptyDirVolumeSource) -> bool {
    dir.medium.as_deref().unwrap_or_default().is_empty()
}

fn full_dir(pod: &PodView, usage: &PodUsage) -> Option<String> {
    let mut full = sized_dirs(pod).filter(|(name, _, limit)| {
        usage.volumes.get(*name).is_some_and(|taken| taken.bytes > *limit)
    });
    let (name, limit, _) = full.next()?;

    Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.0))
}

fn full_pod(pod: &PodView, usage: &PodUsage) -> Option<String> {
    let limit = u64::try_from(pod_limit(pod, STORAGE)?).ok()?;
    let of_containers = usage.containers.iter().flat_map(|one| [one.layer, one.logs]).flatten();
    let volumes = usage.volumes.values().copied();
    let all = of_containers.chain(volumes).fold(usage.other, Taken::plus);

    (all.bytes > limit).then(|| {
        let limit = binary(limit);
        format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ")
    })
}

/// With images on a disk of their own, layers are there too, and do not count.
fn full_container(pod: &PodView, usage: &PodUsage, has_image_disk: bool) -> Option<String> {
    usage.containers.iter().find_map(|used| {
        let container = pod.containers().iter().find(|container| container.name == used.name)?;
        let limit = storage_limit(container).and_then(|limit| u64::try_from(limit).ok());
        let layer = used.layer.filter(|_| !has_image_disk).unwrap_or_default();
        let bytes = layer.plus(used.logs.unwrap_or_default()).bytes;
        limit.filter(|limit| *limit > 0 && bytes > *limit)?;
        let limit = written_limit(container)?;

        Some(format!(
            "Container {} exceeded its local ephemeral storage limit {limit:?}. ",
            used.name
        ))
    })
}

fn written_limit(container: &Container) -> Option<&str> {
    let limits = container.resources.as_ref()?.limits.as_ref()?;

    limits.get(STORAGE).map(|limit| limit.0.as_str())
}
