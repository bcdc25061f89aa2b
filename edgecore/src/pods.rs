//! Pods: one task each, which observes, asks podcore for a plan and carries it out.
//!
//! [`run`] starts the tasks, wakes them when the desired state or the runtime changes, compares
//! everything with the runtime's lists now and then, and removes what no pod owns.

pub mod act;
pub mod admit;
pub mod context;
pub mod credentials;
pub mod evict;
pub mod image_gc;
pub mod images;
pub mod logs;
pub mod lookup;
pub mod materials;
pub mod observe;
pub mod registry;
pub mod rotate;
pub mod sweep;
pub mod tokens;
mod usage;
pub mod users;
pub mod wake;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cri::CriError;
use cri::events::RuntimeEvent;
use proto::ids::{Kind, ObjectKey, Uid};
use store::Write;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::admit::Pending;
use self::context::Context;
use self::observe::Listed;
use self::worker::Worker;
use crate::clock;
use crate::desired::commit;
use crate::events;
use crate::memory::{self, Rest};
use crate::node::cgroups::Limits;
use crate::node::monitor::Beat;
use crate::node::pressure::Shortages;
use crate::retry::Retry;
use crate::telemetry::chain;

/// How often everything is compared with what the runtime lists: the net below lost events.
const RELIST_PERIOD: Duration = Duration::from_secs(30);
/// How often the loop shows that it turns.
const BEAT_PERIOD: Duration = Duration::from_secs(5);
/// How long systemd and the kernel may take for a class's weight, while nothing else is done.
const WEIGH_MAX: Duration = Duration::from_secs(5);
/// Between tries to list at the start, while the runtime does not answer.
const FIRST_LIST_WAIT: Duration = Duration::from_millis(200);
const FIRST_LIST_WAIT_MAX: Duration = Duration::from_secs(10);
/// Events of the runtime that wait to be routed; a full queue pushes back on the reader, and the
/// relist finds what the runtime then drops.
pub const RUNTIME_EVENTS_MAX: usize = 256;

/// What the loop holds besides the context.
#[derive(Debug)]
struct Loop {
    context: Arc<Context>,
    /// What pods without a task remember.
    memories: BTreeMap<Uid, Vec<u8>>,
    /// What the runtime held when the agent started, of pods without a task so far.
    listed: BTreeMap<Uid, Listed>,
    workers: JoinSet<Uid>,
    /// Pods of which it is not decided yet whether they are taken in.
    pending: BTreeMap<Uid, Pending>,
    /// Removals under way; at most one sweep at a time.
    chores: JoinSet<()>,
    /// The sweep under way removes sandboxes.
    swept: bool,
    burstable_milli: Option<i64>,
    /// `spec.unschedulable` of the Node object, as last told.
    is_unschedulable: bool,
    stop: CancellationToken,
}

/// Runs all pods until asked to stop; stopping touches no container.
pub async fn run(
    context: Arc<Context>,
    memories: Vec<(Uid, Vec<u8>)>,
    mut events: mpsc::Receiver<RuntimeEvent>,
    shortages: Shortages,
    beat: Beat,
    stop: CancellationToken,
) {
    let Some(listed) = first_list(&context, &beat, &stop).await else { return };
    let mut pods = Loop {
        context: Arc::clone(&context),
        memories: memories.into_iter().collect(),
        listed,
        workers: JoinSet::new(),
        pending: BTreeMap::new(),
        chores: JoinSet::new(),
        swept: false,
        burstable_milli: None,
        is_unschedulable: false,
        stop: stop.clone(),
    };
    let mut relist = tokio::time::interval(RELIST_PERIOD);
    let mut turn = tokio::time::interval(BEAT_PERIOD);
    let mut rotation = tokio::time::interval(rotate::PERIOD);
    rotation.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut rotating = JoinSet::new();
    let mut collecting = JoinSet::new();
    collecting.spawn(image_gc::run(Arc::clone(&context)));
    collecting.spawn(evict::run(Arc::clone(&context), shortages));
    let mut addresses = context.addresses.clone();
    let mut shutdown = context.gate.shutdown();
    let mut rest = Rest::new(clock::instant());
    relist.reset();
    loop {
        beat.beat();
        let decide_at = pods.decide_at();
        tokio::select! {
            () = stop.cancelled() => return,
            () = context.registry.released() => pods.decide_pending(),
            Ok(()) = shutdown.changed() => pods.decide_pending(),
            () = admit::wait_until(decide_at) => pods.decide_pending(),
            keys = context.desired.changed() => {
                rest.worked(clock::instant());
                pods.desired(&keys);
            }
            Some(event) = events.recv() => {
                rest.worked(clock::instant());
                if pods.event(event) {
                    relist.reset_immediately();
                }
            }
            Some(ended) = pods.workers.join_next() => pods.ended(ended),
            () = context.desired.became_synced() => relist.reset_immediately(),
            Some(_chore) = pods.chores.join_next() => {
                // What was in the removed sandboxes can go now too.
                if pods.chores.is_empty() && std::mem::take(&mut pods.swept) {
                    relist.reset_immediately();
                }
            }
            Ok(()) = addresses.changed() => pods.wake_all(),
            // Tokens may have come due.
            () = context.known.moved() => pods.wake_all(),
            _ = relist.tick() => pods.relist().await,
            _ = rotation.tick(), if rotating.is_empty() => {
                rotating.spawn(rotate::rotate(Arc::clone(&context)));
            }
            Some(_rotated) = rotating.join_next() => {}
            _ = turn.tick() => {
                if rest.begins(clock::instant()) {
                    memory::release();
                }
            }
        }
    }
}

