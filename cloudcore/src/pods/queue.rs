//! Decides what to write about the pods of one node, in which order and when: no socket, no clock.
//!
//! For each pod the latest report wins, one write is under way at a time, and a removal comes after
//! the last status. A report that the API server already shows costs no write. What the API server
//! shows is compared only when it is as new as our own last write, so that an echo of an older write
//! is not taken for a change by somebody else; such a change is written over again (invariant 9).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::backoff::{Backoff, Rng};
use proto::ids::Uid;
use proto::object::Point;
use proto::wire::{Outcome, Seq};

/// Writes under way at once for one node. An API server answers in a few milliseconds, so that a
/// node with 500 pods is through in a second, and a few nodes do not fill a priority level's seats.
pub(super) const WRITES_MAX: usize = 8;

/// Pods of which a report is kept: as many as an edge may report about
/// (`proto::session::REPORT_KEYS_MAX`). A report of a further pod is refused.
pub(super) const PODS_MAX: usize = 4096;

/// After a failed write, and between assertions over somebody who keeps writing.
const RETRY: Backoff = Backoff { base: Duration::from_millis(500), cap: Duration::from_secs(30) };

/// The API server's wish is granted up to this.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// Somebody who writes again after this was not waiting for us to write.
const FOREIGN_QUIET: Duration = Duration::from_mins(1);

/// What to do about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// Patch the status; the JSON that the node reported.
    Status(Bytes),
    /// Delete the terminating pod: the node has nothing left of it.
    Removal,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The API server has it.
    Done {
        /// `metadata.resourceVersion` of the answer; zero if it has none.
        revision: u64,
    },
    /// There is no pod with this UID any more.
    Gone,
    /// The same of a mirror: the node runs what it showed, and the next mirror is to say what was reported.
    MirrorGone,
    /// The API server calls it wrong, and will again.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// It may succeed later.
    Failed {
        /// Why, for people.
        reason: String,
        /// The API server asks for this much patience, about every request.
        retry_after: Option<Duration>,
    },
}

/// What the watch shows of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// How new it is.
    pub point: Point,
    /// Whether it says all that the node last reported.
    pub says_report: bool,
    /// Whether it has a deletion timestamp.
    pub is_terminating: bool,
}

/// An answer to a report.
pub(super) type Answer = (Seq, Outcome);

#[derive(Debug)]
struct Pod {
    report: Bytes,
    /// The node has nothing left of it.
    done: bool,
    /// Reports to be answered when the latest is written. Bounded by what a session may leave
    /// unanswered.
    unanswered: Vec<Seq>,
    step: Step,
    failures: u32,
    /// The API server does not take the report: it waits for another.
    is_refused: bool,
    /// Point of our last write: what is older is its echo or earlier.
    written: Point,
    seen: Option<Shown>,
    /// Assertions in a row, and when the last was.
    asserted: (u32, Option<Instant>),
    is_removed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Idle,
    Due(Task, Instant),
    UnderWay(Task),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Status,
    Removal,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Queue {
    pods: BTreeMap<Uid, Pod>,
    rng: Rng,
    under_way: usize,
    /// The API server asked for patience until then.
    paused: Option<Instant>,
}

impl Queue {
    /// Nothing was reported yet. The seed spreads retries.
    pub(super) fn new(seed: u64) -> Self {
        Self { pods: BTreeMap::new(), rng: Rng::new(seed), under_way: 0, paused: None }
    }

    /// The node reports. Nothing is written before the pod is [shown](Self::shown).
    pub(super) fn report(
        &mut self,
        uid: &Uid,
        report: Bytes,
        done: bool,
        seq: Seq,
    ) -> Option<Answer> {
        if !self.pods.contains_key(uid) && self.pods.len() >= PODS_MAX {
            let reason = format!("more than {PODS_MAX} pods of one node");
            return Some((seq, Outcome::Refused { reason }));
        }
        let pod = self.pods.entry(uid.clone()).or_insert_with(Pod::new);
        if pod.report != report {
            pod.asserted = (0, None);
            pod.is_refused = false;
            pod.report = report;
            // It is unknown whether the API server says this one.
            pod.seen = None;
        }
        pod.done = done;
        pod.unanswered.push(seq);

        None
    }

