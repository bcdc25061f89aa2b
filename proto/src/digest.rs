//! A set of held objects in short: equal sets have equal digests, whatever the order.

use std::collections::BTreeMap;

use crate::ids::ObjectKey;
use crate::object::{ContentHash, Version};

/// Most objects a node may hold. 500 pods with 30 objects each; more is refused by the session.
pub const HELD_OBJECTS_MAX: usize = 16 * 1024;

/// Sum modulo 2^128 of the hashes of all (key, UID, content hash). Epochs and revisions do not
/// count: they order versions, the hash decides equality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Counts the object in. The order of calls does not matter.
    pub fn add(&mut self, key: &ObjectKey, version: &Version) {
        self.0 = self.sum().wrapping_add(entry(key, version)).to_be_bytes();
    }

    /// Takes an object out that was counted in.
    pub fn remove(&mut self, key: &ObjectKey, version: &Version) {
        self.0 = self.sum().wrapping_sub(entry(key, version)).to_be_bytes();
    }

    fn sum(self) -> u128 {
        u128::from_be_bytes(self.0)
    }
}

fn entry(key: &ObjectKey, version: &Version) -> u128 {
    let kind = [key.kind() as u8];
    let parts: [&[u8]; 4] =
        [&kind, key.id().as_bytes(), version.uid.as_str().as_bytes(), &version.hash.0];

    u128::from_be_bytes(ContentHash::of(&parts).0)
}

/// A set of held objects as `Hello` tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of all objects.
    pub digest: Digest,
    /// How many.
    pub count: u32,
    /// Highest (epoch, revision) of any.
    pub high_water: (u64, u64),
}

/// Which version of which objects an edge holds durably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldSet(pub BTreeMap<ObjectKey, Version>);

impl HeldSet {
    /// The set in short.
    pub fn summary(&self) -> Summary {
        summarise(self.0.iter())
    }
}

/// The objects in short; no key may come twice.
pub fn summarise<'a>(objects: impl Iterator<Item = (&'a ObjectKey, &'a Version)>) -> Summary {
    let mut summary = Summary::default();
    for (key, version) in objects {
        summary.digest.add(key, version);
        summary.count = summary.count.saturating_add(1);
        summary.high_water = summary.high_water.max((version.epoch, version.revision));
    }

    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Kind, Uid};

    fn object(name: &str, uid: &str, hash: u8) -> (ObjectKey, Version) {
        let version = Version {
            uid: Uid::new(uid).unwrap(),
            epoch: 1,
            revision: u64::from(hash),
            hash: ContentHash([hash; 16]),
        };
        (ObjectKey::named(Kind::ConfigMap, "default", name), version)
    }

    #[test]
    fn order_does_not_matter_and_content_does() {
        let (a, b) = (object("a", "u1", 1), object("b", "u2", 2));
        let of = |list: &[&(ObjectKey, Version)]| {
            summarise(list.iter().map(|(key, version)| (key, version))).digest
        };
        assert_eq!(of(&[&a, &b]), of(&[&b, &a]));
        assert_ne!(of(&[&a, &b]), of(&[&a]));
        assert_ne!(of(&[&a]), of(&[&object("a", "u1", 2)]));
        assert_ne!(of(&[&a]), of(&[&object("a", "u9", 1)]));
        assert_ne!(of(&[&a, &b]), of(&[&object("a", "u2", 2), &object("b", "u1", 1)]));
    }

    #[test]
    fn removing_undoes_adding() {
        let (a, b) = (object("a", "u1", 1), object("b", "u2", 2));
        let mut digest = Digest::default();
        digest.add(&a.0, &a.1);
        let only_a = digest;
        digest.add(&b.0, &b.1);
        digest.remove(&b.0, &b.1);
        assert_eq!(digest, only_a);
    }
}