/// Lists what the runtime holds, as often as it takes: without knowing it nothing may be started.
async fn first_list(
    context: &Context,
    beat: &Beat,
    stop: &CancellationToken,
) -> Option<BTreeMap<Uid, Listed>> {
    let mut retry = Retry::new(FIRST_LIST_WAIT, FIRST_LIST_WAIT_MAX);
    loop {
        beat.beat();
        let listed = observe::list(&context.runtime, context.node.as_str(), None).await;
        match listed {
            Ok(listed) => return Some(listed),
            Err(error) => tracing::warn!(%error, "pods wait for the runtime"),
        }
        if !retry.wait(stop).await {
            return None;
        }
    }
}

impl Loop {
    /// Wakes, or starts, the tasks of the pods that the changed objects concern.
    fn desired(&mut self, keys: &BTreeSet<ObjectKey>) {
        let mut new = Vec::new();
        for key in keys {
            if key.kind() == Kind::Pod
                && let Ok(uid) = Uid::new(key.id())
                && !self.context.registry.contains(&uid)
            {
                new.push(uid);
                continue;
            }
            for wake in self.context.registry.wakes_for(key) {
                wake.because(|reasons| reasons.desired = true);
            }
        }
        self.start(new);
        if keys.iter().any(|key| key.kind() == Kind::Node) {
            self.decide_pending();
            self.say_schedulable();
        }
    }

    /// Tells when the node is kept from new pods, or no more.
    fn say_schedulable(&mut self) {
        let is_closed = self.context.is_unschedulable();
        if std::mem::replace(&mut self.is_unschedulable, is_closed) != is_closed {
            let reason = if is_closed { "NodeNotSchedulable" } else { "NodeSchedulable" };
            let event = events::node_status(self.context.node.as_str(), reason);
            self.context.upstream.event(event);
        }
    }

    /// Starts the tasks of pods, as far as they are desired.
    fn start(&mut self, uids: Vec<Uid>) {
        for newcomer in admit::in_order(&self.context.desired, &self.memories, uids) {
            let uid = &newcomer.uid;
            let stored = self.memories.remove(uid).unwrap_or_default();
            let listed = self.listed.remove(uid);
            let held = listed.as_ref().map(Listed::states).unwrap_or_default();
            let is_held = !held.is_empty();
            let wake = self.context.registry.add(uid, ObjectKey::pod(uid), held);
            let memory = admit::recall(&self.context.desired, uid, &stored);
            self.decide(&newcomer.object, &memory, is_held);
            let context = Arc::clone(&self.context);
            let worker =
                Worker::new(context, newcomer.object, wake, memory, stored, listed.as_ref());
            self.workers.spawn(worker.run(self.stop.clone()));
        }
    }

    /// Tells a pod's task what the runtime told; true if everything must be compared.
    fn event(&self, event: RuntimeEvent) -> bool {
        match event {
            RuntimeEvent::Resync => return true,
            RuntimeEvent::Exited { id } => {
                if let Some(wake) = self.context.registry.wake_of(&id) {
                    wake.because(|reasons| {
                        reasons.exited.insert(id);
                    });
                }
            }
            // The answer to the start was the news.
            RuntimeEvent::Started { .. } => {}
            RuntimeEvent::OutOfMemory { id } => {
                tracing::warn!(%id, "the kernel killed a process of a container: out of memory");
                if let Some(wake) = self.context.registry.wake_of(&id) {
                    wake.because(|reasons| {
                        reasons.out_of_memory.insert(id);
                    });
                }
            }
        }

        false
    }

