//! Changes on their way from the cloud into the edge's store.
//!
//! One batch is with the store at a time; what comes meanwhile is the next one. Of a batch that
//! fails each change is tried alone, so that one the store cannot take holds up no other.

use std::collections::VecDeque;
use std::mem;

use crate::digest::HighWater;
use crate::object::{Change, Point};
use crate::outbox::{WINDOW_BYTES_MAX, WINDOW_CHANGES_MAX};
use crate::session::{BatchId, ProtocolError};
use crate::wire::{Frame, Seq};

#[derive(Debug)]
struct Pending {
    change: Change,
    /// How far into history it takes the edge.
    at: Point,
    /// To acknowledge; empty if they belong to a connection that is gone.
    seqs: Vec<Seq>,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    pending: Vec<Pending>,
    pending_bytes: usize,
    /// Of a failed batch, each to be tried alone.
    alone: VecDeque<Pending>,
    stored: Option<(BatchId, Vec<Pending>)>,
    last_batch: u64,
    /// Durable at the store.
    high_water: HighWater,
    acks: Vec<Seq>,
    nacks: VecDeque<(Seq, String)>,
    /// Taken on this connection and not yet answered.
    unanswered: usize,
}

impl Inbox {
    pub(super) fn receive(
        &mut self,
        seq: Seq,
        change: Change,
        at: Point,
    ) -> Result<(), ProtocolError> {
        self.count_one()?;
        let bytes = change_bytes(&change);
        if !self.pending.is_empty() && self.pending_bytes + bytes > WINDOW_BYTES_MAX {
            return Err(ProtocolError::WindowExceeded);
        }
        self.pending_bytes += bytes;
        let same = self.pending.iter().position(|pending| pending.change.key() == change.key());
        let mut seqs = same.map(|at| self.pending.remove(at).seqs).unwrap_or_default();
        seqs.push(seq);
        self.pending.push(Pending { change, at, seqs });

        Ok(())
    }

    /// A change that cannot even be read.
    pub(super) fn reject(&mut self, seq: Seq, reason: String) -> Result<(), ProtocolError> {
        self.count_one()?;
        self.nacks.push_back((seq, reason));

        Ok(())
    }

    /// What the store says it was taken to.
    pub(super) fn stored_high_water(&mut self, stored: HighWater) {
        self.high_water = stored;
    }

    /// The next batch for the store, if it has none, and where it takes the edge.
    pub(super) fn poll_deliver(&mut self) -> Option<(BatchId, HighWater, Vec<Change>)> {
        if self.stored.is_some() {
            return None;
        }
        let batch = if let Some(single) = self.alone.pop_front() {
            vec![single]
        } else {
            self.pending_bytes = 0;
            mem::take(&mut self.pending)
        };
        if batch.is_empty() {
            return None;
        }
        let changes = batch.iter().map(|pending| pending.change.clone()).collect();
        let mut high_water = self.high_water.clone();
        for pending in &batch {
            high_water.raise(pending.change.key().kind(), pending.at);
        }
        self.last_batch += 1;
        let id = BatchId(self.last_batch);
        self.stored = Some((id, batch));

        Some((id, high_water, changes))
    }

    pub(super) fn persisted(&mut self, batch: BatchId) {
        for pending in self.take_stored(batch) {
            self.high_water.raise(pending.change.key().kind(), pending.at);
            self.acks.extend(pending.seqs);
        }
    }

    pub(super) fn failed(&mut self, batch: BatchId, reason: &str) {
        let mut failed = self.take_stored(batch);
        failed.retain(|pending| !pending.seqs.is_empty());
        if failed.len() > 1 {
            self.alone = failed.into();
            return;
        }
        for seq in failed.into_iter().flat_map(|pending| pending.seqs) {
            self.nacks.push_back((seq, reason.to_owned()));
        }
    }

    /// The next acknowledgement: all that are due in one frame.
    pub(super) fn poll_send(&mut self) -> Option<Frame> {
        if !self.acks.is_empty() {
            self.unanswered -= self.acks.len();
            return Some(Frame::Ack { seqs: mem::take(&mut self.acks) });
        }
        let (seq, reason) = self.nacks.pop_front()?;
        self.unanswered -= 1;

        Some(Frame::Nack { seq, reason })
    }

    /// Whether the store still works on a batch: what the edge holds is not yet certain.
    pub(super) fn is_storing(&self) -> bool {
        self.stored.is_some()
    }

    /// The connection is gone: what was not given to the store never came.
    pub(super) fn lose(&mut self) {
        let mut stored = self.stored.take();
        for pending in stored.iter_mut().flat_map(|(_, batch)| batch) {
            pending.seqs.clear();
        }
        let high_water = mem::take(&mut self.high_water);
        *self = Self { stored, last_batch: self.last_batch, high_water, ..Self::default() };
    }

    fn take_stored(&mut self, batch: BatchId) -> Vec<Pending> {
        self.stored.take_if(|(id, _)| *id == batch).map(|(_, batch)| batch).unwrap_or_default()
    }

    fn count_one(&mut self) -> Result<(), ProtocolError> {
        if self.unanswered >= WINDOW_CHANGES_MAX {
            return Err(ProtocolError::WindowExceeded);
        }
        self.unanswered += 1;

        Ok(())
    }
}

fn change_bytes(change: &Change) -> usize {
    match change {
        Change::Put(object) => object.bytes.len(),
        Change::Delete { .. } => 0,
    }
}
