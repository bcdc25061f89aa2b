//! One pod: looks, asks podcore for a plan, remembers, acts, reports, and waits for a reason to look
//! again. The task lives as long as something of the pod is desired or left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use podcore::materials::{References, references};
use podcore::memory::Memory;
use podcore::observed::{Observed, VolumesState};
use podcore::plan::{Action, Plan, plan};
use podcore::pod::PodView;
use podcore::resources::{QosClass, cpu_request, qos_class};
use podcore::status::{StatusContext, status};
use proto::ids::Uid;
use proto::object::{Object, Version};
use proto::wire::{Report, ReportKey};
use store::Write;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::act::{Done, Job};
use super::context::Context;
use super::lookup::{Logs, pod_ref};
use super::materials::{Gathered, gather};
use super::observe::{self, Holding, Listed, SeenContainer};
use super::registry::Entry;
use super::tokens::Tokens;
use super::wake::{Reasons, Wake};
use crate::clock;
use crate::desired::commit;
use crate::telemetry::chain;

/// Between tries of something that failed: doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Plans without a wait between them. A pod start needs about ten; more is a loop between plan and
/// runtime, which then turns once a second.
const ROUNDS_MAX: u32 = 100;
const ROUND_PAUSE: Duration = Duration::from_secs(1);

/// Work under way for the pod.
#[derive(Debug)]
enum Finished {
    Action(Action, Done),
    /// The state of a container or sandbox whose process ended.
    Exit(String, Option<Done>),
}

/// Tries of something that failed.
#[derive(Clone, Copy, Debug)]
struct Retry {
    wait: Duration,
    at: Timestamp,
}

impl Retry {
    fn after(before: Option<&Self>, now: Timestamp) -> Self {
        let wait = before.map_or(RETRY_MIN, |before| (before.wait * 2).min(RETRY_MAX));

        Self { wait, at: now + wait }
    }
}

/// The parsed pod and what it references: dropped while nothing happens, so that idle pods cost
/// only their bytes.
#[derive(Debug)]
struct Parsed {
    version: Version,
    pod: Arc<PodView>,
    references: References,
    gathered: Option<Arc<Gathered>>,
}

/// The state of one pod's task.
#[derive(Debug)]
pub struct Worker {
    context: Arc<Context>,
    uid: Uid,
    wake: Arc<Wake>,
    /// The last state of the pod the cloud wanted; kept after it was deleted there.
    object: Object,
    /// The cloud deleted the object.
    is_gone: bool,
    parsed: Option<Parsed>,
    memory: Memory,
    /// What the store holds of the memory.
    stored: Vec<u8>,
    store_retry: Option<Retry>,
    observed: Observed,
    logs: BTreeMap<String, String>,
    /// The runtime must be asked for everything it holds of the pod.
    look: bool,
    look_retry: Option<Retry>,
    work: JoinSet<Finished>,
    under_way: BTreeMap<Action, AbortHandle>,
    retries: BTreeMap<Action, Retry>,
    tokens: Tokens,
    reported: Option<(Vec<u8>, bool)>,
}

impl Worker {
    /// A task for `object`. `listed` is what the runtime held of the pod when the agent started.
    pub fn new(
        context: Arc<Context>,
        object: Object,
        wake: Arc<Wake>,
        memory: &[u8],
        listed: Option<&Listed>,
    ) -> Self {
        let remembered = serde_json::from_slice(memory).unwrap_or_else(|error| {
            if !memory.is_empty() {
                tracing::warn!(%error, "the memory of the pod is not understood, starting afresh");
            }
            Memory::default()
        });

        Self {
            context,
            uid: object.version.uid.clone(),
            wake,
            object,
            is_gone: false,
            parsed: None,
            memory: remembered,
            stored: memory.to_vec(),
            store_retry: None,
            observed: Observed::default(),
            logs: BTreeMap::new(),
            look: listed.is_some_and(|listed| *listed != Listed::default()),
            look_retry: None,
            work: JoinSet::new(),
            under_way: BTreeMap::new(),
            retries: BTreeMap::new(),
            tokens: Tokens::default(),
            reported: None,
        }
    }

