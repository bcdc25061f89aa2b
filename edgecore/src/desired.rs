//! What this node should run, and what that needs: durable in the store first, then seen by the
//! rest of the agent.
//!
//! One task, [`run`], takes what the link delivers; pods of files come from [`crate::static_pods`].
//! Everyone else reads through [`Desired`].

mod statics;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{Change, Object, Version};
use store::{Store, Write};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use self::statics::StaticObject;
use self::statics::Statics;
use crate::link::{Delivery, HIGH_WATER_SETTING, LinkState, StoreRefusal};

/// Batches waiting for the store. The link sends the next only after the answer to the last, so
/// one is in use; the rest let the link's task never wait here.
pub const DELIVERIES_MAX: usize = 4;

/// A shared view of the desired state.
#[derive(Clone, Debug, Default)]
pub struct Desired(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    synced: Notify,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<ObjectKey, Object>,
    /// Pods of files, of which the cloud decides nothing.
    statics: Statics,
    /// Keys changed since they were last taken: coalesced, so bounded by the number of keys.
    dirty: BTreeSet<ObjectKey>,
    /// Pods deleted by the cloud, as the intact store remembers them. Empty after a full sync: from
    /// then on it is evidence enough that a pod is not among the objects.
    tombstones: BTreeSet<Uid>,
    /// A full sync with the cloud has completed in the life of this process.
    synced_once: bool,
}

impl Desired {
    /// The state the store held at start. `tombstones` must be empty if the store was not intact.
    pub fn new(objects: Vec<Object>, tombstones: impl IntoIterator<Item = Uid>) -> Self {
        let desired = Self::default();
        {
            let mut state = desired.state();
            state.dirty = objects.iter().map(|object| object.key.clone()).collect();
            state.objects =
                objects.into_iter().map(|object| (object.key.clone(), object)).collect();
            state.tombstones = tombstones.into_iter().collect();
        }

        desired
    }

    /// A panic while the lock was held leaves plain data that is whole after every statement.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is held, for the link's digest.
    pub fn held(&self) -> Vec<(ObjectKey, Version)> {
        let state = self.state();

        state.objects.values().map(|o| (o.key.clone(), o.version.clone())).collect()
    }

    /// The object under `key`.
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        let state = self.state();
        let of_file = || state.statics.get(&pod_uid(key)?);

