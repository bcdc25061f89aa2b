//! What the shell and the edge's session tell each other.

use std::time::Duration;

use bytes::Bytes;

use crate::admission::Ticket;
use crate::codec::CodecError;
use crate::digest::{HeldSet, HighWater};
use crate::ids::NodeName;
use crate::object::Change;
use crate::session::{BatchId, CloseReason, DownReason};
use crate::stream::{StreamInput, StreamOutput};
use crate::wire::{
    CertificateRefusal, Frame, Health, IdentityHeld, Issued, Outcome, Report, ReportKey, Welcome,
};

/// Who this edge is.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// As in its certificate.
    pub node: NodeName,
    /// Version of edgecore.
    pub agent_version: String,
    /// Its address in its own network; empty if it has none.
    pub node_ip: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// The last one stored; none after joining.
    pub ticket: Option<Ticket>,
}

/// What the shell tells the session.
#[derive(Debug)]
pub enum EdgeInput {
    /// The dial succeeded: frames can be sent.
    Connected,
    /// It failed.
    DialFailed {
        /// Stage and cause.
        reason: String,
        /// From an HTTP answer, if there was one.
        retry_after: Option<Duration>,
    },
    /// A frame came.
    Received(Frame),
    /// A message came that is none.
    Malformed(CodecError),
    /// Some bytes of a frame came, which proves that the path lives.
    Heard,
    /// The connection ended without `Close`.
    Lost {
        /// How.
        reason: String,
    },
    /// Answer to [`EdgeOutput::AskHeld`]: what the store holds durably now.
    Held(HeldSet),
    /// The batch is durable.
    Persisted {
        /// Which.
        batch: BatchId,
    },
    /// Nothing of the batch was stored.
    PersistFailed {
        /// Which.
        batch: BatchId,
        /// For the cloud's log.
        reason: String,
    },
    /// Answer to `Up`: the ticket is durable and may be shown.
    TicketStored,
    /// Answer to `Up`: it could not be stored; the one before stays in use.
    TicketNotStored,
    /// The node has joined anew: the ticket is that of another. To be said before `Connected`.
    TicketForgotten,
    /// A certificate for another key is wanted: answered by `Certificate`, unless the link is lost before.
    /// Ignored on a link whose cloud gives none, see [`super::EdgeSession::renews`].
    CertificateWanted {
        /// PKCS #10, DER.
        csr: Bytes,
    },
    /// This is durable. To be said when the link is up, and of every other certificate; ignored on a link whose
    /// cloud does not know it.
    IdentityHeld(IdentityHeld),
    /// Latest state of something.
    Report(Report),
    /// Something happened: JSON of a core/v1 Event.
    Event(Bytes),
    /// The addresses of the machine changed; `node_ip` is the one to tell now.
    AddressChanged {
        /// May be as before: then the path is only probed.
        node_ip: String,
    },
    /// How the agent is; repeated in pings.
    Health(Health),
    /// See [`StreamInput`].
    Stream(StreamInput),
    /// The process ends: say goodbye, close, never dial again.
    Shutdown {
        /// For the cloud's log.
        reason: String,
    },
}

/// What the session wants of the shell.
#[derive(Debug)]
pub enum EdgeOutput {
    /// Connect: answer `Connected` or `DialFailed`. `Close` abandons it.
    Dial,
    /// Answer `Held` at once.
    AskHeld,
    /// Store these in one transaction, in order; answer `Persisted` or `PersistFailed`.
    Deliver {
        /// To answer.
        batch: BatchId,
        /// To be stored in the same transaction, and given back in `Held`.
        high_water: HighWater,
        /// One for each key.
        changes: Vec<Change>,
    },
    /// Admitted. Store the ticket; answer `TicketStored` or `TicketNotStored`.
    Up(Welcome),
    /// Answer to `CertificateWanted`.
    Certificate(Result<Issued, CertificateRefusal>),
    /// Ask for another certificate at once.
    CertificateOutdated,
    /// The edge holds exactly what the cloud wants.
    Synced,
    /// The link is down; the session dials again by itself. Comes after every failed dial.
    Down(DownReason),
    /// The cloud has answered; after `Retry` the session sends again by itself.
    ReportDone {
        /// Which.
        key: ReportKey,
        /// How.
        outcome: Outcome,
    },
    /// See [`StreamOutput`].
    Stream(StreamOutput),
    /// Drop the connection or the dial; no `Lost` is expected.
    Close(CloseReason),
}
