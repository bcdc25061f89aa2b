//! What the shell, the peer and the streams of a link tell each other.

use bytes::Bytes;

use super::{CLOSES_MAX, CREDIT_MAX, STREAMS_MAX};
use crate::wire::{StreamId, StreamKind};

/// What the shell does with a stream. Inputs for streams that are gone are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamInput {
    /// Sends bytes: at most [`super::WINDOW_BYTES`] beyond what `Writable` gave back, or the stream is
    /// reset.
    Write {
        /// Which.
        id: StreamId,
        /// What.
        bytes: Bytes,
    },
    /// Nothing more will be written; the other direction goes on.
    Finish {
        /// Which.
        id: StreamId,
    },
    /// The reader has taken this many bytes of `Data`.
    Consumed {
        /// Which.
        id: StreamId,
        /// Bytes.
        bytes: u32,
    },
    /// Ends the stream at once; what is buffered is dropped.
    Reset {
        /// Which.
        id: StreamId,
        /// Why, for people.
        reason: String,
    },
}

/// What happened on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOutput {
    /// The cloud opened it (edge only). Both ends may write [`super::WINDOW_BYTES`] at once.
    Opened {
        /// Which.
        id: StreamId,
        /// What to connect it to; unknown kinds are to be reset.
        kind: StreamKind,
    },
    /// Bytes came. At most [`super::WINDOW_BYTES`] come before `Consumed`.
    Data {
        /// Which.
        id: StreamId,
        /// What.
        bytes: Bytes,
    },
    /// This many more bytes may be written.
    Writable {
        /// Which.
        id: StreamId,
        /// Bytes.
        bytes: u32,
    },
    /// The peer writes no more. After this and an own `Finish` the stream is gone.
    Ended {
        /// Which.
        id: StreamId,
    },
    /// The stream is gone: reset by the peer, or the link is down.
    Closed {
        /// Which.
        id: StreamId,
        /// Why, for people.
        reason: String,
    },
}

/// No more streams now; the caller answers its client with "busy".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{STREAMS_MAX} streams are open on the link of this node, no more are allowed")]
pub struct TooManyStreams;

/// What a peer did that streams do not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// An id must be higher than all before.
    #[error("stream {} is opened after stream {}", id.0, last.0)]
    Reopened {
        /// Opened now.
        id: StreamId,
        /// Highest so far.
        last: StreamId,
    },
    /// More bytes than credit.
    #[error("stream {} sends {len} bytes with credit for {credit}", id.0)]
    OverCredit {
        /// Which.
        id: StreamId,
        /// Bytes.
        len: usize,
        /// Left.
        credit: u32,
    },
    /// Bytes after the end.
    #[error("stream {} sends bytes after its end", id.0)]
    AfterEnd {
        /// Which.
        id: StreamId,
    },
    /// More credit than any window.
    #[error("stream {} is given credit beyond {CREDIT_MAX} bytes", id.0)]
    TooMuchCredit {
        /// Which.
        id: StreamId,
    },
    /// Refusals are not read, or are ignored.
    #[error("more than {CLOSES_MAX} refused streams await the peer")]
    TooManyRefused,
}

/// The four frames that are about streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamFrame {
    /// [`crate::wire::Frame::StreamOpen`].
    Open {
        /// Which.
        id: StreamId,
        /// Of what kind.
        kind: StreamKind,
    },
    /// [`crate::wire::Frame::StreamData`].
    Data {
        /// Which.
        id: StreamId,
        /// What.
        bytes: Bytes,
        /// Whether it is the last.
        end: bool,
    },
    /// [`crate::wire::Frame::StreamCredit`].
    Credit {
        /// Which.
        id: StreamId,
        /// Bytes.
        bytes: u32,
    },
    /// [`crate::wire::Frame::StreamClose`].
    Close {
        /// Which.
        id: StreamId,
        /// Why.
        reason: String,
    },
}
