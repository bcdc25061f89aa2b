//! What of a node's resources others than the node have put there, as `example.com/gpu`.

use proto::resource::is_extended;
use serde_json::{Value, json};

/// In the version that an edge of ours tells as its kubelet's.
const OWN_VERSION: &str = "+holdfast.";

/// Whether what an administrator has put on the node may be used: its allocatable is its capacity.
pub(super) fn is_allocatable(object: &Value) -> bool {
    listed(object, "capacity").eq(listed(object, "allocatable"))
}

fn listed<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let all = object["status"][field].as_object().into_iter().flatten();

    all.filter(|(name, _)| is_extended(name))
}

/// Lets what an administrator has put on the node be used (kubelet: `MachineInfo`). What plugins of a
/// kubelet had put there is not there any more (kubelet: `reconcileExtendedResource`).
pub(super) fn add(status: &mut Value, object: &Value) {
    let agent = object["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
    let is_anothers = !agent.is_empty() && !agent.contains(OWN_VERSION);
    for (name, _) in listed(object, "allocatable") {
        status["allocatable"][name] = Value::Null;
    }
    for (name, amount) in listed(object, "capacity") {
        if is_anothers {
            status["capacity"][name] = json!("0");
        }
        status["allocatable"][name] = if is_anothers { json!("0") } else { amount.clone() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What of extended resources a status tells about a node that has these and whose last agent was
    /// of this version.
    fn check(version: &str, capacity: &Value, allocatable: &Value, expected: &Value) {
        let object = json!({ "status": { "capacity": capacity, "allocatable": allocatable,
            "nodeInfo": { "kubeletVersion": version } } });
        let mut status = json!({ "capacity": { "cpu": "1" }, "allocatable": { "cpu": "1" } });
        add(&mut status, &object);
        assert_eq!(status, *expected, "{object}");
    }

    #[test]
    fn what_an_administrator_puts_on_a_node_stays_and_may_be_used() {
        let ours = "v1.35.4+holdfast.0.1.0";
        let (dongles, none) = (json!({ "cpu": "2", "example.com/dongle": "4" }), json!({}));
        let plain = json!({ "capacity": { "cpu": "1" }, "allocatable": { "cpu": "1" } });
        let usable = json!({ "capacity": { "cpu": "1" },
            "allocatable": { "cpu": "1", "example.com/dongle": "4" } });
        check(ours, &none, &none, &plain);
        check(ours, &dongles, &none, &usable);
        check("", &dongles, &none, &usable);
        // What was taken from the node goes.
        let gone = json!({ "capacity": { "cpu": "1" },
            "allocatable": { "cpu": "1", "example.com/dongle": null } });
        check(ours, &none, &dongles, &gone);
        // No plugin of the kubelet before serves it here.
        let zero = json!({ "cpu": "1", "example.com/dongle": "0" });
        let zero = json!({ "capacity": zero, "allocatable": zero });
        check("v1.35.4", &dongles, &dongles, &zero);
    }

    #[test]
    fn a_capacity_that_may_not_be_used_yet_is_seen() {
        let node = |allocatable: Value| {
            let capacity = json!({ "cpu": "2", "example.com/dongle": "4" });
            json!({ "status": { "capacity": capacity, "allocatable": allocatable } })
        };
        for (allocatable, expected) in [
            (json!({ "cpu": "1", "example.com/dongle": "4" }), true),
            (json!({ "cpu": "1", "example.com/dongle": "3" }), false),
            (json!({ "cpu": "1" }), false),
        ] {
            let node = node(allocatable);
            assert_eq!(is_allocatable(&node), expected, "{node}");
        }
    }
}
