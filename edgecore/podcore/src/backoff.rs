//! How long to wait before trying again: after crashes as the kubelet does, after failures shorter.

use jiff::{SignedDuration, Timestamp};

use crate::memory::{Backoff, Failure};

/// First delay after a crash (kubelet: `backOffPeriod`).
pub const CRASH_DELAY_MIN_S: u32 = 10;
/// Longest delay after a crash (kubelet: `MaxContainerBackOff`).
pub const CRASH_DELAY_MAX_S: u32 = 300;
/// A container that ran this long starts over without delay: twice the longest delay.
const CRASH_FORGET: SignedDuration = SignedDuration::from_secs(2 * CRASH_DELAY_MAX_S as i64);
/// Longest delay between tries of an action that failed.
const RETRY_DELAY_MAX_S: i64 = 60;
/// Longest delay between image pulls (kubelet: `imageBackOff`).
const PULL_DELAY_MAX_S: i64 = 300;

/// How far the runtime's times may be ahead of ours without the clock having been set back.
const CLOCK_SLACK: SignedDuration = SignedDuration::from_secs(10);

/// The back-off that counts for an end at `finished` of a container with this hash: none for
/// another image, none after a long run (kubelet: `GetBackoffKey`, `hasExpired`).
pub fn current(kept: &Backoff, hash: &str, finished: Timestamp) -> Backoff {
    let is_other = kept.hash.as_ref().is_some_and(|of| of != hash);
    let is_over = kept.since.is_some_and(|since| finished.duration_since(since) > CRASH_FORGET);
    if is_other || is_over { Backoff::default() } else { kept.clone() }
}

/// When a container that ended at `finished` may start. An end that lies ahead means that the clock
/// was set back: nothing is known of how long ago it was, so that it starts at once.
pub fn start_at(backoff: &Backoff, finished: Timestamp, now: Timestamp) -> Timestamp {
    if backoff.delay_s == 0 || finished.duration_since(now) > CLOCK_SLACK {
        return finished.min(now);
    }
    let delay = SignedDuration::from_secs(i64::from(backoff.delay_s));

    finished.saturating_add(delay).unwrap_or(now)
}

/// The back-off after one more restart at `now`, of a container with this hash.
pub fn after_restart(backoff: &Backoff, hash: &str, now: Timestamp) -> Backoff {
    let delay_s = backoff.delay_s.saturating_mul(2).clamp(CRASH_DELAY_MIN_S, CRASH_DELAY_MAX_S);

    Backoff { delay_s, since: Some(now), hash: Some(hash.to_owned()) }
}

/// Until when an action that failed is not tried again; `None` if it may be now. A failure that
/// lies ahead means that the clock was set back.
pub fn held_until(failure: &Failure, now: Timestamp) -> Option<Timestamp> {
    let is_held = failure.since.duration_since(now) <= CLOCK_SLACK && now < failure.retry_at;

    is_held.then_some(failure.retry_at)
}

/// A failure of an action: tried again after 1, 2, 4 ... 60 s.
pub fn failure(before: Option<&Failure>, reason: &str, message: String, now: Timestamp) -> Failure {
    after_failure(before, reason, message, now, 1, RETRY_DELAY_MAX_S)
}

/// A failed pull: tried again after 10, 20 ... 300 s.
pub fn pull_failure(
    before: Option<&Failure>,
    reason: &str,
    message: String,
    now: Timestamp,
) -> Failure {
    after_failure(before, reason, message, now, i64::from(CRASH_DELAY_MIN_S), PULL_DELAY_MAX_S)
}

fn after_failure(
    before: Option<&Failure>,
    reason: &str,
    message: String,
    now: Timestamp,
    first_s: i64,
    longest_s: i64,
) -> Failure {
    let count = before.map_or(0, |failure| failure.count).saturating_add(1);
    let delay = (first_s << (count - 1).min(16)).min(longest_s);

    Failure {
        reason: reason.to_owned(),
        message,
        since: now,
        retry_at: now.saturating_add(SignedDuration::from_secs(delay)).unwrap_or(now),
        count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn kept(delay_s: u32) -> Backoff {
        Backoff { delay_s, since: Some(at(0)), hash: Some("h".to_owned()) }
    }

    #[test]
    fn a_long_run_and_another_image_are_forgiven() {
        for (hash, finished, delay_s) in
            [("h", 0, 300), ("h", 600, 300), ("h", 601, 0), ("other", 0, 0), ("h", -9999, 300)]
        {
            let current = current(&kept(300), hash, at(finished));
            assert_eq!(current.delay_s, delay_s, "{hash} {finished}");
        }
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let mut delays = Vec::new();
        for _ in 0..7 {
            backoff = after_restart(&backoff, "h", at(0));
            delays.push(backoff.delay_s);
        }

        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_clock_set_back_holds_nothing() {
        let year = 365 * 86400;
        for (now, start) in [(0, 20), (15, 20), (-5, 20), (-year, -year)] {
            assert_eq!(start_at(&kept(20), at(0), at(now)), at(start), "{now}");
        }
        let failed = failure(None, "FailedMount", String::new(), at(0));
        for (now, until) in [(0, Some(at(1))), (1, None), (-5, Some(at(1))), (-year, None)] {
            assert_eq!(held_until(&failed, at(now)), until, "{now}");
        }
    }

    #[test]
    fn failures_double_up_to_their_longest_delay() {
        let mut last = None;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let next = failure(last.as_ref(), "FailedCreatePodSandBox", String::new(), at(0));
            waits.push(next.retry_at.duration_since(at(0)).as_secs());
            last = Some(next);
        }

        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
