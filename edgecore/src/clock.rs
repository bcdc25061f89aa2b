//! The only place of this crate that reads a clock.

use std::time::Instant;

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
