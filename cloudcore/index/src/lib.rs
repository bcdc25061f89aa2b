//! Which objects each node must hold. Pure: the same events always give the same answers.
//!
//! Fed by watches ([`Index::apply`], [`Index::delete`], [`Index::reset`]) and by GETs of what pods
//! refer to ([`Index::fetched`]); asked for what a node must hold ([`Index::desired`]) and whether
//! that may be said to it ([`Index::has_passed`], invariant 8).
//!
//! - [`epoch`]: when the API server is taken for one that was restored;
//! - [`content`]: what an object's JSON says that matters here, and the hash of what an edge uses;
//! - [`references`] and [`shared`]: what pods refer to, and what the API server has of it.

pub mod content;
pub mod epoch;
mod references;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proto::digest::HighWater;
use proto::ids::{Kind, NodeName, ObjectKey, Uid};
use proto::object::{Object, Point, Version};

pub use content::{Content, ContentError};
pub use references::{Binding, Reference};
use shared::{Answer, SharedObjects};

/// The API server's Service, told to every container.
const MASTER_SERVICE: (&str, &str) = ("default", "kubernetes");

/// A pod bound to a node.
#[derive(Clone, Debug)]
struct Pod {
    node: NodeName,
    namespace: String,
    name: String,
    object: Arc<Object>,
    references: BTreeSet<Reference>,
    /// It shows a pod of a file of the node, which this is, and runs itself nowhere.
    mirrors: Option<Uid>,
    is_deleted: bool,
    /// A relist did not show it: it is gone once a GET says so, and not before.
    is_missing: bool,
}

/// See the crate's documentation.
#[derive(Debug)]
pub struct Index {
    epoch: u64,
    pods: BTreeMap<Uid, Pod>,
    by_node: BTreeMap<NodeName, BTreeSet<Uid>>,
    shared: SharedObjects,
    services: BTreeMap<(String, String), Arc<Object>>,
    nodes: BTreeMap<NodeName, Arc<Object>>,
    /// Nodes that are told what they must hold: only what their pods refer to is asked for.
    served: BTreeSet<NodeName>,
    /// How far each kind was watched, once it was listed consistently.
    passed: BTreeMap<Kind, Point>,
}

/// Nodes whose desired objects may have changed.
pub type Touched = BTreeSet<NodeName>;

impl Index {
    /// An index that knows nothing yet.
    pub fn new(epoch: u64) -> Self {
        Self {
            epoch,
            pods: BTreeMap::new(),
            by_node: BTreeMap::new(),
            shared: SharedObjects::default(),
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            served: BTreeSet::new(),
            passed: BTreeMap::new(),
        }
    }

