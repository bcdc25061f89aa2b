//! One desired object: the API server's own bytes and the version they carry.

use bytes::Bytes;

use crate::ids::{ObjectKey, Uid};

/// Largest object accepted on the link, uncompressed. etcd refuses requests over 1.5 MiB, so no
/// object of a real API server comes near.
pub const OBJECT_BYTES_MAX: usize = 3 * 1024 * 1024;

/// SHA-256, cut to 16 bytes, of what the edge uses of an object: never of its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 16]);

impl ContentHash {
    /// Hashes the parts in order; each is preceded by its length, so that borders count.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut hash = [0; 16];
        hash.copy_from_slice(&context.finish().as_ref()[..16]);

        Self(hash)
    }
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// A point in the history of one kind, as one API server tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Counts restores of the API server; beats any revision.
    pub epoch: u64,
    /// `metadata.resourceVersion` as an integer (KEP-5504).
    pub revision: u64,
}

/// Which state of which object.
///
/// The hash decides equality. Revisions order versions only within one kind and epoch; a higher
/// epoch beats any revision (an API server restored from a backup counts from lower ones again).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`; tokens carry the UID of their pod.
    pub uid: Uid,
    /// Counts restores of the API server; see invariant 7 in docs/architecture.md.
    pub epoch: u64,
    /// `metadata.resourceVersion` as an integer (KEP-5504).
    pub revision: u64,
    /// Hash of what the edge uses.
    pub hash: ContentHash,
}

impl Version {
    /// When it was made.
    pub fn point(&self) -> Point {
        Point { epoch: self.epoch, revision: self.revision }
    }

    /// Whether `self` was made after `other`, given that both are of one object.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.point() > other.point()
    }
}

/// A desired object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is stored under.
    pub key: ObjectKey,
    /// Which state it is.
    pub version: Version,
    /// JSON exactly as the API server sent it, uncompressed.
    pub bytes: Bytes,
}

/// What a change does to the set of desired objects of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The object exists in this state.
    Put(Object),
    /// The object with this UID is gone from the API server (positive evidence, never absence).
    Delete {
        /// What it was stored under.
        key: ObjectKey,
        /// Only an object with this UID is deleted: never its successor.
        uid: Uid,
    },
}

impl Change {
    /// The key that the change is about.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Put(object) => &object.key,
            Self::Delete { key, .. } => key,
        }
    }
}
