//! What pods have of the node: read only when the node is short of something, or for pods with limits
//! that nobody else keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::CriError;
use cri_api::v1;
use podcore::eviction::{Candidate, ContainerUsage, PodUsage, Taken};
use podcore::pod::PodView;
use podcore::resources::cgroup_parent;
use podcore::translate::{CONTAINER_NAME_LABEL, POD_UID_LABEL};
use podcore::volumes::Place;
use proto::ids::{ObjectKey, Uid};

use super::context::Context;
use crate::blocking;
use crate::layout::is_file_name;

/// Most files that are counted of one directory: of more the rest is not seen.
const FILES_MAX: u64 = 500_000;
/// Bytes of a block in `stat`.
const BLOCK_BYTES: u64 = 512;

/// Looks at what these pods have. Without an answer of the runtime nothing is known of them.
pub(super) async fn measure(context: &Arc<Context>, pods: Vec<Uid>) -> Vec<Candidate> {
    let views = pods.iter().filter_map(|uid| {
        let object = context.desired.get(&ObjectKey::pod(uid))?;
        PodView::parse(&object.bytes).ok()
    });
    let views: Vec<_> = views.collect();
    let told = match told(context).await {
        Ok(told) => told,
        Err(error) => {
            tracing::warn!(%error, "the runtime does not tell what pods use");
            return views.into_iter().map(|pod| Candidate { pod, usage: None }).collect();
        }
    };
    let context = Arc::clone(context);
    let look = move || {
        let mut told = told;
        let candidate = |pod: PodView| {
            let containers = told.remove(pod.uid.as_str()).unwrap_or_default();
            Candidate { usage: Some(usage(&context, &pod, containers)), pod }
        };
        views.into_iter().map(candidate).collect()
    };

    blocking::run_in(&blocking::MEASURES, look).await
}

/// What the runtime says of running containers, by UID of their pod.
async fn told(context: &Context) -> Result<BTreeMap<String, Vec<ContainerUsage>>, CriError> {
    let mut pods: BTreeMap<String, Vec<ContainerUsage>> = BTreeMap::new();
    for stats in context.runtime.list_container_stats(None).await? {
        let labels = stats.attributes.map(|attributes| attributes.labels).unwrap_or_default();
        let (Some(pod), Some(name)) = (labels.get(POD_UID_LABEL), labels.get(CONTAINER_NAME_LABEL))
        else {
            continue;
        };
        let value = |value: Option<v1::UInt64Value>| value.map_or(0, |value| value.value);
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
        let layer = stats.writable_layer.map(|layer| Taken {
            bytes: value(layer.used_bytes),
            inodes: value(layer.inodes_used),
        });
        pods.entry(pod.clone()).or_default().push(ContainerUsage {
            name: name.clone(),
            memory: memory.map(|bytes| bytes.value),
            layer,
            logs: None,
        });
    }

    Ok(pods)
}

/// Adds what is on the disk.
fn usage(context: &Context, pod: &PodView, mut containers: Vec<ContainerUsage>) -> PodUsage {
    let layout = &context.layout;
    let logs = layout.logs(&pod.namespace, &pod.name, &pod.uid);
    for container in &mut containers {
        if is_file_name(&container.name) {
            container.logs = Some(taken(&logs.join(&container.name)));
        }
    }
    let volumes = pod.spec().volumes.iter().flatten().filter_map(|volume| {
        let on_disk = |medium: &Option<String>| medium.as_deref().unwrap_or_default().is_empty();
        let plugin = if volume.empty_dir.as_ref().is_some_and(|dir| on_disk(&dir.medium)) {
            "kubernetes.io/empty-dir"
        } else {
            volume.config_map.as_ref().map(|_| "kubernetes.io/configmap")?
        };
        let name = volume.name.clone();
        let dir = layout.place(&pod.uid, &Place::Own { plugin, name: name.clone() }).ok()?;
        Some((name, taken(&dir)))
    });
    let parent = cgroup_parent(pod, &context.cgroup_root, context.cgroup_driver);

    PodUsage {
        processes: context.cgroups.processes(&parent).unwrap_or(0),
        volumes: volumes.collect(),
        other: taken(&layout.etc_hosts(&pod.uid)),
        containers,
    }
}

/// What a file, or a directory with all that is below it on its file system, takes of the disk.
fn taken(path: &Path) -> Taken {
    let Ok(root) = fs::symlink_metadata(path) else { return Taken::default() };
    let mut sum = Taken { bytes: bytes(&root), inodes: 1 };
    // Files of several names count once.
    let mut linked = BTreeSet::new();
    let mut dirs: Vec<PathBuf> = if root.is_dir() { vec![path.to_owned()] } else { Vec::new() };
    while let Some(dir) = dirs.pop() {
        // What goes while it is counted is not there.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(found) = entry.metadata() else { continue };
            let is_counted = found.nlink() > 1 && !found.is_dir() && !linked.insert(found.ino());
            if found.dev() != root.dev() || is_counted {
                continue;
            }
            sum = sum.plus(Taken { bytes: bytes(&found), inodes: 1 });
            if sum.inodes >= FILES_MAX {
                tracing::warn!(path = %path.display(), "more files than are counted");
                return sum;
            }
            if found.is_dir() {
                dirs.push(entry.path());
            }
        }
    }

    sum
}

fn bytes(found: &Metadata) -> u64 {
    found.blocks().saturating_mul(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_the_disk_counts_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let empty = taken(dir.path());
        fs::create_dir(dir.path().join("below")).unwrap();
        let file = dir.path().join("below/file");
        fs::write(&file, vec![7; 1 << 20]).unwrap();
        fs::hard_link(&file, dir.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("elsewhere")).unwrap();
        let full = taken(dir.path());

        // The directory, the file once, the link.
        assert_eq!(full.inodes, empty.inodes + 3);
        let more = full.bytes - empty.bytes;
        assert!((1 << 20..(1 << 20) + 64 * 1024).contains(&more), "{more}");
        assert_eq!(taken(&dir.path().join("none")), Taken::default());
        assert_eq!(taken(&file).inodes, 1);
    }
}
