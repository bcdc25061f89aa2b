//! Work off the main thread, so that a stalled disk does not stop the link's pings: in lanes, so that a
//! silent name server or a dead network mount does not stop what waits for the disk.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;

use crate::clock;

/// Work of one kind, of which only so much is under way. What nobody waits for any more counts until it
/// ends: it cannot be stopped.
#[derive(Debug)]
pub struct Lane(Semaphore);

const FILES_MAX: usize = 4;
const HOST_PATHS_MAX: usize = 1;
const LOCAL_VOLUMES_MAX: usize = 1;
/// Servers that are worked on at once: while so many hang, no other is asked.
pub const SERVERS_MAX: usize = 6;
const LOOKUPS_MAX: usize = 3;
const MEASURES_MAX: usize = 1;
const SERVER_REMOVALS_MAX: usize = 4;
const SERVER_MEASURES_MAX: usize = 4;
const DISK_MEASURES_MAX: usize = 4;
const ARCHIVES_MAX: usize = 1;

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

/// For mounting and entering volumes on servers.
pub static SERVERS: Sources = Sources::new(SERVERS_MAX);

/// For taking them down, for which a server that hangs is not needed.
pub static SERVER_REMOVALS: Sources = Sources::new(SERVER_REMOVALS_MAX);

/// For asking servers how full they are, which must not keep their volumes from being mounted.
pub static SERVER_MEASURES: Sources = Sources::new(SERVER_MEASURES_MAX);

/// For asking disks, which waits neither for a local volume that is set up nor for a disk that is dead.
pub static DISK_MEASURES: Sources = Sources::new(DISK_MEASURES_MAX);

/// For compressing logs, which may take long.
pub static ARCHIVES: Lane = Lane(Semaphore::const_new(ARCHIVES_MAX));

/// A thread for each; there are only as many as have work.
pub const BLOCKING_THREADS_MAX: usize = FILES_MAX
    + HOST_PATHS_MAX
    + LOCAL_VOLUMES_MAX
    + SERVERS_MAX
    + LOOKUPS_MAX
    + MEASURES_MAX
    + SERVER_REMOVALS_MAX
    + SERVER_MEASURES_MAX
    + DISK_MEASURES_MAX
    + ARCHIVES_MAX;

/// How long an idle blocking thread is kept: its stack counts against the agent's memory.
pub const BLOCKING_THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);

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

/// Lanes of servers, which may be away, or of disks, which may be dead: on each there is one piece of work at
/// a time, so that one that hangs takes one place and holds up only what is on it.
#[derive(Debug)]
pub struct Sources {
    places: Lane,
    /// Those that somebody works on or waits for, by name.
    busy: Mutex<BTreeMap<String, Arc<Source>>>,
}

#[derive(Debug)]
struct Source {
    turns: Arc<Semaphore>,
    /// Since when somebody works on it.
    since: Mutex<Option<Instant>>,
}

/// Ends when it is dropped.
#[derive(Debug)]
struct Turn {
    source: Arc<Source>,
    _permit: Result<OwnedSemaphorePermit, AcquireError>,
}

impl Turn {
    fn begin(&self) {
        *lock(&self.source.since) = Some(clock::instant());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *lock(&self.source.since) = None;
    }
}

impl Sources {
    const fn new(places: usize) -> Self {
        Self { places: Lane(Semaphore::const_new(places)), busy: Mutex::new(BTreeMap::new()) }
    }

    /// Runs work on this one.
    pub async fn run<T: Send + 'static>(
        &'static self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let source = self.source(name);
        let permit = Arc::clone(&source.turns).acquire_owned().await;
        let turn = Turn { source, _permit: permit };

        run_in(&self.places, move || {
            // Not before: what waits for a place does not hang.
            turn.begin();
            let done = work();
            drop(turn);
            done
        })
        .await
    }

    /// Whether a piece of work on it is under way for that long already.
    pub fn hangs(&self, name: &str, for_long: Duration) -> bool {
        let since = lock(&self.busy).get(name).and_then(|source| *lock(&source.since));

        since.is_some_and(|since| since.elapsed() >= for_long)
    }

    fn source(&self, name: &str) -> Arc<Source> {
        let mut busy = lock(&self.busy);
        busy.retain(|_, source| Arc::strong_count(source) > 1);
        let new = || Source { turns: Arc::new(Semaphore::new(1)), since: Mutex::new(None) };

        Arc::clone(busy.entry(name.to_owned()).or_insert_with(|| Arc::new(new())))
    }
}

/// What is behind these locks is whole after every statement.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
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

    use super::*;

    #[test]
    fn a_server_that_hangs_holds_up_only_what_is_on_it() {
        static LANES: Sources = Sources::new(3);
        let runtime = crate::runtime().unwrap();
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        let (begin, begun) = channel();
        let hang = |server: &'static str| {
            let (held, begin) = (Arc::clone(&held), begin.clone());
            let hang = LANES.run(server, move || {
                begin.send(()).unwrap();
                lock(&held).recv().is_ok()
            });
            // Given up, as by a pod that has waited for long enough.
            tokio::time::timeout(Duration::from_millis(1), hang)
        };
        runtime.block_on(async {
            for server in ["one", "two", "one", "two", "one"] {
                hang(server).await.unwrap_err();
            }
            assert_eq!(LANES.run("other", || 7).await, 7);
            for _both in 0..2 {
                begun.recv().unwrap();
            }
            assert!(LANES.hangs("one", Duration::ZERO) && LANES.hangs("two", Duration::ZERO));
            assert!(!LANES.hangs("one", Duration::from_hours(1)));
            assert!(!LANES.hangs("other", Duration::ZERO));
            // With the third no place is left, and who only waits for one is not said to hang.
            hang("three").await.unwrap_err();
            let mut waits = Box::pin(LANES.run("four", || 9));
            tokio::time::timeout(Duration::from_millis(1), &mut waits).await.unwrap_err();
            assert!(!LANES.hangs("four", Duration::ZERO));
            drop(release);
            assert_eq!(waits.await, 9);
            assert_eq!(LANES.run("one", || 8).await, 8);
            assert!(!LANES.hangs("one", Duration::ZERO));
        });
        assert!(lock(&LANES.busy).len() <= 3);
    }

    #[test]
    fn lookups_that_hang_do_not_hold_up_files() {
        let runtime = crate::runtime().unwrap();
        let (release, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        runtime.block_on(async {
            for _ in 0..=LOOKUPS_MAX {
                let held = Arc::clone(&held);
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
