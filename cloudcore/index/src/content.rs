//! What an object's JSON says that matters here, and the hash of what an edge uses of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use proto::ids::{Kind, NameError, NodeName, ObjectKey, Uid};
use proto::object::{ContentHash, Object, Version};
use proto::resource::is_extended;
use proto::static_pod::MIRROR;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::references::{Binding, Reference, is_name};

/// Why an object cannot be taken in; it is skipped, and the watch goes on.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// Not the JSON of an object.
    #[error("a {kind} from the API server is not understood", kind = kind.as_str())]
    Json {
        /// Of what was watched.
        kind: Kind,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Its UID is none.
    #[error("{kind} {name} has a bad uid", kind = kind.as_str())]
    Uid {
        /// Of what was watched.
        kind: Kind,
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: NameError,
    },
    /// Its resource version is no number (KEP-5504 says it is).
    #[error("{kind} {name} has resource version {version:?}, which is not a number", kind = kind.as_str())]
    Revision {
        /// Of what was watched.
        kind: Kind,
        /// Which.
        name: String,
        /// What it has.
        version: String,
    },
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Option<&'a RawValue>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "binaryData")]
    binary_data: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    handler: Option<&'a RawValue>,
    #[serde(borrow, default)]
    status: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(default)]
    namespace: String,
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(borrow, default)]
    deletion_timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    deletion_grace_period_seconds: Option<&'a RawValue>,
    #[serde(borrow, default)]
    generation: Option<&'a RawValue>,
    #[serde(borrow, default)]
    owner_references: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finalizers: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    #[serde(default)]
    node_name: String,
    #[serde(default)]
    readiness_gates: Vec<Gate>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Gate {
    condition_type: String,
}

#[derive(Deserialize)]
struct PodStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimSpec {
    #[serde(default)]
    volume_name: String,
}

#[derive(Deserialize)]
struct ClaimStatus {
    #[serde(default)]
    phase: String,
}

#[derive(Deserialize)]
struct NodeStatus {
    #[serde(default)]
    allocatable: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolumeSpec {
    claim_ref: Option<ClaimRef>,
}

#[derive(Deserialize)]
struct ClaimRef {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
}

/// The parts of an object that the index needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    kind: Kind,
    /// `metadata.namespace`, empty for nodes.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.resourceVersion`.
    pub revision: u64,
    /// The node a pod is bound to.
    pub bound_to: Option<NodeName>,
    /// The pod of a node's file that this pod shows.
    pub mirrors: Option<Uid>,
    /// `metadata.deletionTimestamp` is set.
    pub is_deleted: bool,
    /// Of a claim or a volume.
    pub binding: Binding,
    hash: ContentHash,
}

impl Content {
    /// Reads the JSON of an object of `kind`.
    pub fn read(kind: Kind, bytes: &[u8]) -> Result<Self, ContentError> {
        let wire: Wire<'_> =
            serde_json::from_slice(bytes).map_err(|source| ContentError::Json { kind, source })?;
        let metadata = &wire.metadata;
        let name = metadata.name.clone();
        let revision = metadata.resource_version.parse().map_err(|_| ContentError::Revision {
            kind,
            name: name.clone(),
            version: metadata.resource_version.clone(),
        })?;
        let uid = Uid::new(metadata.uid.clone()).map_err(|source| ContentError::Uid {
            kind,
            name: name.clone(),
            source,
        })?;
        let json = |source| ContentError::Json { kind, source };
        let spec: Option<PodSpec> = match (kind, wire.spec) {
            (Kind::Pod, Some(spec)) => Some(serde_json::from_str(spec.get()).map_err(json)?),
            _ => None,
        };
        let bound_to = spec.as_ref().and_then(|spec| NodeName::new(spec.node_name.clone()).ok());
        let used_status = match (kind, &spec, wire.status) {
            (_, Some(spec), Some(status)) if !spec.readiness_gates.is_empty() => {
                let status: PodStatus = serde_json::from_str(status.get()).map_err(json)?;
                gate_values(spec, &status)
            }
            (Kind::PersistentVolumeClaim, _, Some(status)) => {
                serde_json::from_str::<ClaimStatus>(status.get()).map_err(json)?.phase
            }
            (Kind::Node, _, Some(status)) => {
                extended(&serde_json::from_str::<NodeStatus>(status.get()).map_err(json)?)
            }
            _ => String::new(),
        };

        Ok(Self {
            kind,
            namespace: metadata.namespace.clone(),
            hash: hash(kind, &wire, &used_status),
            binding: binding(kind, wire.spec).map_err(json)?,
            name,
            uid,
            revision,
            bound_to,
            mirrors: mirrored(metadata),
            is_deleted: metadata.deletion_timestamp.is_some_and(|time| time.get() != "null"),
        })
    }

