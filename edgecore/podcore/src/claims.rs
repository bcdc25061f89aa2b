//! Claims and the volumes that they are bound to: what a node uses of them, and in the kubelet's words why
//! a pod has to wait for one (`volumemanager/populator`). Also RuntimeClasses, of which only a name counts.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelector, Volume};
use serde::{Deserialize, Serialize};

use crate::admission::affinity::selects;
use crate::materials::Materials;
use crate::pod::PodView;

/// With this finalizer a claim stays until no pod uses it.
const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Deserialize)]
pub struct Claim {
    metadata: ClaimMetadata,
    #[serde(default)]
    spec: ClaimSpec,
    #[serde(default)]
    status: ClaimStatus,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimMetadata {
    uid: String,
    #[serde(default)]
    deletion_timestamp: Option<String>,
    #[serde(default)]
    finalizers: Vec<String>,
    #[serde(default)]
    owner_references: Vec<Owner>,
}

#[derive(Clone, Debug, Deserialize)]
struct Owner {
    uid: String,
    #[serde(default)]
    controller: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSpec {
    #[serde(default)]
    volume_name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct ClaimStatus {
    #[serde(default)]
    phase: String,
}

/// What a node uses of a PersistentVolume; one that is not of the kinds that it mounts has no source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistentVolume {
    metadata: VolumeMetadata,
    #[serde(default)]
    spec: VolumeSpec,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct VolumeMetadata {
    name: String,
    #[serde(default)]
    annotations: VolumeAnnotations,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct VolumeAnnotations {
    /// Mount options, from before there was a field for them.
    #[serde(
        rename = "volume.beta.kubernetes.io/mount-options",
        skip_serializing_if = "Option::is_none"
    )]
    mount_options: Option<String>,
    /// The group that may write to it.
    #[serde(rename = "pv.beta.kubernetes.io/gid", skip_serializing_if = "Option::is_none")]
    group: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct VolumeSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    claim_ref: Option<ClaimRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volume_mode: Option<String>,
    mount_options: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<LocalSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_path: Option<HostPathSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nfs: Option<NfsSource>,
    /// Counts until it is set up.
    #[serde(skip_serializing)]
    node_affinity: Option<NodeAffinity>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct NodeAffinity {
    required: Option<NodeSelector>,
}

/// It is made of texts.
impl Eq for NodeAffinity {}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ClaimRef {
    #[serde(default)]
    uid: String,
}

/// `spec.local`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalSource {
    /// A directory of the node, or a disk.
    pub path: String,
    /// The file system of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs_type: Option<String>,
}

/// `spec.hostPath`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPathSource {
    /// On the node.
    pub path: String,
    /// What must be there; empty for anything.
    #[serde(default, rename = "type")]
    pub kind: String,
}

/// `spec.nfs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfsSource {
    /// Name or address of the server.
    pub server: String,
    /// What it exports.
    pub path: String,
}

/// A RuntimeClass.
#[derive(Clone, Debug, Deserialize)]
pub struct RuntimeClass {
    /// What the runtime calls it.
    pub handler: String,
}

impl Claim {
    /// The volume that the claim names.
    pub fn volume_name(&self) -> Option<&str> {
        Some(self.spec.volume_name.as_str()).filter(|name| !name.is_empty())
    }
}

impl PersistentVolume {
    /// `metadata.name`, which names its directory.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// How it is to be mounted.
    pub fn mount_options(&self) -> Vec<String> {
        let old = self.metadata.annotations.mount_options.as_ref();
        let old = old.map_or_else(Vec::new, |old| old.split(',').map(str::to_owned).collect());

        if self.spec.mount_options.is_empty() { old } else { self.spec.mount_options.clone() }
    }

    /// Whether it can be used on a node with these labels (storage helpers: `CheckNodeAffinity`). Fields do
    /// not count: the node has no name here.
    pub fn is_for(&self, labels: &BTreeMap<String, String>) -> bool {
        let affinity = self.spec.node_affinity.as_ref();
        let required = affinity.and_then(|affinity| affinity.required.as_ref());

        required.is_none_or(|terms| selects(terms, labels, ""))
    }