    /// The report is kept until its pod is there, which may be never.
    pub(super) fn keep(&mut self, uid: &Uid) -> Vec<Answer> {
        self.pods.get_mut(uid).map(|pod| pod.answer(&Outcome::Done)).unwrap_or_default()
    }

    /// The last report, if it must be compared with what is at `point`.
    pub(super) fn to_compare(&self, uid: &Uid, point: Point) -> Option<&Bytes> {
        let pod = self.pods.get(uid)?;
        let is_known = pod.seen.is_some_and(|seen| seen.point == point);

        (!is_known || !pod.unanswered.is_empty()).then_some(&pod.report)
    }

    /// The watch shows the pod; returns answers to reports that need no write.
    pub(super) fn shown(&mut self, uid: &Uid, shown: Shown, now: Instant) -> Vec<Answer> {
        let Some(pod) = self.pods.get_mut(uid) else { return Vec::new() };
        pod.seen = Some(shown);
        // One that was removed and runs is of a history that was restored.
        pod.is_removed &= shown.is_terminating;

        pod.settle(now, &mut self.rng)
    }

    /// Forgets pods that are not there (any more); returns answers to their reports.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Uid) -> bool) -> Vec<Answer> {
        let mut answers = Vec::new();
        self.pods.retain(|uid, pod| {
            let stays = is_there(uid) || matches!(pod.step, Step::UnderWay(_));
            if !stays {
                answers.extend(pod.answer(&Outcome::Done));
            }
            stays
        });

        answers
    }

    /// The next write, if there is one and not too many are under way. To be answered by
    /// [`Self::written`].
    pub(super) fn next(&mut self, now: Instant) -> Option<(Uid, Write)> {
        if self.under_way >= WRITES_MAX || self.paused.is_some_and(|until| now < until) {
            return None;
        }
        let due = self.pods.iter_mut().filter_map(|(uid, pod)| match pod.step {
            Step::Due(task, at) if at <= now => Some((at, uid, pod, task)),
            Step::Idle | Step::Due(..) | Step::UnderWay(_) => None,
        });
        let (_, uid, pod, task) = due.min_by_key(|(at, ..)| *at)?;
        pod.step = Step::UnderWay(task);
        self.under_way += 1;
        let write = match task {
            Task::Status => Write::Status(pod.report.clone()),
            Task::Removal => Write::Removal,
        };

        Some((uid.clone(), write))
    }

    /// Writes about the pod that have failed in a row.
    pub(super) fn failures(&self, uid: &Uid) -> u32 {
        self.pods.get(uid).map_or(0, |pod| pod.failures)
    }

    /// When [`Self::next`] may have something again.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        if self.under_way >= WRITES_MAX {
            return None;
        }
        let due = self.pods.values().filter_map(|pod| match pod.step {
            Step::Due(_, at) => Some(at),
            Step::Idle | Step::UnderWay(_) => None,
        });
        let first = due.min()?;

        Some(self.paused.map_or(first, |until| first.max(until)))
    }

    /// A write has ended; `epoch` is that in which it was made.
    pub(super) fn written(
        &mut self,
        uid: &Uid,
        write: &Write,
        written: Written,
        epoch: u64,
        now: Instant,
    ) -> Vec<Answer> {
        self.under_way = self.under_way.saturating_sub(1);
        let Some(pod) = self.pods.get_mut(uid) else { return Vec::new() };
        pod.step = Step::Idle;
        match written {
            Written::Done { revision } => {
                pod.failures = 0;
                match write {
                    Write::Status(report) => {
                        pod.written = Point { epoch, revision };
                        let is_latest = *report == pod.report;
                        if let Some(seen) = pod.seen.as_mut().filter(|_| is_latest) {
                            seen.says_report = true;
                        } else if !is_latest {
                            pod.step = Step::Due(Task::Status, now);
                            return Vec::new();
                        }
                        pod.after_status(now)
                    }
                    Write::Removal => {
                        pod.is_removed = true;
                        pod.answer(&Outcome::Done)
                    }
                }
            }
            Written::Gone => {
                let answers = pod.answer(&Outcome::Done);
                self.pods.remove(uid);
                answers
            }
            Written::MirrorGone => {
                pod.seen = None;
                pod.answer(&Outcome::Done)
            }
            Written::Refused { reason } => {
                match write {
                    Write::Status(report) if *report != pod.report => {
                        pod.step = Step::Due(Task::Status, now);
                        return Vec::new();
                    }
                    Write::Status(_) => pod.is_refused = true,
                    // A finalizer, or a hook that says no: asked again by the next session.
                    Write::Removal => pod.is_removed = true,
                }
                let answers = pod.answer(&Outcome::Refused { reason });
                pod.removal_due(now);
                answers
            }
            Written::Failed { reason, retry_after } => {
                pod.failures = pod.failures.saturating_add(1);
                let task = match write {
                    Write::Status(_) => Task::Status,
                    Write::Removal => Task::Removal,
                };
                let wait = RETRY.patient_delay(pod.failures, &mut self.rng);
                pod.step = Step::Due(task, now + wait);
                if let Some(wish) = retry_after {
                    self.paused = Some(now + wish.min(RETRY_AFTER_MAX));
                }
                // The node's window is for others meanwhile; the write is repeated here.
                pod.answer(&Outcome::Retry { reason })
            }
        }
    }
}