    /// Works until nothing of the pod is desired or left, or until asked to stop.
    pub async fn run(mut self, stop: CancellationToken) -> Uid {
        let mut rounds = 0;
        loop {
            let wake_at = self.round().await;
            if self.is_over() {
                self.forget().await;
                return self.uid;
            }
            rounds += 1;
            if rounds > ROUNDS_MAX {
                tracing::warn!(pod = %self.uid, "the pod does not settle");
                tokio::time::sleep(ROUND_PAUSE).await;
                rounds = 0;
            }
            if self.under_way.is_empty() && self.wake.is_quiet() {
                self.parsed = None;
                rounds = 0;
            }
            tokio::select! {
                () = stop.cancelled() => return self.uid,
                reasons = self.wake.wait() => self.take(reasons),
                Some(finished) = self.work.join_next_with_id() => self.finish(finished),
                () = sleep_until(wake_at) => rounds = 0,
            }
            // What is ready already enters the same plan.
            while let Some(finished) = self.work.try_join_next_with_id() {
                self.finish(finished);
            }
        }
    }

    /// Deleted by the cloud, and nothing left here.
    fn is_over(&self) -> bool {
        let reported_done = self.reported.as_ref().is_some_and(|(_, done)| *done);

        self.is_gone && reported_done && self.under_way.is_empty()
    }

    fn take(&mut self, reasons: Reasons) {
        if reasons.desired {
            self.parsed = self.parsed.take().map(|parsed| Parsed { gathered: None, ..parsed });
            self.desired_changed();
        }
        self.look |= reasons.observe;
        for id in reasons.exited {
            tracing::debug!(%id, "exited");
            self.look_at(id);
        }
    }

    /// The pod or something it references changed: volumes that the agent writes may be stale.
    fn desired_changed(&mut self) {
        match self.context.desired.get(&self.object.key) {
            Some(object) if object.version.uid == self.uid => {
                self.is_gone = false;
                if object.version != self.object.version {
                    self.object = object;
                }
            }
            _other => self.is_gone = true,
        }
        if self.observed.volumes == VolumesState::Ready {
            self.observed.volumes = VolumesState::Unknown;
        }
    }

    /// Reads the end of a container or sandbox once the runtime knows it.
    fn look_at(&mut self, id: String) {
        let context = Arc::clone(&self.context);
        let is_sandbox = self.observed.sandboxes.iter().any(|sandbox| sandbox.id == id);
        self.work.spawn(async move {
            let done = if is_sandbox {
                let status = cri::settled_sandbox(&context.runtime, &id).await;
                status.map(|status| Done::Sandbox(observe::sandbox_view(&status)))
            } else {
                match cri::settled_container(&context.runtime, &id).await {
                    Ok(status) => Ok(Done::Container(observe::container(status, "").await)),
                    Err(error) => Err(error),
                }
            };
            let done = match done {
                Ok(done) => Some(done),
                Err(error) if error.is_not_found() => Some(Done::Gone(id.clone())),
                Err(_unknown) => None,
            };
            Finished::Exit(id, done)
        });
    }

    fn finish(&mut self, finished: Result<(Id, Finished), JoinError>) {
        match finished {
            Ok((_, Finished::Action(action, done))) => {
                self.under_way.remove(&action);
                self.use_answer(Some(&action), done);
            }
            Ok((_, Finished::Exit(_, Some(done)))) => self.use_answer(None, done),
            Ok((_, Finished::Exit(id, None))) => {
                tracing::debug!(%id, "the runtime did not tell how it ended");
                self.look = true;
            }
            Err(error) => {
                // Aborted because it is no longer wanted, or a panic, which ends a release build.
                self.under_way.retain(|_, handle| handle.id() != error.id());
                self.look |= error.is_panic();
            }
        }
    }

    fn use_answer(&mut self, action: Option<&Action>, done: Done) {
        let now = clock::now();
        if let (Some(action), Done::Failed { message }) = (action, &done) {
            tracing::warn!(pod = %self.uid, ?action, message, "an action failed");
            let retry = Retry::after(self.retries.get(action), now);
            self.retries.insert(action.clone(), retry);
            self.look = true;
            return;
        }
        if let Some(action) = action {
            self.retries.remove(action);
        }
        match done {
            Done::Noted { outcome, sandbox, container, look } => {
                if outcome == podcore::plan::Outcome::VolumesReady {
                    self.observed.volumes = VolumesState::Ready;
                }
                self.memory.note(outcome, now);
                if let Some(view) = sandbox {
                    self.put_sandbox(view);
                }
                if let Some(seen) = container {
                    self.put_container(seen);
                }
                self.look |= look;
            }
            Done::Container(seen) => self.put_container(seen),
            Done::Sandbox(view) => self.put_sandbox(view),
            Done::Gone(id) => self.drop_id(&id),
            Done::TornDown => self.observed.volumes = VolumesState::Gone,
            Done::Nothing | Done::Failed { .. } => {}
        }
    }

