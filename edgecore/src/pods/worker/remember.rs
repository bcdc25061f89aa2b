//! What a pod's task keeps in the store beyond its own life, until the pod is gone.

use jiff::Timestamp;
use podcore::memory::Memory;
use store::Write;

use super::Worker;
use super::work::Retry;
use crate::desired::commit;
use crate::pods::sweep;
use crate::telemetry::chain;

/// What is written of a memory that is stored then.
fn as_stored(memory: &Memory, stored_at: Option<Timestamp>) -> Vec<u8> {
    let memory = Memory { stored_at, ..memory.clone() };

    serde_json::to_vec(&memory).expect("a memory is always JSON")
}

impl Worker {
    /// Makes the memory durable if it changed; answers when to try again if the store refuses.
    pub(super) async fn store_memory(
        &mut self,
        memory: &Memory,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if as_stored(memory, self.stored_at) == self.stored {
            self.memory.transient.unstored = false;
            return None;
        }
        if let Some(retry) = self.store_retry.filter(|retry| retry.holds(now)) {
            return Some(retry.at);
        }
        let bytes = as_stored(memory, Some(now));
        let write = Write::Memory { pod: self.uid.clone(), bytes: bytes.clone() };
        match commit(&self.context.store, vec![write]).await {
            Ok(()) => {
                self.stored = bytes;
                self.stored_at = Some(now);
                self.memory.transient.unstored = false;
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

    /// Removes the last traces of the pod.
    pub(super) async fn forget(&mut self) {
        if let Some((pod, _)) = self.view() {
            sweep::remove_logs(&self.context.layout, &pod).await;
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
