//! Waiting on conditions: a test that waits says for what, and fails with what it last saw.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// How often a condition without a watch is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

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
            bail!("waited {limit:?} for {what}; last saw {seen:?}");
        }
        sleep(POLL_INTERVAL).await;
    }
}
