//! The only place of this process that reads clocks; everything else is told the time.

use std::time::{Instant, SystemTime};

/// Monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn now() -> Instant {
    Instant::now()
}

/// Wall-clock time for certificates.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub fn system_time() -> SystemTime {
    SystemTime::now()
}

/// Wall-clock time for objects.
pub fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::try_from(system_time()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}
