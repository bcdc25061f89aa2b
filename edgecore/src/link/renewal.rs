//! When the certificate is renewed over the link, and what of that is under way. The time is the cloud's: it is
//! the cloud that looks at the certificate, and a node's own clock may be wrong.

use std::time::{Duration, Instant};

use crate::identity::next::NextKey;

/// Thousandths of a certificate's life after which it is renewed: two thirds, spread, so that nodes that joined
/// together do not all ask at once.
const SHARES: std::ops::Range<u64> = 633..700;

/// Longest wait until it is looked at again, and after what went wrong.
const LOOK_AGAIN: Duration = Duration::from_hours(1);

/// Shortest.
const PAUSE: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct Renewal {
    share: u64,
    /// The cloud's time since 1970 when a link came up.
    heard: Option<(Duration, Instant)>,
    look_at: Instant,
    /// The cloud wants it done at once.
    is_told: bool,
    /// The key for which a certificate was asked for.
    asked: Option<NextKey>,
}

impl Renewal {
    pub(super) fn new(seed: u64, now: Instant) -> Self {
        let share = SHARES.start + seed % (SHARES.end - SHARES.start);

        Self { share, heard: None, look_at: now, is_told: false, asked: None }
    }

    /// A link is up, and this is the cloud's time since 1970. An answer that was awaited comes no more.
    pub(super) fn up(&mut self, time: Duration, now: Instant) {
        self.heard = Some((time, now));
        (self.asked, self.is_told) = (None, false);
        self.look_at = now;
    }

    /// The cloud says that the certificate is outdated, however much of its life is left.
    pub(super) fn outdated(&mut self, now: Instant) {
        (self.look_at, self.is_told) = (now, true);
    }

    /// When to ask [`Self::is_due`]; never while an answer is awaited.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.asked.is_none().then_some(self.look_at)
    }

    /// Whether a certificate of this validity is to be renewed. What cannot be read is.
    pub(super) fn is_due(&mut self, validity: Option<(Duration, Duration)>, now: Instant) -> bool {
        let Some((time, at)) = self.heard else { return false };
        let time = time + now.saturating_duration_since(at);
        let wait = validity.map_or(Duration::ZERO, |(from, until)| {
            let life = until.saturating_sub(from);
            let share = u32::try_from(self.share).unwrap_or_default();
            (from + life * share / 1000).saturating_sub(time)
        });
        self.look_at = now + wait.clamp(PAUSE, LOOK_AGAIN);

        wait.is_zero() || self.is_told
    }

    /// A certificate for this key was asked for.
    pub(super) fn asked(&mut self, key: NextKey) {
        (self.asked, self.is_told) = (Some(key), false);
    }

    /// The answer is there: the key it is for. What it brings is looked at soon.
    pub(super) fn answered(&mut self, now: Instant) -> Option<NextKey> {
        self.look_at = now + PAUSE;

        self.asked.take()
    }

    /// It failed; the cloud may have said when to ask again.
    pub(super) fn failed(&mut self, retry_after: Duration, now: Instant) {
        self.asked = None;
        self.look_at = now + retry_after.clamp(PAUSE, LOOK_AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use proto::ids::NodeName;

    use super::*;
    use crate::clock;

    const DAY: Duration = Duration::from_hours(24);

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life_by_the_cloud_s_clock() {
        let start = clock::instant();
        let validity = Some((100 * DAY, 131 * DAY));
        let check = |seed, day: u32, expected: bool| {
            let mut renewal = Renewal::new(seed, start);
            assert!(!renewal.is_due(validity, start), "the time is not known");
            renewal.up(day * DAY, start);
            assert_eq!(renewal.is_due(validity, start), expected, "{seed} on day {day}");
            let wait = renewal.look_at().unwrap() - start;
            assert!(wait >= PAUSE && wait <= LOOK_AGAIN, "{wait:?}");
        };
        for seed in [0, 33, 66, u64::MAX] {
            check(seed, 100, false);
            check(seed, 119, false);
            check(seed, 122, true);
            check(seed, 140, true);
        }
        check(0, 120, true);
        check(66, 120, false);
    }

    #[test]
    fn time_passes_while_the_link_is_up() {
        let start = clock::instant();
        let mut renewal = Renewal::new(0, start);
        renewal.up(Duration::ZERO, start);
        let validity = Some((Duration::ZERO, Duration::from_mins(1)));
        assert!(!renewal.is_due(validity, start));
        let at = renewal.look_at().unwrap();
        assert_eq!((at - start).as_secs(), 37);
        assert!(renewal.is_due(validity, at));
        assert!(renewal.is_due(None, at), "what cannot be read is renewed");
    }

    #[test]
    fn what_the_cloud_calls_outdated_is_renewed_at_once_and_once() {
        let start = clock::instant();
        let mut renewal = Renewal::new(0, start);
        renewal.up(Duration::ZERO, start);
        let validity = Some((Duration::ZERO, 31 * DAY));
        assert!(!renewal.is_due(validity, start));
        renewal.outdated(start);
        assert_eq!(renewal.look_at(), Some(start));
        assert!(renewal.is_due(validity, start));
        renewal.asked(NextKey::generate(&NodeName::new("edge-1").unwrap()).unwrap());
        assert!(renewal.answered(start).is_some());
        assert!(!renewal.is_due(validity, start));
        // Said on a link that is gone: the next one says it again.
        renewal.outdated(start);
        renewal.up(Duration::ZERO, start);
        assert!(!renewal.is_due(validity, start));
    }

    #[test]
    fn one_answer_is_awaited_at_a_time_and_not_beyond_the_link() {
        let start = clock::instant();
        let mut renewal = Renewal::new(0, start);
        let key = || NextKey::generate(&NodeName::new("edge-1").unwrap()).unwrap();
        renewal.asked(key());
        assert_eq!(renewal.look_at(), None);
        renewal.up(Duration::ZERO, start);
        assert_eq!(renewal.look_at(), Some(start));
        assert!(renewal.answered(start).is_none(), "it belonged to the link before");
        renewal.asked(key());
        assert!(renewal.answered(start).is_some());
        renewal.asked(key());
        renewal.failed(Duration::MAX, start);
        assert_eq!(renewal.look_at(), Some(start + LOOK_AGAIN));
    }
}
