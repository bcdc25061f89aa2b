//! Byte streams multiplexed on one link, each with its own credit.
//!
//! A receiver takes [`WINDOW_BYTES`] and gives more credit as its reader consumes; a sender holds
//! as much and tells its writer as room returns. So a stalled reader stops its own stream and no
//! other, and memory is bounded whatever the peer does. Nothing here knows what a stream carries.

mod dialogue;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::wire::{Frame, StreamId, StreamKind};

pub use dialogue::{StreamError, StreamFrame, StreamInput, StreamOutput, TooManyStreams};

/// Longest chunk: more urgent frames wait behind at most one.
pub const CHUNK_BYTES_MAX: usize = 16 * 1024;

/// Bytes under way in each direction of a stream, and bytes a writer may run ahead: four chunks
/// keep 50 ms of round trip busy at 10 Mbit/s.
pub const WINDOW_BYTES: u32 = 64 * 1024;

/// Streams open at once on one link; more are refused. Both buffers of all are 16 MiB at worst, as
/// long as nobody reads; `kubectl logs -f` of every pod of a full node (110), and some `exec`, fit.
pub const STREAMS_MAX: usize = 128;

/// Refusals and resets waiting for the socket. A peer that ignores them is cut off.
const CLOSES_MAX: usize = 2 * STREAMS_MAX;

/// Most credit a peer may pile up; ours never gives more than [`WINDOW_BYTES`] in all.
const CREDIT_MAX: u32 = 16 * WINDOW_BYTES;

/// Credit is given back in halves of the window, so that it costs few frames.
const CREDIT_STEP: u32 = WINDOW_BYTES / 2;

#[derive(Debug)]
struct Stream {
    /// Opened by us and not yet told to the peer.
    unopened: Option<StreamKind>,
    unsent: VecDeque<Bytes>,
    unsent_bytes: u32,
    /// Bytes that the peer still takes.
    credit: u32,
    finish: Finish,
    /// Bytes that the peer may still send.
    allowance: u32,
    /// Consumed, not yet given back.
    consumed: u32,
    peer_ended: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Finish {
    Open,
    Wanted,
    Sent,
}

impl Stream {
    fn new(unopened: Option<StreamKind>) -> Self {
        Self {
            unopened,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            credit: WINDOW_BYTES,
            finish: Finish::Open,
            allowance: WINDOW_BYTES,
            consumed: 0,
            peer_ended: false,
        }
    }

    fn is_over(&self) -> bool {
        self.peer_ended && self.finish == Finish::Sent
    }

    /// The next data frame that the credit allows, and how many bytes it frees.
    fn next_data(&mut self, id: StreamId) -> Option<(Frame, u32)> {
        let mut bytes = Bytes::new();
        if self.credit > 0
            && let Some(mut front) = self.unsent.pop_front()
        {
            let len = front.len().min(CHUNK_BYTES_MAX).min(self.credit as usize);
            bytes = front.split_to(len);
            if !front.is_empty() {
                self.unsent.push_front(front);
            }
        }
        let end = self.finish == Finish::Wanted && self.unsent.is_empty();
        if bytes.is_empty() && !end {
            return None;
        }
        let sent = u32::try_from(bytes.len()).expect("a chunk is far shorter");
        self.credit -= sent;
        self.unsent_bytes -= sent;
        if end {
            self.finish = Finish::Sent;
        }

        Some((Frame::StreamData { id, bytes, end }, sent))
    }
}

/// All streams of one link, seen from one end.
#[derive(Debug)]
pub struct Streams {
    open: BTreeMap<StreamId, Stream>,
    last: StreamId,
    /// Resets to tell.
    closes: BTreeMap<StreamId, String>,
    /// Whose turn it was to send data.
    turn: StreamId,
    outputs: VecDeque<StreamOutput>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            last: StreamId(0),
            closes: BTreeMap::new(),
            turn: StreamId(0),
            outputs: VecDeque::new(),
        }
    }
}

impl Streams {
    /// Opens a stream (cloud only).
    pub fn open(&mut self, kind: StreamKind) -> Result<StreamId, TooManyStreams> {
        if self.open.len() >= STREAMS_MAX {
            return Err(TooManyStreams);
        }
        let id = StreamId(self.last.0.checked_add(1).ok_or(TooManyStreams)?);
        self.last = id;
        self.open.insert(id, Stream::new(Some(kind)));

        Ok(id)
    }

    /// Takes what the shell does.
    pub fn handle(&mut self, input: StreamInput) {
        match input {
            StreamInput::Write { id, bytes } => self.write(id, bytes),
            StreamInput::Finish { id } => {
                if let Some(stream) = self.open.get_mut(&id)
                    && stream.finish == Finish::Open
                {
                    stream.finish = Finish::Wanted;
                }
            }
            StreamInput::Consumed { id, bytes } => {
                if let Some(stream) = self.open.get_mut(&id) {
                    let owed = WINDOW_BYTES - stream.allowance;
                    stream.consumed = stream.consumed.saturating_add(bytes).min(owed);
                }
            }
            StreamInput::Reset { id, reason } => self.reset(id, reason),
        }
    }

