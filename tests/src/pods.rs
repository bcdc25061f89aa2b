//! Pod manifests, and what tests ask about a pod.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The image with a shell that every site has.
pub const BUSYBOX: &str = "holdfast.dev/test/busybox:1";

/// A pod that sleeps until told to stop, and then stops at once, on `node`.
pub fn sleeper(name: &str, node: &str) -> Value {
    script_pod(name, node, "trap 'exit 0' TERM; echo started; while :; do sleep 1000 & wait; done")
}

/// A sleeper with the ConfigMap's data in `/map`, if there is one.
pub fn sleeper_with_map(name: &str, node: &str, map: &str) -> Value {
    let mut pod = sleeper(name, node);
    pod["spec"]["volumes"] =
        json!([{ "name": "map", "configMap": { "name": map, "optional": true } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "map", "mountPath": "/map" }]);

    pod
}

/// A ConfigMap with one `key`.
pub fn config_map(name: &str, data: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": "default" }, "data": { "key": data },
    })
}

/// A pod with one container `main` that runs `script` in a shell, bound to `node` by a selector, so
/// that the scheduler and every admission plugin see it.
pub fn script_pod(name: &str, node: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "main",
                "image": BUSYBOX,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c", script],
            }],
        },
    })
}

/// The API path of a pod in namespace `default`.
pub fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}")
}

/// Whether the pod's Ready condition is True.
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some("True")
}

/// The status of a condition of a pod or node.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)?["status"]
        .as_str()
}

/// What must not change for a pod that nothing restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incarnation {
    /// `metadata.uid`.
    pub uid: String,
    /// Container id and restart count by container name.
    pub containers: BTreeMap<String, (String, u64)>,
}

impl Incarnation {
    /// Reads it from the pod's status.
    pub fn of(pod: &Value) -> Self {
        let containers = pod["status"]["containerStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|status| {
                let id = status["containerID"].as_str().unwrap_or_default().to_owned();
                let name = status["name"].as_str().unwrap_or_default().to_owned();
                (name, (id, status["restartCount"].as_u64().unwrap_or_default()))
            })
            .collect();

        Self { uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(), containers }
    }
}