impl Pod {
    fn new() -> Self {
        Self {
            report: Bytes::new(),
            done: false,
            unanswered: Vec::new(),
            step: Step::Idle,
            failures: 0,
            is_refused: false,
            written: Point::default(),
            seen: None,
            asserted: (0, None),
            is_removed: false,
        }
    }

    fn answer(&mut self, outcome: &Outcome) -> Vec<Answer> {
        self.unanswered.drain(..).map(|seq| (seq, outcome.clone())).collect()
    }

    /// Compares what was reported with what is shown.
    fn settle(&mut self, now: Instant, rng: &mut Rng) -> Vec<Answer> {
        let Some(seen) = self.seen else { return Vec::new() };
        if matches!(self.step, Step::UnderWay(_)) {
            return Vec::new();
        }
        if self.is_refused && !seen.says_report {
            return self.after_refusal(now);
        }
        if seen.point < self.written {
            // Older than our last write: it tells nothing about others. A new report does.
            if !self.unanswered.is_empty() && self.step == Step::Idle {
                self.step = Step::Due(Task::Status, now);
            }
            return Vec::new();
        }
        if seen.says_report {
            self.step = match self.step {
                Step::Due(Task::Removal, at) => Step::Due(Task::Removal, at),
                Step::Due(Task::Status, _) | Step::Idle | Step::UnderWay(_) => Step::Idle,
            };
            self.failures = 0;
            return self.after_status(now);
        }
        if self.step == Step::Idle {
            let is_assertion = self.unanswered.is_empty();
            let wait = if is_assertion { self.assertion_delay(now, rng) } else { Duration::ZERO };
            self.step = Step::Due(Task::Status, now + wait);
        }

        Vec::new()
    }

    /// The first assertion comes at once; one over somebody who keeps writing comes later and later.
    fn assertion_delay(&mut self, now: Instant, rng: &mut Rng) -> Duration {
        let (count, last) = self.asserted;
        let is_quiet = last.is_none_or(|at| now.saturating_duration_since(at) >= FOREIGN_QUIET);
        let count = if is_quiet { 0 } else { count };
        self.asserted = (count.saturating_add(1), Some(now));

        if count == 0 { Duration::ZERO } else { RETRY.patient_delay(count, rng) }
    }

    /// The API server says what was reported: what is left is the removal, or the answer.
    fn after_status(&mut self, now: Instant) -> Vec<Answer> {
        if self.removal_due(now) { Vec::new() } else { self.answer(&Outcome::Done) }
    }

    /// A status that the API server does not take keeps no pod from being removed.
    fn after_refusal(&mut self, now: Instant) -> Vec<Answer> {
        let reason = "the API server did not take this status before".to_owned();
        self.removal_due(now);

        self.answer(&Outcome::Refused { reason })
    }

    /// Whether the pod is to be removed now.
    fn removal_due(&mut self, now: Instant) -> bool {
        let is_terminating = self.seen.is_some_and(|seen| seen.is_terminating);
        let is_due = self.done && is_terminating && !self.is_removed;
        if is_due && !matches!(self.step, Step::Due(Task::Removal, _)) {
            self.step = Step::Due(Task::Removal, now);
        }

        is_due
    }
}

#[cfg(test)]
mod tests;