    fn put_sandbox(&mut self, view: podcore::observed::SandboxView) {
        self.observed.sandboxes.retain(|other| other.id != view.id);
        self.observed.sandboxes.push(view);
    }

    fn put_container(&mut self, mut seen: SeenContainer) {
        let known = self.observed.containers.iter().position(|c| c.id == seen.view.id);
        self.logs.insert(seen.view.id.clone(), seen.log_path);
        match known {
            Some(at) => {
                // A status does not say in which sandbox the container is.
                if seen.view.sandbox_id.is_empty() {
                    seen.view.sandbox_id.clone_from(&self.observed.containers[at].sandbox_id);
                }
                self.observed.containers[at] = seen.view;
            }
            None if seen.view.sandbox_id.is_empty() => self.look = true,
            None => self.observed.containers.push(seen.view),
        }
    }

    /// A container or sandbox is gone, and with a sandbox what was in it.
    fn drop_id(&mut self, id: &str) {
        self.observed.sandboxes.retain(|sandbox| sandbox.id != id);
        self.observed.containers.retain(|c| c.id != id && c.sandbox_id != id);
        let left: BTreeSet<_> = self.observed.containers.iter().map(|c| c.id.as_str()).collect();
        self.logs.retain(|id, _| left.contains(id.as_str()));
    }

    /// Looks if needed, plans, acts and reports once. Answers when to come back by itself.
    async fn round(&mut self) -> Option<Timestamp> {
        let now = clock::now();
        if let Some(wait) = self.look_if_needed(now).await {
            return Some(wait);
        }
        let (pod, gathered) = self.view()?;
        self.observed.missing.clone_from(&gathered.missing);
        let before = self.memory.clone();
        let next = plan(&pod, &before, &self.observed, now);

        if next.memory.must_be_durable_after(&before)
            && let Some(retry_at) = self.store_memory(&next.memory, now).await
        {
            // An end that is not durable is neither told nor acted upon.
            return earlier(next.wake_at, Some(retry_at));
        }
        self.memory.clone_from(&next.memory);
        let mut wake_at = earlier(next.wake_at, self.act(&pod, &gathered, &next, now));
        let wanted = (!pod.is_deleted()).then_some(&gathered.asks);
        wake_at = earlier(wake_at, self.tokens.ask(&self.context, &self.uid, wanted, now));
        let status = self.status(&pod, now);
        self.enter(&pod, &gathered, &status);
        self.report(&status, next.finished);
        // The rest of the memory can be found out again: one commit when the pod has settled.
        if self.under_way.is_empty() {
            wake_at = earlier(wake_at, self.store_memory(&next.memory, now).await);
        }

        wake_at
    }

    /// Asks the runtime for all it holds of the pod, unless something is being made just now: the
    /// answer would be stale. Answers when to try again if that was not possible.
    async fn look_if_needed(&mut self, now: Timestamp) -> Option<Timestamp> {
        if !self.look {
            return None;
        }
        if let Some(retry) = self.look_retry.filter(|retry| now < retry.at) {
            return Some(retry.at);
        }
        if self.under_way.keys().any(changes_holding) {
            return None;
        }
        let context = &self.context;
        let node = context.node.as_str();
        let held = async {
            let mut all = observe::list(&context.runtime, node, Some(&self.uid)).await?;
            observe::read(&context.runtime, &all.remove(&self.uid).unwrap_or_default()).await
        };
        match held.await {
            Ok(holding) => {
                self.hold(holding);
                (self.look, self.look_retry) = (false, None);
                None
            }
            Err(error) => {
                tracing::debug!(%error, "the runtime does not tell what it holds");
                let retry = Retry::after(self.look_retry.as_ref(), now);
                self.look_retry = Some(retry);
                Some(retry.at)
            }
        }
    }

