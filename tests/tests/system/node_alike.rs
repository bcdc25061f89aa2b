//! The Node object of an edge node is what a stock kubelet makes of the same machine, field by field.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::alike::general::differences;

/// What differs and why, by JSON pointer; `*` stands for what begins so.
const ALLOWED: [(&str, &str); 12] = [
    ("/metadata/annotations/holdfast.dev/*", "how cloudcore finds the node again"),
    (
        "/metadata/annotations/volumes.kubernetes.io/controller-managed-attach-detach",
        "no volume of this build is attached by a controller",
    ),
    ("/metadata/labels/node-role.kubernetes.io/edge", "tells edge nodes from others"),
    ("/metadata/labels/node.kubernetes.io/exclude-*", "no load balancer and no limit counts on it"),
    ("/spec/providerID", "keeps cloud controllers from deleting it"),
    ("/spec/podCIDR*", "given out in turn"),
    ("/spec/taints", "controllers take them off a new node in turn"),
    ("/status/addresses", "callers reach the kubelet API at cloudcore"),
    (
        "/status/daemonEndpoints/kubeletEndpoint/Port",
        "each node has a port of its own at cloudcore",
    ),
    ("/status/nodeInfo/kubeletVersion", "names this agent too"),
    ("/status/nodeInfo/bootID", "each site of a test has its own"),
    ("/status/allocatable/*", "other thresholds of eviction than the kubelet of the tests has"),
];

/// The Node without what differs from node to node and from moment to moment.
fn plain(node: &Value) -> Value {
    let mut node = node.clone();
    let name = node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"] {
        node["metadata"][field] = json!("ANY");
    }
    for condition in node["status"]["conditions"].as_array_mut().into_iter().flatten() {
        for time in ["lastHeartbeatTime", "lastTransitionTime"] {
            let is_time = condition[time].is_string();
            condition[time] = json!(is_time);
        }
    }
    let text = node.to_string().replace(&name, "NODE");

    serde_json::from_str(&text).unwrap_or_default()
}

/// Compares two Nodes of this machine.
pub(super) fn ensure_alike(ours: &Value, stock: &Value) -> Result<()> {
    let is_allowed = |at: &str| {
        ALLOWED.iter().any(|(pointer, _)| match pointer.strip_suffix('*') {
            Some(beginning) => at.starts_with(beginning),
            None => at == *pointer,
        })
    };
    let mut found = differences("", &plain(ours), &plain(stock));
    found.retain(|difference| !is_allowed(&difference.at));
    ensure!(found.is_empty(), "the Node is not a stock kubelet's: {found:#?}");

    Ok(())
}
