//! What strangers and nodes make cloudcore read, without sockets and without an API server: for the tests
//! that feed it anything. Nothing of cloudcore uses this.

use proto::ids::NodeName;
use serde_json::Value;

use crate::{events, hub, nodes, pods};

/// Whether this body asks to join, whatever becomes of it.
pub fn is_join_request(body: &[u8]) -> bool {
    hub::is_join_request(body)
}

/// The mirrors made of a report of static pods.
pub fn mirrors_of(node: &NodeName, report: &[u8]) -> Vec<Value> {
    nodes::told::mirrors_of(node, report)
}

/// Status and Events written of what a node reports of itself.
pub fn node_status_of(node: &NodeName, report: &[u8]) -> Option<(Value, Vec<Value>)> {
    nodes::told::written_of(node, report)
}

/// The Event written of what a node says, which has a pod with this UID.
pub fn event_of(node: &NodeName, event: &[u8], pod: &str) -> Option<Value> {
    events::written_of(node, event, pod)
}

/// The patch of the status of a pod with this UID, and whether it would change `current`.
pub fn pod_status_of(uid: &str, report: &Value, current: &Value) -> (Value, bool) {
    (pods::status_patch(uid, report), !pods::says(current, report))
}
