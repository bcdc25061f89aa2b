//! What is done with a database that is damaged: everything that still opens is taken over into a
//! new one, so that a flipped bit offline costs a row and not the node.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::object::Change;
use rusqlite::Connection;

use super::rows::{Order, Rows};
use super::{Opened, Write};
use crate::error::StoreError;
use crate::key;

/// Reads every table from both ends up to where it is damaged. Each row that opens is one that was
/// written: the seal sees to that.
pub(super) fn read(path: &Path, rows: &Rows) -> Opened {
    let mut saved = Opened::default();
    let connection = match open(path) {
        Ok(connection) => connection,
        Err(error) => {
            tracing::debug!(%error, path = %path.display(), "nothing can be saved");
            return saved;
        }
    };
    let connection = &connection;
    for order in [Order::Forwards, Order::Backwards] {
        let tables = [
            rows.read_objects(connection, order, &mut saved),
            rows.read_memories(connection, order, &mut saved),
            rows.read_settings(connection, order, &mut saved),
        ];
        for error in tables.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, ?order, "a table ends early");
        }
    }
    saved.objects.sort_by(|a, b| a.key.cmp(&b.key));
    saved.objects.dedup_by(|a, b| a.key == b.key);
    saved.memories.sort_by(|a, b| a.0.cmp(&b.0));
    saved.memories.dedup_by(|a, b| a.0 == b.0);
    let opened: BTreeSet<_> = saved.objects.iter().map(|object| object.key.clone()).collect();
    saved.damaged.retain(|key| !opened.contains(key));
    saved.damaged.sort();
    saved.damaged.dedup();

    saved
}

/// A file that is shorter than its header says is read all the same under `writable_schema`.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "writable_schema", true)?;

    Ok(connection)
}

/// Writes what was read into a new database.
pub(super) fn write(connection: &Connection, rows: &Rows, saved: &Opened) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    for object in &saved.objects {
        rows.write(&transaction, &Write::Object(Change::Put(object.clone())))?;
    }
    for (pod, bytes) in &saved.memories {
        rows.write(&transaction, &Write::Memory { pod: pod.clone(), bytes: bytes.clone() })?;
    }
    for (name, value) in &saved.settings {
        let (name, value) = (name.clone(), value.clone());
        rows.write(&transaction, &Write::Setting { name, value })?;
    }

    transaction.commit()
}

/// Renames the files of the database. Only the last damaged one is kept.
pub(crate) fn set_aside(path: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal", "-journal", ".suspect"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        let to = PathBuf::from(format!("{}.damaged{suffix}", path.display()));
        let moved = match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => remove_if_there(&to),
            other => other,
        };
        moved.map_err(|source| StoreError::from_io("set aside", &from, source))?;
    }

    key::sync_folder(path).map_err(|source| StoreError::from_io("sync the folder of", path, source))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
