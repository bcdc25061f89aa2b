//! How a database is opened, and how one of an earlier release becomes one of this.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use crate::error::StoreError;

/// Page cache of one database. The tables are read once, at start; after that the cache holds the
/// inner pages of small trees.
const CACHE_KIB: i64 = 128;

/// SQLite's own checkpoint, within a commit, when the log has this many pages (4 MiB): a backstop
/// for the one that [`crate::database`] does after its answers.
const WAL_AUTOCHECKPOINT_PAGES: i64 = 1024;

/// The log file is cut to this after a checkpoint; below it, its blocks are used again without the
/// file system having to find new ones.
const JOURNAL_SIZE_LIMIT_BYTES: i64 = 4 * 1024 * 1024;

/// What a page has, as SQLite creates databases.
pub(crate) const PAGE_BYTES: u64 = 4096;

/// How one database looks.
pub(crate) struct Schema {
    /// `PRAGMA application_id`, which `file` shows.
    pub(crate) application_id: i32,
    /// Statements that lead from schema `n` to `n + 1`, beginning with an empty file. Never edited
    /// once released: only added to.
    pub(crate) migrations: &'static [&'static str],
    /// Largest size of the file.
    pub(crate) limit_bytes: u64,
}

impl Schema {
    fn version(&self) -> i64 {
        i64::try_from(self.migrations.len()).expect("a handful of migrations")
    }
}

/// A database that is ready for use.
pub(crate) struct Ready {
    pub(crate) connection: Connection,
    /// The file was empty or missing.
    pub(crate) fresh: bool,
}

/// Opens the database at `path`, for this process alone, and migrates it. `begin` writes what a new
/// one must never be without, in the transaction that makes its tables.
pub(crate) fn open(
    path: &Path,
    schema: &Schema,
    begin: impl Fn(&Connection) -> rusqlite::Result<()>,
) -> Result<Ready, StoreError> {
    let failed = |source| StoreError::from_sqlite(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(failed)? {
        return Err(StoreError::ReadOnly { path: path.to_owned(), source: None });
    }
    configure(&connection, schema).map_err(failed)?;
    let found = version(&connection).map_err(failed)?;
    if found > schema.version() {
        let path = path.to_owned();
        return Err(StoreError::NewerSchema { path, found, known: schema.version() });
    }
    migrate(&mut connection, schema, found, begin).map_err(failed)?;

    Ok(Ready { connection, fresh: found == 0 })
}

fn configure(connection: &Connection, schema: &Schema) -> rusqlite::Result<()> {
    // A second process is told at once, it does not wait.
    connection.busy_timeout(Duration::ZERO)?;
    // Before the first access: then the log needs no shared memory beside the database.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // Damage is reported where it is, rather than followed.
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_AUTOCHECKPOINT_PAGES)?;
    connection.pragma_update(None, "journal_size_limit", JOURNAL_SIZE_LIMIT_BYTES)?;

    connection.pragma_update(
        None,
        "max_page_count",
        i64::try_from(schema.limit_bytes / PAGE_BYTES).unwrap_or(i64::MAX),
    )
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Each step is a transaction of its own, with the version it leads to.
fn migrate(
    connection: &mut Connection,
    schema: &Schema,
    found: i64,
    begin: impl Fn(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    for (version, statements) in (1_i64..).zip(schema.migrations) {
        if version <= found {
            continue;
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(statements)?;
        if version == 1 {
            begin(&transaction)?;
        }
        transaction.pragma_update(None, "application_id", schema.application_id)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, schema: &Schema) -> Result<Ready, StoreError> {
        super::open(path, schema, |_| Ok(()))
    }

    const LIMIT_BYTES: u64 = 1024 * 1024;
    const FIRST: Schema = Schema {
        application_id: 1,
        migrations: &["CREATE TABLE a (x); INSERT INTO a VALUES (1)"],
        limit_bytes: LIMIT_BYTES,
    };
    const THIRD: Schema = Schema {
        application_id: 1,
        migrations: &[FIRST.migrations[0], "ALTER TABLE a ADD COLUMN y", "UPDATE a SET y = x + 1"],
        limit_bytes: LIMIT_BYTES,
    };
    const BROKEN: Schema = Schema {
        application_id: 1,
        migrations: &[FIRST.migrations[0], "DELETE FROM a; SELECT nonsense"],
        limit_bytes: LIMIT_BYTES,
    };

    #[test]
    fn an_older_schema_is_migrated_step_by_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        assert!(open(&path, &FIRST).unwrap().fresh);
        let ready = open(&path, &THIRD).unwrap();

        assert!(!ready.fresh);
        assert_eq!(version(&ready.connection).unwrap(), 3);
        let sum = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        assert_eq!(ready.connection.query_row("SELECT y FROM a", [], sum).unwrap(), 2);
    }

    #[test]
    fn a_migration_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        drop(open(&path, &FIRST).unwrap());
        assert!(open(&path, &BROKEN).is_err());

        let ready = open(&path, &FIRST).unwrap();
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        assert_eq!(ready.connection.query_row("SELECT count(*) FROM a", [], count).unwrap(), 1);
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        drop(open(&path, &THIRD).unwrap());
        let refused = open(&path, &FIRST).err().unwrap();

        assert!(matches!(refused, StoreError::NewerSchema { found: 3, known: 1, .. }));
        assert!(refused.to_string().contains("install the release that wrote it"), "{refused}");
        assert!(!open(&path, &THIRD).unwrap().fresh);
    }

    #[test]
    fn a_second_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let _first = open(&path, &FIRST).unwrap();

        assert!(matches!(open(&path, &FIRST), Err(StoreError::Locked { .. })));
    }
}
