//! What a new status of a Node is news of, as Events in the kubelet's words: that the node is ready or not,
//! and that its machine has started again. No socket, no clock.
//!
//! They follow from what the Node says before and after, as a kubelet's do, and the status is written after
//! them: an agent or a cloudcore that ends at any moment loses none, nor does an API server that is away for
//! a moment. The names, which follow from the same, keep each from being written twice. Lost is what the API
//! server refuses for good, or does not take for longer than a status can wait.

use proto::ids::NodeName;
use proto::object::hex;
use serde_json::{Value, json};

/// The condition that says whether a node works.
pub(super) const READY: &str = "Ready";

/// The condition of that type; null if there is none.
pub(super) fn condition<'a>(status: &'a Value, r#type: &str) -> &'a Value {
    let mut conditions = status["conditions"].as_array().into_iter().flatten();

    conditions.find(|condition| condition["type"] == r#type).unwrap_or(&Value::Null)
}

/// The Events of a `status` that is to take the place of what `current`, the Node, says.
pub(super) fn events(node: &NodeName, current: &Value, status: &Value, now: &str) -> Vec<Value> {
    let told = Told { node, uid: text(&current["metadata"]["uid"]), now };

    told.rebooted(&current["status"], status)
        .into_iter()
        .chain(told.readiness(&current["status"], status))
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

struct Told<'a> {
    node: &'a NodeName,
    /// Of the Node.
    uid: &'a str,
    now: &'a str,
}

impl Told<'_> {
    fn rebooted(&self, before: &Value, after: &Value) -> Option<Value> {
        let boot = |status: &'_ Value| text(&status["nodeInfo"]["bootID"]).to_owned();
        let (before, after) = (boot(before), boot(after));
        if before.is_empty() || before == after {
            return None;
        }
        let message = format!("Node {} has been rebooted, boot id: {after}", self.node);

        Some(self.event("Warning", "Rebooted", &message, &[&after]))
    }

    /// A Node that never said anything tells only that it is ready.
    fn readiness(&self, before: &Value, after: &Value) -> Option<Value> {
        let (before, after) = (condition(before, READY), condition(after, READY));
        let is_ready = after["status"] == "True";
        if before["status"] == after["status"] || before.is_null() && !is_ready {
            return None;
        }
        let reason = if is_ready { "NodeReady" } else { "NodeNotReady" };
        let message = format!("Node {} status is now: {reason}", self.node);
        let cause = [text(&before["status"]), text(&before["lastTransitionTime"])];

        Some(self.event("Normal", reason, &message, &cause))
    }

    /// An Event whose name follows from what has caused it.
    fn event(&self, r#type: &str, reason: &str, message: &str, cause: &[&str]) -> Value {
        let words: Vec<_> = [self.uid, reason].iter().chain(cause).copied().collect();
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        digest.update(words.join("\n").as_bytes());
        let unique = hex(&digest.finish().as_ref()[..8]);
        let node = self.node.as_str();

        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": { "name": format!("{node}.{unique}"), "namespace": "default" },
            // Events of a node carry its name as UID, as the kubelet's do.
            "involvedObject": { "apiVersion": "v1", "kind": "Node", "name": node, "uid": node },
            "reason": reason, "message": message, "type": r#type,
            "source": { "component": "kubelet", "host": node },
            "reportingComponent": "kubelet", "reportingInstance": node,
            "firstTimestamp": self.now, "lastTimestamp": self.now, "count": 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(boot: &str, ready: Option<(&str, u8)>) -> Value {
        let since = |minute: u8| format!("2026-01-01T00:{minute:02}:00Z");
        let condition = |(status, minute): (&str, u8)| json!({ "type": "Ready", "status": status, "lastTransitionTime": since(minute) });
        let other = json!({ "type": "PIDPressure", "status": "False" });
        let conditions: Vec<_> = [other].into_iter().chain(ready.map(condition)).collect();

        json!({ "nodeInfo": { "bootID": boot }, "conditions": conditions })
    }

    fn told(uid: &str, before: &Value, after: &Value) -> Vec<Value> {
        let current = json!({ "metadata": { "uid": uid }, "status": before });

        events(&NodeName::new("edge").unwrap(), &current, after, "2026-01-01T01:00:00Z")
    }

    #[test]
    fn what_is_different_is_told() {
        let check = |before: &Value, after: &Value, expected: &[&str]| {
            let events = told("u1", before, after);
            let reasons: Vec<_> = events.iter().map(|event| text(&event["reason"])).collect();
            assert_eq!(reasons, expected, "{before} {after}");
        };
        let ready = status("b1", Some(("True", 1)));
        let unready = status("b1", Some(("False", 1)));
        let unknown = status("b1", Some(("Unknown", 1)));
        check(&ready, &ready, &[]);
        check(&ready, &unready, &["NodeNotReady"]);
        check(&unready, &ready, &["NodeReady"]);
        check(&unknown, &ready, &["NodeReady"]);
        check(&unknown, &unready, &["NodeNotReady"]);
        check(&unknown, &status("b2", Some(("True", 1))), &["Rebooted", "NodeReady"]);
        check(&ready, &status("b2", Some(("True", 1))), &["Rebooted"]);
        // A Node that is new, or was made again.
        check(&json!({}), &ready, &["NodeReady"]);
        check(&json!({}), &unready, &[]);
    }

    #[test]
    fn the_same_news_have_the_same_name() {
        let name = |uid: &str, before: &Value, after: &Value| {
            let events = told(uid, before, after);
            assert_eq!(events.len(), 1);
            text(&events[0]["metadata"]["name"]).to_owned()
        };
        let ready = status("b1", Some(("True", 2)));
        let unknown = |minute| status("b1", Some(("Unknown", minute)));
        let first = name("u1", &unknown(1), &ready);
        assert!(first.starts_with("edge.") && first.len() == "edge.".len() + 16, "{first}");
        assert_eq!(name("u1", &unknown(1), &status("b1", Some(("True", 9)))), first);
        let others = [
            name("u1", &unknown(3), &ready),
            name("u2", &unknown(1), &ready),
            name("u1", &unknown(1), &status("b1", Some(("False", 2)))),
            name("u1", &ready, &status("b2", Some(("True", 2)))),
            name("u1", &ready, &status("b3", Some(("True", 2)))),
        ];
        let all: std::collections::BTreeSet<_> = others.iter().chain([&first]).collect();
        assert_eq!(all.len(), 6, "{all:?}");
    }

    #[test]
    fn events_are_in_the_kubelets_words() {
        let events =
            told("u1", &status("b1", Some(("Unknown", 1))), &status("b2", Some(("True", 1))));
        assert_eq!(events[0]["message"], "Node edge has been rebooted, boot id: b2");
        assert_eq!(events[0]["type"], "Warning");
        assert_eq!(events[1]["message"], "Node edge status is now: NodeReady");
        assert_eq!(events[1]["involvedObject"]["uid"], "edge");
        assert_eq!(events[1]["firstTimestamp"], "2026-01-01T01:00:00Z");
    }
}
