//! The ConfigMaps and Secrets that a pod refers to: all that its node may read (invariant 12).

use std::collections::BTreeSet;

use proto::ids::{Kind, ObjectKey};
use serde_json::Value;

/// A ConfigMap or Secret by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// ConfigMap or Secret.
    pub kind: Kind,
    /// Its namespace.
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
        ObjectKey::named(self.kind, &self.namespace, &self.name)
    }

    /// `namespace/name`.
    pub(crate) fn identity(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// Every place of the pod API that names a ConfigMap or Secret to the node.
pub(crate) fn of_pod(namespace: &str, bytes: &[u8]) -> BTreeSet<Reference> {
    let mut found = BTreeSet::new();
    let Ok(pod) = serde_json::from_slice::<Value>(bytes) else { return found };
    let spec = &pod["spec"];
    let mut add = |kind: Kind, name: &Value| {
        if let Some(name) = name.as_str().filter(|name| !name.is_empty()) {
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
