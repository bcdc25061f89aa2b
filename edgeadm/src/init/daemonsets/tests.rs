//! DaemonSets as clusters have them, and what a merge patch makes of them.

use super::*;

fn set(spec: &Value) -> DaemonSet {
    serde_json::from_value(json!({
        "metadata": { "name": "a", "namespace": "b", "resourceVersion": "7" },
        "spec": {
            "selector": { "matchLabels": { "app": "a" } },
            "template": {
                "metadata": { "labels": { "app": "a" } },
                "spec": merged(&json!({ "containers": [{ "name": "c", "image": "i" }] }), spec),
            },
        },
    }))
    .unwrap()
}

/// RFC 7386.
fn merged(target: &Value, patch: &Value) -> Value {
    let Some(fields) = patch.as_object() else { return patch.clone() };
    let mut merged_into = target.as_object().cloned().unwrap_or_default();
    for (name, value) in fields {
        if value.is_null() {
            merged_into.remove(name);
        } else {
            let before = merged_into.get(name).cloned().unwrap_or_default();
            merged_into.insert(name.clone(), merged(&before, value));
        }
    }

    merged_into.into()
}

fn apply(set: &DaemonSet, patch: &Value) -> DaemonSet {
    serde_json::from_value(merged(&serde_json::to_value(set).unwrap(), patch)).unwrap()
}

fn terms(terms: &Value) -> Value {
    json!({ "affinity": { "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms },
    } } })
}

fn term(key: &str, operator: &str, values: &[&str]) -> Value {
    let mut requirement = json!({ "key": key, "operator": operator });
    if !values.is_empty() {
        requirement["values"] = json!(values);
    }

    json!({ "matchExpressions": [requirement] })
}

#[test]
fn what_lands_on_edge_nodes_is_told_from_what_does_not() {
    for (spec, expected) in [
        (json!({}), true),
        (json!({ "nodeSelector": { OS: "linux" } }), true),
        (json!({ "nodeSelector": { OS: "linux", ARCH: "arm64" } }), true),
        (json!({ "nodeSelector": { OS: "windows" } }), false),
        (json!({ "nodeSelector": { "gpu": "yes" } }), false),
        (json!({ "nodeSelector": { EDGE: "" } }), true),
        (terms(&json!([term(OS, "In", &["linux"])])), true),
        (terms(&json!([term(OS, "NotIn", &["linux"])])), false),
        (terms(&json!([term(EDGE, "DoesNotExist", &[])])), false),
        (terms(&json!([term(EDGE, "Exists", &[])])), true),
        (terms(&json!([term("cpus", "Gt", &["4"])])), false),
        (terms(&json!([term("virtual", "NotIn", &["yes"])])), true),
        // One term is enough, one without requirements takes none.
        (terms(&json!([term(OS, "In", &["windows"]), term(ARCH, "Exists", &[])])), true),
        (terms(&json!([{}])), false),
        (
            terms(&json!([{ "matchFields": [
                { "key": "metadata.name", "operator": "In", "values": ["n"] },
            ] }])),
            false,
        ),
    ] {
        assert_eq!(lands(&set(&spec)), expected, "{spec}");
    }
}

#[test]
fn what_is_kept_off_is_as_before_when_that_is_taken_back() {
    let preferred = json!([{ "weight": 1, "preference": term("a", "Exists", &[]) }]);
    let prefers = json!({ "affinity": { "nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": preferred,
    } } });
    let apart = json!({ "affinity": { "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "zone" }],
    } } });
    for spec in [
        json!({}),
        json!({ "nodeSelector": { OS: "linux" } }),
        terms(&json!([term(OS, "In", &["linux"]), term("virtual", "DoesNotExist", &[])])),
        terms(&json!([{}, term(ARCH, "Exists", &[])])),
        prefers,
        apart,
    ] {
        let before = set(&spec);
        assert!(lands(&before), "{spec}");
        let kept_off = apply(&before, &patch(&before));
        assert!(!lands(&kept_off), "{spec}");
        let back = apply(&kept_off, &unpatch(&kept_off).unwrap());
        let mut expected = before.clone();
        // An empty set of annotations stays.
        expected.metadata.annotations.clone_from(&back.metadata.annotations);
        assert_eq!(back, expected, "{spec}");
        assert!(back.metadata.annotations.is_none_or(|annotations| annotations.is_empty()));
        assert_eq!(unpatch(&before), None, "that was not ours");
    }
}

#[test]
fn taints_keep_off_what_does_not_tolerate_them() {
    let with = |tolerations: Value| set(&json!({ "tolerations": tolerations }));
    assert_eq!(tolerates(&set(&json!({}))), "none");
    assert_eq!(tolerates(&with(json!([{ "operator": "Exists" }]))), "all");
    assert_eq!(tolerates(&with(json!([{ "key": "a", "operator": "Exists" }]))), "some");
}

#[test]
fn the_command_does_not_depend_on_when_it_is_given() {
    let set = set(&json!({}));
    assert_eq!(patch(&set)["metadata"]["resourceVersion"], "7");
    let command = command("b", "a", &patch(&set));
    let expected = "kubectl patch daemonset --namespace b a --type merge --patch '{\"metadata\":";
    assert!(command.starts_with(expected) && !command.contains("resourceVersion"), "{command}");
}
