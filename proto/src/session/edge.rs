//! The edge's end of the link: it dials, says what it holds, stores what comes, tells how it is.

mod dialogue;
mod ending;
mod receive;

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use crate::admission::Ticket;
use crate::backoff::{Redial, Rng};
use crate::codec::TEXT_LEN_MAX;
use crate::digest::HeldSet;
use crate::ids::Kind;
use crate::session::events::Events;
use crate::session::inbox::Inbox;
use crate::session::listing::Listing;
use crate::session::liveness::Liveness;
use crate::session::reports::Reports;
use crate::session::{CloseReason, DIAL_MAX, DownReason, HANDSHAKE_MAX, ProtocolError};
use crate::stream::Streams;
use crate::wire::{Bye, Features, Frame, Health, Hello, IdentityHeld, Outcome, PROTOCOL_VERSION};

pub use dialogue::{EdgeInput, EdgeOutput, Introduction};

#[derive(Debug)]
enum Phase {
    Down {
        redial_at: Instant,
    },
    Dialing {
        abandon_at: Instant,
    },
    /// Connected; `hello` waits for the shell's answer, then for the socket.
    Greeting {
        abandon_at: Instant,
        hello: Option<Box<Hello>>,
    },
    Up(Up),
    /// Says goodbye, then closes for good.
    Leaving {
        bye: Option<Bye>,
        reason: String,
        abandon_at: Instant,
    },
    Left,
}

#[derive(Debug)]
struct Up {
    since: Instant,
    liveness: Liveness,
    /// Of the cloud.
    features: Features,
    /// The cloud is to be told that the ticket is durable.
    held_due: bool,
    /// To be sent.
    csr: Option<Bytes>,
    /// To be sent.
    identity: Option<IdentityHeld>,
}

/// See [`crate::session`]. Starts down and dials when first asked for the time.
#[derive(Debug)]
pub struct EdgeSession {
    who: Introduction,
    phase: Phase,
    /// Start of the last dial.
    dialed_at: Instant,
    redial: Redial,
    /// The cloud said when to come back: an address change does not overrule it.
    told_when: bool,
    /// Being stored.
    fresh_ticket: Option<Ticket>,
    inbox: Inbox,
    reports: Reports,
    events: Events,
    listing: Listing,
    streams: Streams,
    health: Health,
    outputs: VecDeque<EdgeOutput>,
    rng: Rng,
}

