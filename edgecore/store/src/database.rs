//! One database file with the one thread that uses it.
//!
//! Commits that wait together become one transaction with one sync, and each is answered after it.
//! If that transaction fails they are tried one by one, so that none fails for another's sake.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use crate::error::StoreError;
use crate::reserve::Reserve;
use crate::schema::PAGE_BYTES;

/// Jobs that wait for the thread; more are refused as busy. The link has one batch in flight and a
/// pod worker one commit: 110 pods of a node at once, and as many again for good measure.
const QUEUE_LEN: usize = 256;

/// The log is copied into the database after this much was written, when the callers have their
/// answers: about a quarter of SQLite's own limit, which would make a caller wait.
const CHECKPOINT_BYTES: usize = 1024 * 1024;

/// SQLite and sealing need little; the default would be 2 MiB of address space.
const STACK_BYTES: usize = 512 * 1024;

/// Whether a write has found the database damaged. A read of all rows would not find damage in what
/// only writes use, such as the list of free pages.
pub(crate) fn is_suspect(path: &Path) -> bool {
    suspicion(path).exists()
}

/// The file whose existence says so.
pub(crate) fn suspicion(path: &Path) -> PathBuf {
    PathBuf::from(format!("{}.suspect", path.display()))
}

/// Told once when the database turns out to be damaged, on its thread: must not block.
pub(crate) type Alarm = Box<dyn FnOnce(StoreError) + Send>;

/// Remembers damage for the next start, which repairs it, and tells who waits to be told.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Watched>>);

#[derive(Default)]
enum Watched {
    /// Nobody waits to be told.
    #[default]
    Alone,
    Waited(Alarm),
    /// Found before somebody waited.
    Damaged(StoreError),
    Told,
}

impl Watch {
    /// Tells `alarm` from now on, and of what was found before.
    fn set(&self, alarm: Alarm) {
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *watched, Watched::Told) {
            Watched::Damaged(error) => alarm(error),
            Watched::Alone | Watched::Waited(_) | Watched::Told => {
                *watched = Watched::Waited(alarm);
            }
        }
    }

    /// Looks at an error of the database at `path`.
    pub(crate) fn look_at(&self, path: &Path, error: &StoreError) {
        let StoreError::Damaged { source, .. } = error else { return };
        if let Err(error) = File::create(suspicion(path)) {
            tracing::warn!(path = %path.display(), %error, "cannot note the damage");
        }
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        let source = rusqlite::Error::SqliteFailure(code, Some(source.to_string()));
        let found = StoreError::Damaged { path: path.to_owned(), source };
        let mut watched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *watched, Watched::Told) {
            Watched::Alone => *watched = Watched::Damaged(found),
            Watched::Waited(alarm) => alarm(found),
            Watched::Damaged(first) => *watched = Watched::Damaged(first),
            Watched::Told => {}
        }
    }
}

/// Told how a commit or a read ended, on the thread of the database.
pub(crate) type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Writes to make in a transaction. May be asked again after a rollback.
pub(crate) type Apply = Box<dyn FnMut(&Transaction<'_>) -> rusqlite::Result<()> + Send>;

pub(crate) struct Commit {
    pub(crate) apply: Apply,
    /// About how much it writes.
    pub(crate) bytes: usize,
    pub(crate) done: Done,
}

/// Something to do with the database between commits.
type Read = Box<dyn FnOnce(&Connection, &Path) + Send>;

enum Job {
    Commit(Commit),
    Read(Read),
}

/// A job that was not queued, and why.
struct Unqueued {
    job: Job,
    error: StoreError,
}

/// A handle to the thread of one database. The thread ends, and the file is closed, when the last
/// handle is dropped.
#[derive(Clone)]
pub(crate) struct Database(Arc<Handle>);

struct Handle {
    path: PathBuf,
    /// `None` while being dropped.
    jobs: Option<SyncSender<Job>>,
    queued: Arc<AtomicUsize>,
    watch: Watch,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Database {
    /// Hands an open connection to its thread.
    pub(crate) fn start(
        name: &str,
        path: &Path,
        connection: Connection,
        limit_bytes: u64,
        reserve: Option<Reserve>,
    ) -> Result<Self, StoreError> {
        let (jobs, waiting) = sync_channel(QUEUE_LEN);
        let queued = Arc::new(AtomicUsize::new(0));
        let watch = Watch::default();
        let worker = Worker {
            connection,
            watch: watch.clone(),
            path: path.to_owned(),
            limit_bytes,
            queued: Arc::clone(&queued),
            unchecked_bytes: 0,
            reserve,
        };
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || worker.run(&waiting))
            .map_err(|source| StoreError::from_io("start the thread of", path, source))?;

        Ok(Self(Arc::new(Handle {
            path: path.to_owned(),
            jobs: Some(jobs),
            queued,
            watch,
            thread: Mutex::new(Some(thread)),
        })))
    }

    /// Tells `alarm` when the database turns out to be damaged.
    pub(crate) fn on_damage(&self, alarm: Alarm) {
        self.0.watch.set(alarm);
    }

    /// For reads that look for damage.
    pub(crate) fn watch(&self) -> Watch {
        self.0.watch.clone()
    }

    /// Queues a commit, or answers at once that the queue is full.
    pub(crate) fn commit(&self, commit: Commit) {
        if let Err(unqueued) = self.send(Job::Commit(commit))
            && let Job::Commit(commit) = unqueued.job
        {
            (commit.done)(Err(unqueued.error));
        }
    }

    /// Queues a read. `read` is dropped uncalled with the error if the queue is full.
    pub(crate) fn read(
        &self,
        read: impl FnOnce(&Connection, &Path) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.send(Job::Read(Box::new(read))).map_err(|unqueued| unqueued.error)
    }

    fn send(&self, job: Job) -> Result<(), Box<Unqueued>> {
        let Some(jobs) = &self.0.jobs else {
            return Err(Box::new(Unqueued { job, error: StoreError::Closed }));
        };
        self.0.queued.fetch_add(1, Ordering::Relaxed);
        jobs.try_send(job).map_err(|refused| {
            self.0.queued.fetch_sub(1, Ordering::Relaxed);
            Box::new(match refused {
                TrySendError::Full(job) => {
                    let queued = self.0.queued.load(Ordering::Relaxed);
                    let error = StoreError::Busy { path: self.0.path.clone(), queued };
                    Unqueued { job, error }
                }
                TrySendError::Disconnected(job) => Unqueued { job, error: StoreError::Closed },
            })
        })
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.0.path).finish()
    }
}

