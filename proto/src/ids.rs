//! What nodes and objects are called. No bare `String` crosses a module border.

use std::fmt;

/// Longest name Kubernetes gives an object (RFC 1123 subdomain).
pub const NAME_LEN_MAX: usize = 253;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("a {what} cannot be empty")]
    Empty { what: &'static str },
    /// The text is longer than Kubernetes allows.
    #[error("{what} has {len} characters, at most {NAME_LEN_MAX} are allowed")]
    TooLong { what: &'static str, len: usize },
    /// A character that no such name has.
    #[error("{what} {name:?} may only hold lower-case letters, digits, '-' and '.'")]
    BadCharacter { what: &'static str, name: String },
}

fn checked(what: &'static str, name: String, allow: fn(u8) -> bool) -> Result<String, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > NAME_LEN_MAX {
        return Err(NameError::TooLong { what, len: name.len() });
    }
    if !name.bytes().all(allow) {
        return Err(NameError::BadCharacter { what, name });
    }

    Ok(name)
}

/// Whether an object's name may have the byte (RFC 1123 subdomain).
pub fn subdomain_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
}

/// A Kubernetes node name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// Checks `name` against the rules for object names.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        checked("node name", name.into(), subdomain_byte).map(Self)
    }

    /// The name as Kubernetes writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `metadata.uid`: unlike a name, never used twice.
///
/// Usually a UUID, but static pods have a hash, so any short printable token is taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(String);

impl Uid {
    /// Checks that `uid` is a short token safe to be a file name.
    pub fn new(uid: impl Into<String>) -> Result<Self, NameError> {
        checked("uid", uid.into(), |b| b.is_ascii_alphanumeric() || b == b'-').map(Self)
    }

    /// The UID as the API server writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kinds of object the cloud sends to a node. The numbers are on the wire and on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A pod bound to the node, keyed by UID.
    Pod = 1,
    /// A ConfigMap that a pod of the node references.
    ConfigMap = 2,
    /// A Secret that a pod of the node references.
    Secret = 3,
    /// A Service of a namespace in which the node has pods, for the container environment.
    Service = 4,
    /// The node's own Node object.
    Node = 5,
    /// A service account token for one projected volume source of one pod
    /// (an `authentication.k8s.io/v1 TokenRequest` with its status), keyed by pod UID and source.
    Token = 6,
    /// A PersistentVolumeClaim that a pod of the node references.
    PersistentVolumeClaim = 7,
    /// The PersistentVolume that such a claim is bound to.
    PersistentVolume = 8,
    /// A RuntimeClass that a pod of the node references.
    RuntimeClass = 9,
}

/// What an edge takes that does not say it: tokens and what is before them.
pub const KINDS_UNSAID: u32 = Kind::Token as u32;

impl Kind {
    /// The last in wire order.
    pub const LAST: Self = Self::RuntimeClass;

    /// Every kind, in wire order.
    pub const ALL: [Self; 9] = [
        Self::Pod,
        Self::ConfigMap,
        Self::Secret,
        Self::Service,
        Self::Node,
        Self::Token,
        Self::PersistentVolumeClaim,
        Self::PersistentVolume,
        Self::RuntimeClass,
    ];

    /// The kind with this wire number.
    pub fn from_wire(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }

    /// The Kubernetes name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "Pod",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::Node => "Node",
            Self::Token => "Token",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::PersistentVolume => "PersistentVolume",
            Self::RuntimeClass => "RuntimeClass",
        }
    }
}

/// What an object is stored and sent under.
///
/// Pods go by UID, so that the delete of one and the put of its successor under the same name both
/// happen. The others go by `namespace/name` (without a namespace: `name`; tokens: `podUID/hash`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    kind: Kind,
    id: String,
}

/// Longest id: a namespace, a slash and a name.
pub const OBJECT_ID_LEN_MAX: usize = 2 * NAME_LEN_MAX + 1;

impl ObjectKey {
    /// The key of the pod with this UID.
    pub fn pod(uid: &Uid) -> Self {
        Self { kind: Kind::Pod, id: uid.as_str().to_owned() }
    }

    /// The key of a namespaced object other than a pod.
    pub fn named(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, id: format!("{namespace}/{name}") }
    }

    /// The key of an object that is in no namespace.
    pub fn in_cluster(kind: Kind, name: &str) -> Self {
        Self { kind, id: name.to_owned() }
    }

    /// The key of the Node object.
    pub fn node(name: &NodeName) -> Self {
        Self { kind: Kind::Node, id: name.as_str().to_owned() }
    }

    /// The key of the token for the source `source` (a hash of what was asked) of a pod.
    pub fn token(pod: &Uid, source: &str) -> Self {
        Self { kind: Kind::Token, id: format!("{pod}/{source}") }
    }

    /// A key from its stored parts; `None` if the id is empty or too long.
    pub fn from_parts(kind: Kind, id: String) -> Option<Self> {
        (!id.is_empty() && id.len() <= OBJECT_ID_LEN_MAX).then_some(Self { kind, id })
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The UID, `namespace/name`, name or `podUID/hash`, by kind.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.id)
    }
}
