//! The only place of this crate that reads a clock.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Wall-clock time, for what is written down or compared with the cloud's times.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Monotonic time, for intervals within this process.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn instant() -> Instant {
    Instant::now()
}

/// Wall-clock time since 1970, for the validity of certificates.
pub fn since_1970() -> Duration {
    now().as_duration().try_into().unwrap_or_default()
}
