//! Removes this node's pods from the runtime, and their cgroups. Of others nothing is touched.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use cri::{CriError, Runtime};
use cri_api::v1;
use edgecore::Config;
use edgecore::config::CgroupDriver as Configured;
use edgecore::node::cgroups::{CgroupError, Cgroups};
use edgecore::pods::sweep::class_cgroup;
use podcore::resources::CgroupDriver;
use podcore::translate::{GRACE_ANNOTATION, POD_NAME_LABEL, POD_UID_LABEL};
use tokio::task::JoinSet;

use super::Outcome;
use super::ours::Ours;
use crate::{held, ui, unit};

/// What a container gets to stop if nothing says how long, and at most.
const GRACE: Duration = Duration::from_secs(30);
/// Tries to remove a cgroup: its last processes need a moment.
const CGROUP_TRIES: u32 = 20;
const CGROUP_WAIT: Duration = Duration::from_millis(100);

/// Stops and removes them all, and notes their UIDs.
pub(super) async fn remove(config: &Config, ours: &mut Ours) -> Outcome {
    let runtime = Runtime::new(&config.runtime_socket.to_string_lossy());
    let runtime = runtime.map_err(|error| ui::chain(&error))?;
    let (sandboxes, containers) =
        held::by(&runtime, config).await.map_err(|error| ui::chain(&error))?;
    let uid = |labels: &BTreeMap<String, String>| labels.get(POD_UID_LABEL).cloned();
    ours.uids.extend(sandboxes.iter().filter_map(|sandbox| uid(&sandbox.labels)));
    ours.uids.extend(containers.iter().filter_map(|container| uid(&container.labels)));
    let (pods, total) = (sandboxes.len(), containers.len());
    let mut failed = stop_all(&runtime, containers).await;
    for sandbox in sandboxes {
        let name = sandbox.labels.get(POD_NAME_LABEL).unwrap_or(&sandbox.id);
        let removed = match runtime.stop_pod_sandbox(&sandbox.id).await {
            Ok(()) => runtime.remove_pod_sandbox(&sandbox.id).await,
            Err(error) => Err(error),
        };
        failed.extend(failure(removed).map(|why| format!("pod {name}: {why}")));
    }

    match failed.as_slice() {
        [] => Ok(format!("removed {pods} pods with {total} containers")),
        failed => Err(failed.join("; ")),
    }
}

/// Stops all at once, each with the grace of its pod, and removes them; answers what failed.
async fn stop_all(runtime: &Runtime, containers: Vec<v1::Container>) -> Vec<String> {
    let mut stopping = JoinSet::new();
    for container in containers {
        let runtime = runtime.clone();
        stopping.spawn(async move {
            let name = container.metadata.as_ref().map(|metadata| metadata.name.clone());
            let grace = grace(&container);
            let removed = match runtime.stop_container(&container.id, grace).await {
                Ok(()) => runtime.remove_container(&container.id).await,
                Err(error) => Err(error),
            };
            let name = name.unwrap_or_else(|| container.id.clone());
            failure(removed).map(|why| format!("container {name}: {why}"))
        });
    }

    stopping.join_all().await.into_iter().flatten().collect()
}

fn grace(container: &v1::Container) -> Duration {
    let said = container.annotations.get(GRACE_ANNOTATION).and_then(|text| text.parse().ok());

    said.map_or(GRACE, Duration::from_secs).min(GRACE)
}

/// What is gone already is done.
fn failure(removed: Result<(), CriError>) -> Option<String> {
    removed.err().filter(|error| !error.is_not_found()).map(|error| error.to_string())
}

/// Removes the cgroups of these pods, and those above them unless others have pods there.
pub(super) async fn cgroups(config: &Config, ours: &Ours) -> Outcome {
    let found = Cgroups::detect().map_err(|error| ui::chain(&error))?;
    let mut failed = Vec::new();
    for driver in drivers(config) {
        let cgroups = match driver {
            CgroupDriver::Cgroupfs => found.clone(),
            CgroupDriver::Systemd => found.clone().with_systemd(&config.system_bus),
        };
        for class in ["burstable", "besteffort", ""] {
            let parent = class_cgroup(&config.cgroup_root, driver, class);
            let children = cgroups.children(&parent);
            let of_pods = children.iter().filter(|name| is_of(name, ours));
            for name in of_pods {
                let path = match driver {
                    CgroupDriver::Cgroupfs => format!("{parent}/{name}"),
                    CgroupDriver::Systemd => name.clone(),
                };
                failed.extend(remove_cgroup(&cgroups, &path).await);
            }
            if cgroups.children(&parent).iter().any(|name| name.contains("pod")) {
                // Somebody else's.
                continue;
            }
            failed.extend(remove_cgroup(&cgroups, &parent).await);
        }
    }

    match failed.as_slice() {
        [] => Ok("none are left".to_owned()),
        failed => Err(failed.join("; ")),
    }
}

/// Those that may have named them.
fn drivers(config: &Config) -> Vec<CgroupDriver> {
    let has_systemd = Path::new(unit::SYSTEMD).exists();
    match config.cgroup_driver {
        Configured::Systemd => vec![CgroupDriver::Systemd],
        Configured::Auto if has_systemd => vec![CgroupDriver::Cgroupfs, CgroupDriver::Systemd],
        Configured::Auto | Configured::Cgroupfs => vec![CgroupDriver::Cgroupfs],
    }
}

fn is_of(name: &str, ours: &Ours) -> bool {
    let plain = name.trim_end_matches(".slice").replace('_', "-");

    ours.uids.iter().any(|uid| plain.ends_with(&format!("pod{uid}")))
}

async fn remove_cgroup(cgroups: &Cgroups, path: &str) -> Option<String> {
    let mut tries = 1;
    loop {
        match cgroups.remove(path).await {
            Ok(()) => return None,
            Err(CgroupError::Remove { .. }) if tries < CGROUP_TRIES => tries += 1,
            Err(error) => return Some(ui::chain(&error)),
        }
        tokio::time::sleep(CGROUP_WAIT).await;
    }
}
