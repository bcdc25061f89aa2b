//! The frames of the link as the sessions see them; [`crate::codec`] puts them into bytes.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::admission::Ticket;
use crate::digest::Summary;
use crate::ids::{NodeName, ObjectKey, Uid};
use crate::object::{Point, Version, hex};
use crate::payload::Payload;

/// What this build speaks; a peer with another number is refused.
pub const PROTOCOL_VERSION: u32 = 1;

/// Numbers changes, reports and events on one connection, each from 1.
pub type Seq = u64;

/// One message of the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Up, first on every connection.
    Hello(Hello),
    /// Down: the session is admitted.
    Welcome(Welcome),
    /// Down: it is not, or no longer.
    Refuse(Refusal),
    /// Both: are you there?
    Ping(Beat),
    /// Both: the answer, with the nonce of the ping.
    Pong(Beat),
    /// Both: the sender closes in good order.
    Bye(Bye),
    /// Up: the ticket of this session's Welcome is durable.
    TicketHeld,
    /// Up: a certificate for another key is wanted.
    CertificateWanted {
        /// PKCS #10, signed with that key.
        csr: Bytes,
    },
    /// Down: here it is.
    CertificateIssued(Issued),
    /// Down: not now.
    CertificateRefused(CertificateRefusal),
    /// Up: this certificate and these authorities are durable.
    IdentityHeld(IdentityHeld),
    /// Down: another certificate is to be asked for at once.
    CertificateOutdated,
    /// Down: the object exists in this state.
    Put {
        /// Number to acknowledge.
        seq: Seq,
        /// What it is stored under.
        key: ObjectKey,
        /// Which state it is.
        version: Version,
        /// The object's JSON.
        payload: Payload,
    },
    /// Down: the object with this UID is gone.
    Delete {
        /// Number to acknowledge.
        seq: Seq,
        /// What it was stored under.
        key: ObjectKey,
        /// Never its successor.
        uid: Uid,
        /// By when it was gone.
        gone_at: Point,
    },
    /// Up: these changes are durable.
    Ack {
        /// Of `Put` and `Delete`.
        seqs: Vec<Seq>,
    },
    /// Up: this change could not be stored.
    Nack {
        /// Of `Put` or `Delete`.
        seq: Seq,
        /// Why, for people.
        reason: String,
    },
    /// Down: say what you hold.
    ListHeld {
        /// Repeated in the answers.
        request: u32,
    },
    /// Up: part of what the edge holds.
    Held {
        /// Of the `ListHeld`.
        request: u32,
        /// Objects held.
        entries: Vec<(ObjectKey, Version)>,
        /// Whether the list is complete.
        last: bool,
    },
    /// Down: the edge holds exactly what the cloud wants.
    Synced,
    /// Up: latest state of something on the node.
    Report {
        /// Number to answer.
        seq: Seq,
        /// What it is about.
        key: ReportKey,
        /// JSON, as agreed for the kind of key.
        payload: Payload,
        /// See [`Report::done`].
        done: bool,
    },
    /// Up: a report of a kind that this build does not know, as a newer edge sends it.
    UnknownReport {
        /// Number to answer.
        seq: Seq,
        /// As on the wire.
        kind: u32,
    },
    /// Down: the report is with the API server.
    ReportAck {
        /// Of the report.
        seq: Seq,
    },
    /// Down: it is not.
    ReportNack {
        /// Of the report.
        seq: Seq,
        /// Why, for people.
        reason: String,
        /// Whether to send it again later.
        retry: bool,
    },
    /// Up: something that happened.
    Event {
        /// Number to acknowledge.
        seq: Seq,
        /// JSON of a core/v1 Event.
        bytes: Bytes,
    },
    /// Down: the event is with the API server, or was refused for good.
    EventAck {
        /// Of the event.
        seq: Seq,
    },
    /// Down: a new stream.
    StreamOpen {
        /// Never used before on this connection.
        id: StreamId,
        /// What the edge connects it to.
        kind: StreamKind,
    },
    /// Both: bytes within the credit given.
    StreamData {
        /// Which stream.
        id: StreamId,
        /// At most [`crate::stream::CHUNK_BYTES_MAX`].
        bytes: Bytes,
        /// Nothing more follows in this direction.
        end: bool,
    },
    /// Both: this many more bytes may be sent.
    StreamCredit {
        /// Which stream.
        id: StreamId,
        /// Bytes.
        bytes: u32,
    },
    /// Both: the stream ends at once.
    StreamClose {
        /// Which stream.
        id: StreamId,
        /// Why, for people.
        reason: String,
    },
}

