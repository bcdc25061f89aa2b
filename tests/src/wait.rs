//! Waiting on conditions: a test that waits says for what, and fails with what it last saw.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How often a condition without a watch is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How much of a value a failure tells.
const SHOWN_BYTES: usize = 4096;

/// Calls `look` until it gives a value that `enough` accepts, and returns it.
///
/// Fails after `limit` with what was awaited and the last value or error seen.
pub async fn until<T, F>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
    enough: impl Fn(&T) -> bool,
) -> Result<T>
where
    T: Debug,
    F: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        let seen = look().await;
        if let Ok(value) = &seen
            && enough(value)
        {
            return seen;
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} for {what}; last saw {}", shown(&seen));
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// As much of what was seen as one wants to read of a failed test: a log can have megabytes.
fn shown(seen: &impl Debug) -> String {
    let all = format!("{seen:?}");
    let is_of_end = |(at, _): &(usize, char)| all.len() - at <= SHOWN_BYTES;
    match all.char_indices().find(is_of_end) {
        Some((at, _)) if at > 0 => format!("{} bytes, at the end {}", all.len(), &all[at..]),
        _ => all,
    }
}
