//! How often the hub does what anybody can ask for and what costs the API server something.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::crowd::Source;

/// A burst that is looked at, and how long it is until one more is.
#[derive(Clone, Copy, Debug)]
struct Limit {
    burst: u32,
    refill: Duration,
}

/// Of one source: a rack that is installed at once passes, and guessing tokens, of 256 bits, is no load on
/// the API server.
const EACH: Limit = Limit { burst: 20, refill: Duration::from_secs(1) };

/// Of all: several times that of one, so that no single one keeps machines elsewhere from joining.
const ALL: Limit = Limit { burst: 60, refill: Duration::from_millis(100) };

/// Sources that are remembered. The one that asked least lately is forgotten when there are more.
const SOURCES_MAX: usize = 1_024;

/// Buckets of requests that fill with time. More than that are refused, to be asked again.
#[derive(Debug, Default)]
pub struct Rate(Mutex<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    all: Bucket,
    each: BTreeMap<Source, Bucket>,
}

/// Full as long as nobody has taken of it.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket(Option<(u32, Instant)>);

impl Rate {
    pub(super) fn try_take(&self, source: Source, now: Instant) -> bool {
        // Plain data that is whole after every statement.
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);

        buckets.of(source).try_take(EACH, now) && buckets.all.try_take(ALL, now)
    }
}

impl Buckets {
    fn of(&mut self, source: Source) -> &mut Bucket {
        if !self.each.contains_key(&source) && self.each.len() >= SOURCES_MAX {
            let since = |(_, bucket): &(&Source, &Bucket)| bucket.0.map(|(_, since)| since);
            let oldest = self.each.iter().min_by_key(since).map(|(source, _)| *source);
            oldest.and_then(|source| self.each.remove(&source));
        }

        self.each.entry(source).or_default()
    }
}

impl Bucket {
    fn try_take(&mut self, limit: Limit, now: Instant) -> bool {
        let (left, since) = self.0.unwrap_or((limit.burst, now));
        let passed = now.saturating_duration_since(since);
        let refilled = passed.as_millis() / limit.refill.as_millis();
        let refilled = u32::try_from(refilled).unwrap_or(u32::MAX);
        let (left, since) = match left.saturating_add(refilled) {
            full if full >= limit.burst => (limit.burst, now),
            left => (left, since + limit.refill * refilled),
        };
        self.0 = Some((left.saturating_sub(1), since));

        left > 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn source(number: u32) -> Source {
        Source::of(IpAddr::V4(number.into()))
    }

    fn passing(rate: &Rate, source: Source, now: Instant, asked: u32) -> usize {
        (0..asked).filter(|_| rate.try_take(source, now)).count()
    }

    #[test]
    fn a_burst_passes_and_then_as_many_as_time_allows() {
        let (rate, start) = (Rate::default(), crate::clock::now());
        for (after_ms, asked, expected) in [
            (0, 100, 20),
            (999, 5, 0),
            (1_000, 5, 1),
            (5_000, 100, 4),
            (6_500, 1, 1),
            (60_000, 100, 20),
        ] {
            let now = start + Duration::from_millis(after_ms);
            assert_eq!(passing(&rate, source(1), now, asked), expected, "{after_ms} ms");
        }
    }

    #[test]
    fn who_asks_too_often_keeps_nobody_else_out() {
        let (rate, start) = (Rate::default(), crate::clock::now());
        for second in 0..60 {
            let now = start + Duration::from_secs(second);
            passing(&rate, source(1), now, 1_000);
            assert!(rate.try_take(source(2), now), "after {second} s");
        }
        // Many of them do, but not for long.
        let now = start + Duration::from_mins(2);
        let passed: usize = (3..100).map(|number| passing(&rate, source(number), now, 100)).sum();
        assert_eq!(passed, 60);
        assert!(rate.try_take(source(2), now + ALL.refill));
    }

    #[test]
    fn so_many_sources_are_remembered() {
        let (rate, start) = (Rate::default(), crate::clock::now());
        assert_eq!(passing(&rate, source(0), start + Duration::from_millis(1), 100), 20);
        for number in 1..3_000 {
            rate.try_take(source(number), start + Duration::from_millis(u64::from(number)));
            assert!(rate.0.lock().unwrap().each.len() <= SOURCES_MAX);
        }
    }
}
