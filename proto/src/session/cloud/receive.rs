//! What the cloud makes of each frame.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::REPORT_BYTES_MAX;
use crate::ids::KINDS_UNSAID;
use crate::session::cloud::{CloudOutput, CloudSession, Phase, Subject};
use crate::session::events::EVENTS_IN_FLIGHT_MAX;
use crate::session::reports::REPORTS_IN_FLIGHT_MAX;
use crate::session::sync::Difference;
use crate::session::{CloseReason, ProtocolError};
use crate::stream::StreamFrame;
use crate::wire::{Beat, Bye, Frame, PROTOCOL_VERSION, Refusal, RefuseCode, Report, Seq};

/// An upgrade of either end takes longer than this.
const BAD_PROTOCOL_RETRY_AFTER: Duration = Duration::from_mins(1);

impl CloudSession {
    pub(super) fn received(&mut self, frame: Frame, now: Instant) -> Result<(), ProtocolError> {
        match &mut self.phase {
            Phase::AwaitingHello { .. } => self.received_first(frame, now),
            Phase::Deciding => {
                Err(ProtocolError::Unexpected { frame: frame.name(), when: "before Welcome" })
            }
            Phase::Up(up) => {
                up.liveness.heard(now);
                self.received_up(frame, now)
            }
            // Sent before the peer knew.
            Phase::Closing(_) | Phase::Closed => Ok(()),
        }
    }

    fn received_first(&mut self, frame: Frame, now: Instant) -> Result<(), ProtocolError> {
        let Frame::Hello(hello) = frame else {
            return Err(ProtocolError::Unexpected { frame: frame.name(), when: "before Hello" });
        };
        if hello.protocol == PROTOCOL_VERSION {
            self.held = hello.held.clone();
            self.features = hello.features;
            self.kinds = if hello.kinds == 0 { KINDS_UNSAID } else { hello.kinds };
            self.phase = Phase::Deciding;
            self.outputs.push_back(CloudOutput::Hello(hello));
            return Ok(());
        }
        let reason = format!(
            "the edge speaks protocol version {}, this cloud {PROTOCOL_VERSION}",
            hello.protocol
        );
        let retry_after = BAD_PROTOCOL_RETRY_AFTER;
        self.refuse(Refusal { code: RefuseCode::BadProtocol, reason, retry_after }, now);

        Ok(())
    }

    fn received_up(&mut self, frame: Frame, now: Instant) -> Result<(), ProtocolError> {
        match frame {
            Frame::Ping(beat) => {
                if let Phase::Up(up) = &mut self.phase {
                    up.liveness.pinged(beat.nonce);
                }
                self.alive(beat);
            }
            Frame::Pong(beat) => self.alive(beat),
            Frame::Bye(Bye { reason, .. }) => self.close(CloseReason::Bye { reason }, None, now),
            Frame::Ack { seqs } => {
                for seq in seqs {
                    self.outbox.acknowledge(seq);
                }
            }
            Frame::Nack { seq, reason } => {
                if let Some(key) = self.outbox.refuse(seq, now, &mut self.rng) {
                    self.outputs.push_back(CloudOutput::Nacked { key, reason });
                }
            }
            Frame::Held { request, entries, last } => {
                if let Some(difference) = self.sync.receive(request, entries, last)? {
                    self.settle(difference, now);
                }
            }
            Frame::Report { seq, key, payload, done } => {
                self.unanswered(Subject::Report, seq, REPORTS_IN_FLIGHT_MAX)?;
                let bytes = payload
                    .unpack(REPORT_BYTES_MAX)
                    .map_err(|source| ProtocolError::BadReport { seq, source })?;
                let report = Report { key, bytes, done };
                self.outputs.push_back(CloudOutput::Report { seq, report });
            }
            Frame::UnknownReport { seq, kind } => self.unknown_report(seq, kind)?,
            Frame::TicketHeld => self.outputs.push_back(CloudOutput::TicketHeld),
            Frame::CertificateWanted { csr } => self.certificate_wanted(csr)?,
            Frame::IdentityHeld(held) => self.outputs.push_back(CloudOutput::IdentityHeld(held)),
            Frame::Event { seq, bytes } => {
                self.unanswered(Subject::Event, seq, EVENTS_IN_FLIGHT_MAX)?;
                self.outputs.push_back(CloudOutput::Event { seq, bytes });
            }
            Frame::StreamData { id, bytes, end } => {
                self.stream(StreamFrame::Data { id, bytes, end })?;
            }
            Frame::StreamCredit { id, bytes } => {
                self.stream(StreamFrame::Credit { id, bytes })?;
            }
            Frame::StreamClose { id, reason } => self.stream(StreamFrame::Close { id, reason })?,
            other @ (Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Refuse(_)
            | Frame::Put { .. }
            | Frame::Delete { .. }
            | Frame::ListHeld { .. }
            | Frame::Synced
            | Frame::ReportAck { .. }
            | Frame::ReportNack { .. }
            | Frame::EventAck { .. }
            | Frame::CertificateIssued(_)
            | Frame::CertificateRefused(_)
            | Frame::CertificateOutdated
            | Frame::StreamOpen { .. }) => {
                return Err(ProtocolError::Unexpected {
                    frame: other.name(),
                    when: "from the edge, on a link that is up",
                });
            }
        }

        Ok(())
    }

    fn unknown_report(&mut self, seq: Seq, kind: u32) -> Result<(), ProtocolError> {
        self.unanswered(Subject::Report, seq, REPORTS_IN_FLIGHT_MAX)?;
        self.unanswered.remove(&(Subject::Report, seq));
        let reason = format!("this cloud knows no report of kind {kind}");
        self.answers.push_back(Frame::ReportNack { seq, reason, retry: false });

        Ok(())
    }

    fn certificate_wanted(&mut self, csr: Bytes) -> Result<(), ProtocolError> {
        if std::mem::replace(&mut self.signing, true) {
            return Err(ProtocolError::TooManyUnanswered);
        }
        self.outputs.push_back(CloudOutput::CertificateWanted { csr });

        Ok(())
    }

    fn settle(&mut self, difference: Difference, now: Instant) {
        for desired in difference.changes {
            self.offer(desired, now);
        }
        for (key, version) in difference.unwanted {
            self.outputs.push_back(CloudOutput::Unwanted { key, version });
        }
    }

    fn alive(&mut self, beat: Beat) {
        if let Some(health) = beat.health {
            self.outputs.push_back(CloudOutput::Alive { health });
        }
    }

    fn unanswered(&mut self, of: Subject, seq: Seq, max: usize) -> Result<(), ProtocolError> {
        let waiting = self.unanswered.range((of, Seq::MIN)..=(of, Seq::MAX)).count();
        // An edge that takes no answer may not ask for ever more.
        let untaken = self.answers.len() >= REPORTS_IN_FLIGHT_MAX + EVENTS_IN_FLIGHT_MAX;
        if untaken || waiting >= max || !self.unanswered.insert((of, seq)) {
            return Err(ProtocolError::TooManyUnanswered);
        }

        Ok(())
    }

    fn stream(&mut self, frame: StreamFrame) -> Result<(), ProtocolError> {
        self.streams.receive(frame).map_err(ProtocolError::Stream)
    }
}
