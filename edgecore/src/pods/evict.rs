//! Ends pods when the node is short of something, or when they take more disk space than they may:
//! one after the other, and only when nothing else helps (kubelet: the eviction manager). The rules are
//! podcore's.

use std::sync::Arc;
use std::time::Duration;

use podcore::eviction::{evict, over_limit, rank};
use podcore::pressure::{Policy, Signal, Threshold, is_relieved};
use proto::ids::Uid;

use super::context::Context;
use super::{image_gc, usage};
use crate::events::{self, EventType};
use crate::node::pressure::{Places, Short, Shortages};

/// How long the end of a pod is waited for before the next look, and how often is looked.
const CLEAN_UP_MAX: Duration = Duration::from_secs(30);
const CLEAN_UP_PERIOD: Duration = Duration::from_secs(1);

/// Runs until nobody looks any more.
pub async fn run(context: Arc<Context>, mut heard: Shortages) {
    while heard.short.changed().await.is_ok() {
        let short = heard.short.borrow_and_update().clone();
        let places = heard.places.borrow().clone();
        let keeper = Keeper { context: &context, policy: &heard.policy, places };
        let over = keeper.keep_limits().await;
        if !over.is_empty() {
            keeper.wait_for_end(&over).await;
        } else if let Some(threshold) = short.due.first()
            && let Some(pod) = keeper.relieve(*threshold, &short).await
        {
            keeper.wait_for_end(&[pod]).await;
        }
    }
}

struct Keeper<'a> {
    context: &'a Arc<Context>,
    policy: &'a Policy,
    places: Places,
}

impl Keeper<'_> {
    /// Ends the pods that have taken more disk space than they may.
    async fn keep_limits(&self) -> Vec<Uid> {
        let limited = self.context.registry.limited();
        if limited.is_empty() {
            return limited;
        }
        let has_image_disk = self.has_image_disk().await;
        let mut over = Vec::new();
        for candidate in usage::measure(self.context, limited).await {
            let usage = candidate.usage.unwrap_or_default();
            if let Some(eviction) = over_limit(&candidate.pod, &usage, has_image_disk) {
                self.context.registry.evict(&candidate.pod.uid, eviction);
                over.push(candidate.pod.uid);
            }
        }

        over
    }

    /// Frees what the node is short of; the pod that goes if one must.
    async fn relieve(&self, threshold: Threshold, short: &Short) -> Option<Uid> {
        let (signal, resource) = (threshold.signal, threshold.signal.resource());
        tracing::warn!(signal = signal.as_str(), "the node is short of {resource}");
        self.tell(&format!("Attempting to reclaim {resource}"));
        let has_image_disk = self.has_image_disk().await;
        if self.reclaim(signal, has_image_disk).await {
            return None;
        }
        let mut candidates = usage::measure(self.context, self.context.registry.active()).await;
        rank(&mut candidates, signal, has_image_disk);
        for candidate in &candidates {
            if let Some(eviction) = evict(candidate, &threshold, self.policy, &short.seen) {
                self.context.registry.evict(&candidate.pod.uid, eviction);
                return Some(candidate.pod.uid.clone());
            }
        }
        tracing::warn!("no pod of this node can go to free {resource}");

        None
    }

    /// Frees what no pod needs; true if that was enough.
    async fn reclaim(&self, signal: Signal, has_image_disk: bool) -> bool {
        let is_image = matches!(signal, Signal::ImageFsAvailable | Signal::ImageFsInodesFree);
        if !signal.is_disk() || has_image_disk && !is_image {
            return false;
        }
        let freed = async {
            self.remove_dead_containers().await?;
            image_gc::remove_unneeded(self.context).await
        };
        if let Err(error) = freed.await {
            tracing::warn!(%error, "cannot remove what no pod needs");
        }
        let places = self.places.clone();
        let seen = crate::blocking::run(move || places.look()).await;

        is_relieved(self.policy, &seen)
    }

    /// Removes what is left in the runtime of pods that have ended. Their statuses are remembered.
    async fn remove_dead_containers(&self) -> Result<(), cri::CriError> {
        let Context { registry, runtime, .. } = &**self.context;
        for pod in registry.cleaned() {
            for id in registry.held(&pod).unwrap_or_default().into_keys() {
                match runtime.remove_container(&id).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    Ok(()) | Err(_) => {}
                }
            }
            if let Some(wake) = registry.wake(&pod) {
                wake.because(|reasons| reasons.observe = true);
            }
        }

        Ok(())
    }

    async fn has_image_disk(&self) -> bool {
        let places = self.places.clone();

        crate::blocking::run(move || places.has_image_disk()).await
    }

    async fn wait_for_end(&self, pods: &[Uid]) {
        let registry = &self.context.registry;
        let ended = async {
            while pods.iter().any(|pod| !registry.is_cleaned(pod)) {
                tokio::time::sleep(CLEAN_UP_PERIOD).await;
            }
        };
        if tokio::time::timeout(CLEAN_UP_MAX, ended).await.is_err() {
            tracing::warn!(?pods, "evicted pods have not ended yet");
        }
    }

    fn tell(&self, message: &str) {
        let told = ("EvictionThresholdMet", message);
        let event = events::about_node(self.context.node.as_str(), EventType::Warning, told);
        self.context.upstream.event(event);
    }
}
