//! What one node has yet to acknowledge: at most one entry for each object, the latest.
//!
//! Nothing is remembered of acknowledged objects. Entries are sent in the order in which they came
//! (what a pod references before the pod), within a window. A refused entry waits for its own
//! back-off and holds up no other.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Rng};
use crate::digest::HELD_OBJECTS_MAX;
use crate::ids::{Kind, ObjectKey, Uid};
use crate::object::{Object, Point};
use crate::payload::Payload;
use crate::wire::{Frame, Seq};

/// Changes under way at once. 20 pods with what they reference are one batch, one commit.
pub const WINDOW_CHANGES_MAX: usize = 128;

/// Uncompressed bytes under way at once, so that an edge needs no more memory than this to take
/// a batch. A larger object goes alone.
pub const WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// Entries at once: every object of a node replaced and deleted. Beyond, the session is closed
/// and the next one starts with a comparison instead.
pub const ENTRIES_MAX: usize = 2 * HELD_OBJECTS_MAX;

/// Deletes that follow one another under one name while the edge answers none of them. Beyond, as
/// for [`ENTRIES_MAX`].
const STEPS_MAX: usize = 8;

/// An edge whose disk is full is asked again often enough that the repair is seen at once, and
/// rarely enough that a thousand of them are nothing.
const RETRY: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(30) };

/// What the cloud wants of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// It exists in this state.
    Put(Arc<Object>),
    /// The one with this UID is gone: positive evidence, never absence.
    Delete {
        /// What it was stored under.
        key: ObjectKey,
        /// Which.
        uid: Uid,
        /// By when: the revision of the watch event, or how far the replica had watched that kind
        /// when it asked and was told.
        gone_at: Point,
    },
}

impl Desired {
    /// The key that it is about.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Put(object) => &object.key,
            Self::Delete { key, .. } => key,
        }
    }

    fn window_bytes(&self) -> usize {
        match self {
            Self::Put(object) => object.bytes.len(),
            Self::Delete { .. } => 0,
        }
    }

    fn frame(&self, seq: Seq) -> Frame {
        match self {
            Self::Put(object) => Frame::Put {
                seq,
                key: object.key.clone(),
                version: object.version.clone(),
                payload: Payload::pack(&object.bytes),
            },
            Self::Delete { key, uid, gone_at } => {
                Frame::Delete { seq, key: key.clone(), uid: uid.clone(), gone_at: *gone_at }
            }
        }
    }
}

/// What an entry makes of the next wish.
enum Verdict {
    /// It changes nothing.
    Stale,
    /// It comes after what the entry holds.
    After,
    /// It replaces what the entry holds.
    Instead,
}

#[derive(Debug)]
struct Entry {
    /// One step, or a `Put` and a `Delete` after it: the `Put` also removes predecessors of the
    /// same name, whose UIDs are not known here.
    steps: VecDeque<Desired>,
    state: State,
    /// Refusals in a row.
    failures: u32,
}

impl Entry {
    fn new(desired: Desired, state: State) -> Self {
        Self { steps: VecDeque::from([desired]), state, failures: 0 }
    }

