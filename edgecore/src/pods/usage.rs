//! What pods have of the node: read only when the node is short of something, or for pods with limits
//! that nobody else keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use cri::CriError;
use cri_api::v1;
use podcore::eviction::{Candidate, ContainerUsage, PodUsage, Taken};
use podcore::materials::Materials;
use podcore::pod::PodView;
use podcore::resources::cgroup_parent;
use podcore::translate::{CONTAINER_NAME_LABEL, POD_UID_LABEL};
use podcore::usage::volumes::measured;
use proto::ids::{ObjectKey, Uid};

use super::context::Context;
use crate::blocking;
use crate::layout::is_file_name;
use crate::volumes::contents::taken;
use crate::volumes::mounts;

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
        let points = mounts::points(&context.layout.pods()).unwrap_or_default();
        let servers = points.into_iter().filter(|point| point.server.is_some());
        let away: BTreeSet<_> = servers.map(|point| point.path).collect();
        let candidate = |pod: PodView| {
            let containers = told.remove(pod.uid.as_str()).unwrap_or_default();
            Candidate { usage: Some(usage(&context, &pod, containers, &away)), pod }
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

/// Adds what is on the disk: nothing that a container has mounted `away` over its volume.
fn usage(
    context: &Context,
    pod: &PodView,
    mut containers: Vec<ContainerUsage>,
    away: &BTreeSet<PathBuf>,
) -> PodUsage {
    let layout = &context.layout;
    let logs = layout.logs(&pod.namespace, &pod.name, &pod.uid);
    for container in &mut containers {
        if is_file_name(&container.name) {
            container.logs = Some(taken(&logs.join(&container.name)));
        }
    }
    // None of them needs more than the pod.
    let volumes = measured(pod, &Materials::default());
    let volumes = volumes.into_iter().filter(|volume| volume.is_ephemeral).filter_map(|volume| {
        let dir = layout.place(&pod.uid, &volume.place).ok().filter(|dir| !away.contains(dir))?;
        Some((volume.name, taken(&dir)))
    });
    let parent = cgroup_parent(pod, &context.cgroup_root, context.cgroup_driver);

    PodUsage {
        processes: context.cgroups.processes(&parent).unwrap_or(0),
        volumes: volumes.collect(),
        other: taken(&layout.etc_hosts(&pod.uid)),
        containers,
    }
}
