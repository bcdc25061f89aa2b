//! Volumes of which the kubelet tells how full they are, and what it tells in `/metrics`
//! (`pkg/kubelet/metrics/collectors/volume_stats.go`).

use std::collections::BTreeMap;

use super::text::{Kind, Text, Value};
use super::{PvcRef, VolumeUsage};
use crate::claims::claim_name;
use crate::materials::Materials;
use crate::pod::PodView;
use crate::volumes::{Place, place};

/// How a volume is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All that is in its directory is added up.
    Contents,
    /// Its file system says it, which is mounted at its directory.
    FileSystem,
}

/// A volume that is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Its name in the pod.
    pub name: String,
    /// Its claim.
    pub claim: Option<PvcRef>,
    /// Where it is.
    pub place: Place,
    /// How it is measured.
    pub by: By,
    /// It takes of the disk space that the pod may have (kubelet: `IsLocalEphemeralVolume`).
    pub is_ephemeral: bool,
}

/// The volumes of the pod that are measured: those at paths of the host and images are not, nor those of
/// which `materials` do not tell enough.
pub fn measured(pod: &PodView, materials: &Materials) -> Vec<Measured> {
    let volumes = pod.spec().volumes.iter().flatten().filter_map(|volume| {
        let place = place(pod, volume, materials).ok()?;
        let Place::Own { plugin, .. } = &place else { return None };
        let is_known = volume.image.is_none() && *plugin != "kubernetes.io/host-path";
        let is_file_system = volume.nfs.is_some() || claim_name(pod, volume).is_some();
        let on_disk = |medium: &Option<String>| medium.as_deref().unwrap_or_default().is_empty();
        let claim =
            claim_name(pod, volume).map(|name| PvcRef { name, namespace: pod.namespace.clone() });
        is_known.then(|| Measured {
            name: volume.name.clone(),
            claim,
            place,
            by: if is_file_system { By::FileSystem } else { By::Contents },
            is_ephemeral: volume.config_map.is_some()
                || volume.empty_dir.as_ref().is_some_and(|dir| on_disk(&dir.medium)),
        })
    });

    volumes.collect()
}

/// What a family tells of a volume.
type Number = fn(&VolumeUsage) -> u64;

/// Adds what is known of claims, once of each.
pub fn families(text: &mut Text, volumes: &[VolumeUsage]) {
    let claimed = volumes.iter().filter_map(|volume| Some((volume.claim.as_ref()?, volume)));
    let claims: BTreeMap<_, _> = claimed.collect();
    if claims.is_empty() {
        return;
    }
    let families: [(_, _, Number); 6] = [
        ("kubelet_volume_stats_available_bytes", "Number of available bytes in the volume", |of| {
            of.disk.available_bytes
        }),
        ("kubelet_volume_stats_capacity_bytes", "Capacity in bytes of the volume", |of| {
            of.disk.capacity_bytes
        }),
        ("kubelet_volume_stats_inodes", "Maximum number of inodes in the volume", |of| {
            of.disk.inodes
        }),
        ("kubelet_volume_stats_inodes_free", "Number of free inodes in the volume", |of| {
            of.disk.inodes_free
        }),
        ("kubelet_volume_stats_inodes_used", "Number of used inodes in the volume", |of| {
            of.taken.inodes.unwrap_or(0)
        }),
        ("kubelet_volume_stats_used_bytes", "Number of used bytes in the volume", |of| {
            of.taken.bytes
        }),
    ];
    for (name, help, number) in families {
        text.family(name, Kind::Gauge, &format!("[ALPHA] {help}"));
        for (claim, volume) in &claims {
            let labels =
                [("namespace", claim.namespace.as_str()), ("persistentvolumeclaim", &claim.name)];
            text.sample(&labels, Value::Count(number(volume)), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn volumes_of_the_kubelets_kinds_are_measured() {
        let pod = json!({ "metadata": { "uid": "p-1", "namespace": "shop", "name": "web" },
            "spec": { "containers": [{ "name": "a" }], "volumes": [
                { "name": "dir", "emptyDir": {} },
                { "name": "ram", "emptyDir": { "medium": "Memory" } },
                { "name": "files", "configMap": { "name": "c" } },
                { "name": "keys", "secret": { "secretName": "s" } },
                { "name": "own", "downwardAPI": {} },
                { "name": "all", "projected": { "sources": [] } },
                { "name": "there", "nfs": { "server": "s", "path": "/" } },
                { "name": "host", "hostPath": { "path": "/data" } },
                { "name": "tools", "image": { "reference": "tools:1" } },
                { "name": "disk", "persistentVolumeClaim": { "claimName": "disk" } },
                { "name": "on-host", "persistentVolumeClaim": { "claimName": "on-host" } },
                { "name": "none", "persistentVolumeClaim": { "claimName": "none" } },
                { "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } },
            ] } });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let mut materials = Materials::default();
        let sources = [
            ("disk", json!({ "local": { "path": "/disk" } })),
            ("on-host", json!({ "hostPath": { "path": "/disk" } })),
            ("web-scratch", json!({ "nfs": { "server": "s", "path": "/" } })),
        ];
        for (name, mut source) in sources {
            source["claimRef"] = json!({ "uid": name });
            let claim = json!({ "status": { "phase": "Bound" }, "spec": { "volumeName": name },
                "metadata": { "uid": name,
                    "ownerReferences": [{ "uid": "p-1", "controller": true }] } });
            let volume = json!({ "metadata": { "name": name }, "spec": source });
            materials.claims.insert(name.to_owned(), serde_json::from_value(claim).unwrap());
            materials.volumes.insert(name.to_owned(), serde_json::from_value(volume).unwrap());
        }
        let shown = measured(&pod, &materials).into_iter().map(|volume| {
            let claim = volume.claim.map(|claim| format!(" {}/{}", claim.namespace, claim.name));
            let ephemeral = if volume.is_ephemeral { " ephemeral" } else { "" };
            format!("{} {:?}{ephemeral}{}", volume.name, volume.by, claim.unwrap_or_default())
        });

        let expected = [
            "dir Contents ephemeral",
            "ram Contents",
            "files Contents ephemeral",
            "keys Contents",
            "own Contents",
            "all Contents",
            "there FileSystem",
            "disk FileSystem shop/disk",
            "scratch FileSystem shop/web-scratch",
        ];
        assert_eq!(shown.collect::<Vec<_>>(), expected);
    }
}
