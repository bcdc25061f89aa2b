//! What the edge makes of each frame.

use std::time::Instant;

use crate::object::{Change, OBJECT_BYTES_MAX, Object};
use crate::session::edge::{EdgeOutput, EdgeSession, Phase, Up};
use crate::session::liveness::{End, Liveness};
use crate::session::{CloseReason, ProtocolError, chain};
use crate::stream::StreamFrame;
use crate::wire::{Bye, Frame, Outcome, Refusal};

impl EdgeSession {
    pub(super) fn received(&mut self, frame: Frame, now: Instant) {
        let outcome = match &mut self.phase {
            Phase::Greeting { .. } => self.received_greeting(frame, now),
            Phase::Up(up) => {
                up.liveness.heard(now);
                self.received_up(frame, now)
            }
            // Sent before the peer knew.
            Phase::Down { .. } | Phase::Dialing { .. } | Phase::Leaving { .. } | Phase::Left => {
                Ok(())
            }
        };
        if let Err(error) = outcome {
            self.broken(error, now);
        }
    }

    fn received_greeting(&mut self, frame: Frame, now: Instant) -> Result<(), ProtocolError> {
        match frame {
            Frame::Welcome(welcome) => {
                let liveness = Liveness::new(End::Edge, now);
                let features = welcome.features;
                let up = Up {
                    since: now,
                    liveness,
                    features,
                    held_due: false,
                    csr: None,
                    identity: None,
                };
                self.phase = Phase::Up(up);
                self.fresh_ticket = Some(welcome.ticket.clone());
                self.outputs.push_back(EdgeOutput::Up(welcome));
            }
            Frame::Refuse(refusal) => self.refused(refusal, now),
            Frame::Bye(bye) => self.dismissed(bye, now),
            other @ (Frame::Hello(_)
            | Frame::Ping(_)
            | Frame::Pong(_)
            | Frame::Put { .. }
            | Frame::Delete { .. }
            | Frame::Ack { .. }
            | Frame::Nack { .. }
            | Frame::ListHeld { .. }
            | Frame::Held { .. }
            | Frame::Synced
            | Frame::Report { .. }
            | Frame::UnknownReport { .. }
            | Frame::TicketHeld
            | Frame::CertificateWanted { .. }
            | Frame::CertificateIssued(_)
            | Frame::CertificateRefused(_)
            | Frame::IdentityHeld(_)
            | Frame::CertificateOutdated
            | Frame::ReportAck { .. }
            | Frame::ReportNack { .. }
            | Frame::Event { .. }
            | Frame::EventAck { .. }
            | Frame::StreamOpen { .. }
            | Frame::StreamData { .. }
            | Frame::StreamCredit { .. }
            | Frame::StreamClose { .. }) => {
                return Err(ProtocolError::Unexpected {
                    frame: other.name(),
                    when: "before Welcome",
                });
            }
        }

        Ok(())
    }

    fn received_up(&mut self, frame: Frame, now: Instant) -> Result<(), ProtocolError> {
        match frame {
            Frame::Ping(beat) => {
                if let Phase::Up(up) = &mut self.phase {
                    up.liveness.pinged(beat.nonce);
                }
            }
            Frame::Pong(_) => {}
            Frame::Refuse(refusal) => self.refused(refusal, now),
            Frame::Bye(bye) => self.dismissed(bye, now),
            Frame::Put { seq, key, version, payload } => match payload.unpack(OBJECT_BYTES_MAX) {
                Ok(bytes) => {
                    let at = version.point();
                    let object = Object { key, version, bytes };
                    self.inbox.receive(seq, Change::Put(object), at)?;
                }
                Err(error) => self.inbox.reject(seq, chain(&error))?,
            },
            Frame::Delete { seq, key, uid, gone_at } => {
                self.inbox.receive(seq, Change::Delete { key, uid }, gone_at)?;
            }
            Frame::ListHeld { request } => {
                self.listing.start(request);
                self.outputs.push_back(EdgeOutput::AskHeld);
            }
            Frame::Synced => self.outputs.push_back(EdgeOutput::Synced),
            Frame::CertificateIssued(issued) => {
                self.outputs.push_back(EdgeOutput::Certificate(Ok(issued)));
            }
            Frame::CertificateRefused(refusal) => {
                self.outputs.push_back(EdgeOutput::Certificate(Err(refusal)));
            }
            Frame::CertificateOutdated => self.outputs.push_back(EdgeOutput::CertificateOutdated),
            Frame::ReportAck { seq } => self.report_done(seq, Outcome::Done, now),
            Frame::ReportNack { seq, reason, retry: true } => {
                self.report_done(seq, Outcome::Retry { reason }, now);
            }
            Frame::ReportNack { seq, reason, retry: false } => {
                self.report_done(seq, Outcome::Refused { reason }, now);
            }
            Frame::EventAck { seq } => self.events.acknowledge(seq),
            Frame::StreamOpen { id, kind } => self.stream(StreamFrame::Open { id, kind })?,
            Frame::StreamData { id, bytes, end } => {
                self.stream(StreamFrame::Data { id, bytes, end })?;
            }
            Frame::StreamCredit { id, bytes } => {
                self.stream(StreamFrame::Credit { id, bytes })?;
            }
            Frame::StreamClose { id, reason } => self.stream(StreamFrame::Close { id, reason })?,
            other @ (Frame::Hello(_)
            | Frame::Welcome(_)
            | Frame::Ack { .. }
            | Frame::Nack { .. }
            | Frame::Held { .. }
            | Frame::Report { .. }
            | Frame::UnknownReport { .. }
            | Frame::TicketHeld
            | Frame::CertificateWanted { .. }
            | Frame::IdentityHeld(_)
            | Frame::Event { .. }) => {
                return Err(ProtocolError::Unexpected {
                    frame: other.name(),
                    when: "from the cloud, on a link that is up",
                });
            }
        }

        Ok(())
    }

    fn refused(&mut self, refusal: Refusal, now: Instant) {
        let retry_after = refusal.retry_after;
        self.close(CloseReason::RefusedByCloud(refusal), Some(retry_after), now);
    }

    fn dismissed(&mut self, Bye { reason, retry_after }: Bye, now: Instant) {
        self.close(CloseReason::Bye { reason }, Some(retry_after), now);
    }

    fn stream(&mut self, frame: StreamFrame) -> Result<(), ProtocolError> {
        self.streams.receive(frame).map_err(ProtocolError::Stream)
    }
}
