//! `state.db`: desired objects, the memory of pods, tombstones and settings.

mod rows;
mod salvage;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::ids::{ObjectKey, Uid};
use proto::object::{Change, Object};
use rusqlite::Connection;

use crate::database::{self, Commit, Database};
use crate::error::StoreError;
use crate::key;
use crate::reserve::Reserve;
use crate::schema::{self, Ready, Schema};
use crate::seal::Sealer;
use rows::Rows;
pub(crate) use salvage::set_aside;

/// Name of the database within the store's folder.
pub(crate) const FILE: &str = "state.db";

/// Largest size of the database: 500 pods with what they reference are about 20 MiB; the largest
/// objects of the link would fill this with 85.
const LIMIT_BYTES: u64 = 256 * 1024 * 1024;

/// Deleted pods remembered, the oldest forgotten first. A sandbox of a forgotten one is swept after
/// the next full sync instead.
const TOMBSTONES_MAX: u32 = 1024;

/// The latest schema of the database that this release knows, and makes of every earlier one.
pub const STATE_SCHEMA: i64 = 1;

const SCHEMA: Schema = Schema {
    // "hfst"
    application_id: 0x6866_7374,
    migrations: &[rows::SCHEMA_1],
    limit_bytes: LIMIT_BYTES,
};

/// Where the store is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the databases; made if missing.
    pub dir: PathBuf,
    /// File of the key that seals the rows; made if missing.
    pub key_file: PathBuf,
}

impl Options {
    /// Databases and key in one folder.
    pub fn in_folder(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();

        Self { key_file: dir.join(key::KEY), dir }
    }
}

/// What the store held when it was opened.
#[derive(Debug, Default)]
pub struct Opened {
    /// Desired objects, by kind and id.
    pub objects: Vec<Object>,
    /// What pods remember, by UID.
    pub memories: Vec<(Uid, Vec<u8>)>,
    /// Pods that the cloud deleted, oldest first.
    pub tombstones: Vec<Uid>,
    /// Settings by name.
    pub settings: BTreeMap<String, Vec<u8>>,
    /// Objects whose rows cannot be opened: to be fetched again.
    pub damaged: Vec<ObjectKey>,
    /// Other rows that cannot be opened.
    pub damaged_rows: usize,
    /// There was no database, or an empty one.
    pub fresh: bool,
    /// Why what was there was set aside and replaced; the rest of this is what could be saved.
    pub damage: Option<StoreError>,
}

impl Opened {
    /// Whether the store is all that was ever committed: only then do tombstones and the absence of
    /// objects mean anything (invariant 6).
    pub fn is_intact(&self) -> bool {
        !self.fresh && self.damage.is_none() && self.damaged.is_empty() && self.damaged_rows == 0
    }
}

/// One write of a commit.
#[derive(Clone, Debug)]
pub enum Write {
    /// A desired object, or that it is gone. A deleted pod leaves a tombstone.
    Object(Change),
    /// What a pod remembers; replaces what it remembered before.
    Memory {
        /// The pod.
        pod: Uid,
        /// Meaningful to the writer only.
        bytes: Vec<u8>,
    },
    /// Forgets what a pod remembered.
    ForgetPod(Uid),
    /// A setting; replaces the value it had.
    Setting {
        /// Its name.
        name: String,
        /// Its value.
        value: Vec<u8>,
    },
}

impl Write {
    /// About how much it adds to the log.
    fn bytes(&self) -> usize {
        let content = match self {
            Self::Object(Change::Put(object)) => object.bytes.len(),
            Self::Object(Change::Delete { .. }) | Self::ForgetPod(_) => 0,
            Self::Memory { bytes, .. } => bytes.len(),
            Self::Setting { value, .. } => value.len(),
        };

        // A row changes a page of the table and one of its index.
        content + 2 * 4096
    }
}

/// Told how a commit ended, on the thread of the database: must not block.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The node's desired state, durable. Cheap to clone; the file is closed with the last clone.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
    rows: Arc<Rows>,
}

impl Store {
    /// Opens the store in `options.dir` and reads all of it.
    ///
    /// A database that is damaged or was sealed with another key is set aside, and a new one holds
    /// what could be read of it: [`Opened::damage`] says so. A database that is in use, newer, or
    /// that cannot be written is an error.
    pub fn open(options: &Options) -> Result<(Self, Opened), StoreError> {
        fs::create_dir_all(&options.dir)
            .map_err(|source| StoreError::from_io("make the folder", &options.dir, source))?;
        let path = options.dir.join(FILE);
        let had_rows = fs::metadata(&path).is_ok_and(|file| file.len() > 0);
        let key = key::open(&options.key_file)?;
        let key_lost = key.is_new && had_rows;
        let sealer = Arc::new(key.sealer);

        let (connection, opened) = load(&path, &options.key_file, &sealer, key_lost)?;
        let database =
            Database::start("store", &path, connection, LIMIT_BYTES, Some(Reserve::of(&path)))?;

        Ok((Self { database, rows: Arc::new(Rows::new(sealer)) }, opened))
    }

