//! One pod: looks, asks podcore for a plan, remembers, acts, reports, and waits for a reason to look
//! again. The task lives as long as something of the pod is desired or left.

mod look;
mod remember;
mod report;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use podcore::materials::{References, TokenAsk, references};
use podcore::memory::Memory;
use podcore::observed::{Observed, VolumesState};
use podcore::plan::{Action, plan};
use podcore::pod::PodView;
use podcore::resize::granted;
use podcore::telling::Telling;
use proto::ids::Uid;
use proto::object::{Object, Version};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::work::{Finished, Retry};
use super::context::Context;
use super::materials::{Gathered, gather, in_place};
use super::observe::Listed;
use super::tokens::Tokens;
use super::wake::{Reasons, Wake};
use crate::clock;
use crate::telemetry::chain;

/// Plans without a wait between them. A pod start needs about ten; more is a loop between plan and
/// runtime, which then turns once a second.
const ROUNDS_MAX: u32 = 100;
const ROUND_PAUSE: Duration = Duration::from_secs(1);

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
    /// The version of the object that was not understood.
    unreadable: Option<Version>,
    memory: Memory,
    /// What the store holds of the memory.
    stored: Vec<u8>,
    stored_at: Option<Timestamp>,
    store_retry: Option<Retry>,
    observed: Observed,
    logs: BTreeMap<String, String>,
    /// Something changed since the last set-up of volumes began.
    volumes_outdated: bool,
    /// The runtime must be asked for everything it holds of the pod.
    look: bool,
    look_retry: Option<Retry>,
    work: JoinSet<Finished>,
    under_way: BTreeMap<Action, AbortHandle>,
    retries: BTreeMap<Action, Retry>,
    tokens: Tokens,
    /// As of the last round.
    status_json: Bytes,
    reported: Option<(Bytes, bool)>,
    telling: Telling,
}