impl Drop for Handle {
    /// Waits for what is queued, so that the file is closed when the last handle is gone.
    fn drop(&mut self) {
        self.jobs = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id())
        else {
            return;
        };
        if thread.join().is_err() {
            tracing::error!(path = %self.path.display(), "the thread of the database panicked");
        }
    }
}

struct Worker {
    connection: Connection,
    watch: Watch,
    path: PathBuf,
    limit_bytes: u64,
    queued: Arc<AtomicUsize>,
    /// Written since the last checkpoint.
    unchecked_bytes: usize,
    /// `None` for what may be lost.
    reserve: Option<Reserve>,
}

impl Worker {
    fn run(mut self, jobs: &Receiver<Job>) {
        let mut pending = None;
        while let Some(job) = pending.take().or_else(|| self.next(jobs)) {
            match job {
                Job::Read(read) => read(&self.connection, &self.path),
                Job::Commit(first) => {
                    let mut group = vec![first];
                    while group.len() < QUEUE_LEN
                        && let Ok(job) = jobs.try_recv()
                    {
                        self.queued.fetch_sub(1, Ordering::Relaxed);
                        match job {
                            Job::Commit(commit) => group.push(commit),
                            // A read sees what was queued before it.
                            Job::Read(_) => {
                                pending = Some(job);
                                break;
                            }
                        }
                    }
                    self.commit(group);
                }
            }
        }
    }

    fn next(&self, jobs: &Receiver<Job>) -> Option<Job> {
        let job = jobs.recv().ok()?;
        self.queued.fetch_sub(1, Ordering::Relaxed);

        Some(job)
    }

    fn commit(&mut self, mut group: Vec<Commit>) {
        let together = self.transact(&mut group);
        match together {
            Ok(()) => group.into_iter().for_each(|commit| (commit.done)(Ok(()))),
            Err(_) if group.len() > 1 => {
                for mut commit in group {
                    let alone = self.transact(std::slice::from_mut(&mut commit));
                    (commit.done)(alone);
                }
            }
            Err(error) => {
                let mut only = Some(error);
                for commit in group {
                    (commit.done)(Err(only.take().unwrap_or(StoreError::Closed)));
                }
            }
        }
        if self.unchecked_bytes >= CHECKPOINT_BYTES {
            self.checkpoint();
        }
    }

