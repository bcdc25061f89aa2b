//! How often the hub does what anybody can ask for and what costs the API server something.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests to join that are looked at: a rack that is installed at once passes, and guessing
/// tokens, of 256 bits, is no load on the API server.
const BURST: u32 = 20;

/// Until one more is looked at.
const REFILL: Duration = Duration::from_millis(200);

/// A bucket of requests that fills with time. More than that are refused, to be asked again.
#[derive(Debug, Default)]
pub struct Rate(Mutex<Option<(u32, Instant)>>);

impl Rate {
    pub(super) fn try_take(&self, now: Instant) -> bool {
        // Plain data that is whole after every statement.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = state.unwrap_or((BURST, now));
        let passed = now.saturating_duration_since(since);
        let refilled = u32::try_from(passed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        let (left, since) = match left.saturating_add(refilled) {
            full if full >= BURST => (BURST, now),
            left => (left, since + REFILL * refilled),
        };
        *state = Some((left.saturating_sub(1), since));

        left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_as_many_as_time_allows() {
        let (rate, start) = (Rate::default(), crate::clock::now());
        let taken = |after_ms: u64, asked: u32| {
            let now = start + Duration::from_millis(after_ms);
            (0..asked).filter(|_| rate.try_take(now)).count()
        };
        for (after_ms, asked, expected) in [
            (0, 100, 20),
            (199, 5, 0),
            (200, 5, 1),
            (1_000, 100, 4),
            (1_300, 1, 1),
            (60_000, 100, 20),
        ] {
            assert_eq!(taken(after_ms, asked), expected, "{after_ms} ms");
        }
    }
}
