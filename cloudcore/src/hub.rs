//! Where edges connect: the only place of cloudcore that owns link sockets.
//!
//! [`listener`] accepts and bounds what has not proved itself; [`routes`] answers and turns a proven
//! node's request into a WebSocket; [`joining`] lets machines in; [`admission`] decides which session
//! of a node is the current one and records it; [`alarm`] tells of those that were refused; [`renewal`] gives
//! nodes their next certificates; [`outdated`] tells them when they are to ask for one at once; [`session`] runs the link. What the rest of
//! cloudcore sees is [`Connected`], [`SessionEvent`], [`SessionHandle`] and [`Sessions`].

mod admission;
mod alarm;
mod drain;
mod fencing;
mod joining;
mod listener;
mod outdated;
mod rate;
mod renewal;
mod routes;
mod session;
mod sessions;
#[cfg(test)]
pub(crate) mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kube::Client;
use proto::ids::{NodeName, ObjectKey, Uid};
use proto::object::{Object, Point, Version};
use proto::outbox::Desired;
use proto::session::CloudInput;
use proto::stream::TooManyStreams;
use proto::wire::{Health, Hello, Outcome, Report, Seq, StreamKind};
use tokio::sync::{mpsc, oneshot};
use tunnel::TunnelStream;

pub(crate) use self::admission::{LABEL as RECORD_LABEL, is_revoked};
pub use self::alarm::Alarms;
pub(crate) use self::drain::STREAMS_MAX;
pub use self::fencing::run as fence;
pub(crate) use self::joining::is_understood as is_join_request;
pub use self::listener::{HubError, bind, run};
pub use self::outdated::Turns;
pub use self::rate::Rate;
pub use self::sessions::{Holder, Sessions, Whereabouts};
use crate::evidence::Evidence;
use crate::metrics::Metrics;
use crate::pki::Current;

/// Inputs waiting for a session's loop. A worker that is faster than its link waits here, and
/// delays no other node.
const COMMANDS_MAX: usize = 64;

/// What every connection needs.
pub struct Shared {
    /// Signs and proves.
    pub authority: Current,
    /// For tokens and session records.
    pub client: Client,
    /// Where those are kept.
    pub namespace: String,
    /// Name of this replica in session records.
    pub replica: String,
    /// Where other replicas find this one.
    pub peer: SocketAddr,
    /// Knows the current epoch of the cluster (invariant 7).
    pub evidence: Evidence,
    /// The sessions of this replica.
    pub sessions: Sessions,
    /// Of requests to join.
    pub joins: Rate,
    /// Counts what edges do.
    pub metrics: Metrics,
    /// Of requests for certificates in the place of expired ones.
    pub renewals: Rate,
    /// How long a node's certificate lives.
    pub node_life: Duration,
    /// Of nodes that are told to renew.
    pub turns: Turns,
    /// What people were told of refused sessions.
    pub alarms: Alarms,
    /// To the workers of the nodes.
    pub connected: mpsc::Sender<Connected>,
}

/// A session that was admitted.
#[derive(Debug)]
pub struct Connected {
    /// To talk to the node.
    pub session: SessionHandle,
    /// How it introduced itself.
    pub hello: Hello,
    /// What it says. Ends with [`SessionEvent::Lost`].
    pub events: mpsc::Receiver<SessionEvent>,
}

/// What a session says to its worker.
#[derive(Debug)]
pub enum SessionEvent {
    /// Answer with [`SessionHandle::report_done`].
    Report {
        /// To answer.
        seq: Seq,
        /// What the edge says.
        report: Report,
    },
    /// Answer with [`SessionHandle::event_done`].
    Event {
        /// To answer.
        seq: Seq,
        /// JSON of a core/v1 Event.
        bytes: Bytes,
    },
    /// Held by the edge and not wanted: answer with `absent` or `still_wanted`.
    Unwanted {
        /// What it is stored under.
        key: ObjectKey,
        /// Which.
        version: Version,
    },
    /// The edge holds exactly what was wanted.
    InSync,
    /// The edge answers.
    Alive {
        /// How it is.
        health: Health,
    },
    /// The link is gone.
    Lost {
        /// Why.
        reason: String,
    },
}