    fn hold(&mut self, holding: Holding) {
        self.observed.sandboxes = holding.sandboxes;
        self.observed.containers.clear();
        self.logs.clear();
        for seen in holding.containers {
            self.put_container(seen);
        }
    }

    /// The pod and what it references, parsed if they are not.
    fn view(&mut self) -> Option<(Arc<PodView>, Arc<Gathered>)> {
        let parsed = match self.parsed.take() {
            Some(parsed) if parsed.version == self.object.version => parsed,
            _stale => {
                let pod = match PodView::parse(&self.object.bytes) {
                    Ok(pod) => pod,
                    Err(error) => {
                        let reason = chain(&error);
                        tracing::error!(pod = %self.uid, reason, "the pod cannot be run");
                        return None;
                    }
                };
                let references = references(&pod);
                let version = self.object.version.clone();
                Parsed { version, pod: Arc::new(pod), references, gathered: None }
            }
        };
        let gathered = parsed.gathered.clone().unwrap_or_else(|| {
            Arc::new(gather(&self.context.desired, &parsed.pod, &parsed.references))
        });
        let pod = if self.is_gone && !parsed.pod.is_deleted() {
            Arc::new(deleted(&parsed.pod))
        } else {
            Arc::clone(&parsed.pod)
        };
        self.parsed = Some(Parsed { gathered: Some(Arc::clone(&gathered)), ..parsed });

        Some((pod, gathered))
    }

    /// Starts the actions of the plan that are not under way; answers when the next may be tried.
    fn act(
        &mut self,
        pod: &Arc<PodView>,
        gathered: &Arc<Gathered>,
        next: &Plan,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if next.memory.ended.is_some() || pod.is_deleted() {
            for (action, handle) in &self.under_way {
                if matches!(action, Action::EnsureImage { .. }) {
                    handle.abort();
                }
            }
        }
        let materials = Arc::clone(&gathered.materials);
        let job = Job::new(&self.context, pod, &materials, &self.observed, &self.memory);
        let mut wake_at = None;
        for action in &next.actions {
            if let Action::Event { warning, reason, message, container } = action {
                job.event(*warning, reason, message, container.as_deref());
                continue;
            }
            if self.under_way.contains_key(action) {
                continue;
            }
            if let Some(retry) = self.retries.get(action).filter(|retry| now < retry.at) {
                wake_at = earlier(wake_at, Some(retry.at));
                continue;
            }
            // What is being made is finished before it is taken away; its answer is the wake-up.
            if takes_away(action) && self.under_way.keys().any(changes_holding) {
                continue;
            }
            let (job, given) = (job.clone(), action.clone());
            let handle = self.work.spawn(async move {
                let began = clock::instant();
                let done = job.run(given.clone()).await;
                let took_ms = began.elapsed().as_millis();
                tracing::debug!(action = ?given, took_ms, "done");
                Finished::Action(given, done)
            });
            self.under_way.insert(action.clone(), handle);
        }
        self.retries.retain(|action, _| next.actions.contains(action));

        wake_at
    }

