//! The actions of a pod that are under way: started once each, their answers used at once, and tried
//! again later when they fail.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use podcore::observed::VolumesState;
use podcore::plan::{Action, Outcome, Plan};
use podcore::pod::PodView;
use tokio::task::{Id, JoinError};

use super::{Worker, earlier};
use crate::clock;
use crate::pods::act::{Done, Job};
use crate::pods::materials::Gathered;

/// Between tries of something that failed: doubled each time.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Work under way for the pod.
#[derive(Debug)]
pub(super) enum Finished {
    Action(Action, Done),
    /// The state of a container or sandbox whose process ended.
    Exit(String, Option<Done>),
}

/// Tries of something that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retry {
    wait: Duration,
    pub(super) at: Timestamp,
}

impl Retry {
    pub(super) fn after(before: Option<&Self>, now: Timestamp) -> Self {
        let wait = before.map_or(RETRY_MIN, |before| (before.wait * 2).min(RETRY_MAX));

        Self { wait, at: now + wait }
    }

    /// Whether it is to be told after the one before: it will not be better soon.
    pub(super) fn is_told(&self, before: Option<&Self>) -> bool {
        self.wait == RETRY_MAX && before.is_none_or(|before| before.wait < RETRY_MAX)
    }

    /// Whether it is not yet time. Further away than the wait means that the clock was set back.
    pub(super) fn holds(&self, now: Timestamp) -> bool {
        now < self.at && self.at <= now + self.wait
    }
}

impl Worker {
    /// Starts the actions of the plan that are not under way; answers when the next may be tried.
    pub(super) fn act(
        &mut self,
        pod: &Arc<PodView>,
        gathered: &Arc<Gathered>,
        next: &Plan,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let is_over = next.memory.ended.is_some() || pod.is_deleted();
        for (action, handle) in &self.under_way {
            if action.is_vain(is_over) && !next.actions.contains(action) {
                handle.abort();
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
            if self.under_way.keys().any(|other| action.waits_for(other)) {
                continue;
            }
            if let Some(retry) = self.retries.get(action).filter(|retry| retry.holds(now)) {
                wake_at = earlier(wake_at, Some(retry.at));
                continue;
            }
            if *action == Action::SetUpVolumes {
                self.volumes_outdated = false;
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

    pub(super) fn finish(&mut self, finished: Result<(Id, Finished), JoinError>) {
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
                if matches!(outcome, Outcome::VolumesReady { .. }) {
                    // What changed meanwhile may have been read before that.
                    let is_stale = self.volumes_outdated;
                    self.observed.volumes =
                        if is_stale { VolumesState::Stale } else { VolumesState::Ready };
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
}
