//! How long to wait before trying again: after crashes as the kubelet does, after failures shorter.

use jiff::{SignedDuration, Timestamp};

use crate::memory::{Backoff, Failure};

/// First delay after a crash (kubelet: `backOffPeriod`).
pub const CRASH_DELAY_MIN_S: u32 = 10;
/// Longest delay after a crash (kubelet: `MaxContainerBackOff`).
pub const CRASH_DELAY_MAX_S: u32 = 300;
/// A container that ran or waited this long starts over without delay: twice the longest delay.
const CRASH_FORGET: SignedDuration = SignedDuration::from_secs(2 * CRASH_DELAY_MAX_S as i64);
/// Longest delay between tries of an action that failed.
const RETRY_DELAY_MAX_S: i64 = 60;
/// Longest delay between image pulls (kubelet: `imageBackOff`).
const PULL_DELAY_MAX_S: i64 = 300;

/// When a container that ended at `finished` may start; never later than a full delay from `now`,
/// so that a clock set back does not hold it for years.
pub fn start_at(backoff: &Backoff, finished: Timestamp, now: Timestamp) -> Timestamp {
    let delay = SignedDuration::from_secs(i64::from(backoff.delay_s));

    (finished + delay).min(now + delay)
}

/// The back-off after one more restart at `now`.
pub fn after_restart(backoff: &Backoff, now: Timestamp) -> Backoff {
    let is_old = backoff.since.is_none_or(|since| now.duration_since(since).abs() > CRASH_FORGET);
    let delay_s = if is_old {
        CRASH_DELAY_MIN_S
    } else {
        (backoff.delay_s * 2).clamp(CRASH_DELAY_MIN_S, CRASH_DELAY_MAX_S)
    };

    Backoff { delay_s, since: Some(now) }
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
        retry_at: now + SignedDuration::from_secs(delay),
        count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn crashes_wait_0_10_20_up_to_300_seconds() {
        let mut backoff = Backoff::default();
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let start = start_at(&backoff, now, now);
            waits.push(start.duration_since(now).as_secs());
            backoff = after_restart(&backoff, start);
            now = start;
        }

        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let backoff = Backoff { delay_s: 300, since: Some(at(0)) };

        assert_eq!(after_restart(&backoff, at(601)).delay_s, 10);
    }

    #[test]
    fn a_clock_set_back_holds_a_container_no_longer_than_its_delay() {
        let backoff = Backoff { delay_s: 20, since: Some(at(0)) };

        assert_eq!(start_at(&backoff, at(0), at(-1_000_000)), at(-1_000_000 + 20));
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
