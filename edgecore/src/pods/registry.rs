//! Which pod a container, an object or a name belongs to: filled by the pods' tasks, read by those
//! who have something to tell or to ask about a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use podcore::admission::{Claim, Requests};
use podcore::claims::PersistentVolume;
use podcore::observed::{Admission, Eviction};
use podcore::probe::{Answers, ProbeKind};
use podcore::resize::{Share, Wish, take_turn};
use proto::ids::{ObjectKey, Uid};
use tokio::sync::Notify;

use super::wake::Wake;
use crate::kubelet_api::{ContainerState, Incarnation, PodFacts, PodLookup, PodRef};

/// One pod as its task last saw it.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Namespace and name.
    pub name: (String, String),
    /// Sandboxes and containers with their CRI state, to see whether the runtime holds others.
    pub held: BTreeMap<String, i32>,
    /// Thousandths of a CPU that it requests, if it is a burstable pod.
    pub burstable_milli: i64,
    /// What logs and exec want to know.
    pub pod: Option<PodRef>,
    /// The cgroup its containers are put under, as the runtime is told.
    pub cgroup: String,
    /// `status.startTime`.
    pub started_at: Option<Timestamp>,
    /// The status as last told to the cloud.
    pub status: Bytes,
    /// What its probes have answered.
    pub answers: Vec<(String, ProbeKind, Answers)>,
    /// What is set up of its volumes with claims.
    pub claimed: Arc<BTreeMap<String, PersistentVolume>>,
    /// It has limits of disk space.
    pub has_limits: bool,
    /// It ends, or has ended.
    pub ends: bool,
    /// Nothing of it runs any more, and nothing of it is left in the file system.
    pub is_cleaned: bool,
}

/// A pod that has a task.
#[derive(Debug, Default)]
struct Known {
    wake: Arc<Wake>,
    entry: Entry,
    /// What it has of the node: from when it is taken in until nothing of it runs any more.
    claim: Option<Claim>,
    /// What it asks for instead.
    wish: Option<Wish>,
    admission: Admission,
    eviction: Option<Eviction>,
    /// The node goes down and it is its turn to stop: seconds that it has at most.
    shutdown_s: Option<i64>,
    /// Containers that somebody at the node wants started anew.
    restarts: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct State {
    pods: BTreeMap<Uid, Known>,
    /// From container and sandbox ids.
    by_id: BTreeMap<String, Uid>,
    /// Objects whose changes concern pods, and back.
    by_reference: BTreeMap<ObjectKey, BTreeSet<Uid>>,
    references: BTreeMap<Uid, BTreeSet<ObjectKey>>,
}

/// All pods with a task.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    state: Arc<Mutex<State>>,
    released: Arc<Notify>,
}

impl Registry {
    /// A panic while the lock was held leaves maps that are at worst out of step, which the next
    /// entry of the pod repairs.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod has a task now; changes of the object under `key` concern it, and the runtime holds
    /// `held` of it.
    pub fn add(&self, pod: &Uid, key: ObjectKey, held: BTreeMap<String, i32>) -> Arc<Wake> {
        let wake = Arc::<Wake>::default();
        let entry = Entry { held, ..Entry::default() };
        let mut state = self.state();
        state.link(pod, &entry);
        state.refer(pod, [key].into());
        let known = Known { wake: Arc::clone(&wake), entry, ..Known::default() };
        state.pods.insert(pod.clone(), known);

        wake
    }

    /// It is decided whether the pod is taken in, and with what.
    pub fn decide(&self, pod: &Uid, admission: Admission, claim: Option<Claim>) {
        if let Some(known) = self.state().pods.get_mut(pod) {
            (known.admission, known.claim) = (admission, claim);
            known.wake.because(|reasons| reasons.report = true);
        }
    }

