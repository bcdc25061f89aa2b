//! The cloud's end of the link with one node: it admits, sends what is wanted, answers reports.

mod dialogue;
mod receive;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backoff::Rng;
use crate::digest::Summary;
use crate::ids::{KINDS_UNSAID, ObjectKey};
use crate::object::{OBJECT_BYTES_MAX, Object};
use crate::outbox::{Desired, Outbox};
use crate::session::liveness::{End, Liveness};
use crate::session::sync::Sync;
use crate::session::{CloseReason, FAREWELL_MAX, HANDSHAKE_MAX, ProtocolError};
use crate::stream::{Streams, TooManyStreams};
use crate::wire::{Bye, Features, Frame, Outcome, Refusal, Seq, StreamId, StreamKind, Welcome};

pub use dialogue::{Admission, CloudInput, CloudOutput};

#[derive(Debug)]
enum Phase {
    /// Nothing is sent before the Hello.
    AwaitingHello {
        abandon_at: Instant,
    },
    /// The shell decides.
    Deciding,
    Up(Box<Up>),
    /// Says why, then closes.
    Closing(Box<Closing>),
    Closed,
}

#[derive(Debug)]
struct Closing {
    farewell: Option<Frame>,
    reason: CloseReason,
    abandon_at: Instant,
}

#[derive(Debug)]
struct Up {
    liveness: Liveness,
    welcome: Option<Welcome>,
    synced_due: bool,
    /// The answer to `CertificateWanted`.
    certificate: Option<Frame>,
    outdated_due: bool,
}

/// See [`crate::session`]. Lives as long as its connection.
#[derive(Debug)]
pub struct CloudSession {
    phase: Phase,
    /// What the edge said it held, as long as nothing was sent that could have changed it.
    held: Summary,
    /// The highest kind that the edge takes: others are as if they were not wanted.
    kinds: u32,
    /// Of the edge.
    features: Features,
    outbox: Outbox,
    /// Wanted, but larger than any object may be: never in sync while there are such.
    oversized: BTreeSet<ObjectKey>,
    sync: Sync,
    last_request: u32,
    /// Reports and events that the shell has yet to answer.
    unanswered: BTreeSet<(Subject, Seq)>,
    answers: VecDeque<Frame>,
    /// The shell has yet to say what becomes of a request for a certificate, or the socket to take it.
    signing: bool,
    streams: Streams,
    outputs: VecDeque<CloudOutput>,
    rng: Rng,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Report,
    Event,
}