    /// Makes the memory durable if it changed; answers when to try again if the store refuses.
    async fn store_memory(&mut self, memory: &Memory, now: Timestamp) -> Option<Timestamp> {
        let bytes = match serde_json::to_vec(memory) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "the memory of the pod cannot be written as JSON");
                return None;
            }
        };
        if bytes == self.stored {
            return None;
        }
        if let Some(retry) = self.store_retry.filter(|retry| now < retry.at) {
            return Some(retry.at);
        }
        let write = Write::Memory { pod: self.uid.clone(), bytes: bytes.clone() };
        match commit(&self.context.store, vec![write]).await {
            Ok(()) => {
                self.stored = bytes;
                self.store_retry = None;
                None
            }
            Err(error) => {
                if self.store_retry.is_none() {
                    tracing::warn!(error = %chain(&error), "the store refused a pod's memory");
                }
                let retry = Retry::after(self.store_retry.as_ref(), now);
                self.store_retry = Some(retry);
                Some(retry.at)
            }
        }
    }

    /// Tells the others what the pod has and needs.
    fn enter(&self, pod: &PodView, gathered: &Gathered, status: &PodStatus) {
        let mut held = BTreeMap::new();
        for sandbox in &self.observed.sandboxes {
            held.insert(sandbox.id.clone(), observe::sandbox_code(sandbox));
        }
        for container in &self.observed.containers {
            held.insert(container.id.clone(), observe::container_code(&container.state));
        }
        let dir = self.context.layout.logs(&pod.namespace, &pod.name, &pod.uid);
        let logs = Logs { files: &self.logs, dir: &dir };
        let entry = Entry {
            name: (pod.namespace.clone(), pod.name.clone()),
            references: gathered.keys.clone(),
            held,
            burstable_milli: burstable_milli(pod),
            pod: Some(pod_ref(pod, &self.observed, &self.memory, status, logs)),
        };
        self.context.registry.update(&self.uid, entry);
    }

    fn status(&self, pod: &PodView, now: Timestamp) -> PodStatus {
        let context = StatusContext {
            host_ips: self.context.addresses.borrow().clone(),
            runtime: self.context.runtime_name.clone(),
        };

        status(pod, &self.memory, &self.observed, &context, now)
    }

    /// Reports the status if it is not the last one reported.
    fn report(&mut self, status: &PodStatus, finished: bool) {
        let done = finished && self.under_way.is_empty();
        let json = match serde_json::to_vec(status) {
            Ok(json) => json,
            Err(error) => {
                tracing::error!(%error, "the status of the pod cannot be written as JSON");
                return;
            }
        };
        let next = (json, done);
        if self.reported.as_ref() != Some(&next) {
            let key = ReportKey::PodStatus(self.uid.clone());
            let bytes = bytes::Bytes::copy_from_slice(&next.0);
            self.context.upstream.report(Report { key, bytes, done });
            self.reported = Some(next);
        }
    }

    /// Removes the last traces of the pod.
    async fn forget(&mut self) {
        if let Some((pod, _)) = self.view() {
            super::sweep::remove_logs(&self.context.layout, &pod).await;
        }
        if self.stored.is_empty() {
            return;
        }
        let forget = vec![Write::ForgetPod(self.uid.clone())];
        if let Err(error) = commit(&self.context.store, forget).await {
            // The next start of the agent forgets what has no pod.
            tracing::warn!(error = %chain(&error), "the store refused to forget a pod");
        }
    }
}

/// Actions after which the runtime holds more or less than before.
fn changes_holding(action: &Action) -> bool {
    match action {
        Action::CreateSandbox { .. } | Action::StartContainer { .. } | Action::SetUpVolumes => true,
        Action::EnsureImage { .. }
        | Action::StopContainer { .. }
        | Action::RemoveContainer { .. }
        | Action::StopSandbox { .. }
        | Action::RemoveSandbox { .. }
        | Action::TearDownVolumes
        | Action::Event { .. } => false,
    }
}

/// Actions that must not overtake one that makes something.
fn takes_away(action: &Action) -> bool {
    match action {
        Action::StopSandbox { .. } | Action::RemoveSandbox { .. } | Action::TearDownVolumes => true,
        Action::CreateSandbox { .. }
        | Action::StartContainer { .. }
        | Action::SetUpVolumes
        | Action::EnsureImage { .. }
        | Action::StopContainer { .. }
        | Action::RemoveContainer { .. }
        | Action::Event { .. } => false,
    }
}

/// The pod as it is after the cloud deleted it without the edge having seen a deletion time.
fn deleted(pod: &PodView) -> PodView {
    let mut pod = pod.clone();
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(clock::now());
    pod.pod.metadata.deletion_timestamp = Some(time);

    pod
}

/// The CPU request that counts for the cgroup of burstable pods.
fn burstable_milli(pod: &PodView) -> i64 {
    match qos_class(pod) {
        QosClass::Burstable => pod.containers().iter().filter_map(cpu_request).sum(),
        QosClass::Guaranteed | QosClass::BestEffort => 0,
    }
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}

/// Sleeps until the wall clock says so; a clock that is set meanwhile is looked at again by the
/// slow relist.
async fn sleep_until(at: Option<Timestamp>) {
    match at {
        None => std::future::pending().await,
        Some(at) => {
            let wait = at.duration_since(clock::now());
            tokio::time::sleep(wait.try_into().unwrap_or(Duration::ZERO)).await;
        }
    }
}
