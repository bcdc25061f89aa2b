//! Whether the peer is there: who pings when, and what silence means.
//!
//! The edge pings every [`PING_INTERVAL`]; the cloud's answer is its proof, the ping the cloud's.
//! The cloud pings by itself only when that ping is late, so an idle link carries one exchange an
//! interval (design part 8: 2 MB a day). Anything heard proves the path: on a slow link a large
//! frame may hold a pong up for longer than the deadline.

use std::time::{Duration, Instant};

use crate::wire::{Beat, Health};

/// How often the edge pings.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long after a ping the peer must have been heard.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How long the cloud waits for a ping of the edge before it asks: an interval and a slow path.
pub const CLOUD_QUIET_MAX: Duration = Duration::from_secs(22);

/// Longest silence at either end: a half-open link is found within 30 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Which end this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Edge,
    Cloud,
}

#[derive(Debug)]
pub(super) struct Liveness {
    end: End,
    heard_at: Instant,
    ping_at: Instant,
    /// Ping that nothing was heard after.
    waiting_since: Option<Instant>,
    ping_due: bool,
    /// Only the last ping is answered, so a flood of them costs nothing.
    pong_due: Option<u64>,
    nonce: u64,
}

impl Liveness {
    pub(super) fn new(end: End, now: Instant) -> Self {
        Self {
            end,
            heard_at: now,
            ping_at: now + interval(end),
            waiting_since: None,
            ping_due: false,
            pong_due: None,
            nonce: 0,
        }
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.heard_at = now;
        self.waiting_since = None;
        if self.end == End::Cloud {
            self.ping_at = now + interval(self.end);
        }
    }

    pub(super) fn pinged(&mut self, nonce: u64) {
        self.pong_due = Some(nonce);
    }

    /// Asks at once instead of at the next interval.
    pub(super) fn probe(&mut self, now: Instant) {
        self.ping_at = now;
        self.handle_timeout(now);
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.dead_at().min(self.ping_at)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if now >= self.ping_at {
            self.ping_at = now + interval(self.end);
            self.ping_due = true;
            self.waiting_since.get_or_insert(now);
        }
    }

    /// How long the peer has been silent, if that is too long.
    pub(super) fn silence(&self, now: Instant) -> Option<Duration> {
        (now >= self.dead_at()).then(|| now.saturating_duration_since(self.heard_at))
    }

    /// A pong or ping to send now: (frame is a ping, beat).
    pub(super) fn poll_send(&mut self, health: Option<Health>) -> Option<(bool, Beat)> {
        if let Some(nonce) = self.pong_due.take() {
            return Some((false, Beat { nonce, health }));
        }
        if !std::mem::take(&mut self.ping_due) {
            return None;
        }
        self.nonce += 1;

        Some((true, Beat { nonce: self.nonce, health }))
    }

    fn dead_at(&self) -> Instant {
        let silent_at = self.heard_at + SILENCE_MAX;

        self.waiting_since.map_or(silent_at, |since| silent_at.min(since + DEADLINE))
    }
}

fn interval(end: End) -> Duration {
    match end {
        End::Edge => PING_INTERVAL,
        End::Cloud => CLOUD_QUIET_MAX,
    }
}