        state.objects.get(key).or_else(of_file).cloned()
    }

    /// The UIDs of all pods.
    pub fn pods(&self) -> Vec<Uid> {
        let state = self.state();
        let pods = state.objects.values().filter(|object| object.key.kind() == Kind::Pod);
        let pods = pods.map(|object| &object.version.uid);

        pods.chain(state.statics.uids()).cloned().collect()
    }

    /// These are all pods of files.
    pub fn set_statics(&self, pods: Vec<StaticObject>) {
        let changed = self.state().statics.set(pods);
        self.touch(changed);
    }

    /// A pod of a file that is to be stopped.
    pub fn leaving(&self, pod: &Uid) -> Option<Object> {
        self.state().statics.leaving(pod).cloned()
    }

    /// Whether it is a pod of a file.
    pub fn is_static(&self, pod: &Uid) -> bool {
        self.state().statics.contains(pod)
    }

    /// Nothing is left of a pod that was to be stopped: another of its name may start.
    pub fn ended(&self, pod: &Uid) {
        let changed = self.state().statics.ended(pod);
        self.touch(changed);
    }

    fn touch(&self, keys: Vec<ObjectKey>) {
        if !keys.is_empty() {
            self.state().dirty.extend(keys);
            self.0.changed.notify_one();
        }
    }

    /// Whether the pod is wanted, or on its way out as it should be.
    pub fn knows(&self, pod: &Uid) -> bool {
        self.state().knows(pod)
    }

    /// The bytes of the objects of `kind` in `namespace`.
    pub fn in_namespace(&self, kind: Kind, namespace: &str) -> Vec<Bytes> {
        let state = self.state();
        let inside = |key: &ObjectKey| {
            key.kind() == kind && key.id().split_once('/').is_some_and(|(ns, _)| ns == namespace)
        };
        let found = state.objects.iter().filter(|(key, _)| inside(key));

        found.map(|(_, object)| object.bytes.clone()).collect()
    }

    /// Whether what runs for a pod that is not desired may be removed (invariant 6).
    pub fn may_sweep(&self, pod: &Uid) -> bool {
        let state = self.state();

        !state.knows(pod) && (state.synced_once || state.tombstones.contains(pod))
    }

    /// Whether a full sync with the cloud has completed since the agent started.
    pub fn synced_once(&self) -> bool {
        self.state().synced_once
    }

    /// Resolves once when [`Self::synced_once`] becomes true.
    pub async fn became_synced(&self) {
        self.0.synced.notified().await;
    }

    /// Waits for changes and takes the keys that changed.
    pub async fn changed(&self) -> BTreeSet<ObjectKey> {
        loop {
            let dirty = std::mem::take(&mut self.state().dirty);
            if !dirty.is_empty() {
                return dirty;
            }
            self.0.changed.notified().await;
        }
    }

    /// What a batch changes here. Left out are a delete that is about another UID than the one held, and a token
    /// of no pod. With a pod its tokens go: the cloud keeps none, and has none to delete.
    fn applicable(&self, changes: Vec<Change>) -> Vec<Change> {
        let state = self.state();
        let applies = |change: &Change| match (change, state.objects.get(change.key())) {
            (Change::Delete { uid, .. }, Some(held)) => *uid == held.version.uid,
            // The cloud sends nothing before it knows more than this node was told.
            (Change::Put(_), _) => true,
            // A pod that was never held leaves a tombstone, so that what runs of it is swept.
            (Change::Delete { key, .. }, None) => key.kind() == Kind::Pod,
        };
        let mut changes: Vec<_> = changes.into_iter().filter(applies).collect();

        let (mut come, mut gone) = (BTreeSet::new(), BTreeSet::new());
        for change in changes.iter().filter(|change| change.key().kind() == Kind::Pod) {
            match change {
                Change::Put(object) => come.insert(object.version.uid.clone()),
                Change::Delete { uid, .. } => gone.insert(uid.clone()),
            };
        }
        let stays = |pod: &Uid| !gone.contains(pod) && (come.contains(pod) || state.knows(pod));
        let is_token = |object: &Object| object.key.kind() == Kind::Token;
        changes.retain(|change| match change {
            Change::Put(object) => !is_token(object) || stays(&object.version.uid),
            Change::Delete { .. } => true,
        });
        if !gone.is_empty() {
            let held = state.objects.values().filter(|object| is_token(object));
            let lost = held.filter(|token| gone.contains(&token.version.uid));
            let delete = |token: &Object| Change::Delete {
                key: token.key.clone(),
                uid: token.version.uid.clone(),
            };
            changes.extend(lost.map(delete));
        }

        changes
    }

    /// Makes durable changes visible.
    fn apply(&self, changes: Vec<Change>) {
        let mut state = self.state();
        for change in changes {
            state.dirty.insert(change.key().clone());
            match change {
                Change::Put(mut object) => {
                    // The bytes may share a buffer with a whole batch; keep only this object's.
                    object.bytes = Bytes::copy_from_slice(&object.bytes);
                    state.objects.insert(object.key.clone(), object);
                }
                Change::Delete { key, uid } => {
                    state.objects.remove(&key);
                    if key.kind() == Kind::Pod && !state.synced_once {
                        state.tombstones.insert(uid);
                    }
                }
            }
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// Everything held is what the cloud wants.
    fn mark_synced(&self) {
        let mut state = self.state();
        if !state.synced_once {
            state.synced_once = true;
            state.tombstones.clear();
            self.0.synced.notify_one();
            tracing::info!(objects = state.objects.len(), "in sync with the cloud");
        }
    }
}

impl State {
    fn knows(&self, pod: &Uid) -> bool {
        self.objects.contains_key(&ObjectKey::pod(pod)) || self.statics.contains(pod)
    }
}

fn pod_uid(key: &ObjectKey) -> Option<Uid> {
    if key.kind() == Kind::Pod { Uid::new(key.id()).ok() } else { None }
}

/// Takes deliveries until asked to stop.
pub async fn run(
    desired: Desired,
    store: Store,
    mut deliveries: mpsc::Receiver<Delivery>,
    mut link: watch::Receiver<LinkState>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            delivery = deliveries.recv() => match delivery {
                Some(delivery) => take(&desired, &store, delivery).await,
                // The link ended; the process is about to.
                None => return stop.cancelled().await,
            },
            Ok(()) = link.changed() => {
                if matches!(&*link.borrow_and_update(), LinkState::Up { synced: true, .. }) {
                    desired.mark_synced();
                }
            }
        }
    }
}

