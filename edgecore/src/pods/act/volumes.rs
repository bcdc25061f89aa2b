//! Volumes and directories of a pod: made before it starts, removed after its end with its cgroup.

use std::time::Duration;

use k8s_openapi::api::core::v1::Volume;
use podcore::plan::Outcome;
use podcore::resources::{cgroup_parent, pod_limits};
use podcore::volumes::{plugin, setup};

use super::{Done, Job};
use crate::blocking;
use crate::clock;
use crate::events::EventType::Warning;
use crate::layout::is_file_name;
use crate::pods::context::Context;
use crate::telemetry::chain;
use crate::volumes::setup::{PodVolume, PodVolumes, tear_down};

/// How often a cgroup is tried to be removed: its last process may need a moment to leave.
const CGROUP_REMOVALS_MAX: usize = 20;
const CGROUP_REMOVAL_WAIT: Duration = Duration::from_millis(10);

impl Job {
    pub(super) async fn set_up_volumes(self) -> Done {
        let volumes = self.volumes();
        let looks_at_host = self.pod.spec().volumes.iter().flatten().any(asks_for_type);
        let lane = if looks_at_host { &blocking::HOST_PATHS } else { &blocking::FILES };
        let made = match volumes {
            Ok(volumes) => {
                let set_up = move || volumes.set_up(clock::now());
                let set_up = blocking::run_in(lane, set_up).await;
                set_up.map_err(|error| chain(&error))
            }
            Err(message) => Err(message),
        };
        match made {
            Ok(()) => Done::noted(Outcome::VolumesReady),
            Err(message) => {
                self.tell(Warning, "FailedMount", &message, None);
                Done::noted(Outcome::VolumesFailed { message })
            }
        }
    }

    /// What is to be made in the file system, as podcore decides.
    fn volumes(&self) -> Result<PodVolumes, String> {
        let Self { context, pod, .. } = self;
        let fields = context.node_fields(self.pod_ips());
        let mut volumes = Vec::new();
        // An image is mounted by the runtime.
        let made = pod.spec().volumes.iter().flatten().filter(|volume| volume.image.is_none());
        for volume in made {
            if !is_file_name(&volume.name) {
                return Err(format!("volume {:?} has a name that is not one", volume.name));
            }
            volumes.push(PodVolume {
                name: volume.name.clone(),
                dir: context.layout.volume(&pod.uid, plugin(volume), &volume.name),
                setup: setup(pod, volume, &self.materials, &fields).map_err(|e| chain(&e))?,
            });
        }
        let security = pod.spec().security_context.as_ref();
        // As the kubelet (`SizeMemoryBackedVolumes`): what the pod may use, else what pods may use.
        let memory = pod_limits(pod).memory.unwrap_or(fields.memory_bytes);

        Ok(PodVolumes {
            pod_dir: context.layout.pod(&pod.uid),
            logs_dir: context.layout.logs(&pod.namespace, &pod.name, &pod.uid),
            volumes,
            fs_group: security
                .and_then(|security| security.fs_group)
                .and_then(|gid| u32::try_from(gid).ok()),
            memory_bytes: u64::try_from(memory).ok(),
        })
    }

    pub(super) async fn tear_down(self) -> Done {
        let dir = self.context.layout.pod(&self.pod.uid);
        let removed = blocking::run(move || tear_down(&dir)).await;
        if let Err(error) = removed {
            let message = format!("cannot remove the volumes of the pod: {error}");
            self.tell(Warning, "FailedKillPod", &message, None);
            return Done::Failed { message };
        }
        let context = &self.context;
        let parent = cgroup_parent(&self.pod, &context.cgroup_root, context.cgroup_driver);

        match remove_cgroup(context, &parent).await {
            Ok(()) => Done::TornDown,
            Err(message) => Done::Failed { message },
        }
    }
}

/// Whether a path of the host is looked at before it is mounted.
fn asks_for_type(volume: &Volume) -> bool {
    let kind = volume.host_path.as_ref().and_then(|host_path| host_path.type_.as_deref());

    kind.is_some_and(|kind| !kind.is_empty())
}

/// Removes a pod's cgroup, giving its last processes a moment to leave.
pub async fn remove_cgroup(context: &Context, parent: &str) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..CGROUP_REMOVALS_MAX {
        let (cgroups, parent) = (context.cgroups.clone(), parent.to_owned());
        match blocking::run(move || cgroups.remove(&parent)).await {
            Ok(()) => return Ok(()),
            Err(error) => last = chain(&error),
        }
        tokio::time::sleep(CGROUP_REMOVAL_WAIT).await;
    }

    Err(last)
}