    /// The current epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The API server was restored (invariant 7): all that is known is of another history and counts
    /// no more as evidence. Objects stay until lists and GETs of the new history speak of them.
    pub fn begin_epoch(&mut self, epoch: u64) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.passed.clear();
            self.shared.doubt_all();
        }
    }

    /// An object appeared or changed.
    pub fn apply(&mut self, kind: Kind, bytes: Bytes) -> Result<Touched, ContentError> {
        let content = Content::read(kind, &bytes)?;
        self.pass(kind, content.revision);

        Ok(self.set(kind, content, bytes))
    }

    /// The watch says that an object is gone.
    pub fn delete(&mut self, kind: Kind, bytes: &Bytes) -> Result<Touched, ContentError> {
        let content = Content::read(kind, bytes)?;
        self.pass(kind, content.revision);

        Ok(self.forget(kind, &content))
    }

    /// A list took the place of what was known. Pods of served nodes that it lacks stay until a GET says
    /// they are gone.
    pub fn reset(
        &mut self,
        kind: Kind,
        listed: Vec<Bytes>,
        revision: u64,
    ) -> (Touched, Vec<ContentError>) {
        let (mut touched, mut errors, mut seen) = (Touched::new(), Vec::new(), BTreeSet::new());
        for bytes in listed {
            match Content::read(kind, &bytes) {
                Ok(content) => {
                    seen.insert(content.identity());
                    touched.extend(self.set(kind, content, bytes));
                }
                Err(error) => errors.push(error),
            }
        }
        touched.extend(self.miss(kind, &seen));
        self.pass(kind, revision);

        (touched, errors)
    }

    /// The kind was watched up to this revision (a bookmark).
    pub fn pass(&mut self, kind: Kind, revision: u64) {
        let point = Point { epoch: self.epoch, revision };
        let passed = self.passed.entry(kind).or_default();
        *passed = point.max(*passed);
    }

    /// How far the kind was watched.
    pub fn passed(&self, kind: Kind) -> Point {
        self.passed.get(&kind).copied().unwrap_or_default()
    }

    /// Whether everything was listed and watched at least as far as the edge was taken: before,
    /// nothing may be said to it (invariant 8).
    pub fn has_passed(&self, edge: &HighWater) -> bool {
        Kind::ALL
            .into_iter()
            .filter(|kind| *kind != Kind::Token)
            .all(|kind| self.passed.get(&kind).is_some_and(|point| *point >= edge.get(kind)))
    }

    /// The node is one that is told what it must hold, from now on.
    pub fn serve(&mut self, node: &NodeName) {
        self.served.insert(node.clone());
    }

    /// What pods refer to and is to be asked for: nothing that only pods of other nodes refer to.
    pub fn stale(&self) -> Vec<Reference> {
        let is_served =
            |uid: &Uid| self.pods.get(uid).is_some_and(|pod| self.served.contains(&pod.node));

        self.shared.stale(is_served)
    }

    /// A GET of the reference begins: what is heard from now on asks for another.
    pub fn asking(&mut self, reference: &Reference) {
        self.shared.mark(reference, false);
    }

    /// The GET of the reference failed.
    pub fn ask_again(&mut self, reference: &Reference) {
        self.shared.mark(reference, true);
    }

    /// The answer to a GET of a reference: the object, or that there is none.
    pub fn fetched(
        &mut self,
        reference: &Reference,
        found: Option<Bytes>,
    ) -> Result<Touched, ContentError> {
        if !self.shared.contains(reference) {
            return Ok(Touched::new());
        }
        let answer = match found {
            Some(bytes) => {
                let content = Content::read(reference.kind, &bytes)?;
                let binding = content.binding.clone();
                Some(Answer { object: Arc::new(content.into_object(self.epoch, bytes)), binding })
            }
            None => None,
        };
        let pods = self.shared.fetched(reference, answer);

        Ok(self.nodes_of(&pods))
    }

    /// A GET said that the pod is gone.
    pub fn confirm_gone(&mut self, uid: &Uid) -> Touched {
        if self.pods.get(uid).is_some_and(|pod| pod.is_missing) {
            self.remove(uid)
        } else {
            Touched::new()
        }
    }

    /// Pods of the node that a relist did not show: namespace, name and UID to ask for.
    pub fn missing(&self, node: &NodeName) -> Vec<(String, String, Uid)> {
        self.pods_of(node)
            .filter(|(_, pod)| pod.is_missing)
            .map(|(uid, pod)| (pod.namespace.clone(), pod.name.clone(), uid.clone()))
            .collect()
    }

    /// Everything the node must hold, what a pod refers to before the pod.
    ///
    /// A pod whose references were never answered is left out: it comes with them. Once they were, a
    /// change of theirs leaves it in: what is left out here is not gone ([`Index::is_wanted`]).
    pub fn desired(&self, node: &NodeName) -> Vec<Arc<Object>> {
        let mut wanted: BTreeMap<ObjectKey, Arc<Object>> = BTreeMap::new();
        let mut pods = Vec::new();
        let mut put = |object: &Arc<Object>| {
            wanted.insert(object.key.clone(), Arc::clone(object));
        };
        if let Some(object) = self.nodes.get(node) {
            put(object);
        }
        let (mut namespaces, mut has_mirrors) = (BTreeSet::new(), false);
        for (_, pod) in self.pods_of(node) {
            namespaces.insert(pod.namespace.as_str());
            if pod.mirrors.is_some() {
                has_mirrors = true;
                // Only this may a pod of a file refer to.
                let class = pod.references.iter().filter(|named| named.kind == Kind::RuntimeClass);
                self.shared.objects(class).into_iter().flatten().for_each(&mut put);
                continue;
            }
            let Some(objects) = self.shared.objects(&pod.references) else { continue };
            objects.into_iter().for_each(&mut put);
            pods.push(Arc::clone(&pod.object));
        }
        for ((namespace, name), object) in &self.services {
            let is_master = (namespace.as_str(), name.as_str()) == MASTER_SERVICE;
            if (has_mirrors || !pods.is_empty())
                && (is_master || namespaces.contains(namespace.as_str()))
            {
                put(object);
            }
        }

        wanted.into_values().chain(pods).collect()
    }

    /// Whether the node has a use for an object that [`Index::desired`] does not tell: a pod that is
    /// bound to it, or what such a pod refers to; `None` while that was never answered.
    pub fn is_wanted(&self, node: &NodeName, key: &ObjectKey) -> Option<bool> {
        match key.kind() {
            Kind::Pod => Some(self.pods_of(node).any(|(uid, _)| ObjectKey::pod(uid) == *key)),
            Kind::ConfigMap
            | Kind::Secret
            | Kind::PersistentVolumeClaim
            | Kind::PersistentVolume
            | Kind::RuntimeClass => {
                let references = self.pods_of(node).flat_map(|(_, pod)| &pod.references);
                self.shared.has(references, key)
            }
            Kind::Service | Kind::Node | Kind::Token => Some(false),
        }
    }

    /// Namespace, name and node of a pod.
    pub fn pod(&self, uid: &Uid) -> Option<PodIdentity<'_>> {
        self.pods.get(uid).map(|pod| PodIdentity {
            namespace: &pod.namespace,
            name: &pod.name,
            node: &pod.node,
            object: &pod.object,
        })
    }

    /// The pod that the node calls by this UID: one that is bound to it, or the mirror of one of its files.
    pub fn pod_of(&self, node: &NodeName, uid: &Uid) -> Option<PodIdentity<'_>> {
        let bound = self.pod(uid).filter(|pod| pod.node == node);

        bound.or_else(|| self.mirrors_on(node).find(|mirror| mirror.shows == uid).map(|m| m.pod))
    }

    /// The mirrors of the node's files. Of two that show the same pod the one that stays comes first.
    pub fn mirrors_on(&self, node: &NodeName) -> impl Iterator<Item = Mirror<'_>> {
        let of = |is_deleted| {
            self.pods_of(node).filter_map(move |(uid, pod)| {
                let shows = pod.mirrors.as_ref().filter(|_| pod.is_deleted == is_deleted)?;
                Some(Mirror { uid, shows, is_deleted, pod: self.pod(uid)? })
            })
        };

        of(false).chain(of(true))
    }

    /// UIDs of the pods bound to the node.
    pub fn pods_on(&self, node: &NodeName) -> Vec<Uid> {
        self.by_node.get(node).into_iter().flatten().cloned().collect()
    }

    /// The Node object.
    pub fn node(&self, node: &NodeName) -> Option<&Arc<Object>> {
        self.nodes.get(node)
    }

    /// Every Node object.
    pub fn all_nodes(&self) -> impl Iterator<Item = (&NodeName, &Arc<Object>)> {
        self.nodes.iter()
    }

    fn pods_of(&self, node: &NodeName) -> impl Iterator<Item = (&Uid, &Pod)> {
        let uids = self.by_node.get(node).into_iter().flatten();

        uids.filter_map(|uid| self.pods.get_key_value(uid))
    }

    fn nodes_of(&self, pods: &BTreeSet<Uid>) -> Touched {
        pods.iter().filter_map(|uid| self.pods.get(uid)).map(|pod| pod.node.clone()).collect()
    }

    fn set(&mut self, kind: Kind, content: Content, bytes: Bytes) -> Touched {
        match kind {
            Kind::Pod => self.set_pod(content, bytes),
            Kind::ConfigMap
            | Kind::Secret
            | Kind::PersistentVolumeClaim
            | Kind::PersistentVolume
            | Kind::RuntimeClass => {
                let reference = Reference::new(kind, &content.namespace, &content.name);
                let point = Point { epoch: self.epoch, revision: content.revision };
                self.shared.seen(&reference, point);
                Touched::new()
            }
            Kind::Service => {
                let key = (content.namespace.clone(), content.name.clone());
                let namespace = content.namespace.clone();
                let object = Arc::new(content.into_object(self.epoch, bytes));
                let is_same = self.services.get(&key).is_some_and(|old| {
                    old.version.hash == object.version.hash && old.version.uid == object.version.uid
                });
                self.services.insert(key.clone(), object);
                if is_same { Touched::new() } else { self.in_namespace(&namespace, &key) }
            }
            Kind::Node => {
                let Some(node) = content.node_name() else { return Touched::new() };
                self.nodes.insert(node.clone(), Arc::new(content.into_object(self.epoch, bytes)));
                Touched::from([node])
            }
            Kind::Token => Touched::new(),
        }
    }

    fn set_pod(&mut self, content: Content, bytes: Bytes) -> Touched {
        let Some(node) = content.bound_to.clone() else { return self.remove(&content.uid.clone()) };
        let uid = content.uid.clone();
        let references = references::of_pod(&content.namespace, &content.name, &bytes);
        let (namespace, name) = (content.namespace.clone(), content.name.clone());
        let (mirrors, is_deleted) = (content.mirrors.clone(), content.is_deleted);
        let object = Arc::new(content.into_object(self.epoch, bytes));
        let before = self.pods.get(&uid).map(|pod| pod.references.clone()).unwrap_or_default();
        self.shared.refer(&uid, &references, &before);
        self.pods.insert(
            uid.clone(),
            Pod {
                node: node.clone(),
                namespace,
                name,
                object,
                references,
                mirrors,
                is_deleted,
                is_missing: false,
            },
        );
        self.by_node.entry(node.clone()).or_default().insert(uid);

        Touched::from([node])
    }

    fn forget(&mut self, kind: Kind, content: &Content) -> Touched {
        match kind {
            Kind::Pod => self.remove(&content.uid),
            Kind::ConfigMap
            | Kind::Secret
            | Kind::PersistentVolumeClaim
            | Kind::PersistentVolume
            | Kind::RuntimeClass => {
                self.shared.mark(&Reference::new(kind, &content.namespace, &content.name), true);
                Touched::new()
            }
            Kind::Service => {
                let key = (content.namespace.clone(), content.name.clone());
                self.services.remove(&key);
                self.in_namespace(&content.namespace, &key)
            }
            Kind::Node => {
                let Some(node) = content.node_name() else { return Touched::new() };
                self.nodes.remove(&node);
                Touched::from([node])
            }
            Kind::Token => Touched::new(),
        }
    }

    fn remove(&mut self, uid: &Uid) -> Touched {
        let Some(pod) = self.pods.remove(uid) else { return Touched::new() };
        if let Some(uids) = self.by_node.get_mut(&pod.node) {
            uids.remove(uid);
            if uids.is_empty() {
                self.by_node.remove(&pod.node);
            }
        }
        self.shared.refer(uid, &BTreeSet::new(), &pod.references);

        Touched::from([pod.node])
    }

    fn miss(&mut self, kind: Kind, seen: &BTreeSet<String>) -> Touched {
        let mut touched = Touched::new();
        match kind {
            Kind::Pod => {
                let mut foreign = Vec::new();
                for (uid, pod) in &mut self.pods {
                    pod.is_missing = !seen.contains(uid.as_str());
                    if pod.is_missing && self.served.contains(&pod.node) {
                        touched.insert(pod.node.clone());
                    } else if pod.is_missing {
                        foreign.push(uid.clone());
                    }
                }
                // Nobody is told of them, so nobody would ever ask whether they are gone.
                for uid in foreign {
                    self.remove(&uid);
                }
            }
            Kind::ConfigMap
            | Kind::Secret
            | Kind::PersistentVolumeClaim
            | Kind::PersistentVolume
            | Kind::RuntimeClass => self.shared.listed(kind, seen),
            Kind::Service => {
                let identity = |key: &(String, String)| format!("{}/{}", key.0, key.1);
                let gone: Vec<_> = self
                    .services
                    .keys()
                    .filter(|key| !seen.contains(&identity(key)))
                    .cloned()
                    .collect();
                for key in gone {
                    self.services.remove(&key);
                    touched.extend(self.in_namespace(&key.0.clone(), &key));
                }
            }
            Kind::Node => {
                let is_gone = |node: &NodeName| !seen.contains(node.as_str());
                touched.extend(self.nodes.keys().filter(|node| is_gone(node)).cloned());
                self.nodes.retain(|node, _| !is_gone(node));
            }
            Kind::Token => {}
        }

        touched
    }

    fn in_namespace(&self, namespace: &str, service: &(String, String)) -> Touched {
        let is_master = (service.0.as_str(), service.1.as_str()) == MASTER_SERVICE;
        let pods = self.pods.values().filter(|pod| is_master || pod.namespace == namespace);

        pods.map(|pod| pod.node.clone()).collect()
    }
}

/// Who a pod is.
#[derive(Clone, Copy, Debug)]
pub struct PodIdentity<'a> {
    /// `metadata.namespace`.
    pub namespace: &'a str,
    /// `metadata.name`.
    pub name: &'a str,
    /// Where it is bound.
    pub node: &'a NodeName,
    /// As it is sent.
    pub object: &'a Arc<Object>,
}

/// A pod that shows one of a node's files.
#[derive(Clone, Copy, Debug)]
pub struct Mirror<'a> {
    /// Its own UID.
    pub uid: &'a Uid,
    /// The UID under which the node runs what it shows.
    pub shows: &'a Uid,
    /// Whether it is marked for deletion.
    pub is_deleted: bool,
    /// Who it is.
    pub pod: PodIdentity<'a>,
}

/// The version of each object, for comparison with what was sent.
pub fn versions(objects: &[Arc<Object>]) -> BTreeMap<ObjectKey, Version> {
    objects.iter().map(|object| (object.key.clone(), object.version.clone())).collect()
}