    /// A pod's task has ended: nothing of the pod is desired or left.
    fn ended(&mut self, ended: Result<Uid, JoinError>) {
        match ended {
            Ok(uid) => {
                self.context.registry.remove(&uid);
                self.context.desired.ended(&uid);
                self.pending.remove(&uid);
                // Wanted again meanwhile.
                self.start(vec![uid]);
            }
            Err(error) => tracing::error!(%error, "a pod's task panicked"),
        }
    }

    fn wake_all(&self) {
        for uid in self.context.registry.pods() {
            if let Some(wake) = self.context.registry.wake(&uid) {
                wake.because(|reasons| reasons.report = true);
            }
        }
    }

    /// Compares everything with the runtime's lists, and removes what nobody owns.
    async fn relist(&mut self) {
        let node = self.context.node.as_str();
        let listed = match observe::list(&self.context.runtime, node, None).await {
            Ok(listed) => listed,
            Err(error) => return say(&error),
        };
        // For pods that the cloud brings back: their tasks must know what runs of them.
        let unknown = listed.iter().filter(|(uid, _)| !self.context.registry.contains(uid));
        self.listed = unknown.map(|(uid, listed)| (uid.clone(), listed.clone())).collect();
        let none = Listed::default();
        for uid in self.context.registry.pods() {
            let seen = listed.get(&uid).unwrap_or(&none);
            if self.context.registry.held(&uid).is_some_and(|held| held != seen.states())
                && let Some(wake) = self.context.registry.wake(&uid)
            {
                tracing::debug!(pod = %uid, "the runtime holds something else than was seen");
                wake.because(|reasons| reasons.observe = true);
            }
        }
        self.weigh_burstable().await;
        if self.context.desired.synced_once() {
            self.forget_memories().await;
        }
        if self.chores.is_empty() {
            self.sweep(listed);
        }
    }

    /// Memories of pods that a full sync did not bring are of pods long gone.
    async fn forget_memories(&mut self) {
        if self.memories.is_empty() {
            return;
        }
        let is_known = |uid: &Uid| self.context.desired.knows(uid);
        let gone: Vec<_> = self.memories.keys().filter(|uid| !is_known(uid)).cloned().collect();
        let forget = gone.iter().cloned().map(Write::ForgetPod).collect();
        match commit(&self.context.store, forget).await {
            Ok(()) => gone.iter().for_each(|uid| drop(self.memories.remove(uid))),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the store refused to forget old pods");
            }
        }
    }

    fn sweep(&mut self, listed: BTreeMap<Uid, Listed>) {
        let context = &self.context;
        let alive: BTreeSet<Uid> = listed.keys().cloned().collect();
        for (uid, listed) in listed {
            let is_orphan = listed.is_ours
                && !context.registry.contains(&uid)
                && context.desired.may_sweep(&uid);
            if is_orphan {
                self.swept = true;
                self.chores.spawn(sweep::remove_orphan(Arc::clone(context), uid, listed));
            }
        }
        self.chores.spawn(sweep::remove_leftovers(Arc::clone(context), alive));
    }

    /// Gives burstable pods together the CPU weight of their requests.
    async fn weigh_burstable(&mut self) {
        let milli = self.context.registry.burstable_milli();
        if self.burstable_milli == Some(milli) {
            return;
        }
        let context = &self.context;
        let parent = sweep::class_cgroup(&context.cgroup_root, context.cgroup_driver, "burstable");
        let cpu_shares = u64::try_from(podcore::resources::cpu_shares(milli)).ok();
        let limits = Limits { cpu_shares, ..Limits::default() };
        let kept = "burstable pods keep their weight";
        match tokio::time::timeout(WEIGH_MAX, context.cgroups.ensure(&parent, limits)).await {
            Ok(Ok(())) => self.burstable_milli = Some(milli),
            Ok(Err(error)) => tracing::warn!(error = %chain(&error), "{kept}"),
            Err(_elapsed) => tracing::warn!(slice = parent, "{kept}: no answer in {WEIGH_MAX:?}"),
        }
    }
}

fn say(error: &CriError) {
    tracing::warn!(%error, "cannot compare pods with the runtime");
}
