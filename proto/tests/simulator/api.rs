//! An API server with a history, which can be restored from a backup, be empty, away or forbidding.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proto::admission::Record;
use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{ContentHash, Object, Version};

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Up,
    Away,
    Forbidden,
    /// Another, empty cluster answers in its place: namespace kube-system has another UID.
    Empty,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiObject {
    pub key: ObjectKey,
    pub uid: Uid,
    /// Index of the edge that must hold it.
    pub node: usize,
    pub revision: u64,
    /// Stands for everything the edge uses of it.
    pub content: u64,
}

impl ApiObject {
    pub fn hash(&self) -> ContentHash {
        ContentHash::of(&[self.uid.as_str().as_bytes(), &self.content.to_be_bytes()])
    }

    /// As sent to an edge by a replica in `epoch`.
    pub fn desired(&self, epoch: u64) -> Arc<Object> {
        let version =
            Version { uid: self.uid.clone(), epoch, revision: self.revision, hash: self.hash() };
        let bytes = Bytes::from(self.content.to_string());

        Arc::new(Object { key: self.key.clone(), version, bytes })
    }
}

#[derive(Clone, Debug)]
pub enum Change {
    Put(ApiObject),
    Delete(ApiObject),
}

/// What a backup holds.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub objects: BTreeMap<ObjectKey, ApiObject>,
    pub revision: u64,
    /// Kept in a Lease.
    pub epoch: u64,
    /// Kept in one Lease for each node.
    pub records: BTreeMap<usize, Record>,
    /// Which start of which replica wrote the record. A restore can make a generation come twice.
    pub holders: BTreeMap<usize, (usize, u32)>,
    /// Last reported status of each pod: a counter.
    pub statuses: BTreeMap<Uid, u64>,
}

#[derive(Debug)]
pub struct Api {
    pub mode: Mode,
    pub state: State,
    pub backup: State,
    /// Counts restores; a watch of an earlier timeline breaks.
    pub timeline: u32,
    /// Changes of this timeline in order of revision.
    pub log: Vec<(u64, Change)>,
    /// Everything that was gone at some time since it was made.
    pub vanished: BTreeSet<(ObjectKey, Uid)>,
    next_uid: u64,
    next_content: u64,
}

impl Api {
    pub fn new(nodes: usize) -> Self {
        let records = (0..nodes).map(|node| (node, Record::joined(None))).collect();
        let state = State { epoch: 1, revision: 1, records, ..State::default() };

        Self {
            mode: Mode::Up,
            backup: state.clone(),
            state,
            timeline: 0,
            log: Vec::new(),
            vanished: BTreeSet::new(),
            next_uid: 0,
            next_content: 0,
        }
    }

    pub fn create_pod(&mut self, node: usize) {
        let uid = self.fresh_uid("pod");
        let key = ObjectKey::pod(&uid);
        self.put(ApiObject { key, uid, node, revision: 0, content: 0 });
    }

    /// ConfigMaps keep their name over deletion and creation: a new UID under the same key.
    pub fn create_config(&mut self, node: usize, name: u64) {
        let key = ObjectKey::named(Kind::ConfigMap, "default", &format!("n{node}-{name}"));
        if !self.state.objects.contains_key(&key) {
            let uid = self.fresh_uid("config");
            self.put(ApiObject { key, uid, node, revision: 0, content: 0 });
        }
    }

    pub fn update(&mut self, key: &ObjectKey) {
        if let Some(object) = self.state.objects.get(key).cloned() {
            self.put(object);
        }
    }

    pub fn delete(&mut self, key: &ObjectKey) {
        if let Some(mut gone) = self.state.objects.remove(key) {
            self.state.revision += 1;
            gone.revision = self.state.revision;
            self.vanished.insert((gone.key.clone(), gone.uid.clone()));
            self.state.statuses.remove(&gone.uid);
            self.log.push((self.state.revision, Change::Delete(gone)));
        }
    }

    pub fn back_up(&mut self) {
        self.backup = self.state.clone();
    }

    pub fn restore(&mut self) {
        let before = std::mem::replace(&mut self.state, self.backup.clone());
        for (key, object) in before.objects {
            if self.state.objects.get(&key).is_none_or(|now| now.uid != object.uid) {
                self.vanished.insert((key, object.uid));
            }
        }
        self.timeline += 1;
        self.log.clear();
    }

    fn put(&mut self, mut object: ApiObject) {
        self.state.revision += 1;
        self.next_content += 1;
        object.revision = self.state.revision;
        object.content = self.next_content;
        self.state.objects.insert(object.key.clone(), object.clone());
        self.log.push((self.state.revision, Change::Put(object)));
    }

    fn fresh_uid(&mut self, what: &str) -> Uid {
        self.next_uid += 1;

        Uid::new(format!("{what}-{}", self.next_uid)).unwrap()
    }
}
