//! Work off the main thread, so that a stalled disk does not stop the link's pings: in lanes, so that a
//! silent name server or a dead network mount does not stop what waits for the disk.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;

use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// Work of one kind, of which only so much is under way. What nobody waits for any more counts until it
/// ends: it cannot be stopped.
#[derive(Debug)]
pub struct Lane(Semaphore);

const FILES_MAX: usize = 4;
const HOST_PATHS_MAX: usize = 1;
const LOCAL_VOLUMES_MAX: usize = 1;
const SERVERS_MAX: usize = 2;
const LOOKUPS_MAX: usize = 3;
const MEASURES_MAX: usize = 1;
const SERVER_MEASURES_MAX: usize = 1;

/// For the node's own files.
pub static FILES: Lane = Lane(Semaphore::const_new(FILES_MAX));
static LOOKUPS: Lane = Lane(Semaphore::const_new(LOOKUPS_MAX));

/// For paths of the host, which may be mounts of a server that is away.
pub static HOST_PATHS: Lane = Lane(Semaphore::const_new(HOST_PATHS_MAX));

/// For counting what directories hold, which may take long.
pub static MEASURES: Lane = Lane(Semaphore::const_new(MEASURES_MAX));

/// For local volumes, of which one may take long to give to a group. One at a time: pods that share one
/// do not get into each other's way.
pub static LOCAL_VOLUMES: Lane = Lane(Semaphore::const_new(LOCAL_VOLUMES_MAX));

/// For volumes on servers, which may be away.
pub static SERVERS: Lane = Lane(Semaphore::const_new(SERVERS_MAX));

/// For asking servers how full they are, which must not keep others from being mounted.
pub static SERVER_MEASURES: Lane = Lane(Semaphore::const_new(SERVER_MEASURES_MAX));

/// A thread for each; there are only as many as have work.
pub const BLOCKING_THREADS_MAX: usize = FILES_MAX
    + HOST_PATHS_MAX
    + LOCAL_VOLUMES_MAX
    + SERVERS_MAX
    + LOOKUPS_MAX
    + MEASURES_MAX
    + SERVER_MEASURES_MAX;

/// How long an idle blocking thread is kept: its stack counts against the agent's memory.
pub const BLOCKING_THREAD_KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(2);

/// Runs file work on a blocking thread.
///
/// A panic in `work` continues here.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    run_in(&FILES, work).await
}

/// As [`run`], in another lane.
#[expect(clippy::disallowed_methods, reason = "the one place that hands work to blocking threads")]
pub async fn run_in<T: Send + 'static>(
    lane: &'static Lane,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let place = lane.0.acquire().await;
    let ended = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    });
    match ended.await {
        Ok(value) => value,
        Err(error) => resume(error),
    }
}

/// Looks HOST:PORT up.
pub async fn resolve(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = address.parse() {
        return Ok(vec![address]);
    }
    let address = address.to_owned();

    run_in(&LOOKUPS, move || address.to_socket_addrs().map(Iterator::collect)).await
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn lookups_that_hang_do_not_hold_up_files() {
        let runtime = crate::runtime().unwrap();
        let (release, held) = channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        runtime.block_on(async {
            for _ in 0..=LOOKUPS_MAX {
                let held = std::sync::Arc::clone(&held);
                let hang = run_in(&LOOKUPS, move || held.lock().unwrap().recv().is_ok());
                // Given up, as by a dial that has waited for long enough.
                tokio::time::timeout(Duration::from_millis(1), hang).await.unwrap_err();
            }
            assert_eq!(LOOKUPS.0.available_permits(), 0);
            assert_eq!(run(|| 7).await, 7);
            drop(release);
            assert_eq!(run_in(&LOOKUPS, || 8).await, 8);
        });
    }
}
