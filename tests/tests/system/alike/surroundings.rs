//! The objects that cases may refer to.

use anyhow::Result;
use serde_json::{Value, json};
use system_tests::site::Site;

use super::Side;

/// What cases may refer to. The folders of volumes are small ones: each file in them is looked at.
pub(super) fn surroundings(namespace: &str, sides: [Side<'_>; 2]) -> Vec<Value> {
    let metadata = json!({ "name": "some", "namespace": namespace });
    let data = json!({ "key": "value", "color": "red", "not-a-name": "x" });
    let runtime_class = |name: &str, handler: &str| {
        json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": { "name": name }, "handler": handler,
            "overhead": { "podFixed": { "cpu": "10m", "memory": "8Mi" } } })
    };
    let common = vec![
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data }),
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata,
            "stringData": { "a": "b", "password": "s3cret" } }),
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": { "ports": [{ "name": "http", "port": 8080 }] } }),
        json!({ "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": { "name": namespace },
            "spec": {
                "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteMany"],
                "storageClassName": "", "claimRef": { "name": "some", "namespace": namespace },
                "hostPath": { "path": "/etc/security", "type": "Directory" },
            } }),
        json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata,
            "spec": {
                "accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": namespace,
                "resources": { "requests": { "storage": "1Gi" } },
            } }),
        // Of every cluster that compares: they are in no namespace.
        runtime_class("alike", "runc"),
        runtime_class("alike-none", "none"),
    ];

    common
        .into_iter()
        .chain(sides.iter().flat_map(|side| surroundings_of(namespace, *side)))
        .collect()
}

/// What cases may refer to on one side: objects that change, and a volume of the node.
fn surroundings_of(namespace: &str, side: Side<'_>) -> [Value; 3] {
    let Side { prefix, node, .. } = side;
    let changing = json!({ "name": format!("changing-{prefix}"), "namespace": namespace });

    [
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": changing,
            "data": { "key": "old" } }),
        json!({ "apiVersion": "v1", "kind": "Secret", "metadata": changing,
            "stringData": { "key": "old" } }),
        json!({ "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": { "name": format!("{namespace}-{prefix}") },
            "spec": {
                "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"],
                "storageClassName": "", "local": { "path": "/usr/share" },
                "claimRef": { "name": format!("{prefix}-own-claim-v"), "namespace": namespace },
                "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                    { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] }] }] } },
            } }),
    ]
}

/// Gives the node a seccomp profile, `alike.json`.
pub(super) async fn add_profile(site: &Site) -> Result<()> {
    let folder = site.path("KUBELET_ROOT")?.join("seccomp");
    let profile = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mknod", "mknodat"], "action": "SCMP_ACT_ERRNO" }] });
    tokio::fs::create_dir_all(&folder).await?;

    Ok(tokio::fs::write(folder.join("alike.json"), profile.to_string()).await?)
}
