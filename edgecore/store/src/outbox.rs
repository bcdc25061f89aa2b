//! `outbox.db`: messages to the cloud that must not be lost nor change their order.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::{fmt, fs};

use bytes::Bytes;
use rusqlite::{Connection, params};

use crate::database::{Commit, Database};
use crate::error::StoreError;
use crate::schema::{self, Ready, Schema};
use crate::seal::{About, Sealer};
use crate::state::{Done, Options};
use crate::{key, state};

/// Name of the database within the store's folder.
pub(crate) const FILE: &str = "outbox.db";

/// Largest size of the database: a day of one 700-byte message a second. A full outbox refuses, it
/// drops nothing.
const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// Most messages that one read takes, so that the memory for them is bounded.
const READ_MAX: usize = 256;

const SCHEMA: Schema = Schema {
    // "hfob"
    application_id: 0x6866_6f62,
    migrations: &["
        CREATE TABLE keys (id BLOB NOT NULL PRIMARY KEY);
        CREATE TABLE messages (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            sealed BLOB NOT NULL
        );
    "],
    limit_bytes: LIMIT_BYTES,
};

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its place in the order; never used again.
    pub seq: u64,
    /// Its content.
    pub bytes: Bytes,
}

/// Told the place of an appended message, on the thread of the database: must not block.
pub type Appended = Box<dyn FnOnce(Result<u64, StoreError>) + Send>;

/// Told what was read, on the thread of the database: must not block.
pub type Taken = Box<dyn FnOnce(Result<Vec<Message>, StoreError>) + Send>;

/// Messages to the cloud, durable and in order. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    database: Database,
    sealer: Arc<Sealer>,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Outbox").field(&self.database).finish()
    }
}

fn about(seq: u64) -> About {
    About::table("messages").number(seq)
}

impl Outbox {
    /// Opens the outbox in `options.dir`. The error, if any, says why an older outbox was set aside:
    /// what was in it is lost.
    pub fn open(options: &Options) -> Result<(Self, Option<StoreError>), StoreError> {
        fs::create_dir_all(&options.dir)
            .map_err(|source| StoreError::from_io("make the folder", &options.dir, source))?;
        let path = options.dir.join(FILE);
        let sealer = Arc::new(key::open(&options.key_file)?.sealer);
        let (connection, damage) = match try_open(&path, &options.key_file, &sealer) {
            Ok(connection) => (connection, None),
            Err(damage @ (StoreError::Damaged { .. } | StoreError::KeyLost { .. })) => {
                state::set_aside(&path)?;
                (try_open(&path, &options.key_file, &sealer)?, Some(damage))
            }
            Err(error) => return Err(error),
        };
        let database = Database::start("outbox", &path, connection, LIMIT_BYTES, None)?;

        Ok((Self { database, sealer }, damage))
    }

    /// Makes a message durable behind all others, then tells `done` its place.
    pub fn append(&self, bytes: Bytes, done: Appended) {
        let seq = Arc::new(AtomicU64::new(0));
        let (sealer, given) = (Arc::clone(&self.sealer), Arc::clone(&seq));
        self.database.commit(Commit {
            bytes: bytes.len() + 4096,
            apply: Box::new(move |transaction| {
                // The seal binds the place, which is known after the insert only.
                transaction
                    .prepare_cached("INSERT INTO messages (sealed) VALUES (x'')")?
                    .execute([])?;
                let rowid = transaction.last_insert_rowid();
                let sealed = sealer.seal(&about(rowid.cast_unsigned()), &bytes);
                transaction
                    .prepare_cached("UPDATE messages SET sealed = ?1 WHERE seq = ?2")?
                    .execute(params![sealed, rowid])?;
                given.store(rowid.cast_unsigned(), Ordering::Relaxed);
                Ok(())
            }),
            done: Box::new(move |outcome| done(outcome.map(|()| seq.load(Ordering::Relaxed)))),
        });
    }

    /// Tells `done` the oldest `count` messages (at most 256), oldest first. Messages that do not
    /// open are left out and reported in the log.
    pub fn oldest(&self, count: usize, done: Taken) {
        let done = Arc::new(Mutex::new(Some(done)));
        let sealer = Arc::clone(&self.sealer);
        let tell = Arc::clone(&done);
        let queued = self.database.read(move |connection, path| {
            let messages = read(connection, &sealer, count.min(READ_MAX));
            answer(&tell, messages.map_err(|source| StoreError::from_sqlite(path, source)));
        });
        if let Err(error) = queued {
            answer(&done, Err(error));
        }
    }

