//! The crash back-off of a container as it is remembered: from which end it counts, and when it is over.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{ContainerMemory, Termination};
use crate::backoff;

/// Crash back-off of one container; see [`crate::backoff`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Backoff {
    /// Seconds that must pass after an end before the next start.
    pub delay_s: u32,
    /// When `delay_s` was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// The hash of the container that crashed: a change of its image starts over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

impl ContainerMemory {
    /// Until when the restart after `end` waits; `None` if it does not wait or has begun. `before` is when
    /// the attempt before it ended, if that is known.
    pub fn crash_wait(
        &self,
        end: &Termination,
        before: Option<Timestamp>,
        hash: &str,
        now: Timestamp,
    ) -> Option<Timestamp> {
        if self.backoff_attempt.is_some_and(|begun| begun > end.attempt) {
            return None;
        }
        let counted = self.counted_end(end, before, hash)?;
        let until = backoff::start_at(&self.crash_backoff(end, before, hash), counted, now);

        Some(until).filter(|until| now < *until)
    }

    /// The back-off that counts after `end`.
    pub fn crash_backoff(
        &self,
        end: &Termination,
        before: Option<Timestamp>,
        hash: &str,
    ) -> Backoff {
        match end.finished_at {
            Some(ended_at) if before.is_some() || !self.has_failed_probe(end.attempt) => {
                backoff::current(&self.backoff, hash, ended_at)
            }
            Some(_) | None => Backoff::default(),
        }
    }

    /// The back-off once the restart after `end` has begun. A first end that a probe caused does not count.
    pub fn raised_backoff(
        &self,
        end: &Termination,
        before: Option<Timestamp>,
        hash: &str,
        now: Timestamp,
    ) -> Backoff {
        if before.is_none() && self.has_failed_probe(end.attempt) {
            return self.backoff.clone();
        }

        backoff::after_restart(&self.crash_backoff(end, before, hash), hash, now)
    }

    /// The end that the delay counts from. What a probe stops, a kubelet starts again in the same step,
    /// in which it knows only of the end before (`doBackOff`): if that is long enough ago nothing waits.
    /// Whether the back-off is over is a matter of this end, not of the one before.
    fn counted_end(
        &self,
        end: &Termination,
        before: Option<Timestamp>,
        hash: &str,
    ) -> Option<Timestamp> {
        let ended_at = end.finished_at?;
        if !self.has_failed_probe(end.attempt) {
            return Some(ended_at);
        }
        let before = before?;
        let current = backoff::current(&self.backoff, hash, ended_at);
        let free_at = backoff::start_at(&current, before, ended_at);

        Some(if ended_at < free_at { ended_at } else { before })
    }

    /// Whether that attempt is one that a probe has stopped.
    pub(super) fn has_failed_probe(&self, attempt: u32) -> bool {
        let probed = self.probed.as_ref();

        probed.is_some_and(|probed| probed.attempt == attempt && probed.failed.is_some())
    }
}