    /// What comes later counts, whatever its revision: the history of an API server that was
    /// restored goes back.
    fn verdict(&self, next: &Desired) -> Verdict {
        let Some(last) = self.steps.back() else { return Verdict::Instead };
        match (last, next) {
            (Desired::Put(old), Desired::Put(new)) => {
                let (old, new) = (&old.version, &new.version);
                let same = (&old.uid, old.hash) == (&new.uid, new.hash);
                if same { Verdict::Stale } else { Verdict::Instead }
            }
            (Desired::Delete { .. }, Desired::Put(_)) => Verdict::Instead,
            // The successor is on its way, which implies this.
            (Desired::Put(old), Desired::Delete { uid, .. }) if old.version.uid != *uid => {
                Verdict::Stale
            }
            // No two pods have one key.
            (Desired::Put(_), Desired::Delete { key, .. }) if key.kind() == Kind::Pod => {
                Verdict::Instead
            }
            (Desired::Delete { uid: old, .. }, Desired::Delete { uid: new, .. }) if old == new => {
                Verdict::Stale
            }
            (Desired::Put(_) | Desired::Delete { .. }, Desired::Delete { .. }) => Verdict::After,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum State {
    Ready { place: u64 },
    InFlight { seq: Seq, replaced: bool },
    Waiting { until: Instant },
}

/// The outbox is full: see [`ENTRIES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{ENTRIES_MAX} changes await one node, no more are kept")]
pub struct OutboxFull;

/// See the module.
#[derive(Debug, Default)]
pub struct Outbox {
    entries: BTreeMap<ObjectKey, Entry>,
    ready: BTreeMap<u64, ObjectKey>,
    waiting: BTreeSet<(Instant, ObjectKey)>,
    in_flight: BTreeMap<Seq, (ObjectKey, usize)>,
    in_flight_bytes: usize,
    last_seq: Seq,
    next_place: u64,
}

impl Outbox {
    /// Records what is wanted now of one object, replacing what was.
    pub fn offer(&mut self, desired: Desired) -> Result<(), OutboxFull> {
        let key = desired.key().clone();
        let Some(entry) = self.entries.get_mut(&key) else {
            if self.entries.len() >= ENTRIES_MAX {
                return Err(OutboxFull);
            }
            let state = self.queue(&key);
            self.entries.insert(key, Entry::new(desired, state));
            return Ok(());
        };
        match entry.verdict(&desired) {
            Verdict::Stale => {}
            Verdict::After if entry.steps.len() >= STEPS_MAX => return Err(OutboxFull),
            Verdict::After => entry.steps.push_back(desired),
            Verdict::Instead => {
                entry.steps.clear();
                entry.steps.push_back(desired);
                self.replaced(&key);
            }
        }

        Ok(())
    }

    /// Forgets everything that is not under way; of what is, only the answer is awaited.
    pub fn withdraw(&mut self) {
        self.ready.clear();
        self.waiting.clear();
        self.entries.retain(|_, entry| match &mut entry.state {
            State::InFlight { replaced, .. } => {
                entry.steps.clear();
                *replaced = true;
                true
            }
            State::Ready { .. } | State::Waiting { .. } => false,
        });
    }

    /// The next change to send, if the window has room.
    pub fn poll_send(&mut self) -> Option<Frame> {
        let (&place, key) = self.ready.first_key_value()?;
        let entry = self.entries.get_mut(key)?;
        let step = entry.steps.front()?;
        let bytes = step.window_bytes();
        let full = self.in_flight.len() >= WINDOW_CHANGES_MAX
            || self.in_flight_bytes + bytes > WINDOW_BYTES_MAX;
        if full && !self.in_flight.is_empty() {
            return None;
        }
        self.last_seq += 1;
        let seq = self.last_seq;
        let frame = step.frame(seq);
        entry.state = State::InFlight { seq, replaced: false };
        let key = self.ready.remove(&place)?;
        self.in_flight.insert(seq, (key, bytes));
        self.in_flight_bytes += bytes;

        Some(frame)
    }

    /// The edge has stored it. An unknown number is harmless: `false`.
    pub fn acknowledge(&mut self, seq: Seq) -> bool {
        let Some((key, replaced)) = self.land(seq) else { return false };
        if let Some(entry) = self.entries.get_mut(&key) {
            if !replaced {
                entry.steps.pop_front();
            }
            self.go_on(&key, 0);
        }

        true
    }

    /// The edge could not store it; returns which, if it is known.
    pub fn refuse(&mut self, seq: Seq, now: Instant, rng: &mut Rng) -> Option<ObjectKey> {
        let (key, replaced) = self.land(seq)?;
        let failures = self.entries.get(&key)?.failures.saturating_add(1);
        if replaced {
            self.go_on(&key, failures);
            return Some(key);
        }
        let until = now + RETRY.patient_delay(failures, rng);
        self.waiting.insert((until, key.clone()));
        let entry = self.entries.get_mut(&key)?;
        entry.state = State::Waiting { until };
        entry.failures = failures;

        Some(key)
    }

    /// When [`Self::wake`] has work.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Makes what has waited long enough ready again.
    pub fn wake(&mut self, now: Instant) {
        while let Some((until, _)) = self.waiting.first()
            && *until <= now
        {
            let (_, key) = self.waiting.pop_first().expect("it was just seen");
            let failures = self.entries.get(&key).map_or(0, |entry| entry.failures);
            self.requeue(&key, failures);
        }
    }

    /// Whether the edge has stored everything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of objects not yet stored by the edge.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing was ever sent or offered.
    pub fn is_untouched(&self) -> bool {
        self.next_place == 0
    }

    /// What is left of an entry is to be sent; if nothing is, it is done.
    fn go_on(&mut self, key: &ObjectKey, failures: u32) {
        if self.entries.get(key).is_some_and(|entry| entry.steps.is_empty()) {
            self.entries.remove(key);
        } else {
            self.requeue(key, failures);
        }
    }

    fn queue(&mut self, key: &ObjectKey) -> State {
        let place = self.next_place;
        self.next_place += 1;
        self.ready.insert(place, key.clone());

        State::Ready { place }
    }

    fn requeue(&mut self, key: &ObjectKey, failures: u32) {
        let state = self.queue(key);
        if let Some(entry) = self.entries.get_mut(key) {
            entry.state = state;
            entry.failures = failures;
        }
    }

    /// The entry holds something newer: it goes to the end, behind what it may reference.
    fn replaced(&mut self, key: &ObjectKey) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let failures = entry.failures;
        match entry.state {
            State::InFlight { seq, .. } => {
                entry.state = State::InFlight { seq, replaced: true };
                return;
            }
            State::Ready { place } => {
                self.ready.remove(&place);
            }
            State::Waiting { until } => {
                self.waiting.remove(&(until, key.clone()));
            }
        }
        self.requeue(key, failures);
    }

    /// Takes a number out of the window; says whether something newer came meanwhile.
    fn land(&mut self, seq: Seq) -> Option<(ObjectKey, bool)> {
        let (key, bytes) = self.in_flight.remove(&seq)?;
        self.in_flight_bytes -= bytes;
        let replaced = match self.entries.get(&key)?.state {
            State::InFlight { replaced, .. } => replaced,
            State::Ready { .. } | State::Waiting { .. } => false,
        };

        Some((key, replaced))
    }
}
