//! A pod as the API server wrote it, parsed once.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, EphemeralContainer, Pod, PodCondition, PodSpec, Volume,
};
use proto::ids::{NameError, Uid};
use serde_json::Value;

use crate::resize::Resources;

/// `terminationGracePeriodSeconds` unless given (API default).
const GRACE_DEFAULT_S: i64 = 30;
/// Least time between SIGTERM and SIGKILL (kubelet: `minimumGracePeriodInSeconds`).
pub const GRACE_MIN_S: i64 = 2;

/// Why bytes are not a pod this node can look at.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// Not JSON, or a field of the wrong type.
    #[error("the pod is not understood")]
    Json(#[source] serde_json::Error),
    /// A field that every pod has is missing.
    #[error("the pod has no {0}")]
    Missing(&'static str),
    /// `metadata.uid` cannot be a file name.
    #[error("the pod's uid is not one")]
    Uid(#[source] NameError),
}

/// A pod that has what every pod has.
#[derive(Clone, Debug)]
pub struct PodView {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// The object without managed fields and status, of which the node reads only the conditions of
    /// readiness gates.
    pub pod: Pod,
    /// Paths of spec fields that this build does not know, for one Warning Event.
    pub unknown_fields: Vec<String>,
    spec: PodSpec,
    ephemeral: Vec<Container>,
    /// By name of the ephemeral container.
    targets: BTreeMap<String, String>,
    /// Readiness gates and the status of their conditions.
    gates: Vec<(String, Option<String>)>,
}

impl PodView {
    /// Parses the API server's JSON.
    pub fn parse(bytes: &[u8]) -> Result<Self, PodError> {
        let raw: Value = serde_json::from_slice(bytes).map_err(PodError::Json)?;
        let mut pod: Pod = serde_json::from_slice(bytes).map_err(PodError::Json)?;
        let conditions = pod.status.take().and_then(|status| status.conditions);
        pod.metadata.managed_fields = None;
        let spec = pod.spec.take().ok_or(PodError::Missing("spec"))?;
        let known = serde_json::to_value(&spec).map_err(PodError::Json)?;
        let mut unknown_fields = Vec::new();
        find_unknown("spec", &raw["spec"], &known, &mut unknown_fields);
        let gates = gates(&spec, &conditions.unwrap_or_default());
        let (mut ephemeral, mut targets) = (Vec::new(), BTreeMap::new());
        for container in spec.ephemeral_containers.iter().flatten() {
            ephemeral.push(as_container(container).map_err(PodError::Json)?);
            let target = container.target_container_name.clone();
            if let Some(target) = target.filter(|target| !target.is_empty()) {
                targets.insert(container.name.clone(), target);
            }
        }

        Ok(Self {
            uid: Uid::new(pod.metadata.uid.clone().ok_or(PodError::Missing("metadata.uid"))?)
                .map_err(PodError::Uid)?,
            namespace: pod
                .metadata
                .namespace
                .clone()
                .ok_or(PodError::Missing("metadata.namespace"))?,
            name: pod.metadata.name.clone().ok_or(PodError::Missing("metadata.name"))?,
            pod,
            unknown_fields,
            spec,
            ephemeral,
            targets,
            gates,
        })
    }

    /// The desired pod.
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// The volume of that name.
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.spec.volumes.iter().flatten().find(|volume| volume.name == name)
    }

    /// Whether the API server has marked the pod for deletion.
    pub fn is_deleted(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Seconds that the hook before a stop, and SIGTERM, have together: the deletion's, else the spec's.
    pub fn grace_seconds(&self) -> i64 {
        self.pod
            .metadata
            .deletion_grace_period_seconds
            .or(self.spec.termination_grace_period_seconds)
            .unwrap_or(GRACE_DEFAULT_S)
    }

    /// Name, namespace and UID as the kubelet writes them in messages (`format.Pod`).
    pub fn described(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    /// `metadata.generation`, reported back as observedGeneration.
    pub fn generation(&self) -> Option<i64> {
        self.pod.metadata.generation
    }

    /// Containers that run to completion before the others, in order.
    pub fn init_containers(&self) -> &[Container] {
        self.spec.init_containers.as_deref().unwrap_or_default()
    }

    /// The containers that make the pod.
    pub fn containers(&self) -> &[Container] {
        &self.spec.containers
    }

    /// The pod with other CPU and memory of some of its containers.
    #[must_use]
    pub fn with_resources(&self, by_name: &BTreeMap<String, Resources>) -> Self {
        let mut pod = self.clone();
        let init = pod.spec.init_containers.iter_mut().flatten();
        for container in init.chain(&mut pod.spec.containers) {
            if let Some(own) = by_name.get(&container.name) {
                own.put_into(container.resources.get_or_insert_default());
            }
        }

        pod
    }

    /// Containers that were added to look into the running pod. They run once, whatever the pod does.
    pub fn ephemeral_containers(&self) -> &[Container] {
        &self.ephemeral
    }

    /// Conditions that others set and that the pod is not Ready without: type, and status if there is one.
    pub fn readiness_gates(&self) -> &[(String, Option<String>)] {
        &self.gates
    }

    /// The container whose processes an ephemeral container sees.
    pub fn target_of(&self, ephemeral: &str) -> Option<&str> {
        self.targets.get(ephemeral).map(String::as_str)
    }

    /// Init containers, then containers: what the pod was admitted with.
    pub fn admitted_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().iter().chain(self.containers())
    }

    /// Every container, the ephemeral ones last.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.admitted_containers().chain(&self.ephemeral)
    }

    /// What a container's ends are followed by: its own `restartPolicy`, else the pod's.
    pub fn restart_policy(&self, container: &Container) -> RestartPolicy {
        let own = container.restart_policy.as_deref();

        RestartPolicy::read(own.or(self.spec.restart_policy.as_deref()))
    }

    /// Whether another attempt follows an end with that code (`podutil.ContainerShouldRestart`).
    pub fn restarts(&self, container: &Container, exit_code: i32) -> bool {
        if restart_rule_says(container, exit_code) {
            return true;
        }
        match self.restart_policy(container) {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// Whether no end of a container is followed by another attempt.
    pub fn never_restarts(&self) -> bool {
        RestartPolicy::read(self.spec.restart_policy.as_deref()) == RestartPolicy::Never
    }

    /// The pod with a grace of at most so many seconds.
    #[must_use]
    pub fn within(&self, grace_s: i64) -> Self {
        let mut pod = self.clone();
        pod.pod.metadata.deletion_grace_period_seconds = Some(self.grace_seconds().min(grace_s));

        pod
    }

    /// `spec.hostNetwork`.
    pub fn host_network(&self) -> bool {
        self.spec.host_network.unwrap_or(false)
    }
}

/// Whether an init container runs beside those after it, for as long as the pod does
/// (`podutil.IsRestartableInitContainer`).
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

/// `restartPolicyRules`: those that say `Restart`, the only action there is.
fn restart_rule_says(container: &Container, exit_code: i32) -> bool {
    container.restart_policy_rules.iter().flatten().any(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let is_listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        let matches = match codes.operator.as_str() {
            "In" => is_listed,
            "NotIn" => !is_listed,
            _ => false,
        };

        matches && rule.action == "Restart"
    })
}

fn gates(spec: &PodSpec, conditions: &[PodCondition]) -> Vec<(String, Option<String>)> {
    let gates = spec.readiness_gates.iter().flatten().map(|gate| {
        let found = conditions.iter().find(|condition| condition.type_ == gate.condition_type);
        (gate.condition_type.clone(), found.map(|condition| condition.status.clone()))
    });

    gates.collect()
}

/// An ephemeral container as one of the others, which never restarts. By way of text, as pods come:
/// a reader of other values for all the types would be another 0.2 MB of the agent.
fn as_container(ephemeral: &EphemeralContainer) -> Result<Container, serde_json::Error> {
    let json = serde_json::to_value(ephemeral)?.to_string();
    let mut container: Container = serde_json::from_slice(json.as_bytes())?;
    container.restart_policy = Some("Never".to_owned());
    container.restart_policy_rules = None;

    Ok(container)
}

/// When a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever its exit code.
    Always,
    /// If its exit code is not 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    fn read(policy: Option<&str>) -> Self {
        match policy {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

/// Collects the paths that `raw` has and `known` lost. Null, false, zero and empty values ask for
/// nothing, so that losing them is no loss.
fn find_unknown(path: &str, raw: &Value, known: &Value, found: &mut Vec<String>) {
    match (raw, known) {
        (Value::Object(raw), known) => {
            for (name, value) in raw {
                let path = format!("{path}.{name}");
                match known.get(name) {
                    Some(known) => find_unknown(&path, value, known, found),
                    None if asks_for_nothing(value) => {}
                    None => found.push(path),
                }
            }
        }
        (Value::Array(raw), Value::Array(known)) => {
            for (index, (raw, known)) in raw.iter().zip(known).enumerate() {
                find_unknown(&format!("{path}[{index}]"), raw, known, found);
            }
        }
        (
            Value::Array(_) | Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_),
            _,
        ) => {}
    }
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(asks_for_nothing),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: &Value) -> PodView {
        let pod = json!({
            "metadata": { "uid": "u-1", "namespace": "default", "name": "web" },
            "spec": spec,
        });
        PodView::parse(pod.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_field_of_a_later_kubernetes_is_named() {
        let seen = pod(&json!({
            "containers": [{ "name": "a", "frobnicate": { "level": 3 }, "image": "x" }],
            "futureField": true,
            "emptyFutureField": "",
        }));

        assert_eq!(seen.unknown_fields, ["spec.containers[0].frobnicate", "spec.futureField"]);
    }

    #[test]
    fn a_pod_without_uid_is_an_error_that_says_so() {
        let error = PodView::parse(br#"{"metadata":{"name":"a","namespace":"b"},"spec":{}}"#);
        let error = error.unwrap_err();

        assert!(matches!(error, PodError::Json(_) | PodError::Missing("metadata.uid")), "{error}");
    }
}
