//! Waiting longer after each failure, at random, so that many nodes do not come back as one.

use std::time::{Duration, Instant};

/// A small seeded generator (splitmix64): enough for jitter, never for secrets.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);

        z ^ (z >> 31)
    }

    /// A number below `bound`; zero if `bound` is.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-32 for the millisecond ranges used here.
        self.next_u64().checked_rem(bound).unwrap_or_default()
    }
}

/// Full jitter: anything from zero to a bound that doubles up to a cap.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// Bound after the first failure.
    pub base: Duration,
    /// Bound after many.
    pub cap: Duration,
}

impl Backoff {
    /// How long to wait after `failures` failures in a row (at least one).
    pub fn delay(&self, failures: u32, rng: &mut Rng) -> Duration {
        let bound = self.bound(failures);
        let millis = u64::try_from(bound.as_millis()).expect("caps are seconds, not ages");

        Duration::from_millis(rng.below(millis.saturating_add(1)))
    }

    /// As [`Self::delay`], but at least half the bound: for retries of one object, which have no
    /// crowd to spread and should not be hot.
    pub fn patient_delay(&self, failures: u32, rng: &mut Rng) -> Duration {
        let half = Self { base: self.base / 2, cap: self.cap / 2 };

        self.bound(failures) / 2 + half.delay(failures, rng)
    }

    fn bound(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);

        self.base.saturating_mul(1 << doublings).min(self.cap)
    }
}

/// When an edge dials again. Two things make it wait longer.
///
/// How long the cloud has been away: an edge waits at most as long again, so that it is back within twice the
/// outage. And links that the cloud gave and that broke early: a cloud that falls over under its edges gets
/// them back ever more slowly, and one that loses a few replicas in a row does not.
#[derive(Clone, Copy, Debug)]
pub struct Redial {
    /// Since when there has been no link.
    away_since: Instant,
    /// Links that broke early, less those that time has forgiven.
    early: u32,
}

impl Redial {
    /// Bound of the first wait.
    const BASE: Duration = Duration::from_secs(1);

    /// Bound of all waits. Counted from the last dial: with [`crate::session::DIAL_MAX`] below it, a path that
    /// returns is found within the 30 s of T5, and 10,000 edges come back at 500 a second.
    const AWAY_MAX: Duration = Duration::from_secs(20);

    /// Bound after many links that broke early: with it all edges of a lost replica are at another within 15 s,
    /// whatever happened before, and 10,000 edges of a cloud that falls over come at 1,000 a second.
    const EARLY_MAX: Duration = Duration::from_secs(10);

    /// A link that held this long makes good for one that broke early.
    const FORGIVEN_EACH: Duration = Duration::from_secs(10);

    /// An edge that has had no link since `now`.
    pub fn new(now: Instant) -> Self {
        Self { away_since: now, early: 0 }
    }

    /// A link is lost that was up since `up_since`. Returns how long to wait.
    pub fn after_link(&mut self, up_since: Instant, now: Instant, rng: &mut Rng) -> Duration {
        let held = now.saturating_duration_since(up_since).as_secs();
        let forgiven = held / Self::FORGIVEN_EACH.as_secs();
        let early = self.early.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX));
        *self = Self { away_since: now, early: early.saturating_add(1) };

        Backoff { base: Self::BASE, cap: Self::EARLY_MAX }.delay(self.early, rng)
    }

    /// No link came of a dial. Returns how long to wait, from the dial.
    pub fn after_dial(&self, now: Instant, rng: &mut Rng) -> Duration {
        let away = now.saturating_duration_since(self.away_since);
        let bound = away.clamp(Self::BASE, Self::AWAY_MAX);

        Backoff { base: bound, cap: bound }.delay(1, rng)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[expect(
        clippy::disallowed_methods,
        reason = "any origin will do, time is passed in from here"
    )]
    fn start() -> Instant {
        Instant::now()
    }

    /// The longest of many waits after links that held for these seconds, one after the other.
    fn longest(held: &[u32]) -> Duration {
        let waits = (0..200).map(|seed| {
            let (mut now, mut rng) = (start(), Rng::new(seed));
            let mut redial = Redial::new(now);
            let mut wait = Duration::ZERO;
            for seconds in held {
                let up_since = now + wait;
                now = up_since + *seconds * SECOND;
                wait = redial.after_link(up_since, now, &mut rng);
            }
            wait
        });

        waits.max().unwrap()
    }

    #[test]
    fn links_that_break_early_make_it_wait_longer_and_those_that_hold_make_good() {
        for (held, low_ms, high_s) in [
            (&[3600][..], 900, 1),
            (&[2, 2][..], 1_800, 2),
            (&[2, 2, 2][..], 3_600, 4),
            (&[2; 30][..], 9_000, 10),
            // Replicas go one after the other.
            (&[11; 30][..], 900, 1),
            (&[2, 2, 2, 2, 30][..], 1_800, 2),
            (&[2, 2, 2, 2, 60][..], 900, 1),
        ] {
            let longest = longest(held);
            let bounds = Duration::from_millis(low_ms)..=high_s * SECOND;
            assert!(bounds.contains(&longest), "{held:?}: {longest:?}");
        }
    }

    #[test]
    fn an_edge_waits_no_longer_than_it_has_been_away() {
        let (start, mut rng) = (start(), Rng::new(3));
        let redial = Redial::new(start);
        for (away_s, bound_s) in [(0, 1), (1, 1), (3, 3), (12, 12), (20, 20), (86_400, 20)] {
            let now = start + away_s * SECOND;
            let longest = (0..200).map(|_| redial.after_dial(now, &mut rng)).max().unwrap();
            let bound = bound_s * SECOND;
            assert!(longest <= bound && longest > bound * 8 / 10, "{away_s}: {longest:?}");
        }
    }

    #[test]
    fn delays_spread_up_to_a_growing_bound() {
        let backoff = Backoff { base: Duration::from_secs(1), cap: Duration::from_secs(8) };
        let mut rng = Rng::new(7);
        for (failures, bound_s) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (u32::MAX, 8)] {
            let bound = Duration::from_secs(bound_s);
            let drawn: Vec<_> = (0..200).map(|_| backoff.delay(failures, &mut rng)).collect();
            let (low, high) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
            assert!(*high <= bound && *high > bound * 8 / 10, "{failures}: up to {high:?}");
            assert!(*low < bound * 2 / 10, "{failures}: from {low:?}");
            let patient = backoff.patient_delay(failures, &mut rng);
            assert!(patient >= bound / 2 && patient <= bound, "{failures}: {patient:?}");
        }
    }
}
