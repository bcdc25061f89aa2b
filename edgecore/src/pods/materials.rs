//! Collects what a pod references from the desired state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use podcore::claims::{Claim, PersistentVolume};
use podcore::materials::{Materials, References, TokenAsk, refresh_at};
use podcore::observed::Missing;
use podcore::pod::PodView;
use podcore::volumes::{Place, place_of};
use proto::ids::{Kind, ObjectKey, Uid};
use serde::de::DeserializeOwned;

use crate::desired::Desired;
use crate::layout::Layout;
use crate::volumes::mounts;

/// What a pod references, as far as the node holds it.
#[derive(Debug)]
pub struct Gathered {
    /// The objects.
    pub materials: Arc<Materials>,
    /// What keeps the pod from starting.
    pub missing: Vec<Missing>,
    /// Tokens wanted and when the one held should be replaced (`None`: now).
    pub asks: Vec<(TokenAsk, Option<jiff::Timestamp>)>,
}

impl Gathered {
    /// Keys whose changes concern the pod; its own too.
    pub fn keys(&self, pod: &PodView, references: &References) -> BTreeSet<ObjectKey> {
        let named = |kind, name: &String| ObjectKey::named(kind, &pod.namespace, name);
        let config_maps = references.config_maps.keys().map(|name| named(Kind::ConfigMap, name));
        let secrets = references.secrets.keys().map(|name| named(Kind::Secret, name));
        let claims = references.claims.iter().map(|name| named(Kind::PersistentVolumeClaim, name));
        let tokens = references.tokens.iter().map(|ask| ObjectKey::token(&pod.uid, &ask.source));
        let volumes = self.materials.claims.values().filter_map(volume_key);
        let class = references.runtime_class.iter().map(|name| class_key(name));
        let own = config_maps.chain(secrets).chain(claims).chain(tokens);

        own.chain(volumes).chain(class).chain([ObjectKey::pod(&pod.uid)]).collect()
    }
}

fn volume_key(claim: &Claim) -> Option<ObjectKey> {
    claim.volume_name().map(|name| ObjectKey::in_cluster(Kind::PersistentVolume, name))
}

fn class_key(name: &str) -> ObjectKey {
    ObjectKey::in_cluster(Kind::RuntimeClass, name)
}

/// Looks up and parses everything that `references` names. `set_up` is asked for what is set up of the
/// pod's volumes if a claim is missing.
pub fn gather(
    desired: &Desired,
    pod: &PodView,
    references: &References,
    set_up: impl FnOnce() -> BTreeMap<String, PersistentVolume>,
) -> Gathered {
    let mut materials = Materials::default();
    for name in references.config_maps.keys() {
        let key = ObjectKey::named(Kind::ConfigMap, &pod.namespace, name);
        if let Some(object) = held(desired, &key) {
            materials.config_maps.insert(name.clone(), object);
        }
    }
    for name in references.secrets.keys() {
        let key = ObjectKey::named(Kind::Secret, &pod.namespace, name);
        if let Some(object) = held(desired, &key) {
            materials.secrets.insert(name.clone(), object);
        }
    }
    let mut asks = Vec::new();
    for ask in &references.tokens {
        let key = ObjectKey::token(&pod.uid, &ask.source);
        let token = held(desired, &key);
        asks.push((ask.clone(), token.as_ref().and_then(refresh_at)));
        if let Some(token) = token {
            materials.tokens.insert(ask.source.clone(), token);
        }
    }
    add_claims(desired, &pod.namespace, references.claims.iter().cloned(), &mut materials);
    let class = references.runtime_class.as_ref();
    materials.runtime_class = class.and_then(|name| held(desired, &class_key(name)));
    materials.services = services(desired, &pod.namespace);
    let mut missing = references.missing(pod, &materials);
    if missing.iter().any(|missing| matches!(missing, Missing::Claim { .. })) {
        materials.set_up = set_up();
        missing = references.missing(pod, &materials);
    }

    Gathered { materials: Arc::new(materials), missing, asks }
}

