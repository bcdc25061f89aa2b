//! The state machines of both ends of a link, without sockets or clocks.
//!
//! A shell gives a session what happened (`handle`, `handle_timeout`) and the time, and then does
//! what the session says until it says nothing more:
//!
//! - `poll_output`: everything but frames. Drain it after every call, whatever the socket does:
//!   a `Close` must not wait for a peer that does not read.
//! - `poll_send`: the next frame. Ask only while the socket takes data, and for one frame at a
//!   time: what is most urgent is decided then (control, desired state, status, streams).
//! - `poll_timeout`: when to call `handle_timeout`.
//!
//! The edge hands over what has arrived as one batch when it is polled; a shell that feeds all
//! frames the socket holds before it polls gets one batch, and so one commit, for them.

mod cloud;
mod edge;
mod events;
mod inbox;
mod listing;
mod liveness;
mod reports;
mod sync;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::codec::CodecError;
use crate::digest::HELD_OBJECTS_MAX;
use crate::outbox::{OutboxFull, WINDOW_CHANGES_MAX};
use crate::stream::StreamError;
use crate::wire::Refusal;

pub use cloud::{Admission, CloudInput, CloudOutput, CloudSession};
pub use edge::{EdgeInput, EdgeOutput, EdgeSession, Introduction};
pub use events::{EVENTS_IN_FLIGHT_MAX, EVENTS_MAX};
pub use liveness::{CLOUD_QUIET_MAX, DEADLINE, PING_INTERVAL};
pub use reports::{REPORT_KEYS_MAX, REPORTS_IN_FLIGHT_MAX};

/// From a connection to Hello, and from Hello to the answer. A cloud that needs longer is better
/// asked again, maybe on another replica.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// From `Dial` to a TLS connection with its upgrade done: three SYNs and three round trips of a
/// bad mobile link.
pub const DIAL_MAX: Duration = Duration::from_secs(10);

/// How long a closing session waits for the socket to take its last frame.
pub const FAREWELL_MAX: Duration = Duration::from_secs(2);

/// A batch given to the edge's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// What a peer did that the protocol does not allow.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// A message that is no frame.
    #[error("a message is not a frame")]
    Malformed(#[source] CodecError),
    /// A frame that this end, or this state, does not take.
    #[error("a {frame} frame came {when}")]
    Unexpected {
        /// Name of the frame.
        frame: &'static str,
        /// State, for people.
        when: &'static str,
    },
    /// More unacknowledged changes than the window allows.
    #[error("more than {WINDOW_CHANGES_MAX} changes came without an acknowledgement")]
    WindowExceeded,
    /// More unanswered reports and events than their windows allow.
    #[error("more reports or events came than may await an answer")]
    TooManyUnanswered,
    /// A report that cannot be decoded.
    #[error("report {seq} cannot be decoded")]
    BadReport {
        /// Its number.
        seq: u64,
        /// Why.
        #[source]
        source: crate::payload::PayloadError,
    },
    /// The edge lists more than a node may hold.
    #[error("the edge lists more than {HELD_OBJECTS_MAX} objects")]
    TooManyHeld,
    /// A stream rule was broken.
    #[error("a stream rule is broken")]
    Stream(#[source] StreamError),
}

/// Why a session closes its connection.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// Dialing took longer than [`DIAL_MAX`].
    #[error("dialing took longer than {} s", DIAL_MAX.as_secs())]
    DialTimeout,
    /// The handshake took longer than [`HANDSHAKE_MAX`].
    #[error("the handshake took longer than {} s", HANDSHAKE_MAX.as_secs())]
    HandshakeTimeout,
    /// Nothing was heard in time: the path or the peer is dead.
    #[error("nothing was heard from the peer for {} s", .silent.as_secs())]
    PeerSilent {
        /// For how long.
        silent: Duration,
    },
    /// The peer broke the protocol.
    #[error("the peer broke the protocol")]
    Protocol(#[source] ProtocolError),
    /// This end refused the session.
    #[error("refused the session: {}: {}", .0.code.as_str(), .0.reason)]
    Refused(Refusal),
    /// The peer refused the session.
    #[error("the cloud refused the session: {}: {}", .0.code.as_str(), .0.reason)]
    RefusedByCloud(Refusal),
    /// The peer said goodbye.
    #[error("the peer said goodbye: {reason}")]
    Bye {
        /// Its reason.
        reason: String,
    },
    /// The shell asked for it.
    #[error("closing: {reason}")]
    Asked {
        /// Its reason.
        reason: String,
    },
    /// The edge's address changed, so the old path is taken for dead.
    #[error("the address of the node changed")]
    AddressChanged,
    /// Too much is to be sent; the next session compares instead.
    #[error("too many changes are waiting")]
    OutboxFull(#[source] OutboxFull),
}

/// Why the link of an edge is down.
#[derive(Debug, thiserror::Error)]
pub enum DownReason {
    /// It could not be made.
    #[error("cannot connect: {reason}")]
    Dial {
        /// The shell's word: stage and cause.
        reason: String,
    },
    /// It broke.
    #[error("the connection was lost: {reason}")]
    Lost {
        /// The shell's word.
        reason: String,
    },
    /// The session closed it; told just before by `Close` with the cause.
    #[error("the connection was closed: {reason}")]
    Closed {
        /// The text of the [`CloseReason`] and its causes.
        reason: String,
    },
}

/// The texts of an error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }

    text
}
