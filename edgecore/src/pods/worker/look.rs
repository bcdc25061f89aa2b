//! What the runtime holds of the pod, as its task knows it: read in whole when something was missed,
//! and kept up to date from single answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use podcore::plan::Action;

use super::Worker;
use super::work::{Finished, Retry};
use crate::pods::act::Done;
use crate::pods::observe::{self, Holding, SeenContainer};

impl Worker {
    /// Reads the end of a container or sandbox once the runtime knows it.
    pub(super) fn look_at(&mut self, id: String) {
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

    /// Asks the runtime for all it holds of the pod, unless something is being made just now: the
    /// answer would be stale. Answers when to try again if that was not possible.
    pub(super) async fn look_if_needed(&mut self, now: Timestamp) -> Option<Timestamp> {
        if !self.look {
            return None;
        }
        if let Some(retry) = self.look_retry.filter(|retry| retry.holds(now)) {
            return Some(retry.at);
        }
        if self.under_way.keys().any(Action::changes_holding) {
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
                let retry = Retry::after(self.look_retry.as_ref(), now);
                if retry.is_told(self.look_retry.as_ref()) {
                    tracing::warn!(pod = %self.uid, %error, "the runtime does not tell what it holds of the pod, for which nothing is done until it does");
                }
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

    pub(super) fn put_sandbox(&mut self, view: podcore::observed::SandboxView) {
        self.observed.sandboxes.retain(|other| other.id != view.id);
        self.observed.sandboxes.push(view);
    }

    pub(super) fn put_container(&mut self, seen: SeenContainer) {
        let is_known = self.observed.containers.iter().any(|c| c.id == seen.view.id);
        self.logs.insert(seen.view.id.clone(), seen.log_path);
        // A status does not say in which sandbox the container is.
        if !is_known && seen.view.sandbox_id.is_empty() {
            self.look = true;
            return;
        }
        self.observed.put_container(seen.view, &self.memory);
    }

    /// A container or sandbox is gone, and with a sandbox what was in it.
    pub(super) fn drop_id(&mut self, id: &str) {
        self.observed.drop_id(id, &mut self.memory);
        let left: BTreeSet<_> = self.observed.containers.iter().map(|c| c.id.as_str()).collect();
        self.logs.retain(|id, _| left.contains(id.as_str()));
    }
}
