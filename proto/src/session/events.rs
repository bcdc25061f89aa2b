//! Events of an edge: a bounded queue in order, kept until the cloud has each.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use crate::codec::EVENT_BYTES_MAX;
use crate::wire::{Frame, Seq};

/// Events kept while the link is down: the oldest is dropped and counted. An event is a help for
/// people, its series tells the count; 256 of 1 KiB are what an idle agent can afford.
pub const EVENTS_MAX: usize = 256;

/// Events under way at once: what the cloud keeps a place for.
pub const EVENTS_IN_FLIGHT_MAX: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Events {
    /// With the number it was sent under on this connection.
    queue: VecDeque<(Option<Seq>, Bytes)>,
    /// Sent and not answered, also if dropped here meanwhile: the cloud keeps a place for each.
    in_flight: BTreeSet<Seq>,
    last_seq: Seq,
    dropped: u64,
}

impl Events {
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.len() > EVENT_BYTES_MAX {
            self.dropped += 1;
            return;
        }
        if self.queue.len() >= EVENTS_MAX {
            self.queue.pop_front();
            self.dropped += 1;
        }
        self.queue.push_back((None, bytes));
    }

    pub(super) fn poll_send(&mut self) -> Option<Frame> {
        if self.in_flight.len() >= EVENTS_IN_FLIGHT_MAX {
            return None;
        }
        let (sent, bytes) = self.queue.iter_mut().find(|(sent, _)| sent.is_none())?;
        self.last_seq += 1;
        self.in_flight.insert(self.last_seq);
        *sent = Some(self.last_seq);

        Some(Frame::Event { seq: self.last_seq, bytes: bytes.clone() })
    }

    pub(super) fn acknowledge(&mut self, seq: Seq) {
        if self.in_flight.remove(&seq) {
            self.queue.retain(|(sent, _)| *sent != Some(seq));
        }
    }

    /// The connection is gone: everything not acknowledged is to be sent again.
    pub(super) fn lose(&mut self) {
        self.in_flight.clear();
        self.last_seq = 0;
        self.queue.iter_mut().for_each(|(sent, _)| *sent = None);
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}