    /// Forgets the messages up to and including `seq`.
    pub fn acknowledge(&self, seq: u64, done: Done) {
        self.database.commit(Commit {
            bytes: 4096,
            apply: Box::new(move |transaction| {
                transaction
                    .prepare_cached("DELETE FROM messages WHERE seq <= ?1")?
                    .execute([seq.cast_signed()])
                    .map(drop)
            }),
            done,
        });
    }
}

fn answer(done: &Mutex<Option<Taken>>, outcome: Result<Vec<Message>, StoreError>) {
    let done = done.lock().ok().and_then(|mut done| done.take());
    if let Some(done) = done {
        done(outcome);
    }
}

fn try_open(path: &Path, key_file: &Path, sealer: &Sealer) -> Result<Connection, StoreError> {
    let failed = |source| StoreError::from_sqlite(path, source);
    let Ready { connection, fresh: _ } = schema::open(path, &SCHEMA, |connection| {
        connection.execute("INSERT INTO keys (id) VALUES (?1)", [sealer.key_id()]).map(drop)
    })?;
    let ours: bool = connection
        .query_row("SELECT count(*) FROM keys WHERE id = ?1", [sealer.key_id()], |row| row.get(0))
        .map_err(failed)?;
    if !ours {
        return Err(StoreError::KeyLost { path: key_file.to_owned() });
    }

    Ok(connection)
}

fn read(connection: &Connection, sealer: &Sealer, count: usize) -> rusqlite::Result<Vec<Message>> {
    let mut statement =
        connection.prepare_cached("SELECT seq, sealed FROM messages ORDER BY seq LIMIT ?1")?;
    let mut rows = statement.query([i64::try_from(count).unwrap_or(i64::MAX)])?;
    let mut messages = Vec::new();
    while let Some(row) = rows.next()? {
        let seq = row.get::<_, i64>(0)?.cast_unsigned();
        let Some(plain) = sealer.open(&about(seq), row.get(1)?) else {
            tracing::error!(seq, "a message of the outbox is damaged and left out");
            continue;
        };
        messages.push(Message { seq, bytes: Bytes::from(plain) });
    }

    Ok(messages)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn append(outbox: &Outbox, text: &str) -> u64 {
        let (tell, told) = mpsc::channel();
        outbox.append(
            Bytes::copy_from_slice(text.as_bytes()),
            Box::new(move |outcome| tell.send(outcome).unwrap()),
        );
        told.recv().unwrap().unwrap()
    }

    fn oldest(outbox: &Outbox, count: usize) -> Vec<(u64, String)> {
        let (tell, told) = mpsc::channel();
        outbox.oldest(count, Box::new(move |outcome| tell.send(outcome).unwrap()));
        let messages = told.recv().unwrap().unwrap();
        let shown = |m: Message| (m.seq, String::from_utf8(m.bytes.to_vec()).unwrap());
        messages.into_iter().map(shown).collect()
    }

    fn acknowledge(outbox: &Outbox, seq: u64) {
        let (tell, told) = mpsc::channel();
        outbox.acknowledge(seq, Box::new(move |outcome| tell.send(outcome).unwrap()));
        told.recv().unwrap().unwrap();
    }

    #[test]
    fn messages_keep_their_order_over_a_restart_and_places_are_not_used_twice() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::in_folder(folder.path());
        let (outbox, _) = Outbox::open(&options).unwrap();
        for text in ["a", "b", "c"] {
            append(&outbox, text);
        }
        acknowledge(&outbox, 1);
        drop(outbox);

        let (outbox, damage) = Outbox::open(&options).unwrap();
        assert!(damage.is_none());
        assert_eq!(oldest(&outbox, 1), [(2, "b".to_owned())]);
        assert_eq!(oldest(&outbox, 9), [(2, "b".to_owned()), (3, "c".to_owned())]);
        acknowledge(&outbox, 3);
        assert_eq!(oldest(&outbox, 9), []);
        assert_eq!(append(&outbox, "d"), 4);
    }

    #[test]
    fn a_lost_key_sets_the_outbox_aside() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::in_folder(folder.path());
        append(&Outbox::open(&options).unwrap().0, "a");
        fs::remove_file(&options.key_file).unwrap();

        let (outbox, damage) = Outbox::open(&options).unwrap();
        assert!(matches!(damage, Some(StoreError::KeyLost { .. })), "{damage:?}");
        assert_eq!(oldest(&outbox, 9), []);
    }
}