    /// Where its data are.
    pub fn source(&self) -> Option<Source<'_>> {
        let VolumeSpec { local, host_path, nfs, .. } = &self.spec;

        match (local, host_path, nfs) {
            (Some(local), _, _) => Some(Source::Local(local)),
            (_, Some(host_path), _) => Some(Source::HostPath(host_path)),
            (_, _, Some(nfs)) => Some(Source::Nfs(nfs)),
            (None, None, None) => None,
        }
    }
}

/// Where the data of a volume are.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// In a directory of this node, bound to the volume's.
    Local(&'a LocalSource),
    /// At a path of this node, mounted as it is.
    HostPath(&'a HostPathSource),
    /// On a server.
    Nfs(&'a NfsSource),
}

/// Why a claim cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// Nothing can be made of the claim or its volume yet.
    #[error("error processing PVC {claim}: {why}")]
    Processing {
        /// Namespace and name.
        claim: String,
        /// What is wrong.
        why: String,
    },
    /// A claim of the name that the claim of an ephemeral volume should have.
    #[error("PVC {claim} was not created for pod {pod} (pod is not owner)")]
    NotOwned {
        /// Namespace and name.
        claim: String,
        /// Namespace and name.
        pod: String,
    },
    /// It has no file system.
    #[error("volume {volume} has volumeMode {mode}, but is specified in volumeMounts")]
    Mode {
        /// Name of the volume in the pod.
        volume: String,
        /// For example `Block`.
        mode: String,
    },
}

/// Name of the claim that a volume of the pod leads to.
pub fn claim_name(pod: &PodView, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(source), _) => Some(source.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name, volume.name)),
        (None, None) => None,
    }
}

/// The PersistentVolume of a volume of the pod, if it is one with a claim. What is set up for the pod serves
/// on if its claim does not any more (kubelet: `WaitForAttachAndMount`).
pub fn bound<'a>(
    pod: &PodView,
    volume: &Volume,
    materials: &'a Materials,
) -> Result<Option<&'a PersistentVolume>, ClaimError> {
    let Some(name) = claim_name(pod, volume) else { return Ok(None) };
    let set_up = materials.set_up.get(&volume.name);

    claimed(pod, volume, &name, materials).or_else(|lost| set_up.ok_or(lost)).map(Some)
}

/// All that volumes of the pod are bound to, by the name of the volume in the pod.
pub fn all_bound(pod: &PodView, materials: &Materials) -> BTreeMap<String, PersistentVolume> {
    let volumes = pod.spec().volumes.iter().flatten();
    let bound = volumes.filter_map(|volume| {
        let found = bound(pod, volume, materials).ok().flatten()?;
        Some((volume.name.clone(), found.clone()))
    });

    bound.collect()
}

fn claimed<'a>(
    pod: &PodView,
    volume: &Volume,
    name: &str,
    materials: &'a Materials,
) -> Result<&'a PersistentVolume, ClaimError> {
    let shown = format!("{}/{name}", pod.namespace);
    let processing = |why: String| ClaimError::Processing { claim: shown.clone(), why };
    let claim = materials.claims.get(name).ok_or_else(|| {
        let what = format!("persistentvolumeclaims \"{name}\" not found");
        processing(format!("failed to fetch PVC from API server: {what}"))
    })?;
    let is_protected = claim.metadata.finalizers.iter().any(|finalizer| finalizer == PROTECTION);
    if claim.metadata.deletion_timestamp.is_some() && !is_protected {
        return Err(processing("PVC is being deleted".to_owned()));
    }
    if claim.status.phase != "Bound" {
        return Err(processing("PVC is not bound".to_owned()));
    }
    let volume_name = claim
        .volume_name()
        .ok_or_else(|| processing("PVC has empty pvc.Spec.VolumeName".to_owned()))?;
    let is_ours = |owner: &Owner| owner.controller && owner.uid == pod.uid.as_str();
    if volume.ephemeral.is_some() && !claim.metadata.owner_references.iter().any(is_ours) {
        let pod = format!("{}/{}", pod.namespace, pod.name);
        return Err(ClaimError::NotOwned { claim: shown, pod });
    }
    let found = materials.volumes.get(volume_name).ok_or_else(|| {
        let what = format!("persistentvolumes \"{volume_name}\" not found");
        processing(format!("failed to fetch PV {volume_name} from API server: {what}"))
    })?;
    let of = found.spec.claim_ref.as_ref().map(|claim| claim.uid.as_str());
    if of != Some(claim.metadata.uid.as_str()) {
        let (of, uid) = (of.unwrap_or_default(), &claim.metadata.uid);
        return Err(processing(format!(
            "found PV object {volume_name} but its pv.Spec.ClaimRef.UID {of} does not point to claim.UID {uid}"
        )));
    }
    match found.spec.volume_mode.as_deref() {
        None | Some("Filesystem") => Ok(found),
        Some(mode) => Err(ClaimError::Mode { volume: volume.name.clone(), mode: mode.to_owned() }),
    }
}