    /// Ends the pod, if it has a task.
    pub fn evict(&self, pod: &Uid, eviction: Eviction) {
        if let Some(known) = self.state().pods.get_mut(pod) {
            known.eviction = Some(eviction);
            known.wake.because(|reasons| reasons.report = true);
        }
    }

    /// Stops the pod within that many seconds because the node goes down; lets it go on if `None`.
    pub fn shut_down(&self, pod: &Uid, within_s: Option<i64>) {
        if let Some(known) = self.state().pods.get_mut(pod) {
            known.shutdown_s = within_s;
            known.wake.because(|reasons| reasons.report = true);
        }
    }

    /// Stops these containers, by their id in the runtime, and starts them anew.
    pub fn restart(&self, pod: &Uid, containers: BTreeSet<String>) {
        if let Some(known) = self.state().pods.get_mut(pod) {
            // Those of an earlier call are gone, or are being stopped.
            known.restarts = containers;
            known.wake.because(|reasons| reasons.report = true);
        }
    }

    /// Containers of the pod that are to be started anew. Ids are never used again, so that an old one
    /// does nothing.
    pub fn restarts(&self, pod: &Uid) -> BTreeSet<String> {
        self.state().pods.get(pod).map(|known| known.restarts.clone()).unwrap_or_default()
    }

    /// What was decided about the pod.
    pub fn decided(&self, pod: &Uid) -> (Admission, Option<Eviction>, Option<i64>) {
        let state = self.state();
        let decided = state.pods.get(pod);

        decided.map(|k| (k.admission.clone(), k.eviction.clone(), k.shutdown_s)).unwrap_or_default()
    }

    /// What the pod has of the node now.
    pub fn claim(&self, pod: &Uid, claim: Option<Claim>) {
        let mut state = self.state();
        let Some(known) = state.pods.get_mut(pod) else { return };
        let before = std::mem::replace(&mut known.claim, claim);
        let has = |claim: &Claim| (claim.requests.cpu_milli, claim.requests.memory);
        let (is_gone, after) = (known.claim.is_none(), known.claim.as_ref().map_or((0, 0), has));
        let is_less = before.as_ref().is_some_and(|before| {
            let before = has(before);
            after.0 < before.0 || after.1 < before.1
        });
        if is_less {
            state.wake_wishers(pod);
        }
        drop(state);
        if before.is_some() && is_gone {
            self.released.notify_one();
        }
    }

    /// Notes what the pod asks for instead of what it has. Answers what others have of the node, or get
    /// before it; what fits beside that it has from now on.
    pub fn ask(&self, pod: &Uid, wish: Wish, capacity: &Requests) -> Requests {
        let mut state = self.state();
        if let Some(known) = state.pods.get_mut(pod) {
            known.wish = Some(wish);
        }
        let shares = state.pods.iter().filter_map(|(uid, known)| {
            let has = known.claim.as_ref()?.requests.clone();
            Some((uid.clone(), Share { has, wish: known.wish.clone() }))
        });
        let mut shares: BTreeMap<_, _> = shares.collect();
        let used = take_turn(pod, &mut shares, capacity);
        let claim = state.pods.get_mut(pod).and_then(|known| known.claim.as_mut());
        if let (Some(claim), Some(share)) = (claim, shares.get(pod)) {
            claim.requests.clone_from(&share.has);
        }

        used
    }

    /// The pod is granted all that it asks for, or asks for nothing any more.
    pub fn ask_nothing(&self, pod: &Uid) {
        if let Some(known) = self.state().pods.get_mut(pod) {
            known.wish = None;
        }
    }

    /// What pods have of the node.
    pub fn claims(&self) -> BTreeMap<Uid, Claim> {
        let state = self.state();
        let claims =
            state.pods.iter().filter_map(|(uid, known)| Some((uid.clone(), known.claim.clone()?)));

        claims.collect()
    }

    /// Pods that were taken in and go on.
    pub fn active(&self) -> Vec<Uid> {
        self.select(Known::is_active)
    }

