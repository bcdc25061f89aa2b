//! How a connection of the edge ends, and when the next is dialled.

use std::mem;
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Redial};
use crate::session::edge::{EdgeOutput, EdgeSession, Phase};
use crate::session::listing::Listing;
use crate::session::{CloseReason, DownReason, FAREWELL_MAX, ProtocolError, chain};
use crate::wire::Bye;

/// Longest `retry after` that the cloud can impose.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(5);

/// Spreads nodes that were all told the same time.
const RETRY_AFTER_SPREAD_MAX: Duration = Duration::from_secs(5);

/// An address change comes as several netlink messages.
const ADDRESS_SETTLE: Duration = Duration::from_millis(200);

impl EdgeSession {
    pub(super) fn lost(&mut self, reason: String, now: Instant) {
        match self.phase {
            Phase::Dialing { .. } => self.down(DownReason::Dial { reason }, None, now),
            Phase::Greeting { .. } | Phase::Up(_) => {
                self.down(DownReason::Lost { reason }, None, now);
            }
            Phase::Leaving { .. } => self.leave(),
            Phase::Down { .. } | Phase::Left => {}
        }
    }

    pub(super) fn broken(&mut self, error: ProtocolError, now: Instant) {
        if matches!(self.phase, Phase::Greeting { .. } | Phase::Up(_)) {
            self.close(CloseReason::Protocol(error), None, now);
        }
    }

    pub(super) fn address_changed(&mut self, node_ip: String, now: Instant) {
        let changed = mem::replace(&mut self.who.node_ip, node_ip) != self.who.node_ip;
        match &mut self.phase {
            Phase::Up(up) if !changed => up.liveness.probe(now),
            Phase::Dialing { .. } | Phase::Greeting { .. } | Phase::Up(_) => {
                self.close(CloseReason::AddressChanged, None, now);
                self.redial = Redial::new(now);
                self.phase = Phase::Down { redial_at: now + ADDRESS_SETTLE };
            }
            Phase::Down { redial_at } if !self.told_when => {
                *redial_at = (*redial_at).min(now + ADDRESS_SETTLE);
            }
            Phase::Down { .. } | Phase::Leaving { .. } | Phase::Left => {}
        }
    }

    pub(super) fn close(
        &mut self,
        reason: CloseReason,
        retry_after: Option<Duration>,
        now: Instant,
    ) {
        let text = chain(&reason);
        self.outputs.push_back(EdgeOutput::Close(reason));
        self.down(DownReason::Closed { reason: text }, retry_after, now);
    }

    pub(super) fn down(&mut self, reason: DownReason, retry_after: Option<Duration>, now: Instant) {
        // A dial that took long has waited already; a cloud that greets and gives no link is left in peace.
        let (from, delay) = match &self.phase {
            Phase::Up(up) => (now, self.redial.after_link(up.since, now, &mut self.rng)),
            Phase::Dialing { .. } => (self.dialed_at, self.redial.after_dial(now, &mut self.rng)),
            Phase::Greeting { .. } | Phase::Down { .. } | Phase::Leaving { .. } | Phase::Left => {
                (now, self.redial.after_dial(now, &mut self.rng))
            }
        };
        let told = retry_after.filter(|after| !after.is_zero());
        self.told_when = told.is_some();
        let redial_at = if let Some(after) = told {
            let spread = RETRY_AFTER_SPREAD_MAX.min(after);
            let spread = Backoff { base: spread, cap: spread }.delay(1, &mut self.rng);
            now + after.min(RETRY_AFTER_MAX) + spread
        } else {
            now.max(from + delay)
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

    pub(super) fn shut_down(&mut self, reason: String, now: Instant) {
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

    pub(super) fn leave(&mut self) {
        if let Phase::Leaving { reason, .. } = mem::replace(&mut self.phase, Phase::Left) {
            self.outputs.push_back(EdgeOutput::Close(CloseReason::Asked { reason }));
        }
    }
}
