//! File work off the main thread, so that a stalled disk does not stop the link's pings.

use std::path::PathBuf;

use tokio::task::JoinError;

/// Threads for file work. Two: one stalled card must not hold up the status of the node.
pub const BLOCKING_THREADS_MAX: usize = 2;

/// How long an idle blocking thread is kept: its stack counts against the agent's memory.
pub const BLOCKING_THREAD_KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(2);

/// Runs `work` on a blocking thread.
///
/// A panic in `work` continues here.
#[expect(clippy::disallowed_methods, reason = "the one place that hands work to blocking threads")]
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => resume(error),
    }
}

fn resume(error: JoinError) -> ! {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // Blocking work cannot be cancelled once it runs, and nobody keeps a handle to cancel it.
        Err(error) => unreachable!("blocking work was cancelled: {error}"),
    }
}

/// A small file's text, trimmed; `None` if it cannot be read.
pub fn read_trimmed(path: impl Into<PathBuf>) -> Option<String> {
    let text = std::fs::read_to_string(path.into()).ok()?;

    Some(text.trim().to_owned())
}
