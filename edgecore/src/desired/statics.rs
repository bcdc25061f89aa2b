//! Which pods of files are to run: a pod of a name starts when nothing is left of the one before it.

use std::collections::BTreeMap;

use proto::ids::{ObjectKey, Uid};
use proto::object::Object;

/// A pod of a file, stored under its UID as the others are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticObject {
    /// `namespace/name`.
    pub name: String,
    /// The pod.
    pub object: Object,
}

impl StaticObject {
    fn uid(&self) -> &Uid {
        &self.object.version.uid
    }
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Statics {
    current: BTreeMap<Uid, StaticObject>,
    /// To be run once nothing is left of who has their name.
    waiting: BTreeMap<Uid, StaticObject>,
    /// Not wanted any more, as long as something of them may be left.
    leaving: BTreeMap<Uid, StaticObject>,
}

impl Statics {
    /// These are all; no two of one name. Returns what changed.
    pub(super) fn set(&mut self, pods: Vec<StaticObject>) -> Vec<ObjectKey> {
        let mut wanted: BTreeMap<_, _> =
            pods.into_iter().map(|pod| (pod.uid().clone(), pod)).collect();
        let mut changed = Vec::new();
        let before = std::mem::take(&mut self.current);
        for (uid, pod) in before {
            if let Some(now) = wanted.remove(&uid) {
                if now != pod {
                    changed.push(now.object.key.clone());
                }
                self.current.insert(uid, now);
            } else {
                changed.push(pod.object.key.clone());
                self.leaving.insert(uid, pod);
            }
        }
        self.waiting = wanted;
        changed.extend(self.start());

        changed
    }

    /// Nothing is left of a pod. Returns what may be run now.
    pub(super) fn ended(&mut self, uid: &Uid) -> Vec<ObjectKey> {
        if self.leaving.remove(uid).is_none() {
            return Vec::new();
        }

        self.start()
    }

    fn start(&mut self) -> Vec<ObjectKey> {
        let is_free = |pod: &StaticObject| {
            !self.leaving.contains_key(pod.uid())
                && self.leaving.values().all(|p| p.name != pod.name)
        };
        let waiting = std::mem::take(&mut self.waiting);
        let (free, waiting) = waiting.into_iter().partition(|(_, pod)| is_free(pod));
        self.waiting = waiting;
        let free: BTreeMap<_, _> = free;
        let keys = free.values().map(|pod| pod.object.key.clone()).collect();
        self.current.extend(free);

        keys
    }

    /// The pod, if it is to run.
    pub(super) fn get(&self, uid: &Uid) -> Option<&Object> {
        self.current.get(uid).map(|pod| &pod.object)
    }

    /// The pod, if it is to be stopped.
    pub(super) fn leaving(&self, uid: &Uid) -> Option<&Object> {
        self.leaving.get(uid).map(|pod| &pod.object)
    }

    /// Whether it is a pod of a file.
    pub(super) fn contains(&self, uid: &Uid) -> bool {
        [&self.current, &self.waiting, &self.leaving].iter().any(|pods| pods.contains_key(uid))
    }

    /// Those that are to run now.
    pub(super) fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.current.keys()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proto::object::{ContentHash, Version};

    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    fn pod(of: &str, name: &str) -> StaticObject {
        let version = Version {
            uid: uid(of),
            epoch: 0,
            revision: 0,
            hash: ContentHash::of(&[name.as_bytes()]),
        };
        let key = ObjectKey::pod(&uid(of));

        StaticObject { name: name.to_owned(), object: Object { key, version, bytes: Bytes::new() } }
    }

    fn ids(keys: &[ObjectKey]) -> Vec<&str> {
        keys.iter().map(ObjectKey::id).collect()
    }

    #[test]
    fn a_pod_waits_until_nothing_is_left_of_its_predecessor() {
        let mut statics = Statics::default();
        assert_eq!(ids(&statics.set(vec![pod("a1", "a"), pod("b1", "b")])), ["a1", "b1"]);
        assert!(statics.set(vec![pod("a1", "a"), pod("b1", "b")]).is_empty());

        assert_eq!(ids(&statics.set(vec![pod("a2", "a"), pod("b1", "b")])), ["a1"]);
        assert!(statics.get(&uid("a1")).is_none() && statics.leaving(&uid("a1")).is_some());
        assert!(statics.get(&uid("a2")).is_none() && statics.contains(&uid("a2")));
        assert!(statics.ended(&uid("b1")).is_empty(), "it still runs");
        assert_eq!(ids(&statics.ended(&uid("a1"))), ["a2"]);
        assert!(statics.get(&uid("a2")).is_some() && !statics.contains(&uid("a1")));
    }

    #[test]
    fn a_pod_that_comes_back_while_it_is_stopped_starts_after_that() {
        let mut statics = Statics::default();
        statics.set(vec![pod("a1", "a")]);
        assert_eq!(ids(&statics.set(vec![])), ["a1"]);
        assert!(statics.set(vec![pod("a1", "a")]).is_empty());
        assert!(statics.get(&uid("a1")).is_none());
        assert_eq!(ids(&statics.ended(&uid("a1"))), ["a1"]);

        statics.set(vec![pod("a2", "a")]);
        statics.set(vec![pod("a3", "a")]);
        assert!(!statics.contains(&uid("a2")), "it never ran");
        assert_eq!(ids(&statics.ended(&uid("a1"))), ["a3"]);
    }
}