impl Worker {
    /// A task for `object`. `stored` is the memory as the store holds it, `listed` what the runtime held
    /// of the pod when the agent started.
    pub fn new(
        context: Arc<Context>,
        object: Object,
        wake: Arc<Wake>,
        memory: Memory,
        stored: Vec<u8>,
        listed: Option<&Listed>,
    ) -> Self {
        let is_gone = context.desired.get(&object.key).is_none();

        Self {
            context,
            uid: object.version.uid.clone(),
            wake,
            object,
            is_gone,
            parsed: None,
            unreadable: None,
            stored_at: memory.stored_at,
            memory,
            stored,
            store_retry: None,
            observed: Observed::default(),
            logs: BTreeMap::new(),
            volumes_outdated: false,
            look: listed.is_some_and(|listed| *listed != Listed::default()),
            look_retry: None,
            work: JoinSet::new(),
            under_way: BTreeMap::new(),
            retries: BTreeMap::new(),
            tokens: Tokens::default(),
            status_json: Bytes::new(),
            reported: None,
            telling: Telling::default(),
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

        // What is left of a pod that nobody understands is swept by its labels.
        self.is_gone && (reported_done || self.unreadable.is_some()) && self.under_way.is_empty()
    }

    fn take(&mut self, reasons: Reasons) {
        if reasons.desired {
            self.parsed = self.parsed.take().map(|parsed| Parsed { gathered: None, ..parsed });
            self.desired_changed();
        }
        self.look |= reasons.observe;
        for id in reasons.out_of_memory {
            self.observed.ran_out_of_memory(&id, &mut self.memory);
        }
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
        self.memory.references_changed();
        self.volumes_changed();
    }

    /// What is written in volumes may be stale, also what is being written.
    fn volumes_changed(&mut self) {
        self.volumes_outdated = true;
        if self.observed.volumes == VolumesState::Ready {
            self.observed.volumes = VolumesState::Stale;
        }
    }

    /// Looks if needed, plans, acts and reports once. Answers when to come back by itself.
    async fn round(&mut self) -> Option<Timestamp> {
        let now = clock::now();
        if let Some(wait) = self.look_if_needed(now).await {
            return Some(wait);
        }
        let (pod, gathered) = self.view()?;
        self.observed.missing.clone_from(&gathered.missing);
        self.observed.room = self.room(&pod);
        self.observed.abilities = Arc::clone(&self.context.abilities.borrow());
        self.observed.clock_set_s = clock::set_s();
        (self.observed.admission, self.observed.eviction, self.observed.shutdown_s) =
            self.context.registry.decided(&self.uid);
        self.observed.restarts = self.context.registry.restarts(&self.uid);
        let before = self.memory.clone();
        let next = plan(&pod, &before, &self.observed, now);

        // A deleted pod is the exception: to take it away may be what frees a full disk.
        if next.memory.must_be_durable_after(&before)
            && !pod.is_deleted()
            && let Some(retry_at) = self.store_memory(&next.memory, now).await
        {
            // An end that is not durable is neither told nor acted upon.
            return earlier(next.wake_at, Some(retry_at));
        }
        self.memory.clone_from(&next.memory);
        if !self.memory.is_admitted() {
            return next.wake_at;
        }
        let pod = granted(&pod, &next.memory).map_or(pod, Arc::new);
        if next.memory.resize.in_progress != before.resize.in_progress {
            // Files may tell what the containers have.
            self.volumes_changed();
        }
        let mut wake_at = earlier(next.wake_at, self.act(&pod, &gathered, &next, now));
        let wanted = (!pod.is_deleted()).then_some(&gathered.asks);
        wake_at = earlier(wake_at, self.ask_for_tokens(wanted, now));
        let status = self.status(&pod, &gathered.materials, now);
        wake_at = earlier(wake_at, self.report(&status, next.finished, now));
        self.enter(&pod, &status);
        // The rest of the memory can be found out again: one commit when the pod has settled.
        let is_busy = self.under_way.keys().any(|action| !matches!(action, Action::Probe { .. }));
        if self.memory.transient.unstored || !is_busy {
            wake_at = earlier(wake_at, self.store_memory(&next.memory, now).await);
        }

        wake_at
    }

    /// Asks for tokens that are due. They end by the cloud's clock: before it is known nothing is due, and then
    /// all pods are looked at.
    fn ask_for_tokens(
        &mut self,
        asks: Option<&Vec<(TokenAsk, Option<Timestamp>)>>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let theirs = self.context.known.cloud(clock::instant())?;
        let at = self.tokens.ask(&self.context.upstream, &self.uid, asks, theirs)?;

        Some(now.saturating_add(at.duration_since(theirs)).unwrap_or(now))
    }

    /// The pod and what it references, parsed if they are not.
    fn view(&mut self) -> Option<(Arc<PodView>, Arc<Gathered>)> {
        let parsed = match self.parsed.take() {
            Some(parsed) if parsed.version == self.object.version => parsed,
            _stale => {
                let parsed = PodView::parse(&self.object.bytes);
                self.unreadable = parsed.is_err().then(|| self.object.version.clone());
                let pod = match parsed {
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
        let gathered = parsed.gathered.clone().unwrap_or_else(|| self.gather(&parsed));
        let pod = if self.is_gone && !parsed.pod.is_deleted() {
            Arc::new(deleted(&parsed.pod))
        } else {
            Arc::clone(&parsed.pod)
        };
        self.parsed = Some(Parsed { gathered: Some(Arc::clone(&gathered)), ..parsed });

        Some((pod, gathered))
    }

    /// What the pod references. Changes of it concern the pod from now on: nothing else runs between.
    fn gather(&self, parsed: &Parsed) -> Arc<Gathered> {
        let Parsed { pod, references, .. } = parsed;
        let context = &self.context;
        let set_up = || in_place(&self.memory.claimed, &context.layout, &self.uid);
        let gathered = gather(&context.desired, pod, references, set_up);
        context.registry.refer(&self.uid, gathered.keys(pod, references));

        Arc::new(gathered)
    }
}

/// The pod as it is after the cloud deleted it without the edge having seen a deletion time.
fn deleted(pod: &PodView) -> PodView {
    let mut pod = pod.clone();
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(clock::now());
    pod.pod.metadata.deletion_timestamp = Some(time);

    pod
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}

/// Sleeps for as long as the wall clock needs to say so; one that is set meanwhile does not change that.
async fn sleep_until(at: Option<Timestamp>) {
    match at {
        None => std::future::pending().await,
        Some(at) => {
            let wait = at.duration_since(clock::now());
            tokio::time::sleep(wait.try_into().unwrap_or(Duration::ZERO)).await;
        }
    }
}