/// What is still in place of `claimed`, the volumes with claims that were set up for the pod.
pub fn in_place(
    claimed: &BTreeMap<String, PersistentVolume>,
    layout: &Layout,
    pod: &Uid,
) -> BTreeMap<String, PersistentVolume> {
    if claimed.is_empty() {
        return BTreeMap::new();
    }
    let mounted = mounts::below(&layout.pod(pod)).unwrap_or_default();
    let is_in_place = |volume: &PersistentVolume| match place_of(volume) {
        // Nothing is mounted for it.
        Ok(Place::Host(_)) => true,
        Ok(place) => layout.place(pod, &place).is_ok_and(|dir| mounted.contains(&dir)),
        Err(_unsupported) => false,
    };
    let kept = claimed.iter().filter(|(_, volume)| is_in_place(volume));

    kept.map(|(name, volume)| (name.clone(), volume.clone())).collect()
}

fn add_claims(
    desired: &Desired,
    namespace: &str,
    names: impl Iterator<Item = String>,
    materials: &mut Materials,
) {
    for name in names {
        let key = ObjectKey::named(Kind::PersistentVolumeClaim, namespace, &name);
        let Some(claim) = held(desired, &key) else { continue };
        if let Some(key) = volume_key(&claim)
            && let Some(volume) = held(desired, &key)
        {
            materials.volumes.insert(key.id().to_owned(), volume);
        }
        materials.claims.insert(name, claim);
    }
}

/// Services of the namespace, and the API server's own.
fn services<T: DeserializeOwned>(desired: &Desired, namespace: &str) -> Vec<T> {
    let mut bytes = desired.in_namespace(Kind::Service, namespace);
    if namespace != "default" {
        let kubernetes = ObjectKey::named(Kind::Service, "default", "kubernetes");
        bytes.extend(desired.get(&kubernetes).map(|object| object.bytes));
    }

    bytes.iter().filter_map(|bytes| parse("a Service", bytes)).collect()
}

fn held<T: DeserializeOwned>(desired: &Desired, key: &ObjectKey) -> Option<T> {
    let object = desired.get(key)?;

    parse(&key.to_string(), &object.bytes)
}

/// What cannot be parsed counts as not being there, and the log says why.
fn parse<T: DeserializeOwned>(what: &str, bytes: &Bytes) -> Option<T> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::error!(%error, what, "an object is not understood"))
        .ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_mounted_or_needs_no_mount_is_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let layout = Layout {
            root: root.clone(),
            pod_logs: root.join("logs"),
            container_logs: root.join("logs"),
        };
        let volume = |(name, source): (&str, serde_json::Value)| {
            let object = json!({ "metadata": { "name": name }, "spec": source });
            (format!("v-{name}"), serde_json::from_value(object).unwrap())
        };
        let claimed = [
            ("host", json!({ "hostPath": { "path": "/etc" } })),
            ("disk", json!({ "local": { "path": "/etc" } })),
            ("lost", json!({ "local": { "path": "/etc" } })),
            ("other", json!({ "csi": {} })),
        ];
        let claimed = claimed.into_iter().map(volume).collect();
        let (pod, other) = (Uid::new("u-1").unwrap(), Uid::new("u-2").unwrap());
        let disk = layout.pod(&pod).join("volumes/kubernetes.io~local-volume/disk");
        std::fs::create_dir_all(disk.with_file_name("lost")).unwrap();
        std::fs::create_dir_all(&disk).unwrap();
        mounts::ensure_tmpfs(&disk, Some(1 << 20)).unwrap();
        let names =
            |pod| in_place(&claimed, &layout, pod).into_keys().collect::<Vec<_>>().join(" ");

        assert_eq!(names(&pod), "v-disk v-host");
        assert_eq!(names(&other), "v-host");
        mounts::unmount_below(&root).unwrap();
        assert_eq!(names(&pod), "v-host");
    }
}
