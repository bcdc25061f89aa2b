//! What a node says of itself and of its files, taken as its worker takes it, without an API server: for
//! [`crate::inputs`].

use std::net::{IpAddr, Ipv4Addr};

use proto::ids::NodeName;
use proto::wire::Health;
use serde_json::{Value, json};

use super::object::{self, Facing};
use super::{mirrors, news};

/// The time that it is told.
const NOW: &str = "2026-01-01T12:00:00Z";

/// The mirrors of a report of static pods.
pub(crate) fn mirrors_of(node: &NodeName, bytes: &[u8]) -> Vec<Value> {
    let wanted = mirrors::wanted(bytes, node).unwrap_or_default();

    wanted.into_values().map(|pod| pod.object).collect()
}

/// What is written of a report about the node: its status, then Events.
pub(crate) fn written_of(node: &NodeName, bytes: &[u8]) -> Option<(Value, Vec<Value>)> {
    let report: Value = serde_json::from_slice(bytes).ok()?;
    if !object::is_well_formed(&report) {
        return None;
    }
    // Silent for long, so that conditions are written over; an administrator has put something on it.
    let health = Health { pod_loop_age_ms: u32::MAX, runtime_age_ms: 0, runtime_ok: true };
    let current = json!({
        "metadata": { "uid": "u-1" },
        "status": {
            "capacity": { "example.com/gpu": "2" }, "allocatable": { "example.com/old": "1" },
            "nodeInfo": { "bootID": "b-1", "kubeletVersion": "v1.35.0" },
            "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T08:00:00Z" },
            ],
        },
    });
    let facing = Facing {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        node_ip: "192.0.2.1",
        port: 1,
        health: Some(health),
    };
    let status = object::status(&report, &current, &facing, NOW);
    let events = news::events(node, &current, &status, NOW);
    drop(object::registered(node, None, &report));

    Some((status, events))
}
