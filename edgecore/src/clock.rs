//! The only place of this crate that reads a clock.

mod known;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

pub use self::known::KnownTime;

/// Wall-clock time, for what is written down or compared with the cloud's times.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Monotonic time, for intervals within this process.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn instant() -> Instant {
    Instant::now()
}

/// By how many seconds the wall clock was set since this was first asked: what it moved beyond the
/// time that passed. A machine that slept has its clock set by that.
pub fn set_s() -> i64 {
    static FIRST: OnceLock<(Timestamp, Instant)> = OnceLock::new();
    let (then, began) = FIRST.get_or_init(|| (now(), instant()));
    let passed = SignedDuration::try_from(began.elapsed()).unwrap_or_default();

    (now().duration_since(*then) - passed).as_secs()
}

/// Wall-clock time since 1970, as the machine has it.
pub fn since_1970() -> Duration {
    now().as_duration().try_into().unwrap_or_default()
}
