//! Where things of a pod are on this node: the kubelet's layout, so that log collectors, device
//! plugins and people find what they know.

use std::path::{Path, PathBuf};

use podcore::volumes::Place;

/// Longest file name, without `.log`, of a link in the containers' log directory (as the kubelet).
const LOG_LINK_BYTES_MAX: usize = 251;

/// The directories of this node.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The kubelet's root directory.
    pub root: PathBuf,
    /// Log files by pod.
    pub pod_logs: PathBuf,
    /// Links to log files by container.
    pub container_logs: PathBuf,
}

impl Layout {
    /// Directory that holds one directory a pod.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Directory of the pod. `uid` is checked by its type to be a plain file name.
    pub fn pod(&self, uid: &proto::ids::Uid) -> PathBuf {
        self.pods().join(uid.as_str())
    }

    /// The file mounted as /etc/hosts.
    pub fn etc_hosts(&self, uid: &proto::ids::Uid) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    /// Directory of a volume: `plugin` as in `kubernetes.io/empty-dir`.
    fn volume(&self, uid: &proto::ids::Uid, plugin: &str, name: &str) -> PathBuf {
        self.pod(uid).join("volumes").join(plugin.replace('/', "~")).join(name)
    }

    /// Where a volume is. Its name comes from the API server: one that is no file name is refused.
    pub fn place(&self, uid: &proto::ids::Uid, place: &Place) -> Result<PathBuf, String> {
        match place {
            Place::Host(path) => Ok(PathBuf::from(path)),
            Place::Own { plugin, name } if is_file_name(name) => Ok(self.volume(uid, plugin, name)),
            Place::Own { name, .. } => Err(format!("volume {name:?} has a name that is not one")),
        }
    }

    /// Directory of what belongs to one container, for example its termination log.
    pub fn container(&self, uid: &proto::ids::Uid, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    /// Where a part of a volume is bound, by the place of its mount in the container's list.
    pub fn sub_path(
        &self,
        uid: &proto::ids::Uid,
        volume: &str,
        container: &str,
        at: usize,
    ) -> PathBuf {
        let of_volume = self.pod(uid).join("volume-subpaths").join(volume);

        of_volume.join(container).join(at.to_string())
    }

    /// Directory of the pod's log files.
    pub fn logs(&self, namespace: &str, name: &str, uid: &proto::ids::Uid) -> PathBuf {
        self.pod_logs.join(format!("{namespace}_{name}_{uid}"))
    }

    /// The link to a container's log file.
    pub fn log_link(&self, namespace: &str, pod: &str, container: &str, id: &str) -> PathBuf {
        let mut name = format!("{pod}_{namespace}_{container}-{id}");
        name.truncate(name.floor_char_boundary(LOG_LINK_BYTES_MAX));
        name.push_str(".log");

        self.container_logs.join(name)
    }
}

/// Whether `name` is one plain file name, as every name from the API server must be before it
/// becomes part of a path.
pub fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();

    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(part)), None)
        if part.len() == name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kubelets() {
        let layout = Layout {
            root: "/var/lib/kubelet".into(),
            pod_logs: "/var/log/pods".into(),
            container_logs: "/var/log/containers".into(),
        };
        let uid = proto::ids::Uid::new("u1").unwrap();

        assert_eq!(
            layout.volume(&uid, "kubernetes.io/empty-dir", "cache"),
            Path::new("/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/cache")
        );
        assert_eq!(layout.logs("ns", "web", &uid), Path::new("/var/log/pods/ns_web_u1"));
        assert_eq!(
            layout.log_link("ns", "web", "app", "c0ffee"),
            Path::new("/var/log/containers/web_ns_app-c0ffee.log")
        );
        let long = layout.log_link("ns", &"p".repeat(253), "app", "c0ffee");
        assert_eq!(long.file_name().unwrap().len(), 255);
    }

    #[test]
    fn only_plain_names_become_paths() {
        for (name, plain) in
            [("a", true), ("..", false), ("a/b", false), ("", false), ("/", false), ("a/", false)]
        {
            assert_eq!(is_file_name(name), plain, "{name}");
        }
    }
}