/// One admitted session; cheap to clone.
#[derive(Clone, Debug)]
pub struct SessionHandle {
    node: NodeName,
    generation: u64,
    current: Arc<AtomicBool>,
    expiry: Expiry,
    inputs: mpsc::Sender<Command>,
}

/// When the certificate of a session's node ends; another is given over the same link.
#[derive(Clone, Debug, Default)]
struct Expiry(Arc<AtomicU64>);

impl Expiry {
    /// Takes that of a certificate, DER.
    fn note(&self, certificate: &[u8]) {
        let parsed = x509_parser::parse_x509_certificate(certificate).ok();
        let until = parsed.map(|(_, parsed)| parsed.validity().not_after.timestamp());
        self.0.store(until.and_then(|until| until.try_into().ok()).unwrap_or(0), Ordering::Relaxed);
    }

    fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|until| *until > 0)
    }
}

/// What a session's loop is told.
#[derive(Debug)]
enum Command {
    Input(CloudInput),
    /// To be told to the session once its streams have ended, or then.
    Leave {
        input: CloudInput,
        until: Instant,
    },
    OpenStream {
        kind: StreamKind,
        opened: oneshot::Sender<Result<TunnelStream, TooManyStreams>>,
    },
}

/// Why no stream to a node can be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its session is over.
    #[error("the link to node {0} is down")]
    Down(NodeName),
    /// Its link carries enough.
    #[error("node {node} is busy")]
    Busy {
        /// Which.
        node: NodeName,
        /// How many are allowed.
        #[source]
        source: TooManyStreams,
    },
}

impl SessionHandle {
    /// Whose.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Counts the sessions of the node.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it is still the node's session. Nothing may be written for the node otherwise.
    pub fn is_current(&self) -> bool {
        self.current.load(Ordering::Acquire)
    }

    /// When the node's newest certificate ends, in seconds since 1970, as far as is known.
    fn expiry_s(&self) -> Option<u64> {
        self.expiry.get()
    }

    /// From now on nothing is written for the node by this session.
    fn fence(&self) {
        self.current.store(false, Ordering::Release);
    }

    /// Everything the node must hold; see [`CloudInput::Sync`].
    pub async fn sync(&self, wanted: Vec<Arc<Object>>) {
        self.tell(CloudInput::Sync { wanted }).await;
    }

    /// Something new from the API server.
    pub async fn change(&self, desired: Desired) {
        self.tell(CloudInput::Change(desired)).await;
    }

    /// Answers `Unwanted`: it is gone.
    pub async fn absent(&self, key: ObjectKey, uid: Uid, gone_at: Point) {
        self.tell(CloudInput::Absent { key, uid, gone_at }).await;
    }

    /// Answers `Unwanted`: it exists.
    pub async fn still_wanted(&self, key: ObjectKey) {
        self.tell(CloudInput::StillWanted { key }).await;
    }

    /// Answers a report.
    pub async fn report_done(&self, seq: Seq, outcome: Outcome) {
        self.tell(CloudInput::ReportDone { seq, outcome }).await;
    }

    /// Answers an event.
    pub async fn event_done(&self, seq: Seq) {
        self.tell(CloudInput::EventDone { seq }).await;
    }

    /// Opens a stream to the node.
    pub async fn open_stream(&self, kind: StreamKind) -> Result<TunnelStream, OpenError> {
        let (opened, answer) = oneshot::channel();
        let asked = self.inputs.send(Command::OpenStream { kind, opened }).await;
        let down = || OpenError::Down(self.node.clone());
        asked.map_err(|_| down())?;

        answer
            .await
            .map_err(|_| down())?
            .map_err(|source| OpenError::Busy { node: self.node.clone(), source })
    }

    /// Ends the session in good order, as soon as it has no streams, or then.
    pub async fn drain(&self, reason: &str, retry_after: Duration, until: Instant) {
        let reason = reason.to_owned();
        let input = CloudInput::Drain { reason, retry_after };
        drop(self.inputs.send(Command::Leave { input, until }).await);
    }

    async fn tell(&self, input: CloudInput) {
        // A session that is over needs no answer.
        drop(self.inputs.send(Command::Input(input)).await);
    }
}