impl EdgeSession {
    /// A session that has never been up.
    pub fn new(mut who: Introduction, seed: u64, now: Instant) -> Self {
        for text in [&mut who.agent_version, &mut who.node_ip, &mut who.boot_id] {
            text.truncate(text.floor_char_boundary(TEXT_LEN_MAX));
        }

        Self {
            who,
            phase: Phase::Down { redial_at: now },
            dialed_at: now,
            redial: Redial::new(now),
            told_when: false,
            fresh_ticket: None,
            inbox: Inbox::default(),
            reports: Reports::default(),
            events: Events::default(),
            listing: Listing::default(),
            streams: Streams::default(),
            health: Health::default(),
            outputs: VecDeque::new(),
            rng: Rng::new(seed),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, input: EdgeInput, now: Instant) {
        match input {
            EdgeInput::Connected => self.connected(now),
            EdgeInput::DialFailed { reason, retry_after } => {
                if matches!(self.phase, Phase::Dialing { .. }) {
                    self.down(DownReason::Dial { reason }, retry_after, now);
                }
            }
            EdgeInput::Received(frame) => self.received(frame, now),
            EdgeInput::Malformed(error) => self.broken(ProtocolError::Malformed(error), now),
            EdgeInput::Heard => {
                if let Phase::Up(up) = &mut self.phase {
                    up.liveness.heard(now);
                }
            }
            EdgeInput::Lost { reason } => self.lost(reason, now),
            EdgeInput::Held(held) => self.held(held),
            EdgeInput::Persisted { batch } => self.inbox.persisted(batch),
            EdgeInput::PersistFailed { batch, reason } => self.inbox.failed(batch, &reason),
            EdgeInput::TicketStored => {
                if let Some(ticket) = self.fresh_ticket.take() {
                    self.who.ticket = Some(ticket);
                    if let Phase::Up(up) = &mut self.phase {
                        up.held_due = up.features.has(Features::TICKET_HELD);
                    }
                }
            }
            EdgeInput::TicketNotStored => self.fresh_ticket = None,
            EdgeInput::TicketForgotten => self.who.ticket = None,
            EdgeInput::CertificateWanted { csr } => {
                if let Phase::Up(up) = &mut self.phase
                    && up.features.has(Features::CERTIFICATES)
                {
                    up.csr = Some(csr);
                }
            }
            EdgeInput::IdentityHeld(held) => {
                if let Phase::Up(up) = &mut self.phase
                    && up.features.has(Features::AUTHORITIES)
                {
                    up.identity = Some(held);
                }
            }
            EdgeInput::Report(report) => self.reports.push(report),
            EdgeInput::Event(bytes) => self.events.push(bytes),
            EdgeInput::AddressChanged { node_ip } => self.address_changed(node_ip, now),
            EdgeInput::Health(health) => self.health = health,
            EdgeInput::Stream(input) => self.streams.handle(input),
            EdgeInput::Shutdown { reason } => self.shut_down(reason, now),
        }
    }

    /// When [`Self::handle_timeout`] has work.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            // What is held, and which ticket, is not certain before the store has answered.
            Phase::Down { .. } if self.inbox.is_storing() || self.fresh_ticket.is_some() => None,
            Phase::Down { redial_at } => Some(*redial_at),
            Phase::Dialing { abandon_at }
            | Phase::Greeting { abandon_at, .. }
            | Phase::Leaving { abandon_at, .. } => Some(*abandon_at),
            Phase::Up(up) => {
                let alive = up.liveness.poll_timeout();
                Some(self.reports.poll_timeout().map_or(alive, |retry| retry.min(alive)))
            }
            Phase::Left => None,
        }
    }

    /// Does what is due; harmless if nothing is.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_none_or(|due| now < due) {
            return;
        }
        match &mut self.phase {
            Phase::Down { .. } => {
                self.dialed_at = now;
                self.phase = Phase::Dialing { abandon_at: now + DIAL_MAX };
                self.outputs.push_back(EdgeOutput::Dial);
            }
            Phase::Dialing { .. } => self.close(CloseReason::DialTimeout, None, now),
            Phase::Greeting { .. } => self.close(CloseReason::HandshakeTimeout, None, now),
            Phase::Up(up) => {
                if let Some(silent) = up.liveness.silence(now) {
                    return self.close(CloseReason::PeerSilent { silent }, None, now);
                }
                up.liveness.handle_timeout(now);
                self.reports.wake(now);
            }
            Phase::Leaving { bye, .. } => {
                *bye = None;
                self.leave();
            }
            Phase::Left => {}
        }
    }

    /// The next thing for the shell to do, frames apart.
    pub fn poll_output(&mut self) -> Option<EdgeOutput> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        if let Some(output) = self.streams.poll_output() {
            return Some(EdgeOutput::Stream(output));
        }
        if !self.is_up() {
            return None;
        }
        let (batch, high_water, changes) = self.inbox.poll_deliver()?;

        Some(EdgeOutput::Deliver { batch, high_water, changes })
    }

    /// The next frame, most urgent first. Only to be asked for while the socket takes data.
    pub fn poll_send(&mut self) -> Option<Frame> {
        match &mut self.phase {
            Phase::Greeting { hello, .. } => hello.take().map(|hello| Frame::Hello(*hello)),
            Phase::Up(up) => {
                if let Some((is_ping, beat)) = up.liveness.poll_send(Some(self.health)) {
                    return Some(if is_ping { Frame::Ping(beat) } else { Frame::Pong(beat) });
                }
                if std::mem::take(&mut up.held_due) {
                    return Some(Frame::TicketHeld);
                }
                if let Some(held) = up.identity.take() {
                    return Some(Frame::IdentityHeld(held));
                }
                if let Some(csr) = up.csr.take() {
                    return Some(Frame::CertificateWanted { csr });
                }
                self.inbox
                    .poll_send()
                    .or_else(|| self.listing.poll_send())
                    .or_else(|| self.reports.poll_send())
                    .or_else(|| self.events.poll_send())
                    .or_else(|| self.streams.poll_send())
            }
            Phase::Leaving { bye, .. } => {
                let bye = bye.take()?;
                self.leave();
                Some(Frame::Bye(bye))
            }
            Phase::Down { .. } | Phase::Dialing { .. } | Phase::Left => None,
        }
    }

    /// Whether frames flow.
    pub fn is_up(&self) -> bool {
        matches!(self.phase, Phase::Up(_))
    }

    /// Whether certificates are to be had over this link.
    pub fn renews(&self) -> bool {
        matches!(&self.phase, Phase::Up(up) if up.features.has(Features::CERTIFICATES))
    }

    /// The ticket that the next Hello will show.
    pub fn ticket(&self) -> Option<&Ticket> {
        self.who.ticket.as_ref()
    }

    /// Keys with a report that the cloud is not done with.
    pub fn reports_len(&self) -> usize {
        self.reports.len()
    }

    /// Reports refused since the start: too large, or [`crate::session::REPORT_KEYS_MAX`].
    pub fn reports_refused(&self) -> u64 {
        self.reports.refused()
    }

    /// Events that the cloud does not have.
    pub fn events_len(&self) -> usize {
        self.events.len()
    }

    /// Events dropped since the start.
    pub fn events_dropped(&self) -> u64 {
        self.events.dropped()
    }

    fn connected(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Dialing { .. }) {
            self.phase = Phase::Greeting { abandon_at: now + HANDSHAKE_MAX, hello: None };
            self.outputs.push_back(EdgeOutput::AskHeld);
        }
    }

    fn held(&mut self, held: HeldSet) {
        match &mut self.phase {
            Phase::Greeting { hello, .. } => {
                let summary = held.summary();
                self.inbox.stored_high_water(summary.high_water.clone());
                *hello = Some(Box::new(Hello {
                    protocol: PROTOCOL_VERSION,
                    node: self.who.node.clone(),
                    agent_version: self.who.agent_version.clone(),
                    held: summary,
                    ticket: self.who.ticket.clone(),
                    node_ip: self.who.node_ip.clone(),
                    boot_id: self.who.boot_id.clone(),
                    kinds: Kind::LAST as u32,
                    features: Features::OURS,
                }));
            }
            Phase::Up(_) => self.listing.answer(held),
            Phase::Down { .. } | Phase::Dialing { .. } | Phase::Leaving { .. } | Phase::Left => {}
        }
    }

    fn report_done(&mut self, seq: u64, outcome: Outcome, now: Instant) {
        if let Some(key) = self.reports.answered(seq, &outcome, now, &mut self.rng) {
            self.outputs.push_back(EdgeOutput::ReportDone { key, outcome });
        }
    }
}
