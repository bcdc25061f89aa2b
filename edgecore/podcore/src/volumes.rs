//! What each volume of a pod is on this node: a directory, a path of the host, or files to write.

mod files;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::claims::{ClaimError, HostPathSource, NfsSource, PersistentVolume, Source, bound};
use crate::env::{FieldError, NodeFields};
use crate::materials::Materials;
use crate::pod::PodView;
use crate::quantity;

/// How a volume is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSetup {
    /// A directory of the pod's own.
    EmptyDir(Medium),
    /// A path of the node, checked for its type (`hostPath.type`, empty for none).
    HostPath {
        /// The path.
        path: String,
        /// `DirectoryOrCreate`, `File`, ... or empty.
        kind: String,
    },
    /// A directory of the node, bound to the volume's, or a disk, mounted there.
    Local {
        /// The directory or the disk.
        path: String,
        /// The file system of a disk.
        fs_type: String,
        /// How it is bound.
        options: Vec<String>,
        /// Nothing of the pod writes to it.
        read_only: bool,
        /// The group may have what is in it since before: its directory shows that.
        only_if_mismatch: bool,
    },
    /// What a server exports.
    Nfs {
        /// Name or address of the server.
        server: String,
        /// What of it.
        path: String,
        /// How it is mounted.
        options: Vec<String>,
        /// Nothing of the pod writes to it.
        read_only: bool,
    },
    /// Files, replaced as one by an atomic swap.
    Files {
        /// By path relative to the volume.
        files: BTreeMap<String, File>,
        /// On a tmpfs, because they are secret.
        memory: bool,
    },
}

/// What an emptyDir is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// The disk.
    Disk,
    /// Memory, a tmpfs.
    Memory {
        /// Its size in bytes.
        size_limit: Option<u64>,
    },
    /// Huge pages of so many bytes each.
    HugePages(u64),
}

/// One file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner, if not root.
    pub uid: Option<u32>,
}

impl std::fmt::Debug for File {
    /// Says how much, never what: it may be a Secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, mode {:o}", self.data.len(), self.mode)
    }
}

/// Why a volume cannot be set up; the kubelet's Event is `FailedMount`.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A key that `items` names is not there.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {missing}: {key}")]
    NoKey {
        /// The volume.
        volume: String,
        /// What is missing, in the kubelet's words.
        missing: &'static str,
        /// The key.
        key: String,
    },
    /// A ConfigMap or Secret is not there.
    #[error("volume {volume}: {kind} \"{name}\" not found")]
    Missing {
        /// The volume.
        volume: String,
        /// configmap or secret.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A token has not arrived.
    #[error("volume {volume}: the service account token is not here yet")]
    NoToken {
        /// The volume.
        volume: String,
    },
    /// A field of the downward API does not exist.
    #[error("volume {volume}: {source}")]
    Field {
        /// The volume.
        volume: String,
        /// Why.
        source: FieldError,
    },
    /// A path that leaves the volume.
    #[error("volume {volume}: path {path:?} leaves the volume")]
    Path {
        /// The volume.
        volume: String,
        /// The path.
        path: String,
    },
    /// Its data are on another node.
    #[error(
        "MountVolume.NodeAffinity check failed for volume \"{volume}\" : no matching NodeSelectorTerms"
    )]
    Elsewhere {
        /// The volume of the cluster.
        volume: String,
    },
    /// Its claim cannot be used.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Huge pages of no size, or of several.
    #[error("volume {volume}: {why}")]
    HugePages {
        /// The volume.
        volume: String,
        /// The kubelet's words.
        why: String,
    },
    /// A kind of volume this build does not set up.
    #[error("volume {volume} is of a kind that this node does not support")]
    Unsupported {
        /// The volume, of the pod or the cluster.
        volume: String,
    },
}

/// Plugin names of volumes of the cluster.
const LOCAL_PLUGIN: &str = "kubernetes.io/local-volume";
const NFS_PLUGIN: &str = "kubernetes.io/nfs";
/// The file system of a disk whose volume names none (kubelet: `defaultFSType`).
const FS_TYPE_DEFAULT: &str = "ext4";

/// Where a volume is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a path of the host.
    Host(String),
    /// In a directory of the pod.
    Own {
        /// The kubelet's plugin name, which names its directory.
        plugin: &'static str,
        /// The volume's name, of the pod or the cluster.
        name: String,
    },
}

/// Decides where one volume is.
pub fn place(pod: &PodView, volume: &Volume, materials: &Materials) -> Result<Place, VolumeError> {
    if let Some(bound) = bound(pod, volume, materials)? {
        return place_of(bound);
    }
    if let Some(host) = &volume.host_path {
        return Ok(Place::Host(host.path.clone()));
    }

    Ok(Place::Own { plugin: plugin(volume), name: volume.name.clone() })
}