    fn transact(&mut self, group: &mut [Commit]) -> Result<(), StoreError> {
        let bytes = group.iter().map(|commit| commit.bytes).sum::<usize>();
        if self.reserve.as_ref().is_some_and(|reserve| !reserve.admits(bytes)) {
            return Err(StoreError::DiskFull { path: self.path.clone() });
        }
        let mut outcome = self.try_transact(group);
        let is_full = outcome
            .as_ref()
            .is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DiskFull));
        if is_full && self.reserve.as_ref().is_some_and(|reserve| reserve.give_up(bytes)) {
            outcome = self.try_transact(group);
        }
        outcome.map_err(|error| self.named(error))?;
        self.unchecked_bytes += bytes;
        if let Some(reserve) = &mut self.reserve {
            reserve.committed();
        }

        Ok(())
    }

    fn try_transact(&mut self, group: &mut [Commit]) -> rusqlite::Result<()> {
        if !self.connection.is_autocommit() {
            // The rollback after a disk error failed too; the disk may be back now.
            self.connection.execute_batch("ROLLBACK")?;
        }
        // Dropped without a commit it rolls back.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for commit in group {
            (commit.apply)(&transaction)?;
        }

        transaction.commit()
    }

    /// A full disk and a full database are one to SQLite.
    fn named(&self, error: rusqlite::Error) -> StoreError {
        let error = StoreError::from_sqlite(&self.path, error);
        self.watch.look_at(&self.path, &error);
        if !matches!(error, StoreError::DiskFull { .. }) {
            return error;
        }
        let pages: rusqlite::Result<i64> =
            self.connection.pragma_query_value(None, "page_count", |row| row.get(0));
        // The transaction that failed is rolled back, so the count is of before it.
        let nearly_full = self.limit_bytes / PAGE_BYTES - self.limit_bytes / PAGE_BYTES / 8;
        match pages {
            Ok(pages) if pages.cast_unsigned() >= nearly_full => {
                StoreError::LimitReached { path: self.path.clone(), limit_bytes: self.limit_bytes }
            }
            _ => error,
        }
    }

    fn checkpoint(&mut self) {
        let copied = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_row| Ok(()));
        match copied {
            Ok(()) => self.unchecked_bytes = 0,
            // Nothing is lost: the log keeps what the database lacks, and the next commit tries again.
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "cannot checkpoint");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::schema::{self, Schema};

    const LIMIT_BYTES: u64 = 64 * PAGE_BYTES;
    const SCHEMA: Schema = Schema {
        application_id: 1,
        migrations: &["CREATE TABLE t (content)"],
        limit_bytes: LIMIT_BYTES,
    };

    fn commit(database: &Database, sql: &'static str) -> Option<StoreError> {
        let (tell, told) = mpsc::channel();
        database.commit(Commit {
            apply: Box::new(move |transaction| transaction.execute_batch(sql)),
            bytes: 0,
            done: Box::new(move |outcome| tell.send(outcome).unwrap()),
        });
        told.recv().unwrap().err()
    }

    #[test]
    fn a_full_database_is_told_from_a_full_disk_and_takes_again_after_a_delete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let connection = schema::open(&path, &SCHEMA, |_| Ok(())).unwrap().connection;
        let database = Database::start("test", &path, connection, LIMIT_BYTES, None).unwrap();
        let insert = "INSERT INTO t VALUES (zeroblob(20000))";
        let refused = (0..20).find_map(|_| commit(&database, insert)).unwrap();

        assert!(matches!(refused, StoreError::LimitReached { .. }), "{refused:?}");
        assert!(commit(&database, "DELETE FROM t WHERE rowid < 3").is_none());
        assert!(commit(&database, insert).is_none());
    }

    #[test]
    fn damage_that_nobody_waited_for_is_told_to_who_asks() {
        let (tell, told) = mpsc::channel();
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let source = rusqlite::Error::SqliteFailure(code, None);
        let error = StoreError::Damaged { path: path.clone(), source };
        let watch = Watch::default();
        watch.look_at(&path, &error);
        for _ in 0..2 {
            let tell = tell.clone();
            watch.set(Box::new(move |found| tell.send(found.to_string()).unwrap()));
            watch.look_at(&path, &error);
        }
        drop((tell, watch));

        assert_eq!(told.iter().count(), 2, "each is told once");
        assert!(is_suspect(&path));
    }

    #[test]
    fn commits_that_waited_together_fail_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let connection = schema::open(&path, &SCHEMA, |_| Ok(())).unwrap().connection;
        let database = Database::start("test", &path, connection, LIMIT_BYTES, None).unwrap();
        let (release, held) = mpsc::channel::<()>();
        let hold = move |_: &Connection, _: &Path| assert!(held.recv().is_err());
        database.read(hold).unwrap();
        let (tell, told) = mpsc::channel();
        for (n, sql) in ["INSERT INTO t VALUES (1)", "nonsense", "INSERT INTO t VALUES (2)"]
            .into_iter()
            .enumerate()
        {
            let tell = tell.clone();
            database.commit(Commit {
                apply: Box::new(move |transaction| transaction.execute_batch(sql)),
                bytes: 0,
                done: Box::new(move |outcome| tell.send((n, outcome.is_ok())).unwrap()),
            });
        }
        drop((release, tell));

        assert_eq!(told.iter().collect::<Vec<_>>(), [(0, true), (1, false), (2, true)]);
    }
}