    /// What identifies it within its kind: UID for pods, else `namespace/name` or name.
    pub fn identity(&self) -> String {
        match self.kind {
            Kind::Pod => self.uid.to_string(),
            Kind::Node | Kind::PersistentVolume | Kind::RuntimeClass => self.name.clone(),
            Kind::ConfigMap
            | Kind::Secret
            | Kind::Service
            | Kind::Token
            | Kind::PersistentVolumeClaim => format!("{}/{}", self.namespace, self.name),
        }
    }

    /// The node that a Node object is of.
    pub fn node_name(&self) -> Option<NodeName> {
        NodeName::new(self.name.clone()).ok()
    }

    /// The object as it is sent.
    pub fn into_object(self, epoch: u64, bytes: Bytes) -> Object {
        // Names from the API server are within the bound.
        let key = ObjectKey::from_parts(self.kind, self.identity())
            .unwrap_or_else(|| ObjectKey::named(self.kind, &self.namespace, &self.name));
        let version = Version { uid: self.uid, epoch, revision: self.revision, hash: self.hash };

        Object { key, version, bytes }
    }
}

/// What a mirror shows; whatever its annotation says, a node runs no mirror.
fn mirrored(metadata: &Metadata<'_>) -> Option<Uid> {
    let shown = metadata.annotations.get(MIRROR)?;

    Some(Uid::new(shown.clone()).unwrap_or_default())
}

/// The readiness gates' conditions, which others write and the node must know.
fn gate_values(spec: &PodSpec, status: &PodStatus) -> String {
    let value = |gate: &Gate| {
        let condition = status.conditions.iter().find(|c| c.kind == gate.condition_type);
        condition.map_or("", |condition| condition.status.as_str()).to_owned()
    };

    spec.readiness_gates.iter().map(value).collect::<Vec<_>>().join(",")
}

/// What of a node's resources does not come from the node.
fn extended(status: &NodeStatus) -> String {
    let extended = status.allocatable.iter().filter(|(name, _)| is_extended(name));

    extended.map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(",")
}

/// What holds a claim or a volume to the other.
fn binding(kind: Kind, spec: Option<&RawValue>) -> Result<Binding, serde_json::Error> {
    let Some(spec) = spec else { return Ok(Binding::None) };
    match kind {
        Kind::PersistentVolumeClaim => {
            let ClaimSpec { volume_name } = serde_json::from_str(spec.get())?;
            let volume = Reference::new(Kind::PersistentVolume, "", &volume_name);

            Ok(if is_name(&volume_name) { Binding::Claim(volume) } else { Binding::None })
        }
        Kind::PersistentVolume => {
            let VolumeSpec { claim_ref } = serde_json::from_str(spec.get())?;
            let bound =
                claim_ref.and_then(|claim| Some((Uid::new(claim.uid.clone()).ok()?, claim)));

            Ok(bound.map_or(Binding::None, |(uid, claim)| {
                let ClaimRef { namespace, name, .. } = claim;
                let claim = Reference::new(Kind::PersistentVolumeClaim, &namespace, &name);
                Binding::Volume { claim, uid }
            }))
        }
        Kind::Pod
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::Service
        | Kind::Node
        | Kind::Token
        | Kind::RuntimeClass => Ok(Binding::None),
    }
}

/// Everything an edge uses, and nothing that changes by our own status patches.
fn hash(kind: Kind, wire: &Wire<'_>, used_status: &str) -> ContentHash {
    let raw = |value: Option<&RawValue>| value.map(RawValue::get).unwrap_or_default().to_owned();
    let pairs = |map: &BTreeMap<String, String>| {
        let pieces = map.iter().flat_map(|(key, value)| [key.as_str(), "\0", value, "\0"]);
        pieces.collect::<String>()
    };
    let metadata = &wire.metadata;
    let parts = match kind {
        Kind::Pod => vec![
            raw(wire.spec),
            pairs(&metadata.labels),
            pairs(&metadata.annotations),
            raw(metadata.deletion_timestamp),
            raw(metadata.deletion_grace_period_seconds),
            raw(metadata.generation),
            used_status.to_owned(),
        ],
        Kind::ConfigMap | Kind::Secret => {
            vec![raw(wire.data), raw(wire.binary_data), raw(wire.kind)]
        }
        Kind::Service => vec![raw(wire.spec)],
        Kind::Node => vec![
            raw(wire.spec),
            pairs(&metadata.labels),
            pairs(&metadata.annotations),
            used_status.to_owned(),
        ],
        Kind::Token => vec![raw(wire.status)],
        Kind::PersistentVolumeClaim => vec![
            raw(wire.spec),
            raw(metadata.deletion_timestamp),
            raw(metadata.finalizers),
            raw(metadata.owner_references),
            used_status.to_owned(),
        ],
        Kind::PersistentVolume => vec![raw(wire.spec), pairs(&metadata.annotations)],
        Kind::RuntimeClass => vec![raw(wire.handler)],
    };
    let parts: Vec<&[u8]> = parts.iter().map(String::as_bytes).collect();

    ContentHash::of(&parts)
}
