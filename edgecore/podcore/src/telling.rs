//! When the cloud is told of a pod's status: at once, but news of a pod that starts wait a little for
//! what follows. Most pods run before the wait is over, and one report says all of it: less to commit
//! here, to send, and for the API server to write.

use std::time::Duration;

use jiff::Timestamp;

/// The wait.
pub const STARTING_PAUSE: Duration = Duration::from_secs(1);

/// What was told of one pod, as far as it decides about the next time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Telling {
    /// The cloud knows of a pod that is no longer `Pending`.
    has_started: bool,
    /// Since when there is news.
    since: Option<Timestamp>,
}

impl Telling {
    /// The status is as it was told.
    pub fn nothing(&mut self) {
        self.since = None;
    }

    /// There is news. Answers when to tell it; `None` is now, and taken as told.
    pub fn news(
        &mut self,
        phase: Option<&str>,
        is_last: bool,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let since = *self.since.get_or_insert(now);
        let due = since + STARTING_PAUSE;
        let starts = phase == Some("Pending") && !self.has_started && !is_last;
        // A clock that was set back makes nobody wait longer.
        if starts && (since..due).contains(&now) {
            return Some(due);
        }
        (self.has_started, self.since) = (phase != Some("Pending"), None);

        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(1_000_000 + millis).unwrap()
    }

    #[test]
    fn one_report_says_what_a_quick_start_came_to() {
        let mut telling = Telling::default();

        assert_eq!(telling.news(Some("Pending"), false, at(0)), Some(at(1000)));
        assert_eq!(telling.news(Some("Pending"), false, at(200)), Some(at(1000)));
        assert_eq!(telling.news(Some("Running"), false, at(300)), None);
        assert_eq!(telling.news(Some("Running"), false, at(301)), None, "nothing waits any more");
    }

    #[test]
    fn a_pod_that_cannot_start_is_told_of_after_the_wait() {
        let mut telling = Telling::default();

        assert_eq!(telling.news(Some("Pending"), false, at(0)), Some(at(1000)));
        assert_eq!(telling.news(Some("Pending"), false, at(1000)), None);
        telling.nothing();
        assert_eq!(telling.news(Some("Pending"), false, at(5000)), Some(at(6000)));
    }

    #[test]
    fn the_end_and_a_clock_that_is_set_wait_for_nothing() {
        let mut telling = Telling::default();

        assert_eq!(telling.news(Some("Pending"), true, at(0)), None);
        assert_eq!(telling.news(Some("Pending"), false, at(10)), Some(at(1010)));
        assert_eq!(telling.news(Some("Pending"), false, at(5)), None, "set back");
        assert_eq!(telling.news(Some("Failed"), false, at(6)), None);
    }
}
