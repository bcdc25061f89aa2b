//! Pods that come from files of the node: who they are, and what the API server would make of them
//! (kubelet: `config.applyDefaults`).

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use proto::ids::{NameError, NodeName, Uid};
use proto::object::{ContentHash, hex};
use proto::static_pod::{HASH, MIRROR, SEEN, SOURCE, refers_to};
use serde_json::{Map, Value, json};

use crate::defaults;

/// Longest label (RFC 1123), which names of containers and namespaces are.
const LABEL_LEN_MAX: usize = 63;

/// Why a manifest is not a pod that this node can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StaticPodError {
    /// Something else.
    #[error("it holds {found:?}, and only a Pod of apiVersion v1 can be run from a file")]
    Kind {
        /// What it calls itself.
        found: String,
    },
    /// A field that is missing, or not what it must be.
    #[error("{field} {problem}")]
    Field {
        /// Where.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field of the wrong type.
    #[error("not understood as a pod: {reason}")]
    Type {
        /// Where and what.
        reason: String,
    },
    /// It refers to the API, which may never answer.
    #[error("static pods may not reference {0}")]
    Reference(&'static str),
}

fn field(field: impl Into<String>, problem: impl Into<String>) -> StaticPodError {
    StaticPodError::Field { field: field.into(), problem: problem.into() }
}

/// A pod from a file, ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticPod {
    /// Its own, or a hash of pod, node and file: another pod in the file is another pod.
    pub uid: Uid,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`, with the node's.
    pub name: String,
    /// The whole object.
    pub object: Value,
}

/// By way of text, as `PodView` reads pods of the API server.
fn typed(object: &Value) -> Result<Pod, StaticPodError> {
    serde_json::from_slice(object.to_string().as_bytes()).map_err(|error| {
        let error = error.to_string();
        let reason = error.rsplit_once(" at line ").map_or(error.as_str(), |(reason, _)| reason);

        StaticPodError::Type { reason: reason.to_owned() }
    })
}

/// Reads the pod in `file`.
pub fn read(
    manifest: &Value,
    file: &str,
    node: &NodeName,
    seen: Timestamp,
) -> Result<StaticPod, StaticPodError> {
    let text = |field: &str| manifest[field].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if (version.as_str(), kind.as_str()) != ("v1", "Pod") {
        return Err(StaticPodError::Kind { found: format!("{version} {kind}") });
    }
    let mut object = json!({ "apiVersion": "v1", "kind": "Pod", "spec": manifest["spec"] });
    defaults::apply(&mut object);
    object["metadata"] = metadata(manifest);
    let typed = typed(&object)?;
    validate(&typed)?;
    if let Some(kind) = refers_to(&object["spec"]) {
        return Err(StaticPodError::Reference(kind));
    }
    let uid =
        uid(manifest, file, node).map_err(|error| field("metadata.uid", error.to_string()))?;
    let name = format!("{}-{node}", typed.metadata.name.unwrap_or_default());
    let namespace = typed.metadata.namespace.unwrap_or_else(|| "default".to_owned());
    is_name("metadata.name", &name, NodeName::new)?;
    is_label("metadata.namespace", &namespace)?;

    let metadata = &mut object["metadata"];
    metadata["uid"] = json!(uid.as_str());
    metadata["name"] = json!(name);
    metadata["namespace"] = json!(namespace);
    if !metadata["annotations"].is_object() {
        metadata["annotations"] = json!({});
    }
    metadata["annotations"][HASH] = json!(uid.as_str());
    metadata["annotations"][SEEN] = json!(seen.to_string());
    metadata["annotations"][SOURCE] = json!("file");
    if let Some(annotations) = metadata["annotations"].as_object_mut() {
        annotations.remove(MIRROR);
    }
    object["spec"]["nodeName"] = json!(node.as_str());
    tolerate_everything(&mut object["spec"]);

    Ok(StaticPod { uid, namespace, name, object })
}

/// Nothing but what a static pod has of its own.
fn metadata(manifest: &Value) -> Value {
    let mut kept = Map::new();
    for name in ["name", "namespace", "labels", "annotations"] {
        let value = &manifest["metadata"][name];
        if !value.is_null() && value.as_str() != Some("") {
            kept.insert(name.to_owned(), value.clone());
        }
    }

    Value::Object(kept)
}

/// Of what the manifest says, not of what is filled in: an agent that knows more defaults runs the same
/// pod.
fn uid(manifest: &Value, file: &str, node: &NodeName) -> Result<Uid, NameError> {
    match manifest["metadata"]["uid"].as_str() {
        Some(own) if !own.is_empty() => Uid::new(own),
        _none => {
            let pod =
                json!({ "metadata": metadata(manifest), "spec": manifest["spec"] }).to_string();
            let host = format!("host:{node}");
            let hash = ContentHash::of(&[pod.as_bytes(), host.as_bytes(), file.as_bytes()]);
            Uid::new(hex(&hash.0))
        }
    }
}

/// What the API server would refuse and the node could not run. The mirror finds the rest.
fn validate(pod: &Pod) -> Result<(), StaticPodError> {
    if pod.metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err(field("metadata.name", "is missing"));
    }
    let Some(spec) = &pod.spec else { return Err(field("spec", "is missing")) };
    if spec.containers.is_empty() {
        return Err(field("spec.containers", "must hold a container"));
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(field("spec.ephemeralContainers", "cannot be given to a pod that is made"));
    }
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    if !matches!(policy, "Always" | "OnFailure" | "Never") {
        return Err(field("spec.restartPolicy", format!("cannot be {policy:?}")));
    }
    let mut volumes = BTreeSet::new();
    for volume in spec.volumes.iter().flatten() {
        is_label("spec.volumes[].name", &volume.name)?;
        if !volumes.insert(volume.name.as_str()) {
            return Err(field("spec.volumes", format!("names {:?} twice", volume.name)));
        }
    }
    let mut names = BTreeSet::new();
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let name = &container.name;
        is_label("spec.containers[].name", name)?;
        if !names.insert(name) {
            return Err(field("spec.containers", format!("names {name:?} twice")));
        }
        let image = container.image.as_deref().unwrap_or_default();
        if image.is_empty() || image.trim() != image {
            return Err(field(format!("container {name}: image"), format!("cannot be {image:?}")));
        }
        for mount in container.volume_mounts.iter().flatten() {
            if !volumes.contains(mount.name.as_str()) {
                let problem = format!("{:?} is no volume of the pod", mount.name);
                return Err(field(format!("container {name}: volumeMounts[].name"), problem));
            }
        }
    }

    Ok(())
}

fn is_name<T>(
    of: &str,
    name: &str,
    check: fn(String) -> Result<T, NameError>,
) -> Result<(), StaticPodError> {
    check(name.to_owned()).map(drop).map_err(|error| field(of, error.to_string()))
}

fn is_label(of: &str, name: &str) -> Result<(), StaticPodError> {
    let is_inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let is_outer = |c: Option<char>| c.is_some_and(|c| c != '-');
    let fits = !name.is_empty() && name.len() <= LABEL_LEN_MAX && name.bytes().all(is_inner);
    if fits && is_outer(name.chars().next()) && is_outer(name.chars().next_back()) {
        return Ok(());
    }

    Err(field(of, format!("cannot be {name:?}: lower-case letters, digits and '-' make a name")))
}

/// No taint evicts it: it would only be started again.
fn tolerate_everything(spec: &mut Value) {
    let all = json!({ "operator": "Exists", "effect": "NoExecute" });
    if !spec["tolerations"].is_array() {
        spec["tolerations"] = json!([]);
    }
    let Some(tolerations) = spec["tolerations"].as_array_mut() else { return };
    if !tolerations.contains(&all) {
        tolerations.push(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeName {
        NodeName::new("edge-1").unwrap()
    }

    fn manifest() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "labels": { "app": "web" }, "finalizers": ["x"] },
            "spec": { "containers": [{ "name": "c", "image": "web:1" }] },
        })
    }

    fn read_at(manifest: &Value, file: &str) -> Result<StaticPod, StaticPodError> {
        read(manifest, file, &node(), Timestamp::UNIX_EPOCH)
    }

    fn with(path: &str, value: Value) -> Value {
        let mut manifest = manifest();
        let (parent, name) = path.rsplit_once('/').unwrap();
        manifest.pointer_mut(parent).unwrap()[name] = value;

        manifest
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node() {
        let pod = read_at(&manifest(), "/m/web.yaml").unwrap();
        assert_eq!((pod.namespace.as_str(), pod.name.as_str()), ("default", "web-edge-1"));
        assert_eq!(pod.uid.as_str().len(), 32);
        assert_eq!(
            pod.object["metadata"],
            json!({
                "name": "web-edge-1", "namespace": "default", "uid": pod.uid.as_str(),
                "labels": { "app": "web" },
                "annotations": {
                    "kubernetes.io/config.hash": pod.uid.as_str(),
                    "kubernetes.io/config.seen": "1970-01-01T00:00:00Z",
                    "kubernetes.io/config.source": "file",
                },
            })
        );
        let spec = &pod.object["spec"];
        assert_eq!(spec["nodeName"], "edge-1");
        assert_eq!(spec["tolerations"], json!([{ "operator": "Exists", "effect": "NoExecute" }]));
        assert_eq!(spec["restartPolicy"], "Always");
    }

    #[test]
    fn another_pod_another_file_or_another_node_is_another_uid() {
        let uid = |manifest: &Value, file| read_at(manifest, file).unwrap().uid;
        let first = uid(&manifest(), "/m/web.yaml");
        assert_eq!(uid(&manifest(), "/m/web.yaml"), first);
        assert_ne!(uid(&manifest(), "/m/other.yaml"), first);
        assert_ne!(uid(&with("/metadata/labels", json!({})), "/m/web.yaml"), first);
        let other = NodeName::new("edge-2").unwrap();
        let there = read(&manifest(), "/m/web.yaml", &other, Timestamp::UNIX_EPOCH).unwrap();
        assert_ne!(there.uid, first);
        assert_eq!(uid(&with("/metadata/uid", json!("mine")), "/m/a").as_str(), "mine");
    }

    #[test]
    fn what_is_wrong_with_a_manifest_is_named() {
        let check = |manifest: &Value, expected: &str| {
            let error = read_at(manifest, "/m/web.yaml").unwrap_err().to_string();
            assert!(error.contains(expected), "{error} lacks {expected}");
        };
        check(&Value::Null, "only a Pod");
        check(&with("/kind", json!("Deployment")), "v1 Deployment");
        check(&with("/metadata/name", json!("")), "metadata.name is missing");
        check(&with("/metadata/name", json!("Web")), "Web-edge-1");
        check(&with("/metadata/uid", json!("../x")), "metadata.uid");
        check(&with("/spec/containers", json!([])), "spec.containers");
        check(&with("/spec/containers/0/image", json!(" ")), "container c: image");
        check(&with("/spec/containers/0/name", json!("C")), "cannot be \"C\"");
        check(&with("/spec/containers/0/env", json!([{ "name": "A", "value": 1 }])), "integer");
        check(
            &with("/spec/containers/0/volumeMounts", json!([{ "name": "v", "mountPath": "/v" }])),
            "\"v\"",
        );
        check(&with("/spec/restartPolicy", json!("Sometimes")), "restartPolicy");
        check(&with("/spec/serviceAccountName", json!("a")), "may not reference serviceaccounts");
    }

    #[test]
    fn numbers_are_quantities_and_requests_come_from_limits() {
        let limits = json!({ "limits": { "cpu": 1, "memory": "64Mi" } });
        let pod = read_at(&with("/spec/containers/0/resources", limits), "/m/web.yaml").unwrap();
        let resources = &pod.object["spec"]["containers"][0]["resources"];
        assert_eq!(resources["requests"], json!({ "cpu": "1", "memory": "64Mi" }));
    }
}
