//! A database of another release, or one that nobody has open: which schema it has, and all of it in one
//! file. `edgeadm upgrade` copies it then, for a release that is taken back may have migrated it.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::error::StoreError;
use crate::{outbox, state};

/// The databases in the folder of the store. Each opens with the key file alone.
pub const DATABASES: [&str; 2] = [state::FILE, outbox::FILE];

/// The schema of the database at `path`, whose log is folded into it; `None` if there is none. Nothing is
/// migrated, and nothing that is written is lost by a power cut.
pub fn settle(path: &Path) -> Result<Option<i64>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let failed = |source| StoreError::from_sqlite(path, source);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    let schema = fold(&connection).map_err(failed)?;
    // The last to close it removes the log.
    connection.close().map_err(|(_, source)| failed(source))?;

    Ok(Some(schema))
}

fn fold(connection: &Connection) -> rusqlite::Result<i64> {
    connection.busy_timeout(Duration::ZERO)?;
    // As the agent does: the log then needs no shared memory, and a running agent is told from none.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let schema = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))?;

    Ok(schema)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc;

    use super::*;
    use crate::{KEY, Options, Store};

    fn put(store: &Store, value: &[u8]) {
        let (tell, told) = mpsc::channel();
        let done = Box::new(move |outcome| tell.send(outcome).unwrap());
        store.put_setting("a", value.to_vec(), done);
        told.recv().unwrap().unwrap();
    }

    #[test]
    fn a_settled_database_is_one_file_with_all_that_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASES[0]);
        assert_eq!(settle(&path).unwrap(), None);
        let options = Options::in_folder(dir.path());
        let (store, _) = Store::open(&options).unwrap();
        put(&store, b"kept");
        assert!(matches!(settle(&path), Err(StoreError::Locked { .. })), "an agent has it open");
        // What a power cut leaves: the log is not folded in.
        let cut = tempfile::tempdir().unwrap();
        for name in ["state.db", "state.db-wal", KEY] {
            fs::copy(dir.path().join(name), cut.path().join(name)).unwrap();
        }
        drop(store);

        let path = cut.path().join(DATABASES[0]);
        assert_eq!(settle(&path).unwrap(), Some(crate::STATE_SCHEMA));
        assert!(!cut.path().join("state.db-wal").exists());
        let (_, opened) = Store::open(&Options::in_folder(cut.path())).unwrap();
        assert_eq!(opened.settings["a"], b"kept");
        assert!(opened.is_intact());
    }

    #[test]
    fn a_later_schema_is_told_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DATABASES[0]);
        drop(Store::open(&Options::in_folder(dir.path())).unwrap());
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert_eq!(settle(&path).unwrap(), Some(99));
        assert_eq!(settle(&path).unwrap(), Some(99));

        fs::write(&path, b"no database at all, but long enough to be looked at as one").unwrap();
        assert!(settle(&path).is_err());
    }
}
