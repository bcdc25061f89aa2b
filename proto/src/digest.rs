//! A set of held objects in short: equal sets have equal digests, whatever the order.

use std::collections::BTreeMap;

use crate::ids::{Kind, ObjectKey};
use crate::object::{ContentHash, Point, Version};

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

/// How far into the history of each kind an edge has been taken, deletes included: what a replica
/// whose watch has not come as far does not know enough to talk about (invariant 8).
///
/// Tokens have no history at the API server and are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HighWater(BTreeMap<Kind, Point>);

impl HighWater {
    /// Notes that `kind` was seen at `point`.
    pub fn raise(&mut self, kind: Kind, point: Point) {
        if kind != Kind::Token {
            let mark = self.0.entry(kind).or_default();
            *mark = point.max(*mark);
        }
    }

    /// Raises each kind to what `other` has.
    pub fn merge(&mut self, other: &Self) {
        for (kind, point) in other.iter() {
            self.raise(kind, point);
        }
    }

    /// The highest point of `kind`; zero if none was seen.
    pub fn get(&self, kind: Kind) -> Point {
        self.0.get(&kind).copied().unwrap_or_default()
    }

    /// For the store: 17 bytes for each kind.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes = |(kind, point): (Kind, Point)| {
            let (epoch, revision) = (point.epoch.to_be_bytes(), point.revision.to_be_bytes());
            std::iter::once(kind as u8).chain(epoch).chain(revision)
        };

        self.iter().flat_map(bytes).collect()
    }

    /// What [`Self::to_bytes`] wrote; `None` if it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (marks, rest) = bytes.as_chunks::<17>();
        let mut high_water = Self::default();
        for mark in marks {
            let kind = Kind::from_wire(mark[0].into())?;
            let epoch = u64::from_be_bytes(mark[1..9].try_into().ok()?);
            let revision = u64::from_be_bytes(mark[9..].try_into().ok()?);
            high_water.raise(kind, Point { epoch, revision });
        }

        rest.is_empty().then_some(high_water)
    }

    /// All kinds seen.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, Point)> {
        self.0.iter().map(|(kind, point)| (*kind, *point))
    }
}

/// A set of held objects as `Hello` tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Of all objects.
    pub digest: Digest,
    /// How many.
    pub count: u32,
    /// How far the edge has been taken.
    pub high_water: HighWater,
}

/// Which version of which objects an edge holds durably.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldSet {
    /// The objects.
    pub objects: BTreeMap<ObjectKey, Version>,
    /// As stored with the last batch; see `EdgeOutput::Deliver`.
    pub high_water: HighWater,
}

impl HeldSet {
    /// The set in short.
    pub fn summary(&self) -> Summary {
        let mut summary = summarise(self.objects.iter());
        summary.high_water.merge(&self.high_water);

        summary
    }
}

/// The objects in short; no key may come twice.
pub fn summarise<'a>(objects: impl Iterator<Item = (&'a ObjectKey, &'a Version)>) -> Summary {
    let mut summary = Summary::default();
    for (key, version) in objects {
        summary.digest.add(key, version);
        summary.count = summary.count.saturating_add(1);
        summary.high_water.raise(key.kind(), version.point());
    }

    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Uid;

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

    #[test]
    fn the_high_water_only_rises_and_knows_no_tokens() {
        let point = |epoch, revision| Point { epoch, revision };
        let mut mark = HighWater::default();
        for (kind, at) in [
            (Kind::Pod, point(1, 9)),
            (Kind::Pod, point(1, 5)),
            (Kind::Secret, point(1, 7)),
            (Kind::Pod, point(2, 3)),
            (Kind::Token, point(9, 9)),
        ] {
            mark.raise(kind, at);
        }
        let found: Vec<_> = mark.iter().collect();
        assert_eq!(found, [(Kind::Pod, point(2, 3)), (Kind::Secret, point(1, 7))]);
        let bytes = mark.to_bytes();
        assert_eq!(HighWater::from_bytes(&bytes), Some(mark));
        assert_eq!(HighWater::from_bytes(&bytes[1..]), None);
    }
}