impl Frame {
    /// The name in `frames.proto`, for messages about frames that came at the wrong time.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refuse(_) => "Refuse",
            Self::Ping(_) => "Ping",
            Self::Pong(_) => "Pong",
            Self::Bye(_) => "Bye",
            Self::TicketHeld => "TicketHeld",
            Self::CertificateWanted { .. } => "CertificateWanted",
            Self::CertificateIssued(_) => "CertificateIssued",
            Self::CertificateRefused(_) => "CertificateRefused",
            Self::IdentityHeld(_) => "IdentityHeld",
            Self::CertificateOutdated => "CertificateOutdated",
            Self::Put { .. } => "Put",
            Self::Delete { .. } => "Delete",
            Self::Ack { .. } => "Ack",
            Self::Nack { .. } => "Nack",
            Self::ListHeld { .. } => "ListHeld",
            Self::Held { .. } => "Held",
            Self::Synced => "Synced",
            Self::Report { .. } | Self::UnknownReport { .. } => "Report",
            Self::ReportAck { .. } => "ReportAck",
            Self::ReportNack { .. } => "ReportNack",
            Self::Event { .. } => "Event",
            Self::EventAck { .. } => "EventAck",
            Self::StreamOpen { .. } => "StreamOpen",
            Self::StreamData { .. } => "StreamData",
            Self::StreamCredit { .. } => "StreamCredit",
            Self::StreamClose { .. } => "StreamClose",
        }
    }
}

/// How an edge introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the edge.
    pub protocol: u32,
    /// Must be the name in its certificate.
    pub node: NodeName,
    /// Version of edgecore.
    pub agent_version: String,
    /// What it holds.
    pub held: Summary,
    /// Of the last Welcome it has stored; none after joining.
    pub ticket: Option<Ticket>,
    /// Its address in its own network; empty if it has none.
    pub node_ip: String,
    /// Changes with every boot of the machine.
    pub boot_id: String,
    /// The highest kind that it takes, as on the wire; 0 if it does not say: [`crate::ids::KINDS_UNSAID`].
    pub kinds: u32,
    /// What it can do.
    pub features: Features,
}

/// What a build can do that the first release could not, a bit each. What a peer has not said it can do is
/// not asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// The edge says when it holds its ticket; the cloud takes that ([`Frame::TicketHeld`]).
    pub const TICKET_HELD: Self = Self(1);
    /// Certificates are renewed over the link ([`Frame::CertificateWanted`]).
    pub const CERTIFICATES: Self = Self(1 << 1);
    /// The edge says which certificate it holds and whom it believes ([`Frame::IdentityHeld`]), and renews at
    /// once when it is told to ([`Frame::CertificateOutdated`]).
    pub const AUTHORITIES: Self = Self(1 << 2);
    /// Those of this build.
    pub const OURS: Self = Self(Self::TICKET_HELD.0 | Self::CERTIFICATES.0 | Self::AUTHORITIES.0);

    /// Whether all of `wanted` are among them.
    pub fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }
}

/// How the cloud admits a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Counts the sessions of the node.
    pub generation: u64,
    /// For the next session.
    pub ticket: Ticket,
    /// Current epoch of the cluster (invariant 7).
    pub epoch: u64,
    /// Cloud's clock, milliseconds since 1970.
    pub server_time_ms: i64,
    /// What the cloud can do.
    pub features: Features,
}