    /// Takes a stream frame of the peer; others are not for this place and are ignored.
    pub fn receive(&mut self, frame: StreamFrame) -> Result<(), StreamError> {
        match frame {
            StreamFrame::Open { id, kind } => self.opened(id, kind),
            StreamFrame::Data { id, bytes, end } => self.received(id, bytes, end),
            StreamFrame::Credit { id, bytes } => self.credited(id, bytes),
            StreamFrame::Close { id, reason } => {
                if self.open.remove(&id).is_some() {
                    self.outputs.push_back(StreamOutput::Closed { id, reason });
                }
                Ok(())
            }
        }
    }

    /// The next frame to send: openings, resets, credit, then data in turn.
    pub fn poll_send(&mut self) -> Option<Frame> {
        if let Some((&id, stream)) = self.open.iter_mut().find(|(_, s)| s.unopened.is_some()) {
            let kind = stream.unopened.take()?;
            return Some(Frame::StreamOpen { id, kind });
        }
        if let Some((id, reason)) = self.closes.pop_first() {
            return Some(Frame::StreamClose { id, reason });
        }
        if let Some((&id, stream)) = self.open.iter_mut().find(|(_, s)| s.consumed >= CREDIT_STEP) {
            let bytes = std::mem::take(&mut stream.consumed);
            stream.allowance += bytes;
            return Some(Frame::StreamCredit { id, bytes });
        }

        self.poll_data()
    }

    /// The next thing to tell the shell.
    pub fn poll_output(&mut self) -> Option<StreamOutput> {
        self.outputs.pop_front()
    }

    /// The link is down: every stream is gone, ids start over.
    pub fn lose(&mut self) {
        let mut lost = std::mem::take(self);
        for id in lost.open.into_keys() {
            let reason = "the link is down".to_owned();
            lost.outputs.push_back(StreamOutput::Closed { id, reason });
        }
        self.outputs = lost.outputs;
    }

    fn poll_data(&mut self) -> Option<Frame> {
        let turn = self.turn;
        let after = self.open.range((std::ops::Bound::Excluded(turn), std::ops::Bound::Unbounded));
        let order: Vec<_> = after.chain(self.open.range(..=turn)).map(|(id, _)| *id).collect();
        for id in order {
            let stream = self.open.get_mut(&id)?;
            let Some((frame, freed)) = stream.next_data(id) else { continue };
            if stream.is_over() {
                self.open.remove(&id);
            } else if freed > 0 {
                self.outputs.push_back(StreamOutput::Writable { id, bytes: freed });
            }
            self.turn = id;
            return Some(frame);
        }

        None
    }

    fn write(&mut self, id: StreamId, bytes: Bytes) {
        let Some(stream) = self.open.get_mut(&id) else { return };
        let room = WINDOW_BYTES - stream.unsent_bytes;
        let fits = u32::try_from(bytes.len()).ok().filter(|len| *len <= room);
        match fits {
            Some(len) if stream.finish == Finish::Open => {
                stream.unsent_bytes += len;
                if len > 0 {
                    stream.unsent.push_back(bytes);
                }
            }
            Some(_) | None => {
                let reason = "written after its end or beyond its window".to_owned();
                self.reset(id, reason.clone());
                self.outputs.push_back(StreamOutput::Closed { id, reason });
            }
        }
    }

    fn reset(&mut self, id: StreamId, reason: String) {
        if let Some(stream) = self.open.remove(&id)
            && stream.unopened.is_none()
        {
            self.closes.insert(id, reason);
        }
    }

    fn opened(&mut self, id: StreamId, kind: StreamKind) -> Result<(), StreamError> {
        if id <= self.last {
            return Err(StreamError::Reopened { id, last: self.last });
        }
        self.last = id;
        if self.open.len() < STREAMS_MAX {
            self.open.insert(id, Stream::new(None));
            self.outputs.push_back(StreamOutput::Opened { id, kind });
            return Ok(());
        }
        if self.closes.len() >= CLOSES_MAX {
            return Err(StreamError::TooManyRefused);
        }
        self.closes.insert(id, TooManyStreams.to_string());

        Ok(())
    }

    fn received(&mut self, id: StreamId, bytes: Bytes, end: bool) -> Result<(), StreamError> {
        let Some(stream) = self.open.get_mut(&id) else { return Ok(()) };
        if stream.peer_ended {
            return Err(StreamError::AfterEnd { id });
        }
        let (len, credit) = (bytes.len(), stream.allowance);
        let left = u32::try_from(len).ok().and_then(|len| credit.checked_sub(len));
        stream.allowance = left.ok_or(StreamError::OverCredit { id, len, credit })?;
        if !bytes.is_empty() {
            self.outputs.push_back(StreamOutput::Data { id, bytes });
        }
        if end {
            stream.peer_ended = true;
            self.outputs.push_back(StreamOutput::Ended { id });
            if stream.is_over() {
                self.open.remove(&id);
            }
        }

        Ok(())
    }

    fn credited(&mut self, id: StreamId, bytes: u32) -> Result<(), StreamError> {
        let Some(stream) = self.open.get_mut(&id) else { return Ok(()) };
        let credit = stream.credit.checked_add(bytes).filter(|credit| *credit <= CREDIT_MAX);
        stream.credit = credit.ok_or(StreamError::TooMuchCredit { id })?;

        Ok(())
    }
}
