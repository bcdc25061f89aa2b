//! DaemonSets of the cluster that would run on edge nodes too, where most of them have no business: what
//! keeps one off, and what takes that back.

#[cfg(test)]
mod tests;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec,
};
use serde_json::{Value, json};

/// The label of edge nodes.
pub(super) const EDGE: &str = "node-role.kubernetes.io/edge";
/// Marks DaemonSets that were kept off by us.
pub(super) const MARK: &str = "holdfast.dev/kept-off-edge-nodes";
const MARKED: &str = "true";

const OS: &str = "kubernetes.io/os";
const ARCH: &str = "kubernetes.io/arch";

/// What an edge node has of a label that every one of them has.
enum Has {
    Value(&'static str),
    /// It differs from node to node.
    Some,
    Nothing,
}

/// Labels that only some edge nodes have, by their configuration, count as none.
fn has(label: &str) -> Has {
    match label {
        OS => Has::Value("linux"),
        EDGE => Has::Value(""),
        ARCH => Has::Some,
        _ => Has::Nothing,
    }
}

fn may_have(label: &str, value: &str) -> bool {
    match has(label) {
        Has::Value(own) => own == value,
        Has::Some => true,
        Has::Nothing => false,
    }
}

/// Whether its pods would be put on an edge node without taints.
pub(super) fn lands(set: &DaemonSet) -> bool {
    let Some(spec) = set.spec.template.spec.as_ref() else { return false };
    let is_chosen =
        spec.node_selector.iter().flatten().all(|(label, value)| may_have(label, value));

    is_chosen
        && required(spec).is_none_or(|selector| selector.node_selector_terms.iter().any(takes))
}

fn required(spec: &PodSpec) -> Option<&NodeSelector> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;

    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// Whether an edge node may fulfil the term. One without requirements takes no node (Kubernetes).
fn takes(term: &NodeSelectorTerm) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // The only field is the node's name.
    let may_be_named = fields.iter().all(|field| field.operator == "NotIn");

    !is_empty(term) && may_be_named && expressions.iter().all(is_met)
}

fn is_empty(term: &NodeSelectorTerm) -> bool {
    let is_none =
        |list: &Option<Vec<NodeSelectorRequirement>>| list.as_ref().is_none_or(Vec::is_empty);

    is_none(&term.match_expressions) && is_none(&term.match_fields)
}

fn is_met(requirement: &NodeSelectorRequirement) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let key = requirement.key.as_str();
    match requirement.operator.as_str() {
        "In" => values.iter().any(|value| may_have(key, value)),
        "NotIn" => match has(key) {
            Has::Value(own) => !values.iter().any(|value| value == own),
            Has::Some | Has::Nothing => true,
        },
        "Exists" => !matches!(has(key), Has::Nothing),
        "DoesNotExist" => matches!(has(key), Has::Nothing),
        // Gt and Lt are of labels that only some nodes have.
        _ => false,
    }
}

/// Which taints would keep it off: `all`, `some` or `none` are tolerated.
pub(super) fn tolerates(set: &DaemonSet) -> &'static str {
    let spec = set.spec.template.spec.as_ref();
    let tolerations = spec.and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let is_all = |key: &Option<String>| key.as_deref().unwrap_or_default().is_empty();
    if tolerations.iter().any(|toleration| is_all(&toleration.key)) {
        return "all";
    }

    if tolerations.is_empty() { "none" } else { "some" }
}

fn requirement() -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: EDGE.to_owned(),
        operator: "DoesNotExist".to_owned(),
        values: None,
    }
}

/// What keeps it off edge nodes, as a merge patch. Whatever chose its nodes before still does.
pub(super) fn patch(set: &DaemonSet) -> Value {
    let before = set.spec.template.spec.as_ref().and_then(required);
    let mut terms = before.map_or_else(
        || vec![NodeSelectorTerm::default()],
        |selector| selector.node_selector_terms.clone(),
    );
    for term in &mut terms {
        // One without requirements takes no node, and would take some with this one.
        if before.is_none() || !is_empty(term) {
            term.match_expressions.get_or_insert_default().push(requirement());
        }
    }
    let required = NodeSelector { node_selector_terms: terms };

    merge(
        set,
        &json!({ MARK: MARKED }),
        &json!({
            "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required },
        }),
    )
}

/// What takes [`patch`] back; `None` if it was not applied by us.
pub(super) fn unpatch(set: &DaemonSet) -> Option<Value> {
    let marks = set.metadata.annotations.as_ref()?;
    if marks.get(MARK).map(String::as_str) != Some(MARKED) {
        return None;
    }
    let spec = set.spec.template.spec.as_ref()?;
    let terms =
        required(spec).map(|selector| selector.node_selector_terms.clone()).unwrap_or_default();
    let (ours, mut kept) = (requirement(), Vec::new());
    for mut term in terms {
        let was_empty = is_empty(&term);
        if let Some(expressions) = &mut term.match_expressions {
            expressions.retain(|expression| *expression != ours);
        }
        // One that has nothing else was made by us.
        if was_empty || !is_empty(&term) {
            kept.push(term);
        }
    }

    Some(merge(set, &json!({ MARK: null }), &affinity_with(spec.affinity.as_ref(), kept)))
}

/// The affinity as it was before us: what is empty then is not there.
fn affinity_with(affinity: Option<&Affinity>, terms: Vec<NodeSelectorTerm>) -> Value {
    if !terms.is_empty() {
        let required = NodeSelector { node_selector_terms: terms };
        return json!({
            "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": required },
        });
    }
    let nodes = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let prefers = nodes
        .is_some_and(|nodes| nodes.preferred_during_scheduling_ignored_during_execution.is_some());
    let has_pods = affinity.is_some_and(|affinity| {
        affinity.pod_affinity.is_some() || affinity.pod_anti_affinity.is_some()
    });
    match (prefers, has_pods) {
        (true, _) => {
            json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": null } })
        }
        (false, true) => json!({ "nodeAffinity": null }),
        (false, false) => Value::Null,
    }
}

/// Refused by the API server if the DaemonSet has changed since.
fn merge(set: &DaemonSet, annotations: &Value, affinity: &Value) -> Value {
    json!({
        "metadata": {
            "resourceVersion": set.metadata.resource_version,
            "annotations": annotations,
        },
        "spec": { "template": { "spec": { "affinity": affinity } } },
    })
}

/// For people, who apply it later than it was made.
pub(super) fn command(namespace: &str, name: &str, patch: &Value) -> String {
    let mut patch = patch.clone();
    if let Some(metadata) = patch["metadata"].as_object_mut() {
        metadata.remove("resourceVersion");
    }

    // Names and labels of Kubernetes have no quotes.
    format!("kubectl patch daemonset --namespace {namespace} {name} --type merge --patch '{patch}'")
}
