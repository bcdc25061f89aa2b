//! What a pod refers to: all that its node may read (invariant 12).

use std::collections::BTreeSet;

use proto::ids::{Kind, NAME_LEN_MAX, ObjectKey, Uid, subdomain_byte};
use serde_json::Value;

/// An object by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// One of those that pods refer to.
    pub kind: Kind,
    /// Its namespace; empty if it is in none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Reference {
    /// A reference.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key of what it refers to.
    pub fn key(&self) -> ObjectKey {
        if self.namespace.is_empty() {
            ObjectKey::in_cluster(self.kind, &self.name)
        } else {
            ObjectKey::named(self.kind, &self.namespace, &self.name)
        }
    }

    /// `namespace/name`, or the name.
    pub(crate) fn identity(&self) -> String {
        self.key().id().to_owned()
    }
}

/// What holds a claim and a volume together, as the one or the other says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Neither, or not bound.
    #[default]
    None,
    /// A claim's: the volume.
    Claim(Reference),
    /// A volume's: the claim and its UID.
    Volume {
        /// Which claim.
        claim: Reference,
        /// And not another of that name.
        uid: Uid,
    },
}

impl Binding {
    /// The volume that a claim names.
    pub(crate) fn volume(&self) -> Option<&Reference> {
        if let Self::Claim(volume) = self { Some(volume) } else { None }
    }

    pub(crate) fn into_volume(self) -> Option<Reference> {
        if let Self::Claim(volume) = self { Some(volume) } else { None }
    }
}

/// Whether an object of these kinds can have the name (RFC 1123 subdomain). The API server takes others
/// where pods and claims refer to one, and no such name may become part of a path that is asked for.
pub(crate) fn is_name(name: &str) -> bool {
    let is_inner = |byte: &u8| !matches!(byte, b'-' | b'.');

    name.len() <= NAME_LEN_MAX
        && name.bytes().all(subdomain_byte)
        && name.as_bytes().first().is_some_and(is_inner)
        && name.as_bytes().last().is_some_and(is_inner)
}

/// Every place of the pod API that names an object to the node.
pub(crate) fn of_pod(namespace: &str, name: &str, bytes: &[u8]) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let Ok(pod) = serde_json::from_slice::<Value>(bytes) else { return found };
    let spec = &pod["spec"];
    if let Some(class) = spec["runtimeClassName"].as_str().filter(|class| is_name(class)) {
        found.insert(Reference::new(Kind::RuntimeClass, "", class));
    }
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| is_name(name)) {
            found.insert(Reference::new(kind, namespace, name));
        }
    };
    for secret in items(&spec["imagePullSecrets"]) {
        add(Kind::Secret, &secret["name"]);
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(&spec[list]) {
            for source in items(&container["envFrom"]) {
                add(Kind::ConfigMap, &source["configMapRef"]["name"]);
                add(Kind::Secret, &source["secretRef"]["name"]);
            }
            for variable in items(&container["env"]) {
                add(Kind::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
                add(Kind::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
            }
        }
    }
    for volume in items(&spec["volumes"]) {
        add(Kind::ConfigMap, &volume["configMap"]["name"]);
        add(Kind::Secret, &volume["secret"]["secretName"]);
        add(Kind::PersistentVolumeClaim, &volume["persistentVolumeClaim"]["claimName"]);
        if let (Some(volume_name), true) =
            (volume["name"].as_str(), volume["ephemeral"].is_object())
        {
            // The claim is made from the pod's template, and named after both.
            add(Kind::PersistentVolumeClaim, &format!("{name}-{volume_name}").into());
        }
        for source in items(&volume["projected"]["sources"]) {
            add(Kind::ConfigMap, &source["configMap"]["name"]);
            add(Kind::Secret, &source["secret"]["name"]);
        }
    }

    found
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}
