//! What is known of the time where the clock may be wrong by years: it is not earlier than when this program was
//! built, than what the authority has signed, and than what cloudcore has said, and from there it goes on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Notify;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::time_provider::TimeProvider;

use super::{instant, since_1970};

/// How far ahead of what is known the clock counts. A certificate of cloudcore has longer to live whenever it is
/// shown (it is made for a year, and anew every month): no clock makes one that is good look expired.
const AHEAD_MAX: Duration = Duration::from_hours(24 * 300);

/// What a clock may differ from another without being wrong.
const MOVED_MIN: Duration = Duration::from_mins(1);

/// When this program was built, in seconds since 1970, not to the day's end.
const BUILT: &str = env!("HOLDFAST_BUILT");

/// What is known of the time. Clones know the same.
#[derive(Clone, Debug)]
pub struct KnownTime(Arc<(Mutex<Times>, Notify)>);

/// Times since 1970, each with the moment at which it was that time.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// It is not earlier.
    least: (Duration, Instant),
    /// What cloudcore said last.
    said: Option<(Duration, Instant)>,
}

fn on((time, at): (Duration, Instant), now: Instant) -> Duration {
    time + now.saturating_duration_since(at)
}

impl KnownTime {
    /// Nothing but when this program was built.
    pub fn of_build() -> Self {
        let built = Duration::from_secs(BUILT.parse().unwrap_or_default());

        Self(Arc::new((Mutex::new(Times { least: (built, instant()), said: None }), Notify::new())))
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At `now` it is `time` or later.
    pub fn learn(&self, time: Duration, now: Instant) {
        let mut times = self.times();
        if time > on(times.least, now) {
            times.least = (time, now);
        }
    }

    /// Cloudcore said that it is `time`. That counts for good as long as the certificate does which it showed, so
    /// that one whose clock is wrong makes nobody call later certificates expired.
    pub fn hear(&self, time: Duration, until: Option<Duration>, now: Instant) {
        let before = self.times().said.replace((time, now)).map(|said| on(said, now));
        if before.is_none_or(|before| before.abs_diff(time) > MOVED_MIN) {
            self.0.1.notify_one();
        }
        if until.is_some_and(|until| time <= until) {
            self.learn(time, now);
        }
    }

    /// Waits until cloudcore has said another time than was known as its own. For one who waits.
    pub async fn moved(&self) {
        self.0.1.notified().await;
    }

    /// Forgets what another cloudcore has said.
    pub fn forget(&self) {
        *self.times() = *Self::of_build().times();
    }

    /// It is not earlier than that at `now`.
    pub fn least(&self, now: Instant) -> Duration {
        on(self.times().least, now)
    }

    /// What a clock is believed.
    fn believed(&self, clock: Duration, now: Instant) -> Duration {
        let least = self.least(now);

        clock.clamp(least, least + AHEAD_MAX)
    }

    /// The time since 1970 by which certificates are looked at.
    pub fn now(&self) -> Duration {
        self.believed(since_1970(), instant())
    }

    /// The cloud's time, once cloudcore has said it. What is known before may be years behind.
    pub fn cloud(&self, now: Instant) -> Option<Timestamp> {
        let time = SignedDuration::try_from(on(self.times().said?, now)).ok()?;

        Timestamp::from_duration(time).ok()
    }

    /// TLS that goes by this time.
    pub fn over(&self, tls: &ClientConfig) -> Arc<ClientConfig> {
        let mut tls = tls.clone();
        tls.time_provider = Arc::new(self.clone());

        Arc::new(tls)
    }
}

impl TimeProvider for KnownTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.now()))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const YEAR: Duration = Duration::from_hours(24 * 365);

    #[test]
    fn a_clock_counts_within_what_is_known() {
        let (known, start) = (KnownTime::of_build(), instant());
        let built = known.least(start);
        assert!(built > 50 * YEAR && built < since_1970() + DAY, "{built:?}");
        let today = built + YEAR;
        known.learn(today, start);
        for (clock, expected) in [
            (Duration::ZERO, today),
            (built + DAY, today),
            (today + DAY, today + DAY),
            (today + 10 * YEAR, today + AHEAD_MAX),
        ] {
            assert_eq!(known.believed(clock, start), expected, "{clock:?}");
        }
        // What is known goes on.
        assert_eq!(known.believed(Duration::ZERO, start + 9 * DAY), today + 9 * DAY);
        // And never back.
        known.learn(today + DAY, start + 9 * DAY);
        known.hear(built, Some(built + YEAR), start + 9 * DAY);
        assert_eq!(known.least(start + 9 * DAY), today + 9 * DAY);
        known.forget();
        assert!(known.least(start) < today);
    }

    #[test]
    fn a_cloud_is_believed_as_long_as_its_certificate_is_good() {
        let (known, start) = (KnownTime::of_build(), instant());
        let built = known.least(start);
        let until = built + YEAR;
        known.hear(until + DAY, Some(until), start);
        known.hear(until, None, start);
        assert_eq!(known.least(start), built);
        known.hear(until, Some(until), start);
        assert_eq!(known.least(start), until);
    }

    #[test]
    fn the_time_of_the_cloud_is_what_it_said_last() {
        let (known, start) = (KnownTime::of_build(), instant());
        let at =
            |since: Duration| Timestamp::from_second(since.as_secs().try_into().unwrap()).unwrap();
        let today = Duration::from_secs(known.least(start).as_secs()) + 30 * DAY;
        assert_eq!(known.cloud(start), None);
        let has_moved = || known.moved().now_or_never().is_some();
        assert!(!has_moved());
        known.hear(today, None, start);
        assert!(has_moved());
        assert_eq!(known.cloud(start + DAY), Some(at(today + DAY)));
        known.hear(today + DAY, None, start + DAY);
        assert!(!has_moved());
        known.hear(today, None, start + 2 * DAY);
        assert!(has_moved());
        assert_eq!(known.cloud(start + 2 * DAY), Some(at(today)), "the latest that was said");
    }
}