/// Commits one batch, then shows it and answers. If the store refuses, nothing changes and the link
/// is told why: the cloud sends the objects again.
async fn take(desired: &Desired, store: &Store, delivery: Delivery) {
    let Delivery { changes, high_water, done } = delivery;
    let changes = desired.applicable(changes);
    let mut writes: Vec<_> = changes.iter().cloned().map(Write::Object).collect();
    writes.push(Write::Setting { name: HIGH_WATER_SETTING.to_owned(), value: high_water });
    let answer = match commit(store, writes).await {
        Ok(()) => {
            desired.apply(changes);
            Ok(())
        }
        Err(error) => {
            let reason = crate::telemetry::chain(&error);
            tracing::warn!(objects = changes.len(), %reason, "the store refused objects");
            Err(StoreRefusal { reason })
        }
    };
    // If the session ended meanwhile nobody waits; the objects are held and show in the next digest.
    let _session_ended = done.send(answer);
}

/// Commits `writes` durably.
pub async fn commit(store: &Store, writes: Vec<Write>) -> Result<(), store::StoreError> {
    if writes.is_empty() {
        return Ok(());
    }
    let (tell, told) = oneshot::channel();
    store.commit(
        writes,
        Box::new(move |result| {
            // The receiver below is only dropped with its task.
            let _gone = tell.send(result);
        }),
    );

    told.await.unwrap_or(Err(store::StoreError::Closed))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proto::object::ContentHash;
    use store::Options;

    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    fn put(key: &ObjectKey, of: &str, epoch: u64, revision: u64, bytes: Vec<u8>) -> Change {
        let hash = ContentHash::of(&[&bytes]);
        let version = Version { uid: uid(of), epoch, revision, hash };
        Change::Put(Object { key: key.clone(), version, bytes: bytes.into() })
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    async fn deliver(
        desired: &Desired,
        store: &Store,
        changes: Vec<Change>,
    ) -> Result<(), StoreRefusal> {
        let (done, answer) = oneshot::channel();
        take(desired, store, Delivery { changes, high_water: vec![1], done }).await;
        answer.await.unwrap()
    }

    fn revision(desired: &Desired, key: &ObjectKey) -> Option<(String, u64)> {
        desired.get(key).map(|o| (o.version.uid.to_string(), o.version.revision))
    }

    #[test]
    fn changes_are_applied_to_the_object_they_are_about() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&Options::in_folder(dir.path())).unwrap();
        let key = ObjectKey::named(Kind::ConfigMap, "ns", "c");
        let desired = Desired::default();
        let delete = |of| Change::Delete { key: key.clone(), uid: uid(of) };
        let check = |change, expected: Option<(&str, u64)>| {
            runtime().block_on(deliver(&desired, &store, vec![change])).unwrap();
            let expected = expected.map(|(uid, revision)| (uid.to_owned(), revision));
            assert_eq!(revision(&desired, &key), expected);
        };

        check(put(&key, "a", 0, 5, vec![1]), Some(("a", 5)));
        check(put(&key, "a", 0, 4, vec![2]), Some(("a", 4)));
        check(put(&key, "a", 1, 2, vec![3]), Some(("a", 2)));
        check(put(&key, "b", 1, 3, vec![4]), Some(("b", 3)));
        check(delete("a"), Some(("b", 3)));
        check(delete("b"), None);
        drop(store);

        let (_store, opened) = Store::open(&Options::in_folder(dir.path())).unwrap();
        assert!(opened.objects.is_empty() && opened.is_intact());
    }

    #[test]
    fn tokens_come_and_go_with_their_pod() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(&Options::in_folder(dir.path())).unwrap();
        let desired = Desired::default();
        let take = |changes| runtime().block_on(deliver(&desired, &store, changes)).unwrap();
        let pod = |of| put(&ObjectKey::pod(&uid(of)), of, 0, 1, vec![1]);
        let token = |of: &str, source| ObjectKey::token(&uid(of), source);
        let put_token = |of, source| put(&token(of, source), of, 0, 9, vec![2]);
        let gone = |of| Change::Delete { key: ObjectKey::pod(&uid(of)), uid: uid(of) };
        let held = || desired.held().into_iter().map(|(key, _)| key).collect::<Vec<_>>();

        take(vec![pod("a"), pod("b")]);
        take(vec![put_token("a", "x"), put_token("a", "y"), put_token("b", "x")]);
        assert_eq!(held().len(), 5);
        take(vec![gone("a")]);
        let left = [ObjectKey::pod(&uid("b")), token("b", "x")];
        assert_eq!(held(), left);
        // The pod went while the cloud asked for its token.
        take(vec![put_token("a", "x")]);
        take(vec![put_token("b", "y"), gone("b")]);
        assert_eq!(held(), []);
        drop(store);

        let (_store, opened) = Store::open(&Options::in_folder(dir.path())).unwrap();
        assert!(opened.objects.is_empty() && opened.is_intact());
    }

    #[test]
    fn orphans_may_be_swept_only_on_evidence() {
        let held = ObjectKey::pod(&uid("held"));
        let Change::Put(object) = put(&held, "held", 0, 1, vec![1]) else { panic!() };
        let desired = Desired::new(vec![object], [uid("deleted")]);
        let may = |pod: &str| desired.may_sweep(&uid(pod));

        assert_eq!((may("held"), may("deleted"), may("unknown")), (false, true, false));
        desired.mark_synced();
        assert_eq!((may("held"), may("deleted"), may("unknown")), (false, true, true));
    }

    #[test]
    fn what_a_full_disk_refuses_is_taken_once_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap();
        crate::volumes::mounts::ensure_tmpfs(&path, Some(2 << 20)).unwrap();
        refused_then_taken(&path);
        crate::volumes::mounts::unmount_below(&path).unwrap();
    }

    fn refused_then_taken(path: &Path) {
        let (store, _) = Store::open(&Options::in_folder(path.join("state"))).unwrap();
        let desired = Desired::default();
        let key = ObjectKey::named(Kind::ConfigMap, "ns", "large");
        let change = || put(&key, "a", 0, 1, vec![7; 200_000]);
        let full = std::fs::write(path.join("filler"), vec![0; 4 << 20]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

        let refusal = runtime().block_on(deliver(&desired, &store, vec![change()])).unwrap_err();
        assert!(refusal.reason.contains("full"), "{refusal}");
        assert!(desired.get(&key).is_none());
        // What takes a pod away may be what makes room.
        let small = ObjectKey::pod(&uid("ends"));
        let ends = put(&small, "ends", 0, 2, vec![7; 10_000]);
        runtime().block_on(deliver(&desired, &store, vec![ends])).unwrap();
        assert!(desired.get(&small).is_some());
        runtime().block_on(deliver(&desired, &store, vec![change()])).unwrap_err();

        std::fs::remove_file(path.join("filler")).unwrap();
        runtime().block_on(deliver(&desired, &store, vec![change()])).unwrap();
        assert!(desired.get(&key).is_some());
    }
}
