//! Removing what no pod owns any more: sandboxes, volumes, cgroups and logs of pods that are neither
//! desired nor known to a task, under the conditions of invariant 6.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podcore::pod::PodView;
use podcore::resources::CgroupDriver;
use proto::ids::Uid;

use super::act::{remove_cgroup, tear_down};
use super::context::Context;
use super::observe::Listed;
use crate::blocking;
use crate::layout::Layout;
use crate::volumes::remove::{gone_is_done, remove_tree};

/// Stops and removes the sandboxes of an orphan.
pub async fn remove_orphan(context: Arc<Context>, pod: Uid, listed: Listed) {
    tracing::info!(%pod, sandboxes = listed.sandboxes.len(), "removing what is left of a pod");
    for id in listed.sandboxes.keys() {
        let stopped = match context.runtime.stop_pod_sandbox(id).await {
            Ok(()) => context.runtime.remove_pod_sandbox(id).await,
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            // The next relist finds it again.
            tracing::warn!(%error, %pod, "an orphaned sandbox is still there");
        }
    }
}

/// Removes files and cgroups of pods that nobody knows. `alive` are pods that the runtime holds
/// something of.
pub async fn remove_leftovers(context: Arc<Context>, alive: BTreeSet<Uid>) {
    let orphan = |uid: &Uid| {
        !alive.contains(uid) && !context.registry.contains(uid) && context.desired.may_sweep(uid)
    };
    let layout = context.layout.clone();
    let found = blocking::run(move || Leftovers::find(&layout)).await;
    for (uid, dir) in found.pods.into_iter().filter(|(uid, _)| orphan(uid)) {
        tracing::info!(pod = %uid, "removing the volumes of a pod that is gone");
        if let Err(error) = tear_down(dir).await {
            tracing::warn!(%error, pod = %uid, "volumes of a pod that is gone are still there");
        }
    }
    for (uid, dir) in found.logs.into_iter().filter(|(uid, _)| orphan(uid)) {
        if let Err(error) = blocking::run(move || remove_tree(&dir)).await {
            tracing::warn!(%error, pod = %uid, "logs of a pod that is gone are still there");
        }
    }
    let links = context.layout.container_logs.clone();
    if let Err(error) = blocking::run(move || remove_broken_links(&links)).await {
        tracing::warn!(%error, "links to logs that are gone are still there");
    }
    for (uid, parent) in cgroups(&context) {
        if orphan(&uid)
            && let Err(error) = remove_cgroup(&context, &parent).await
        {
            tracing::warn!(error, pod = %uid, "the cgroup of a pod that is gone is still there");
        }
    }
}

/// Directories by the UID in their names.
#[derive(Debug, Default)]
struct Leftovers {
    pods: Vec<(Uid, PathBuf)>,
    logs: Vec<(Uid, PathBuf)>,
}

impl Leftovers {
    fn find(layout: &Layout) -> Self {
        let uid_of_log = |name: &str| name.rsplit_once('_').map(|(_, uid)| uid.to_owned());

        Self {
            pods: named(&layout.pods(), |name| Some(name.to_owned())),
            logs: named(&layout.pod_logs, uid_of_log),
        }
    }
}

fn named(dir: &Path, uid: impl Fn(&str) -> Option<String>) -> Vec<(Uid, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();

    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((Uid::new(uid(&name)?).ok()?, entry.path()))
        })
        .collect()
}

/// Cgroups named after pods, with what the runtime would call them.
fn cgroups(context: &Context) -> Vec<(Uid, String)> {
    let mut found = Vec::new();
    for class in ["", "burstable", "besteffort"] {
        let parent = class_cgroup(&context.cgroup_root, context.cgroup_driver, class);
        for name in context.cgroups.children(&parent) {
            let (uid, path) = match context.cgroup_driver {
                CgroupDriver::Cgroupfs => {
                    (name.strip_prefix("pod").map(str::to_owned), format!("{parent}/{name}"))
                }
                CgroupDriver::Systemd => {
                    let uid = name.strip_suffix(".slice").and_then(|n| n.rsplit_once("-pod"));
                    (uid.map(|(_, uid)| uid.replace('_', "-")), name)
                }
            };
            found.extend(uid.and_then(|uid| Uid::new(uid).ok()).map(|uid| (uid, path)));
        }
    }

    found
}

/// The cgroup of a QoS class, empty for the one above all pods, as podcore names those of pods.
pub fn class_cgroup(root: &str, driver: CgroupDriver, class: &str) -> String {
    match (driver, class) {
        (CgroupDriver::Cgroupfs, "") => format!("{}/kubepods", root.trim_end_matches('/')),
        (CgroupDriver::Cgroupfs, class) => {
            format!("{}/kubepods/{class}", root.trim_end_matches('/'))
        }
        (CgroupDriver::Systemd, "") => "kubepods.slice".to_owned(),
        (CgroupDriver::Systemd, class) => format!("kubepods-{class}.slice"),
    }
}

/// Removes the logs of a pod that is gone, and the links to them.
pub async fn remove_logs(layout: &Layout, pod: &PodView) {
    let dir = layout.logs(&pod.namespace, &pod.name, &pod.uid);
    let links = layout.container_logs.clone();
    let removed = blocking::run(move || {
        remove_tree(&dir)?;
        remove_broken_links(&links)
    });
    if let Err(error) = removed.await {
        tracing::warn!(%error, pod = %pod.uid, "logs of a pod that is gone are still there");
    }
}

/// Removes links whose log is gone.
fn remove_broken_links(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return gone_is_done(Err(error)),
    };
    for entry in entries {
        let path = entry?.path();
        let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
        if is_link && !path.exists() {
            gone_is_done(fs::remove_file(&path))?;
        }
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_found_by_the_uid_in_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout {
            root: dir.path().into(),
            pod_logs: dir.path().join("logs"),
            container_logs: dir.path().join("links"),
        };
        for made in ["pods/u-1", "logs/ns_web-1_u-2", "logs/odd", "links"] {
            fs::create_dir_all(dir.path().join(made)).unwrap();
        }
        let found = Leftovers::find(&layout);
        let uids = |found: &[(Uid, PathBuf)]| {
            found.iter().map(|(uid, _)| uid.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(uids(&found.pods), ["u-1"]);
        assert_eq!(uids(&found.logs), ["u-2"]);
    }

    #[test]
    fn only_broken_links_go() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("log"), "").unwrap();
        std::os::unix::fs::symlink(at("log"), at("good")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("broken")).unwrap();
        remove_broken_links(dir.path()).unwrap();
        remove_broken_links(&at("missing")).unwrap();

        assert!(at("good").exists() && fs::symlink_metadata(at("broken")).is_err());
    }
}
