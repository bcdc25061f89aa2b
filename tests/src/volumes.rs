//! Manifests of PersistentVolumes and claims that are bound by name.

use std::path::Path;

use serde_json::{Value, json};

/// A local volume `name` on `node`, for the claim `default/NAME`.
pub fn persistent(name: &str, node: &str, path: &Path) -> Value {
    let mut volume = volume(name, &json!({ "local": { "path": path } }));
    let here = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [node] });
    volume["spec"]["nodeAffinity"] =
        json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [here] }] } });

    volume
}

/// A volume at a path of whichever host, for the claim `default/NAME`.
pub fn on_host(name: &str, path: &Path) -> Value {
    volume(name, &json!({ "hostPath": { "path": path, "type": "Directory" } }))
}

fn volume(name: &str, source: &Value) -> Value {
    let mut spec = source.clone();
    spec["capacity"] = json!({ "storage": "1Mi" });
    spec["accessModes"] = json!(["ReadWriteOnce"]);
    spec["persistentVolumeReclaimPolicy"] = json!("Retain");
    spec["claimRef"] = json!({ "namespace": "default", "name": name });

    json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": name }, "spec": spec })
}

/// The claim `default/NAME`.
pub fn claim(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "resources": { "requests": { "storage": "1Mi" } } } })
}
