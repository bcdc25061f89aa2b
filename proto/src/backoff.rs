//! Waiting longer after each failure, at random, so that many nodes do not come back as one.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

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
