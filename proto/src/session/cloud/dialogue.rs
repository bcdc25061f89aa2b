//! What the shell and the cloud's session tell each other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::admission::Ticket;
use crate::codec::CodecError;
use crate::ids::{ObjectKey, Uid};
use crate::object::{Object, Point, Version};
use crate::outbox::Desired;
use crate::session::CloseReason;
use crate::stream::{StreamInput, StreamOutput};
use crate::wire::{
    CertificateRefusal, Frame, Health, Hello, IdentityHeld, Issued, Outcome, Refusal, Report, Seq,
};

/// A session that the hub has admitted and recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Of the record.
    pub generation: u64,
    /// For the next session.
    pub ticket: Ticket,
    /// Current epoch of the cluster (invariant 7).
    pub epoch: u64,
    /// Milliseconds since 1970.
    pub server_time_ms: i64,
}

/// What the shell tells the session.
#[derive(Debug)]
pub enum CloudInput {
    /// A frame came.
    Received(Frame),
    /// A message came that is none.
    Malformed(CodecError),
    /// Some bytes of a frame came, which proves that the path lives.
    Heard,
    /// Answer to `Hello`: yes.
    Admitted(Admission),
    /// Answer to `Hello`: no. Also later: superseded, revoked.
    Refused(Refusal),
    /// Everything the node must hold, to be said once the evidence of invariant 8 is there for
    /// this node: the replica's watches have passed the high water of the Hello. Nothing is sent
    /// down before, or a replica that lags would bring back what is gone. May be said again.
    Sync {
        /// In any order: what pods reference is sent before the pods.
        wanted: Vec<Arc<Object>>,
    },
    /// The API server has something new. Ignored before the first `Sync`, which has it all.
    Change(Desired),
    /// Answer to `Unwanted`: a GET said 404 or another UID (or nothing references the object any
    /// more). The edge may delete it.
    Absent {
        /// What it is stored under.
        key: ObjectKey,
        /// Which.
        uid: Uid,
        /// By when; see [`Desired::Delete`].
        gone_at: Point,
    },
    /// Answer to `Unwanted`: it exists.
    StillWanted {
        /// Which.
        key: ObjectKey,
    },
    /// Answer to `Report`.
    ReportDone {
        /// Which.
        seq: Seq,
        /// How.
        outcome: Outcome,
    },
    /// Answer to `Event`.
    EventDone {
        /// Which.
        seq: Seq,
    },
    /// Answer to `CertificateWanted`.
    Certificate(Result<Issued, CertificateRefusal>),
    /// The certificate of the edge, or whom it believes, is outdated. Said only to an edge that knows it.
    CertificateOutdated,
    /// See [`StreamInput`]; streams are opened by [`crate::session::CloudSession::open_stream`].
    Stream(StreamInput),
    /// Say goodbye and close.
    Drain {
        /// For the edge's log.
        reason: String,
        /// When the edge is to dial again.
        retry_after: Duration,
    },
}

/// What the session wants of the shell.
#[derive(Debug)]
pub enum CloudOutput {
    /// Check it against certificate, ticket and record; answer `Admitted` or `Refused`.
    Hello(Hello),
    /// Answer `ReportDone`. At most [`crate::session::REPORTS_IN_FLIGHT_MAX`] are unanswered.
    Report {
        /// To answer.
        seq: Seq,
        /// What the edge says.
        report: Report,
    },
    /// Answer `EventDone`. At most [`crate::session::EVENTS_IN_FLIGHT_MAX`] are unanswered.
    Event {
        /// To answer.
        seq: Seq,
        /// JSON of a core/v1 Event.
        bytes: Bytes,
    },
    /// The edge holds its ticket: from now on none without it may be admitted. Record it.
    TicketHeld,
    /// Answer `Certificate`. One at a time.
    CertificateWanted {
        /// PKCS #10, DER; not yet looked at.
        csr: Bytes,
    },
    /// What the edge has stored of its identity.
    IdentityHeld(IdentityHeld),
    /// Held by the edge and not wanted: answer `Absent` or `StillWanted`.
    Unwanted {
        /// What it is stored under.
        key: ObjectKey,
        /// Which.
        version: Version,
    },
    /// The edge holds exactly what was wanted.
    InSync,
    /// The edge answers; comes at least every 17 s.
    Alive {
        /// How it is.
        health: Health,
    },
    /// The edge could not store it; the session sends it again by itself. For the log.
    Nacked {
        /// Which.
        key: ObjectKey,
        /// The edge's word.
        reason: String,
    },
    /// See [`StreamOutput`].
    Stream(StreamOutput),
    /// Drop the connection; the session is over.
    Close(CloseReason),
}
