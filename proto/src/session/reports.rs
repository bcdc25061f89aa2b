//! Reports of an edge: the latest of each key, one under way for each, until the cloud is done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::backoff::{Backoff, Rng};
use crate::codec::{REPORT_BYTES_MAX, TEXT_LEN_MAX};
use crate::payload::Payload;
use crate::wire::{Frame, Outcome, Report, ReportKey, Seq};

/// Keys at once: 500 pods with six tokens each. A further key is refused and counted; whoever
/// reports does so again on change and at every slow relist.
pub const REPORT_KEYS_MAX: usize = 4096;

/// Reports under way at once. One for each pod of a usual node, few enough that the cloud can
/// keep a place for each.
pub const REPORTS_IN_FLIGHT_MAX: usize = 32;

/// A cloud whose API server is away asks for patience; statuses should not be late when it is back.
const RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) };

#[derive(Debug)]
struct Entry {
    bytes: Bytes,
    done: bool,
    state: State,
    failures: u32,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Ready,
    InFlight { seq: Seq, replaced: bool },
    Waiting { until: Instant },
}

#[derive(Debug, Default)]
pub(super) struct Reports {
    entries: BTreeMap<ReportKey, Entry>,
    ready: BTreeMap<u64, ReportKey>,
    waiting: BTreeSet<(Instant, ReportKey)>,
    in_flight: BTreeMap<Seq, ReportKey>,
    next_place: u64,
    last_seq: Seq,
    refused: u64,
}

impl Reports {
    /// Takes the latest report of a key.
    pub(super) fn push(&mut self, report: Report) {
        if report.bytes.len() > REPORT_BYTES_MAX || !names_fit(&report.key) {
            self.refused += 1;
            return;
        }
        let Report { key, bytes, done } = report;
        let Some(entry) = self.entries.get_mut(&key) else {
            if self.entries.len() >= REPORT_KEYS_MAX {
                self.refused += 1;
                return;
            }
            self.entries
                .insert(key.clone(), Entry { bytes, done, state: State::Ready, failures: 0 });
            self.queue(key);
            return;
        };
        entry.bytes = bytes;
        entry.done = done;
        match entry.state {
            State::Ready => {}
            State::InFlight { seq, .. } => entry.state = State::InFlight { seq, replaced: true },
            State::Waiting { until } => {
                self.waiting.remove(&(until, key.clone()));
                self.requeue(&key);
            }
        }
    }

    /// The next report to send, if the window has room.
    pub(super) fn poll_send(&mut self) -> Option<Frame> {
        if self.in_flight.len() >= REPORTS_IN_FLIGHT_MAX {
            return None;
        }
        let (_, key) = self.ready.pop_first()?;
        let entry = self.entries.get_mut(&key)?;
        self.last_seq += 1;
        let seq = self.last_seq;
        entry.state = State::InFlight { seq, replaced: false };
        let (payload, done) = (Payload::pack(&entry.bytes), entry.done);
        self.in_flight.insert(seq, key.clone());

        Some(Frame::Report { seq, key, payload, done })
    }

    /// The cloud's answer; the key, if the number is known.
    pub(super) fn answered(
        &mut self,
        seq: Seq,
        outcome: &Outcome,
        now: Instant,
        rng: &mut Rng,
    ) -> Option<ReportKey> {
        let key = self.in_flight.remove(&seq)?;
        let entry = self.entries.get_mut(&key)?;
        let replaced = match entry.state {
            State::InFlight { replaced, .. } => replaced,
            State::Ready | State::Waiting { .. } => false,
        };
        match outcome {
            Outcome::Done | Outcome::Refused { .. } if replaced => {
                entry.failures = 0;
                self.requeue(&key);
            }
            Outcome::Done | Outcome::Refused { .. } => {
                self.entries.remove(&key);
            }
            Outcome::Retry { .. } => {
                entry.failures = entry.failures.saturating_add(1);
                let until = now + RETRY.patient_delay(entry.failures, rng);
                entry.state = State::Waiting { until };
                self.waiting.insert((until, key.clone()));
            }
        }

        Some(key)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((until, _)) = self.waiting.first()
            && *until <= now
        {
            let (_, key) = self.waiting.pop_first().expect("it was just seen");
            self.requeue(&key);
        }
    }

    /// The connection is gone: everything not answered is to be sent again.
    pub(super) fn lose(&mut self) {
        self.in_flight.clear();
        self.waiting.clear();
        self.ready.clear();
        self.last_seq = 0;
        // In the order of the keys.
        let keys: Vec<_> = self.entries.keys().cloned().collect();
        for key in keys {
            self.requeue(&key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused
    }

    fn queue(&mut self, key: ReportKey) {
        self.ready.insert(self.next_place, key);
        self.next_place += 1;
    }

    fn requeue(&mut self, key: &ReportKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.state = State::Ready;
            self.queue(key.clone());
        }
    }
}

fn names_fit(key: &ReportKey) -> bool {
    match key {
        ReportKey::StaticPods | ReportKey::PodStatus(_) | ReportKey::NodeStatus => true,
        ReportKey::TokenWanted { source, .. } => source.len() <= TEXT_LEN_MAX,
    }
}
