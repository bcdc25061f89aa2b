//! Volumes and directories of a pod: made before it starts, removed after its end with its cgroup.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use podcore::claims::{all_bound, claim_name};
use podcore::plan::Outcome;
use podcore::resources::{cgroup_parent, pod_limits};
use podcore::volumes::{Place, VolumeError, check_node, place, setup};

use super::{Done, Job};
use crate::blocking;
use crate::clock;
use crate::events::EventType::Warning;
use crate::node::cgroups::CgroupError;
use crate::pods::context::Context;
use crate::telemetry::chain;
use crate::volumes::mounts;
use crate::volumes::remove::remove_tree;
use crate::volumes::setup::{PodVolume, PodVolumes, Reach};

/// How long the servers of a pod's volumes are waited for. What the kernel still does then goes on, and
/// is found done by a later try.
pub(super) const SERVER_DEADLINE: Duration = Duration::from_mins(2);

/// How often a cgroup is tried to be removed: its last process may need a moment to leave.
const CGROUP_REMOVALS_MAX: usize = 20;
const CGROUP_REMOVAL_WAIT: Duration = Duration::from_millis(10);

impl Job {
    pub(super) async fn set_up_volumes(self) -> Done {
        let made = self.try_volumes().await;
        match made {
            Ok(()) => {
                let claimed = all_bound(&self.pod, &self.materials);
                Done::noted(Outcome::VolumesReady { claimed })
            }
            Err(message) => {
                self.tell(Warning, "FailedMount", &message, None);
                Done::noted(Outcome::VolumesFailed { message })
            }
        }
    }

    /// Each part in the lane of what it may have to wait for.
    async fn try_volumes(&self) -> Result<(), String> {
        for (reach, volumes) in self.volumes()?.by_reach() {
            let set_up = move || volumes.set_up(clock::now());
            let made = match reach {
                Reach::Own => blocking::run(set_up).await,
                Reach::HostPath => blocking::run_in(&blocking::HOST_PATHS, set_up).await,
                Reach::Disk => blocking::run_in(&blocking::LOCAL_VOLUMES, set_up).await,
                Reach::Server(server) => {
                    let set_up = blocking::SERVERS.run(&server, set_up);
                    let answer = tokio::time::timeout(SERVER_DEADLINE, set_up).await;
                    answer.map_err(|_elapsed| {
                        no_answer(&server, blocking::SERVERS.hangs(&server, Duration::ZERO))
                    })?
                }
            };
            made.map_err(|error| chain(&error))?;
        }

        Ok(())
    }

    /// What is to be made in the file system, as podcore decides.
    fn volumes(&self) -> Result<PodVolumes, String> {
        let Self { context, pod, .. } = self;
        self.check_node().map_err(|error| chain(&error))?;
        let fields = context.node_fields(self.pod_ips());
        let mut volumes = Vec::new();
        // An image is mounted by the runtime.
        let made = pod.spec().volumes.iter().flatten().filter(|volume| volume.image.is_none());
        for volume in made {
            let place = place(pod, volume, &self.materials).map_err(|e| chain(&e))?;
            volumes.push(PodVolume {
                name: match &place {
                    Place::Own { name, .. } => name.clone(),
                    Place::Host(_) => volume.name.clone(),
                },
                dir: context.layout.place(&pod.uid, &place)?,
                setup: setup(pod, volume, &self.materials, &fields).map_err(|e| chain(&e))?,
            });
        }
        let security = pod.spec().security_context.as_ref();
        // As the kubelet (`SizeMemoryBackedVolumes`): what the pod may use, else what pods may use.
        let memory = pod_limits(pod).memory.unwrap_or(fields.memory_bytes);

        Ok(PodVolumes {
            pods_dir: context.layout.pods(),
            pod_dir: context.layout.pod(&pod.uid),
            logs_dir: context.layout.logs(&pod.namespace, &pod.name, &pod.uid),
            volumes,
            fs_group: security
                .and_then(|security| security.fs_group)
                .and_then(|gid| u32::try_from(gid).ok()),
            memory_bytes: u64::try_from(memory).ok(),
            propagate: pod.all_containers().any(propagates),
        })
    }

    /// What a pod that has begun has mounted stays so, whatever becomes of the node's labels.
    fn check_node(&self) -> Result<(), VolumeError> {
        let Self { context, pod, materials, .. } = self;
        let volumes = || pod.spec().volumes.iter().flatten();
        let has_begun = self.sandboxes.iter().any(|sandbox| sandbox.ready);
        if has_begun || !volumes().any(|volume| claim_name(pod, volume).is_some()) {
            return Ok(());
        }
        let labels = context.node_labels();

        volumes().try_for_each(|volume| check_node(pod, volume, materials, &labels))
    }

    pub(super) async fn tear_down(self) -> Done {
        let dir = self.context.layout.pod(&self.pod.uid);
        let removed = tear_down(dir).await;
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

/// One that is not asked has no place: others have all.
fn no_answer(server: &str, is_asked: bool) -> String {
    let (seconds, most) = (SERVER_DEADLINE.as_secs(), blocking::SERVERS_MAX);
    if is_asked {
        return format!("NFS server {server} gave no answer in {seconds} s");
    }

    format!(
        "NFS server {server} could not be asked in {seconds} s: {most} other servers give no answer; \
         it is asked when one of them does"
    )
}

fn propagates(container: &Container) -> bool {
    let mut mounts = container.volume_mounts.iter().flatten();

    mounts.any(|mount| mount.mount_propagation.as_ref().is_some_and(|mode| mode != "None"))
}

/// Unmounts and removes everything in a pod's directory, and the directory.
pub async fn tear_down(dir: PathBuf) -> io::Result<()> {
    let path = dir.clone();
    let remove = move || remove_tree(&dir);
    match blocking::run(move || mounts::server_of(&path)).await? {
        Some(server) => blocking::SERVER_REMOVALS.run(&server, remove).await,
        None => blocking::run(remove).await,
    }
}

/// Removes a pod's cgroup, giving its last processes a moment to leave.
pub async fn remove_cgroup(context: &Context, parent: &str) -> Result<(), String> {
    let mut tries = 1;
    loop {
        match context.cgroups.remove(parent).await {
            Err(CgroupError::Remove { .. }) if tries < CGROUP_REMOVALS_MAX => tries += 1,
            done => return done.map_err(|error| chain(&error)),
        }
        tokio::time::sleep(CGROUP_REMOVAL_WAIT).await;
    }
}