/// Groups that volumes of the pod want its containers to be in, beside those that the pod names.
pub fn extra_groups(pod: &PodView, materials: &Materials) -> BTreeSet<i64> {
    let context = pod.spec().security_context.as_ref();
    let own =
        context.and_then(|context| context.supplemental_groups.as_deref()).unwrap_or_default();
    let volumes = pod.spec().volumes.iter().flatten();
    let bound = volumes.filter_map(|volume| bound(pod, volume, materials).ok().flatten());
    let groups =
        bound.filter_map(|volume| volume.metadata.annotations.group.as_ref()?.trim().parse().ok());

    groups.filter(|group| !own.contains(group)).collect()
}

/// What the runtime calls the pod's RuntimeClass; empty for its default. An error in the kubelet's words
/// (`runtimeclass.Manager`).
pub fn runtime_handler(pod: &PodView, materials: &Materials) -> Result<String, String> {
    let name = pod.spec().runtime_class_name.as_deref().filter(|name| !name.is_empty());
    let Some(name) = name else { return Ok(String::new()) };
    let class = materials.runtime_class.as_ref();

    class
        .map(|class| class.handler.clone())
        .ok_or_else(|| format!("runtimeclass.node.k8s.io \"{name}\" not found"))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::materials::references;
    use crate::memory::Memory;
    use crate::observed::Missing;
    use crate::plan::Outcome;

    fn claim() -> Value {
        json!({ "metadata": { "uid": "c-1" }, "spec": { "volumeName": "disk" },
            "status": { "phase": "Bound" } })
    }

    fn disk() -> Value {
        json!({ "metadata": { "name": "disk" },
            "spec": { "claimRef": { "uid": "c-1" }, "local": { "path": "/data" } } })
    }

    /// What comes of a pod's volume `v`, with the one claim and volume that there are.
    fn check(source: &Value, name: &str, claim: &Value, disk: &Value, expected: &str) {
        let mut volume = source.clone();
        volume["name"] = json!("v");
        let pod = json!({ "metadata": { "uid": "p-1", "namespace": "shop", "name": "web" },
            "spec": { "containers": [], "volumes": [volume] } });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let mut materials = Materials::default();
        if let Ok(claim) = serde_json::from_value(claim.clone()) {
            materials.claims.insert(name.to_owned(), claim);
        }
        if let Ok(disk) = serde_json::from_value(disk.clone()) {
            materials.volumes.insert("disk".to_owned(), disk);
        }
        let volume = &pod.spec().volumes.as_ref().unwrap()[0];
        let found = match bound(&pod, volume, &materials) {
            Ok(found) => found.map_or("none", PersistentVolume::name).to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_claim_is_used_once_it_and_its_volume_agree() {
        let named = json!({ "persistentVolumeClaim": { "claimName": "data" } });
        let with = |mut object: Value, path: &str, value: Value| {
            *object.pointer_mut(path).unwrap() = value;
            object
        };
        let deleted = json!({ "uid": "c-1", "deletionTimestamp": "2026-01-01T00:00:00Z" });
        let mut protected = deleted.clone();
        protected["finalizers"] = json!(["kubernetes.io/pvc-protection"]);
        let block = json!({ "claimRef": { "uid": "c-1" }, "volumeMode": "Block" });
        let own = |claim: Value, disk: Value, expected: &str| {
            let expected = expected.replace('#', "error processing PVC shop/data:");
            check(&named, "data", &claim, &disk, &expected);
        };
        own(claim(), disk(), "disk");
        own(
            Value::Null,
            disk(),
            "# failed to fetch PVC from API server: persistentvolumeclaims \"data\" not found",
        );
        own(with(claim(), "/status/phase", json!("Pending")), disk(), "# PVC is not bound");
        own(with(claim(), "/metadata", deleted), disk(), "# PVC is being deleted");
        own(with(claim(), "/metadata", protected), disk(), "disk");
        let missing = "persistentvolumes \"disk\" not found";
        own(claim(), Value::Null, &format!("# failed to fetch PV disk from API server: {missing}"));
        own(
            claim(),
            with(disk(), "/spec/claimRef/uid", json!("c-0")),
            "# found PV object disk but its pv.Spec.ClaimRef.UID c-0 does not point to claim.UID c-1",
        );
        let mode = "volume v has volumeMode Block, but is specified in volumeMounts";
        own(claim(), with(disk(), "/spec", block), mode);
        check(&json!({ "emptyDir": {} }), "data", &claim(), &disk(), "none");
    }

    #[test]
    fn what_is_set_up_serves_on_without_its_claim() {
        let pod = json!({ "metadata": { "uid": "p-1", "namespace": "shop", "name": "web" },
            "spec": { "containers": [], "volumes": [
                { "name": "v", "persistentVolumeClaim": { "claimName": "data" } },
                { "name": "w", "persistentVolumeClaim": { "claimName": "none" } } ] } });
        let pod = PodView::parse(pod.to_string().as_bytes()).unwrap();
        let mut full = disk();
        full["metadata"]["annotations"] =
            json!({ "pv.beta.kubernetes.io/gid": "7", "other": "not kept" });
        full["spec"]["mountOptions"] = json!(["noexec"]);
        let mut materials = Materials::default();
        materials.claims.insert("data".to_owned(), serde_json::from_value(claim()).unwrap());
        materials.volumes.insert("disk".to_owned(), serde_json::from_value(full).unwrap());

        // Noted once it is in place, and there when the agent starts again.
        let mut memory = Memory::default();
        let claimed = all_bound(&pod, &materials);
        memory.note(Outcome::VolumesReady { claimed }, Timestamp::UNIX_EPOCH);
        let kept = serde_json::to_string(&memory).unwrap();
        assert!(!kept.contains("not kept"), "{kept}");
        let memory: Memory = serde_json::from_str(&kept).unwrap();
        let lost = Materials { set_up: memory.claimed, ..Materials::default() };
        let missing = |materials| {
            let missing = references(&pod).missing(&pod, materials).into_iter();
            let volumes = missing.filter_map(|missing| match missing {
                Missing::Claim { volume, .. } => Some(volume),
                Missing::Object(_) | Missing::Token { .. } => None,
            });
            volumes.collect::<Vec<_>>()
        };
        assert_eq!(missing(&lost), ["w"]);
        assert_eq!(missing(&Materials::default()), ["v", "w"]);
        assert_eq!(all_bound(&pod, &lost), all_bound(&pod, &materials));
        assert_eq!(extra_groups(&pod, &lost), [7].into());
    }

    #[test]
    fn an_ephemeral_volume_takes_only_the_claim_that_was_made_for_it() {
        let ephemeral = json!({ "ephemeral": { "volumeClaimTemplate": { "spec": {} } } });
        let mut owned = claim();
        owned["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Pod",
            "name": "web", "uid": "p-1", "controller": true }]);
        check(&ephemeral, "web-v", &owned, &disk(), "disk");
        let other = "PVC shop/web-v was not created for pod shop/web (pod is not owner)";
        check(&ephemeral, "web-v", &claim(), &disk(), other);
        owned["metadata"]["ownerReferences"][0]["uid"] = json!("p-0");
        check(&ephemeral, "web-v", &owned, &disk(), other);
    }
}