    /// Makes `writes` durable together and then tells `done`; after an error none of them is there.
    /// Never blocks: if too much is queued already, `done` is told so before this returns.
    pub fn commit(&self, writes: Vec<Write>, done: Done) {
        let bytes = writes.iter().map(Write::bytes).sum();
        let rows = Arc::clone(&self.rows);
        self.database.commit(Commit {
            apply: Box::new(move |transaction| {
                writes.iter().try_for_each(|write| rows.write(transaction, write))
            }),
            bytes,
            done,
        });
    }

    /// Makes one setting durable.
    pub fn put_setting(&self, name: &str, value: Vec<u8>, done: Done) {
        self.commit(vec![Write::Setting { name: name.to_owned(), value }], done);
    }

    /// Tells `alarm`, once, when a commit or [`Self::quick_check`] finds the database damaged. The
    /// store then refuses what the damage touches; opening it again repairs it.
    pub fn on_damage(&self, alarm: Box<dyn FnOnce(StoreError) + Send>) {
        self.database.on_damage(alarm);
    }

    /// Looks through the whole file for damage, between commits: about 10 ms for each 5 MiB, during
    /// which commits wait. `done` gets [`StoreError::Damaged`] if there is any.
    pub fn quick_check(&self, done: Done) {
        let done = Arc::new(std::sync::Mutex::new(Some(done)));
        let tell = Arc::clone(&done);
        let answer = move |outcome| {
            let done = tell.lock().ok().and_then(|mut done| done.take());
            if let Some(done) = done {
                done(outcome);
            }
        };
        let answer_refusal = answer.clone();
        let watch = self.database.watch();
        let queued = self.database.read(move |connection, path| {
            let outcome = check(connection, path);
            if let Err(error) = &outcome {
                watch.look_at(path, error);
            }
            answer(outcome);
        });
        if let Err(error) = queued {
            answer_refusal(Err(error));
        }
    }
}

fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |source| StoreError::from_sqlite(path, source);
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict == "ok" {
        return Ok(());
    }
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);

    Err(failed(rusqlite::Error::SqliteFailure(code, Some(verdict))))
}

/// Opens and reads the database at `path`; replaces it if it is no use.
fn load(
    path: &Path,
    key_file: &Path,
    sealer: &Arc<Sealer>,
    key_lost: bool,
) -> Result<(Connection, Opened), StoreError> {
    let lost = || StoreError::KeyLost { path: key_file.to_owned() };
    if key_lost {
        return replace(path, sealer, lost(), Opened::default());
    }
    let rows = Rows::new(Arc::clone(sealer));
    match read(path, &rows) {
        Ok(Some(loaded)) => Ok(loaded),
        Ok(None) => replace(path, sealer, lost(), Opened::default()),
        Err(damage @ (StoreError::Damaged { .. } | StoreError::Database { .. })) => {
            let saved = salvage::read(path, &rows);
            replace(path, sealer, damage, saved)
        }
        Err(error) => Err(error),
    }
}

/// The database and all that is in it; `None` if it was sealed with another key.
fn read(path: &Path, rows: &Rows) -> Result<Option<(Connection, Opened)>, StoreError> {
    let failed = |source| StoreError::from_sqlite(path, source);
    let Ready { connection, fresh } =
        schema::open(path, &SCHEMA, |connection| rows.write_key_id(connection))?;
    if fresh {
        return Ok(Some((connection, Opened { fresh, ..Opened::default() })));
    }
    if database::is_suspect(path) {
        check(&connection, path)?;
    }
    if !rows.is_our_key(&connection).map_err(failed)? {
        return Ok(None);
    }
    let mut opened = Opened::default();
    rows.read(&connection, &mut opened).map_err(failed)?;

    Ok(Some((connection, opened)))
}

/// Sets the database aside and begins another with `saved`.
fn replace(
    path: &Path,
    sealer: &Arc<Sealer>,
    damage: StoreError,
    mut saved: Opened,
) -> Result<(Connection, Opened), StoreError> {
    set_aside(path)?;
    let rows = Rows::new(Arc::clone(sealer));
    let ready = schema::open(path, &SCHEMA, |connection| rows.write_key_id(connection))?;
    salvage::write(&ready.connection, &rows, &saved)
        .map_err(|source| StoreError::from_sqlite(path, source))?;
    // Tombstones of a database that lost rows prove nothing.
    saved.tombstones.clear();
    saved.damage = Some(damage);

    Ok((ready.connection, saved))
}