    /// Those of them that have limits of disk space.
    pub fn limited(&self) -> Vec<Uid> {
        self.select(|known| known.is_active() && known.entry.has_limits)
    }

    /// Pods that have ended, of which only records are left.
    pub fn cleaned(&self) -> Vec<Uid> {
        self.select(|known| known.entry.is_cleaned)
    }

    /// Whether of the pod only records are left, if anything.
    pub fn is_cleaned(&self, pod: &Uid) -> bool {
        self.state().pods.get(pod).is_none_or(|known| known.entry.is_cleaned)
    }

    fn select(&self, wanted: impl Fn(&Known) -> bool) -> Vec<Uid> {
        let state = self.state();

        state.pods.iter().filter(|(_, known)| wanted(known)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Waits until some pod has given back what it had.
    pub async fn released(&self) {
        self.released.notified().await;
    }

    /// Changes of these objects concern the pod, its own among them: to be said before they are read, so
    /// that no change falls between.
    pub fn refer(&self, pod: &Uid, keys: BTreeSet<ObjectKey>) {
        self.state().refer(pod, keys);
    }

    /// A pod's task has seen this.
    pub fn update(&self, pod: &Uid, entry: Entry) {
        let mut state = self.state();
        state.unlink(pod);
        state.link(pod, &entry);
        if let Some(known) = state.pods.get_mut(pod) {
            known.entry = entry;
        }
    }

    /// A container or sandbox belongs to the pod from now on, before its first event can come.
    pub fn own(&self, pod: &Uid, id: &str) {
        self.state().by_id.insert(id.to_owned(), pod.clone());
    }

    /// The pod's task has ended.
    pub fn remove(&self, pod: &Uid) {
        let mut state = self.state();
        state.unlink(pod);
        state.refer(pod, BTreeSet::new());
        state.by_id.retain(|_, owner| owner != pod);
        let had = state.pods.remove(pod).and_then(|known| known.claim);
        if had.is_some() {
            state.wake_wishers(pod);
        }
        drop(state);
        if had.is_some() {
            self.released.notify_one();
        }
    }

    /// Whether the pod has a task.
    pub fn contains(&self, pod: &Uid) -> bool {
        self.state().pods.contains_key(pod)
    }

    /// Every pod that has a task.
    pub fn pods(&self) -> Vec<Uid> {
        self.state().pods.keys().cloned().collect()
    }

    /// The inbox of the pod.
    pub fn wake(&self, pod: &Uid) -> Option<Arc<Wake>> {
        self.state().pods.get(pod).map(|known| Arc::clone(&known.wake))
    }

    /// The inbox of the pod that owns this container or sandbox.
    pub fn wake_of(&self, id: &str) -> Option<Arc<Wake>> {
        let state = self.state();
        let pod = state.by_id.get(id)?;

        state.pods.get(pod).map(|known| Arc::clone(&known.wake))
    }

    /// The inboxes of the pods that reference the object.
    pub fn wakes_for(&self, key: &ObjectKey) -> Vec<Arc<Wake>> {
        let state = self.state();
        let pods = state.by_reference.get(key).into_iter().flatten();

        pods.filter_map(|pod| state.pods.get(pod)).map(|known| Arc::clone(&known.wake)).collect()
    }

    /// The instances that run, and where their logs are.
    pub fn running(&self) -> Vec<Incarnation> {
        let state = self.state();
        let pods = state.pods.values().filter_map(|known| known.entry.pod.as_ref());
        let running = pods.flat_map(|pod| &pod.containers).filter_map(|container| {
            let ContainerState::Running(instance) = &container.state else { return None };
            Some(instance.clone())
        });

        running.collect()
    }

    /// Whether a container of the pod runs.
    pub fn runs(&self, pod: &Uid) -> bool {
        let state = self.state();
        let pod = state.pods.get(pod).and_then(|known| known.entry.pod.as_ref());
        let mut containers = pod.into_iter().flat_map(|pod| &pod.containers);

        containers.any(|container| matches!(container.state, ContainerState::Running(_)))
    }

    /// What the task of the pod believes the runtime to hold.
    pub fn held(&self, pod: &Uid) -> Option<BTreeMap<String, i32>> {
        self.state().pods.get(pod).map(|known| known.entry.held.clone())
    }

    /// Thousandths of a CPU that all burstable pods request.
    pub fn burstable_milli(&self) -> i64 {
        self.state().pods.values().map(|known| known.entry.burstable_milli).sum()
    }
}

impl PodLookup for Registry {
    /// Of several pods of one name (a deleted one and its successor) the one with a sandbox.
    fn find(&self, namespace: &str, name: &str) -> Option<PodRef> {
        let state = self.state();
        let named = state
            .pods
            .values()
            .map(|known| &known.entry)
            .filter(|entry| entry.name.0 == namespace && entry.name.1 == name)
            .filter_map(|entry| entry.pod.as_ref());

        named.max_by_key(|pod| pod.sandbox.is_some()).cloned()
    }

    fn all(&self) -> Vec<PodFacts> {
        let state = self.state();
        let facts = state.pods.iter().filter_map(|(uid, known)| {
            let entry = &known.entry;
            let pod = entry.pod.as_ref()?;
            let is_running = |state: &ContainerState| matches!(state, ContainerState::Running(_));
            Some(PodFacts {
                uid: uid.clone(),
                namespace: entry.name.0.clone(),
                name: entry.name.1.clone(),
                cgroup: entry.cgroup.clone(),
                started_at: entry.started_at,
                status: entry.status.clone(),
                answers: entry.answers.clone(),
                running: pod.containers.iter().filter(|c| is_running(&c.state)).count(),
                claimed: Arc::clone(&entry.claimed),
            })
        });

        facts.collect()
    }
}

impl Known {
    fn is_active(&self) -> bool {
        self.claim.is_some()
            && self.admission == Admission::Granted
            && self.eviction.is_none()
            && !self.entry.ends
    }
}

impl State {
    /// There is more room: others look whether it is enough for what they ask.
    fn wake_wishers(&self, pod: &Uid) {
        for (_, known) in self.pods.iter().filter(|(uid, _)| *uid != pod) {
            if known.wish.is_some() {
                known.wake.because(|reasons| reasons.report = true);
            }
        }
    }

    fn link(&mut self, pod: &Uid, entry: &Entry) {
        for id in entry.held.keys() {
            self.by_id.insert(id.clone(), pod.clone());
        }
    }

    fn refer(&mut self, pod: &Uid, keys: BTreeSet<ObjectKey>) {
        for key in self.references.remove(pod).unwrap_or_default() {
            if let Some(pods) = self.by_reference.get_mut(&key) {
                pods.remove(pod);
                if pods.is_empty() {
                    self.by_reference.remove(&key);
                }
            }
        }
        for key in &keys {
            self.by_reference.entry(key.clone()).or_default().insert(pod.clone());
        }
        if !keys.is_empty() {
            self.references.insert(pod.clone(), keys);
        }
    }

    fn unlink(&mut self, pod: &Uid) {
        let Some(known) = self.pods.get(pod) else { return };
        for id in known.entry.held.keys() {
            self.by_id.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use podcore::memory::Memory;
    use podcore::pod::PodView;
    use podcore::resize::Resources;
    use proto::ids::Kind;
    use serde_json::json;

    use super::*;

    fn uid(text: &str) -> Uid {
        Uid::new(text).unwrap()
    }

    #[test]
    fn events_and_objects_find_their_pods() {
        let registry = Registry::default();
        let wake = registry.add(&uid("u1"), ObjectKey::pod(&uid("u1")), BTreeMap::new());
        let key = ObjectKey::named(Kind::ConfigMap, "ns", "c");
        registry.own(&uid("u1"), "early");
        registry.refer(&uid("u1"), [key.clone()].into());
        registry.update(
            &uid("u1"),
            Entry {
                name: ("ns".into(), "web".into()),
                held: [("c1".into(), 1)].into(),
                ..Entry::default()
            },
        );

        for id in ["early", "c1"] {
            assert!(Arc::ptr_eq(&registry.wake_of(id).unwrap(), &wake), "{id}");
        }
        assert_eq!(registry.wakes_for(&key).len(), 1);

        registry
            .update(&uid("u1"), Entry { name: ("ns".into(), "web".into()), ..Entry::default() });
        registry.refer(&uid("u1"), [ObjectKey::pod(&uid("u1"))].into());
        assert!(registry.wake_of("c1").is_none() && registry.wakes_for(&key).is_empty());

        registry.remove(&uid("u1"));
        assert!(registry.wake_of("early").is_none() && !registry.contains(&uid("u1")));
    }

    #[test]
    fn of_two_pods_of_one_name_the_one_with_a_sandbox_is_found() {
        let registry = Registry::default();
        for (pod, sandbox) in [("old", None), ("new", Some("s")), ("older", None)] {
            registry.add(&uid(pod), ObjectKey::pod(&uid(pod)), BTreeMap::new());
            let pod_ref =
                PodRef { uid: uid(pod), sandbox: sandbox.map(str::to_owned), containers: vec![] };
            registry.update(
                &uid(pod),
                Entry { name: ("ns".into(), "web".into()), pod: Some(pod_ref), ..Entry::default() },
            );
        }

        assert_eq!(registry.find("ns", "web").unwrap().uid, uid("new"));
        assert!(registry.find("ns", "other").is_none());
    }

    /// A pod of that many thousandths of a CPU.
    fn sized(name: &str, milli: u32) -> PodView {
        let cpu = format!("{milli}m");
        let container = json!({ "name": "a", "resources": { "requests": { "cpu": cpu } } });
        let pod = json!({
            "metadata": { "uid": name, "namespace": "ns", "name": name },
            "spec": { "containers": [container] },
        });
        PodView::parse(pod.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn room_is_given_once_and_those_who_wait_are_woken_when_there_is_more() {
        let registry = Registry::default();
        let capacity = Requests { cpu_milli: 1000, memory: 1, ..Requests::default() };
        let wake = ["u1", "u2", "u3"].map(|name| {
            let wake = registry.add(&uid(name), ObjectKey::pod(&uid(name)), BTreeMap::new());
            registry.claim(&uid(name), Some(Claim::of(&sized(name, 100))));
            wake
        });
        let ask = |name: &str, milli| {
            let mut memory = Memory::default();
            let granted = Resources::of(&sized(name, 100).containers()[0]);
            memory.container("a").allocated = Some(granted);
            let wish = Wish::of(&sized(name, milli), &memory).unwrap();
            registry.ask(&uid(name), wish, &capacity).cpu_milli
        };
        let has = |name: &str| registry.claims()[&uid(name)].requests.cpu_milli;

        // Nothing runs between: the first has not told yet what it was granted.
        assert_eq!((ask("u2", 700), ask("u1", 700)), (200, 800));
        assert_eq!((has("u1"), has("u2")), (100, 700));
        assert!(wake.iter().all(|wake| wake.is_quiet()));

        registry.ask_nothing(&uid("u2"));
        registry.claim(&uid("u2"), Some(Claim::of(&sized("u2", 700))));
        assert!(wake.iter().all(|wake| wake.is_quiet()));
        registry.claim(&uid("u2"), Some(Claim::of(&sized("u2", 50))));
        assert_eq!(wake.each_ref().map(|wake| wake.is_quiet()), [false, true, true]);
        assert_eq!((ask("u1", 700), has("u1")), (150, 700));
    }
}
