//! The strategic merge patch that puts a reported status into the API server, as a kubelet sends it
//! (`k8s.io/kubernetes/pkg/util/pod`): with the UID, so that it never hits a successor.

use serde_json::{Map, Value, json};

/// Fields of a PodStatus that the node owns and may take back.
const OWNED: [&str; 14] = [
    "phase",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "qosClass",
    "observedGeneration",
    "resize",
];

/// Lists that a strategic merge patch merges by key; the reported one is whole (API: `patchStrategy`).
const MERGED: [&str; 2] = ["podIPs", "hostIPs"];

/// Conditions that are there only while they hold: one that is not reported is over.
const PASSING: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The patch for `pods/{name}/status`.
///
/// Conditions are merged by type, so that those of others stay. Owned fields that the node does not
/// report are set to null.
pub(crate) fn status_patch(uid: &str, reported: &Value) -> Value {
    let mut status = Map::new();
    for name in OWNED {
        let mut value = reported.get(name).cloned().unwrap_or(Value::Null);
        if let Value::Array(items) = &mut value
            && MERGED.contains(&name)
        {
            items.push(json!({ "$patch": "replace" }));
        }
        status.insert(name.to_owned(), value);
    }
    let conditions = reported.get("conditions").and_then(Value::as_array);
    let conditions = conditions.into_iter().flatten().map(|condition| {
        let mut condition = condition.clone();
        if let Some(fields) = condition.as_object_mut() {
            // A merge keeps what is not named.
            for name in ["reason", "message"] {
                fields.entry(name).or_insert(Value::Null);
            }
        }
        condition
    });
    let over = PASSING
        .iter()
        .filter(|name| condition(reported, name).is_none())
        .map(|name| json!({ "$patch": "delete", "type": name }));
    status.insert("conditions".to_owned(), Value::Array(conditions.chain(over).collect()));

    json!({ "metadata": { "uid": uid }, "status": status })
}

/// Whether the API server's status already says all that is reported.
pub(crate) fn says(current: &Value, reported: &Value) -> bool {
    let owned = OWNED.iter().all(|name| {
        let (now, wanted) = (&current[*name], &reported[*name]);
        now == wanted || (now.is_null() && wanted.is_null())
    });
    let is_over =
        |name: &&str| condition(current, name).is_none() || condition(reported, name).is_some();
    let conditions = reported["conditions"].as_array();
    let agree = conditions.into_iter().flatten().all(|wanted| {
        let kind = wanted["type"].as_str().unwrap_or_default();
        condition(current, kind).is_some_and(|now| {
            ["status", "reason", "message", "observedGeneration"]
                .iter()
                .all(|name| now[*name] == wanted[*name])
        })
    });

    owned && agree && PASSING.iter().all(is_over)
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_reported_is_taken_back_and_conditions_of_others_stay() {
        let reported = json!({
            "phase": "Running", "podIPs": [{ "ip": "10.1.0.5" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        });
        let patch = status_patch("u-1", &reported);

        assert_eq!(patch["metadata"]["uid"], "u-1");
        assert_eq!(
            patch["status"]["podIPs"],
            json!([{ "ip": "10.1.0.5" }, { "$patch": "replace" }])
        );
        assert_eq!(patch["status"]["message"], Value::Null);
        assert!(patch["status"].as_object().unwrap().contains_key("message"));
        assert_eq!(
            patch["status"]["conditions"],
            json!([
                { "type": "Ready", "status": "True", "reason": null, "message": null },
                { "$patch": "delete", "type": "PodResizePending" },
                { "$patch": "delete", "type": "PodResizeInProgress" },
            ])
        );
    }

    #[test]
    fn a_foreign_ready_false_is_seen() {
        let reported =
            json!({ "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] });
        let with = |ready: &str| {
            json!({ "phase": "Running", "conditions": [
                { "type": "Gate", "status": "False" }, { "type": "Ready", "status": ready } ] })
        };

        assert!(says(&with("True"), &reported));
        assert!(!says(&with("False"), &reported));
        let mut resizing = with("True");
        resizing["conditions"][0]["type"] = json!("PodResizePending");
        assert!(!says(&resizing, &reported), "what is over must be taken back");
    }
}
