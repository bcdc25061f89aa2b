//! Whether a node is one that a pod selects, by its `nodeSelector` and its required node affinity, or one
//! that has a volume (`component-helpers/scheduling/corev1/nodeaffinity`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

use super::Node;
use crate::pod::PodView;

const NAME_FIELD: &str = "metadata.name";

pub(super) fn matches(pod: &PodView, node: &Node) -> bool {
    let spec = pod.spec();
    let mut selected = spec.node_selector.iter().flatten();
    if !selected.all(|(key, value)| node.labels.get(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());

    required.is_none_or(|terms| selects(terms, &node.labels, &node.name))
}

/// Whether one of the terms is about a node with these labels and this name.
pub(crate) fn selects(terms: &NodeSelector, labels: &BTreeMap<String, String>, name: &str) -> bool {
    terms.node_selector_terms.iter().any(|term| holds(term, labels, name))
}

/// An empty term selects nothing.
fn holds(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();

    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|one| label_holds(one, labels))
        && fields.iter().all(|one| field_holds(one, name))
}

fn label_holds(one: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&one.key);
    let values = one.values.as_deref().unwrap_or_default();
    let is_listed = || value.is_some_and(|value| values.contains(value));
    let compared = || {
        let number = |text: &String| text.parse::<i64>().ok();
        Some(number(value?)?.cmp(&number(values.first()?)?))
    };
    match one.operator.as_str() {
        "In" => is_listed(),
        "NotIn" => !is_listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        _ => false,
    }
}

/// Of a field there is one value to compare with.
fn field_holds(one: &NodeSelectorRequirement, name: &str) -> bool {
    let value = if one.key == NAME_FIELD { name } else { "" };
    let [wanted] = one.values.as_deref().unwrap_or_default() else { return false };
    match one.operator.as_str() {
        "In" => value == wanted,
        "NotIn" => value != wanted,
        _ => false,
    }
}
