//! Pods that a node runs from files of its own. The cloud makes a mirror of each in the API server, so
//! that it is seen there; neither lets such a pod refer to other objects.

use serde_json::Value;

/// Annotation of a pod that a node runs: `file`.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// Annotation: the UID under which the node runs the pod, which is a hash of what it is.
pub const HASH: &str = "kubernetes.io/config.hash";
/// Annotation: when the node first saw the pod.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// Annotation of a mirror: the [`HASH`] of its pod.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Volumes that need nothing of the API.
const LOCAL_VOLUMES: [&str; 8] =
    ["downwardAPI", "emptyDir", "fc", "hostPath", "image", "iscsi", "nfs", "projected"];

/// Fields that name a Secret or ConfigMap wherever they are in a container's environment or a volume.
const REFERENCES: [(&str, &str); 6] = [
    ("secretKeyRef", "secrets"),
    ("secretRef", "secrets"),
    ("secretName", "secrets"),
    ("nodePublishSecretRef", "secrets"),
    ("configMapKeyRef", "configmaps"),
    ("configMapRef", "configmaps"),
];

/// What kind of API object the pod with this `spec` refers to; none may be (Kubernetes:
/// `HasAPIObjectReference`). What nobody knows counts as a reference.
pub fn refers_to(spec: &Value) -> Option<&'static str> {
    let is_set = |field: &str| {
        let value = &spec[field];
        !value.is_null() && value.as_str() != Some("") && value.as_array() != Some(&Vec::new())
    };
    for (field, kind) in [
        ("serviceAccountName", "serviceaccounts"),
        ("serviceAccount", "serviceaccounts"),
        ("imagePullSecrets", "secrets"),
        ("resourceClaims", "resourceclaims"),
    ] {
        if is_set(field) {
            return Some(kind);
        }
    }
    let lists = ["initContainers", "containers", "ephemeralContainers"];
    let containers = lists.iter().filter_map(|list| spec[*list].as_array()).flatten();
    for container in containers {
        if let Some(kind) = named_in(&container["env"]).or_else(|| named_in(&container["envFrom"]))
        {
            return Some(kind);
        }
    }

    spec["volumes"].as_array().into_iter().flatten().find_map(of_volume)
}

fn of_volume(volume: &Value) -> Option<&'static str> {
    let sources =
        volume.as_object()?.iter().filter(|(key, value)| *key != "name" && !value.is_null());
    for (source, value) in sources {
        let kind = match source.as_str() {
            "projected" => {
                value["sources"].as_array().into_iter().flatten().find_map(of_projection)
            }
            known if LOCAL_VOLUMES.contains(&known) => named_in(value),
            "configMap" => Some("configmaps"),
            "secret" | "azureFile" => Some("secrets"),
            "csi" => Some("csidrivers"),
            "glusterfs" => Some("endpoints"),
            "persistentVolumeClaim" | "ephemeral" => Some("persistentvolumeclaims"),
            _unknown => Some("objects through a volume of an unknown kind"),
        };
        if kind.is_some() {
            return kind;
        }
    }

    None
}

fn of_projection(source: &Value) -> Option<&'static str> {
    source.as_object()?.iter().filter(|(_, value)| !value.is_null()).find_map(|(source, _)| {
        match source.as_str() {
            "downwardAPI" => None,
            "configMap" => Some("configmaps"),
            "secret" => Some("secrets"),
            "serviceAccountToken" => Some("serviceaccounts"),
            "clusterTrustBundle" => Some("clustertrustbundles"),
            "podCertificate" => Some("podcertificates"),
            _unknown => Some("objects through a projected volume of an unknown kind"),
        }
    })
}

fn named_in(value: &Value) -> Option<&'static str> {
    match value {
        Value::Array(items) => items.iter().find_map(named_in),
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let is_reference = |(field, _): &&(&str, &str)| field == name && !value.is_null();
            let own = REFERENCES.iter().find(is_reference).map(|(_, kind)| *kind);

            own.or_else(|| named_in(value))
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(spec: &Value, expected: Option<&str>) {
        assert_eq!(refers_to(spec), expected, "{spec}");
    }

    #[test]
    fn a_static_pod_refers_to_no_object() {
        check(&json!({ "serviceAccountName": "", "imagePullSecrets": [] }), None);
        check(&json!({ "serviceAccount": "a" }), Some("serviceaccounts"));
        check(&json!({ "imagePullSecrets": [{ "name": "a" }] }), Some("secrets"));
        for (container, kind) in [
            (json!({ "env": [{ "name": "A", "value": "secretRef" }] }), None),
            (
                json!({ "env": [{ "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }] }),
                None,
            ),
            (
                json!({ "env": [{ "valueFrom": { "secretKeyRef": { "name": "a" } } }] }),
                Some("secrets"),
            ),
            (json!({ "envFrom": [{ "configMapRef": { "name": "a" } }] }), Some("configmaps")),
        ] {
            check(&json!({ "initContainers": [container] }), kind);
        }
        for (volume, kind) in [
            (json!({ "hostPath": { "path": "/a" }, "secret": null }), None),
            (json!({ "projected": { "sources": [{ "downwardAPI": {} }] } }), None),
            (
                json!({ "projected": { "sources": [{ "serviceAccountToken": {} }] } }),
                Some("serviceaccounts"),
            ),
            (json!({ "iscsi": { "secretRef": { "name": "a" } } }), Some("secrets")),
            (
                json!({ "persistentVolumeClaim": { "claimName": "a" } }),
                Some("persistentvolumeclaims"),
            ),
            (json!({ "later": {} }), Some("objects through a volume of an unknown kind")),
        ] {
            check(&json!({ "volumes": [{ "name": "v" }, volume] }), kind);
        }
    }
}