/// Where a volume of the cluster is.
pub fn place_of(volume: &PersistentVolume) -> Result<Place, VolumeError> {
    let name = volume.name().to_owned();
    match volume.source() {
        Some(Source::HostPath(host)) => Ok(Place::Host(host.path.clone())),
        Some(Source::Local(_)) => Ok(Place::Own { plugin: LOCAL_PLUGIN, name }),
        Some(Source::Nfs(_)) => Ok(Place::Own { plugin: NFS_PLUGIN, name }),
        None => Err(VolumeError::Unsupported { volume: name }),
    }
}

/// Checks that a volume of the cluster is one of a node with these labels: the same path of another node
/// has other data (kubelet: `checkNodeAffinity`).
pub fn check_node(
    pod: &PodView,
    volume: &Volume,
    materials: &Materials,
    labels: &BTreeMap<String, String>,
) -> Result<(), VolumeError> {
    match bound(pod, volume, materials)? {
        Some(bound) if !bound.is_for(labels) => {
            Err(VolumeError::Elsewhere { volume: bound.name().to_owned() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether a volume at that place may be labelled for its pod (kubelet: `Attributes`).
pub fn is_relabelled(volume: &Volume, place: &Place) -> bool {
    match place {
        Place::Host(_) => false,
        Place::Own { plugin, .. } if *plugin == LOCAL_PLUGIN => !is_read_only(volume),
        Place::Own { plugin, .. } => *plugin != NFS_PLUGIN,
    }
}

/// Whether no container may write to the volume, whatever its mounts say: files of the agent, and what the
/// pod itself mounts only to read.
pub fn is_read_only(volume: &Volume) -> bool {
    let claim = volume.persistent_volume_claim.as_ref();

    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
        || claim.is_some_and(|claim| claim.read_only == Some(true))
        || volume.nfs.as_ref().is_some_and(|nfs| nfs.read_only == Some(true))
}

/// The kubelet's plugin name of a volume without a claim.
fn plugin(volume: &Volume) -> &'static str {
    if volume.empty_dir.is_some() {
        "kubernetes.io/empty-dir"
    } else if volume.config_map.is_some() {
        "kubernetes.io/configmap"
    } else if volume.secret.is_some() {
        "kubernetes.io/secret"
    } else if volume.downward_api.is_some() {
        "kubernetes.io/downward-api"
    } else if volume.projected.is_some() {
        "kubernetes.io/projected"
    } else if volume.nfs.is_some() {
        NFS_PLUGIN
    } else {
        "kubernetes.io/host-path"
    }
}

/// Decides about one volume.
pub fn setup(
    pod: &PodView,
    volume: &Volume,
    materials: &Materials,
    node: &NodeFields,
) -> Result<VolumeSetup, VolumeError> {
    if let Some(dir) = &volume.empty_dir {
        let medium = medium(pod, dir)
            .map_err(|why| VolumeError::HugePages { volume: volume.name.clone(), why })?;
        return Ok(VolumeSetup::EmptyDir(medium));
    }
    if let Some(host) = &volume.host_path {
        let kind = host.type_.clone().unwrap_or_default();
        return Ok(VolumeSetup::HostPath { path: host.path.clone(), kind });
    }
    if let Some(nfs) = &volume.nfs {
        let (server, path) = (nfs.server.clone(), nfs.path.clone());
        let read_only = is_read_only(volume);
        return Ok(VolumeSetup::Nfs { server, path, options: Vec::new(), read_only });
    }
    if let Some(bound) = bound(pod, volume, materials)? {
        return of_persistent(pod, bound, is_read_only(volume));
    }

    files::setup(pod, volume, materials, node)
}

fn medium(pod: &PodView, dir: &EmptyDirVolumeSource) -> Result<Medium, String> {
    let name = dir.medium.as_deref().unwrap_or_default();
    if let Some(size) = name.strip_prefix("HugePages") {
        return huge_pages(pod, size.strip_prefix('-')).map(Medium::HugePages);
    }
    let size = dir.size_limit.as_ref().and_then(quantity::units);
    let size_limit = size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0);

    Ok(if name == "Memory" { Medium::Memory { size_limit } } else { Medium::Disk })
}

/// The size of the pages of a medium, which containers must request (kubelet: `getPageSizeMountOption`).
fn huge_pages(pod: &PodView, size: Option<&str>) -> Result<u64, String> {
    let bytes = |size: &str| {
        let units = quantity::units(&Quantity(size.to_owned()))?;
        u64::try_from(units).ok().filter(|bytes| *bytes > 0)
    };
    let requests = pod.admitted_containers().filter_map(|container| container.resources.as_ref());
    let requests = requests.flat_map(|resources| resources.requests.iter().flatten());
    let sizes = requests.filter_map(|(name, _)| bytes(name.strip_prefix("hugepages-")?));
    let mut sizes: BTreeSet<u64> = sizes.collect();
    let medium = size.map_or_else(|| "HugePages".to_owned(), |size| format!("HugePages-{size}"));
    if let Some(size) = size {
        sizes.retain(|other| Some(*other) == bytes(size));
    }
    match (sizes.first(), sizes.len()) {
        (Some(only), 1) => Ok(*only),
        (Some(_), _) => Err(format!(
            "medium: {medium} can't be used if container requests multiple huge page sizes"
        )),
        (None, _) => Err(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )),
    }
}

/// Sets up a volume of the cluster.
fn of_persistent(
    pod: &PodView,
    volume: &PersistentVolume,
    read_only: bool,
) -> Result<VolumeSetup, VolumeError> {
    match volume.source() {
        Some(Source::HostPath(HostPathSource { path, kind })) => {
            Ok(VolumeSetup::HostPath { path: path.clone(), kind: kind.clone() })
        }
        Some(Source::Local(local)) => {
            let context = pod.spec().security_context.as_ref();
            let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
            Ok(VolumeSetup::Local {
                path: local.path.clone(),
                fs_type: local.fs_type.clone().unwrap_or_else(|| FS_TYPE_DEFAULT.to_owned()),
                options: volume.mount_options(),
                read_only,
                only_if_mismatch: policy == Some("OnRootMismatch"),
            })
        }
        Some(Source::Nfs(NfsSource { server, path })) => Ok(VolumeSetup::Nfs {
            server: server.clone(),
            path: path.clone(),
            options: volume.mount_options(),
            read_only,
        }),
        None => Err(VolumeError::Unsupported { volume: volume.name().to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(medium: &str, requests: &Value, expected: &str) {
        let pod = json!({ "metadata": { "uid": "p-1", "namespace": "shop", "name": "web" },
            "spec": { "containers": [{ "name": "a", "resources": { "requests": requests } }],
                "volumes": [{ "name": "v", "emptyDir": { "medium": medium } }] } });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let volume = &pod.spec().volumes.as_ref().unwrap()[0];
        let made = setup(&pod, volume, &Materials::default(), &NodeFields::default());
        let made = made.map_or_else(|error| error.to_string(), |made| format!("{made:?}"));
        assert_eq!(made, expected, "{medium} {requests}");
    }

    #[test]
    fn a_volume_of_the_cluster_is_used_on_its_own_node_only() {
        let pod = json!({ "metadata": { "uid": "p-1", "namespace": "shop", "name": "web" },
            "spec": { "containers": [], "volumes":
                [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] } });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let volume = &pod.spec().volumes.as_ref().unwrap()[0];
        let claim = json!({ "metadata": { "uid": "c-1" }, "spec": { "volumeName": "disk" },
            "status": { "phase": "Bound" } });
        let labels = [("kubernetes.io/hostname".to_owned(), "edge".to_owned())].into();
        let check = |affinity: Value, is_here: bool| {
            let disk = json!({ "metadata": { "name": "disk" }, "spec": {
                "claimRef": { "uid": "c-1" }, "local": { "path": "/data" },
                "nodeAffinity": affinity } });
            let materials = Materials {
                claims: [("data".to_owned(), serde_json::from_value(claim.clone()).unwrap())]
                    .into(),
                volumes: [("disk".to_owned(), serde_json::from_value(disk).unwrap())].into(),
                ..Materials::default()
            };
            let checked = check_node(&pod, volume, &materials, &labels);
            let why = "MountVolume.NodeAffinity check failed for volume \"disk\" : no matching NodeSelectorTerms";
            let expected = if is_here { String::new() } else { why.to_owned() };
            assert_eq!(
                checked.err().map_or_else(String::new, |e| e.to_string()),
                expected,
                "{affinity}"
            );
        };
        let on = |nodes: Value| {
            let one = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": nodes });
            json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [one] }] } })
        };
        let named = json!({ "key": "metadata.name", "operator": "In", "values": ["edge"] });
        let named = json!({ "required": { "nodeSelectorTerms": [{ "matchFields": [named] }] } });
        check(Value::Null, true);
        check(json!({}), true);
        check(on(json!(["other", "edge"])), true);
        check(on(json!(["other"])), false);
        check(named, false);
    }

    #[test]
    fn huge_pages_are_of_the_size_that_containers_request() {
        let (small, large) = (json!({ "hugepages-2Mi": "4Mi" }), json!({ "hugepages-1Gi": "1Gi" }));
        let both = json!({ "hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi", "cpu": "1" });
        let of = |bytes: u64| format!("EmptyDir(HugePages({bytes}))");
        let none = "hugePages storage requested, but there is no resource request for huge pages";
        check("HugePages", &small, &of(2 << 20));
        check("HugePages-1Gi", &large, &of(1 << 30));
        check("HugePages-2Mi", &both, &of(2 << 20));
        check(
            "HugePages",
            &both,
            "volume v: medium: HugePages can't be used if container requests multiple huge page sizes",
        );
        check("HugePages", &json!({ "cpu": "1" }), &format!("volume v: medium HugePages: {none}"));
        check("HugePages-2Mi", &large, &format!("volume v: medium HugePages-2Mi: {none}"));
    }
}