impl CloudSession {
    /// The session of a connection that was just accepted.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            phase: Phase::AwaitingHello { abandon_at: now + HANDSHAKE_MAX },
            held: Summary::default(),
            kinds: KINDS_UNSAID,
            features: Features::default(),
            outbox: Outbox::default(),
            oversized: BTreeSet::new(),
            sync: Sync::Idle,
            last_request: 0,
            unanswered: BTreeSet::new(),
            answers: VecDeque::new(),
            signing: false,
            streams: Streams::default(),
            outputs: VecDeque::new(),
            rng: Rng::new(seed),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, input: CloudInput, now: Instant) {
        match input {
            CloudInput::Received(frame) => {
                if let Err(error) = self.received(frame, now) {
                    self.broken(error, now);
                }
            }
            CloudInput::Malformed(error) => self.broken(ProtocolError::Malformed(error), now),
            CloudInput::Heard => self.heard(now),
            CloudInput::Admitted(admission) => self.admitted(admission, now),
            CloudInput::Refused(refusal) => self.refuse(refusal, now),
            CloudInput::Sync { wanted } => self.synchronise(wanted),
            CloudInput::Change(desired) => self.change(desired, now),
            CloudInput::Absent { key, uid, gone_at } => {
                self.change(Desired::Delete { key, uid, gone_at }, now);
            }
            CloudInput::StillWanted { key } => self.sync.still_wanted(&key),
            CloudInput::ReportDone { seq, outcome } => {
                if self.unanswered.remove(&(Subject::Report, seq)) {
                    self.answers.push_back(report_answer(seq, outcome));
                }
            }
            CloudInput::EventDone { seq } => {
                if self.unanswered.remove(&(Subject::Event, seq)) {
                    self.answers.push_back(Frame::EventAck { seq });
                }
            }
            CloudInput::Certificate(answer) => {
                if let Phase::Up(up) = &mut self.phase {
                    up.certificate = Some(
                        answer.map_or_else(Frame::CertificateRefused, Frame::CertificateIssued),
                    );
                }
            }
            CloudInput::CertificateOutdated => {
                if let Phase::Up(up) = &mut self.phase {
                    up.outdated_due = self.features.has(Features::AUTHORITIES);
                }
            }
            CloudInput::Stream(input) => self.streams.handle(input),
            CloudInput::Drain { reason, retry_after } => {
                let bye = Frame::Bye(Bye { reason: reason.clone(), retry_after });
                self.close(CloseReason::Asked { reason }, Some(bye), now);
            }
        }
        self.check_synced();
    }

    /// Opens a stream to the edge. It lives until reset, finished by both ends, or lost.
    ///
    /// On a session that closes it is `Closed` at once.
    pub fn open_stream(&mut self, kind: StreamKind) -> Result<StreamId, TooManyStreams> {
        let id = self.streams.open(kind)?;
        if matches!(self.phase, Phase::Closing(_) | Phase::Closed) {
            self.streams.lose();
        }

        Ok(id)
    }

    /// When [`Self::handle_timeout`] has work.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::AwaitingHello { abandon_at } => Some(*abandon_at),
            Phase::Closing(closing) => Some(closing.abandon_at),
            Phase::Up(up) => {
                let alive = up.liveness.poll_timeout();
                Some(self.outbox.poll_timeout().map_or(alive, |retry| retry.min(alive)))
            }
            Phase::Deciding | Phase::Closed => None,
        }
    }

    /// Does what is due; harmless if nothing is.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        match &mut self.phase {
            Phase::AwaitingHello { .. } => self.close(CloseReason::HandshakeTimeout, None, now),
            Phase::Up(up) => {
                if let Some(silent) = up.liveness.silence(now) {
                    return self.close(CloseReason::PeerSilent { silent }, None, now);
                }
                up.liveness.handle_timeout(now);
                self.outbox.wake(now);
            }
            Phase::Closing(_) => self.finish(),
            Phase::Deciding | Phase::Closed => {}
        }
    }

    /// The next thing for the shell to do, frames apart.
    pub fn poll_output(&mut self) -> Option<CloudOutput> {
        let output = self.outputs.pop_front();

        output.or_else(|| self.streams.poll_output().map(CloudOutput::Stream))
    }

    /// The next frame, most urgent first. Only to be asked for while the socket takes data.
    pub fn poll_send(&mut self) -> Option<Frame> {
        match &mut self.phase {
            Phase::Up(up) => {
                if let Some(welcome) = up.welcome.take() {
                    return Some(Frame::Welcome(welcome));
                }
                if let Some((is_ping, beat)) = up.liveness.poll_send(None) {
                    return Some(if is_ping { Frame::Ping(beat) } else { Frame::Pong(beat) });
                }
                if let Some(answer) = up.certificate.take() {
                    self.signing = false;
                    return Some(answer);
                }
                if std::mem::take(&mut up.outdated_due) {
                    return Some(Frame::CertificateOutdated);
                }
                if self.outbox.is_empty()
                    && let Some(request) = self.sync.poll_request()
                {
                    return Some(Frame::ListHeld { request });
                }
                if std::mem::take(&mut up.synced_due) {
                    return Some(Frame::Synced);
                }
                self.outbox
                    .poll_send()
                    .or_else(|| self.answers.pop_front())
                    .or_else(|| self.streams.poll_send())
            }
            Phase::Closing(closing) => {
                let farewell = closing.farewell.take();
                self.finish();
                farewell
            }
            Phase::AwaitingHello { .. } | Phase::Deciding | Phase::Closed => None,
        }
    }

    /// Objects that the edge has yet to store.
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    fn heard(&mut self, now: Instant) {
        if let Phase::Up(up) = &mut self.phase {
            up.liveness.heard(now);
        }
    }

    fn admitted(&mut self, admission: Admission, now: Instant) {
        if !matches!(self.phase, Phase::Deciding) {
            return;
        }
        let Admission { generation, ticket, epoch, server_time_ms } = admission;
        self.phase = Phase::Up(Box::new(Up {
            liveness: Liveness::new(End::Cloud, now),
            welcome: Some(Welcome {
                generation,
                ticket,
                epoch,
                server_time_ms,
                features: Features::OURS,
            }),
            synced_due: false,
            certificate: None,
            outdated_due: false,
        }));
    }

    fn refuse(&mut self, refusal: Refusal, now: Instant) {
        let farewell = Some(Frame::Refuse(refusal.clone()));
        self.close(CloseReason::Refused(refusal), farewell, now);
    }

    fn takes(&self, key: &ObjectKey) -> bool {
        key.kind() as u32 <= self.kinds
    }

    fn synchronise(&mut self, mut wanted: Vec<Arc<Object>>) {
        wanted.retain(|object| self.takes(&object.key));
        let (oversized, wanted): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|object| object.bytes.len() > OBJECT_BYTES_MAX);
        self.oversized.clear();
        for object in oversized {
            self.oversize(&object);
        }
        // The summary tells nothing once something was sent on top of it.
        if self.outbox.is_untouched() && Sync::agrees(&wanted, &self.held) {
            self.sync = Sync::settled();
            return;
        }
        self.outbox.withdraw();
        self.last_request += 1;
        self.sync = Sync::list(self.last_request, wanted);
    }

    fn change(&mut self, desired: Desired, now: Instant) {
        if !self.takes(desired.key()) {
            return;
        }
        self.oversized.remove(desired.key());
        if let Desired::Put(object) = &desired
            && object.bytes.len() > OBJECT_BYTES_MAX
        {
            let object = Arc::clone(object);
            return self.oversize(&object);
        }
        if let Some(desired) = self.sync.change(desired) {
            self.offer(desired, now);
        }
    }

    fn oversize(&mut self, object: &Object) {
        let len = object.bytes.len();
        let reason = format!("the object has {len} bytes, at most {OBJECT_BYTES_MAX} are sent");
        self.oversized.insert(object.key.clone());
        self.outputs.push_back(CloudOutput::Nacked { key: object.key.clone(), reason });
    }

    fn offer(&mut self, desired: Desired, now: Instant) {
        if let Err(full) = self.outbox.offer(desired) {
            self.close(CloseReason::OutboxFull(full), None, now);
        }
    }

    /// Says that the edge is in sync, as soon as it is.
    fn check_synced(&mut self) {
        let Phase::Up(up) = &mut self.phase else { return };
        if self.sync.is_settled() && self.outbox.is_empty() && self.oversized.is_empty() {
            self.sync = Sync::Synced;
            up.synced_due = true;
            self.outputs.push_back(CloudOutput::InSync);
        }
    }

    /// Tells the peer what it did, for its log.
    fn broken(&mut self, error: ProtocolError, now: Instant) {
        let bye = Bye { reason: super::chain(&error), retry_after: Duration::ZERO };
        self.close(CloseReason::Protocol(error), Some(Frame::Bye(bye)), now);
    }

    fn close(&mut self, reason: CloseReason, farewell: Option<Frame>, now: Instant) {
        match self.phase {
            Phase::Closing(_) | Phase::Closed => return,
            Phase::AwaitingHello { .. } | Phase::Deciding | Phase::Up(_) => {}
        }
        let silent = farewell.is_none();
        let abandon_at = now + FAREWELL_MAX;
        self.phase = Phase::Closing(Box::new(Closing { farewell, reason, abandon_at }));
        self.streams.lose();
        if silent {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Phase::Closing(closing) = std::mem::replace(&mut self.phase, Phase::Closed) {
            self.outputs.push_back(CloudOutput::Close(closing.reason));
        }
    }
}

fn report_answer(seq: Seq, outcome: Outcome) -> Frame {
    match outcome {
        Outcome::Done => Frame::ReportAck { seq },
        Outcome::Retry { reason } => Frame::ReportNack { seq, reason, retry: true },
        Outcome::Refused { reason } => Frame::ReportNack { seq, reason, retry: false },
    }
}