/// Why a session is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefuseCode {
    /// The protocol version is not spoken.
    BadProtocol = 1,
    /// No such node has joined.
    UnknownNode = 2,
    /// The resume ticket is not valid: the key is used elsewhere, or the store was set back.
    StaleTicket = 3,
    /// The node's identity was revoked.
    Revoked = 4,
    /// A newer session of the node was admitted.
    Superseded = 5,
    /// The replica cannot serve now; ask again.
    NotReady = 6,
}

impl RefuseCode {
    /// Every code, in wire order.
    pub const ALL: [Self; 6] = [
        Self::BadProtocol,
        Self::UnknownNode,
        Self::StaleTicket,
        Self::Revoked,
        Self::Superseded,
        Self::NotReady,
    ];

    /// A word for messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadProtocol => "bad protocol version",
            Self::UnknownNode => "unknown node",
            Self::StaleTicket => "stale ticket",
            Self::Revoked => "revoked",
            Self::Superseded => "superseded",
            Self::NotReady => "not ready",
        }
    }
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: RefuseCode,
    /// For people.
    pub reason: String,
    /// When to dial again; zero leaves it to the edge. Whole seconds on the wire.
    pub retry_after: Duration,
}

/// A ping or its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Chosen by the ping, repeated by the pong.
    pub nonce: u64,
    /// Set in those of the edge.
    pub health: Option<Health>,
}

/// How the agent and the runtime are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Milliseconds since the pod loop last turned.
    pub pod_loop_age_ms: u32,
    /// Milliseconds since the runtime last answered.
    pub runtime_age_ms: u32,
    /// Whether that answer said RuntimeReady and NetworkReady.
    pub runtime_ok: bool,
}

/// A closing in good order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bye {
    /// For people.
    pub reason: String,
    /// When to dial again; zero means soon. Whole seconds on the wire.
    pub retry_after: Duration,
}

/// A certificate for the key of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// DER.
    pub certificate: Bytes,
    /// DER: what cloudcore's certificates are signed with, now or soon; none if that is as before.
    pub authorities: Vec<Bytes>,
}

/// The SHA-256 of a certificate, DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of this certificate.
    pub fn of(der: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, der).as_ref());

        Self(hash)
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an edge has stored of its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityHeld {
    /// With which it connects next.
    pub certificate: Fingerprint,
    /// Those that it believes, at most [`crate::codec::AUTHORITIES_MAX`].
    pub authorities: Vec<Fingerprint>,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRefusal {
    /// For people.
    pub reason: String,
    /// When to ask again; zero leaves it to the edge. Whole seconds on the wire.
    pub retry_after: Duration,
}

/// What a report is about. Only the latest report of a key matters. After a loss they are said again in
/// this order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReportKey {
    /// Every pod that the node runs from a file: before the statuses, which speak of them.
    StaticPods,
    /// Status of the pod with this UID.
    PodStatus(Uid),
    /// Status of the node.
    NodeStatus,
    /// A service account token is needed.
    TokenWanted {
        /// Whose.
        pod: Uid,
        /// Which projected source of the pod: a hash of what is asked.
        source: String,
    },
}

/// Latest state of something on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it is about.
    pub key: ReportKey,
    /// JSON, as agreed for the kind of key.
    pub bytes: Bytes,
    /// The edge has nothing left of what the report is about: a pod whose containers and volumes
    /// are gone.
    pub done: bool,
}

/// What became of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is with the API server, or no longer matters.
    Done,
    /// Not now: the edge sends the then latest report of that key again after a back-off.
    Retry {
        /// For people.
        reason: String,
    },
    /// Never.
    Refused {
        /// For people.
        reason: String,
    },
}

/// A stream on one connection. The cloud opens, so the cloud counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// What the edge connects a stream to. The link does not care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamKind(pub u32);

impl StreamKind {
    /// HTTP/1.1 to the edge's kubelet API.
    pub const KUBELET_API: Self = Self(1);
}
