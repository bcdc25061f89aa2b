//! The edge's end of the link: it dials, says what it holds, stores what comes, tells how it is.

mod receive;

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::admission::Ticket;
use crate::backoff::{Backoff, Rng};
use crate::codec::{CodecError, TEXT_LEN_MAX};
use crate::digest::{HeldSet, HighWater};
use crate::ids::{Kind, NodeName};
use crate::object::Change;
use crate::session::events::Events;
use crate::session::inbox::Inbox;
use crate::session::listing::Listing;
use crate::session::liveness::Liveness;
use crate::session::reports::Reports;
use crate::session::{
    BatchId, CloseReason, DIAL_MAX, DownReason, FAREWELL_MAX, HANDSHAKE_MAX, ProtocolError, chain,
};
use crate::stream::{StreamInput, StreamOutput, Streams};
use crate::wire::{
    Bye, Frame, Health, Hello, Outcome, PROTOCOL_VERSION, Report, ReportKey, Welcome,
};

/// Counted from the last dial: with [`DIAL_MAX`] below it, a path that returns is found within the
/// 30 s of T5, and 10,000 nodes come back at 500 a second.
const REDIAL: Backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(20) };

/// A link that held this long was good: the next failure counts as the first.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Longest `retry after` that the cloud can impose.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

/// Spreads nodes that were all told the same time.
const RETRY_AFTER_SPREAD_MAX: Duration = Duration::from_secs(5);

/// An address change comes as several netlink messages.
const ADDRESS_SETTLE: Duration = Duration::from_millis(200);

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
}

/// See [`crate::session`]. Starts down and dials when first asked for the time.
#[derive(Debug)]
pub struct EdgeSession {
    who: Introduction,
    phase: Phase,
    /// Start of the last dial.
    dialed_at: Instant,
    /// Failed dials and short sessions in a row.
    failures: u32,
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
            failures: 0,
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
                }
            }
            EdgeInput::TicketNotStored => self.fresh_ticket = None,
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

    fn lost(&mut self, reason: String, now: Instant) {
        match self.phase {
            Phase::Dialing { .. } => self.down(DownReason::Dial { reason }, None, now),
            Phase::Greeting { .. } | Phase::Up(_) => {
                self.down(DownReason::Lost { reason }, None, now);
            }
            Phase::Leaving { .. } => self.leave(),
            Phase::Down { .. } | Phase::Left => {}
        }
    }

    fn broken(&mut self, error: ProtocolError, now: Instant) {
        if matches!(self.phase, Phase::Greeting { .. } | Phase::Up(_)) {
            self.close(CloseReason::Protocol(error), None, now);
        }
    }

    fn address_changed(&mut self, node_ip: String, now: Instant) {
        let changed = mem::replace(&mut self.who.node_ip, node_ip) != self.who.node_ip;
        match &mut self.phase {
            Phase::Up(up) if !changed => up.liveness.probe(now),
            Phase::Dialing { .. } | Phase::Greeting { .. } | Phase::Up(_) => {
                self.failures = 0;
                self.close(CloseReason::AddressChanged, None, now);
                self.phase = Phase::Down { redial_at: now + ADDRESS_SETTLE };
            }
            Phase::Down { redial_at } if !self.told_when => {
                *redial_at = (*redial_at).min(now + ADDRESS_SETTLE);
            }
            Phase::Down { .. } | Phase::Leaving { .. } | Phase::Left => {}
        }
    }

    fn close(&mut self, reason: CloseReason, retry_after: Option<Duration>, now: Instant) {
        let text = chain(&reason);
        self.outputs.push_back(EdgeOutput::Close(reason));
        self.down(DownReason::Closed { reason: text }, retry_after, now);
    }

    fn down(&mut self, reason: DownReason, retry_after: Option<Duration>, now: Instant) {
        let was_good = matches!(&self.phase, Phase::Up(up)
            if now.saturating_duration_since(up.since) >= STABLE_AFTER);
        let dialing = matches!(self.phase, Phase::Dialing { .. });
        self.failures = if was_good { 1 } else { self.failures.saturating_add(1) };
        let told = retry_after.filter(|after| !after.is_zero());
        self.told_when = told.is_some();
        let redial_at = if let Some(after) = told {
            let spread = RETRY_AFTER_SPREAD_MAX.min(after);
            let spread = Backoff { base: spread, cap: spread }.delay(1, &mut self.rng);
            now + after.min(RETRY_AFTER_MAX) + spread
        } else {
            let from = if dialing { self.dialed_at } else { now };
            now.max(from + REDIAL.delay(self.failures, &mut self.rng))
        };
        self.phase = Phase::Down { redial_at };
        self.forget_connection();
        self.outputs.push_back(EdgeOutput::Down(reason));
    }

    /// What belongs to one connection is gone with it.
    fn forget_connection(&mut self) {
        self.inbox.lose();
        self.reports.lose();
        self.events.lose();
        self.listing = Listing::default();
        self.streams.lose();
    }

    fn shut_down(&mut self, reason: String, now: Instant) {
        let bye = match self.phase {
            Phase::Up(_) => Some(Bye { reason: reason.clone(), retry_after: Duration::ZERO }),
            Phase::Leaving { .. } | Phase::Left => return,
            Phase::Down { .. } | Phase::Dialing { .. } | Phase::Greeting { .. } => None,
        };
        let silent = bye.is_none();
        self.forget_connection();
        self.phase = Phase::Leaving { bye, reason, abandon_at: now + FAREWELL_MAX };
        if silent {
            self.leave();
        }
    }

    fn leave(&mut self) {
        if let Phase::Leaving { reason, .. } = mem::replace(&mut self.phase, Phase::Left) {
            self.outputs.push_back(EdgeOutput::Close(CloseReason::Asked { reason }));
        }
    }
}
