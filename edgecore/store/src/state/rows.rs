//! The rows of `state.db` and what they are sealed to.

use std::sync::Arc;

use bytes::Bytes;
use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{Change, ContentHash, Object, Version};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{Opened, TOMBSTONES_MAX, Write};
use crate::seal::{About, Sealer};

/// No table but that of tombstones has an index beside it: reading a table at start visits every page
/// that a later write needs, so that damage shows at start.
pub(super) const SCHEMA_1: &str = "
    CREATE TABLE keys (id BLOB NOT NULL PRIMARY KEY);
    CREATE TABLE objects (
        kind INTEGER NOT NULL,
        id TEXT NOT NULL,
        uid TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        hash BLOB NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID;
    CREATE TABLE memories (pod TEXT NOT NULL PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE tombstones (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        pod TEXT NOT NULL UNIQUE,
        sealed BLOB NOT NULL
    );
    CREATE TABLE settings (name TEXT NOT NULL PRIMARY KEY, sealed BLOB NOT NULL) WITHOUT ROWID;
";

const PUT_OBJECT: &str = "
    INSERT INTO objects (kind, id, uid, epoch, revision, hash, sealed)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (kind, id) DO UPDATE SET
        uid = excluded.uid, epoch = excluded.epoch, revision = excluded.revision,
        hash = excluded.hash, sealed = excluded.sealed";
const DELETE_OBJECT: &str = "DELETE FROM objects WHERE kind = ?1 AND id = ?2 AND uid = ?3";
const PUT_MEMORY: &str = "
    INSERT INTO memories (pod, sealed) VALUES (?1, ?2)
    ON CONFLICT (pod) DO UPDATE SET sealed = excluded.sealed";
const DELETE_MEMORY: &str = "DELETE FROM memories WHERE pod = ?1";
const PUT_SETTING: &str = "
    INSERT INTO settings (name, sealed) VALUES (?1, ?2)
    ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed";
const PUT_TOMBSTONE: &str = "
    INSERT INTO tombstones (pod, sealed) VALUES (?1, ?2) ON CONFLICT (pod) DO NOTHING";
const TRIM_TOMBSTONES: &str = "
    DELETE FROM tombstones WHERE seq <= (SELECT max(seq) FROM tombstones) - ?1";

/// Whether rows are read forwards or, to get past a damaged page, backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Forwards,
    Backwards,
}

impl Order {
    fn sql(self) -> &'static str {
        match self {
            Self::Forwards => "ASC",
            Self::Backwards => "DESC",
        }
    }
}

/// A row that was read: opened, or not to be opened and what it says it is.
type Read<T> = Result<T, Option<ObjectKey>>;

/// Reads and writes rows with one key.
pub(super) struct Rows {
    sealer: Arc<Sealer>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rows").finish_non_exhaustive()
    }
}

/// SQLite's integers have a sign, ours do not; the bits are kept.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

fn about_object(key: &ObjectKey, version: &Version) -> About {
    About::table("objects")
        .number(u64::from(key.kind() as u8))
        .text(key.id())
        .text(version.uid.as_str())
        .number(version.epoch)
        .number(version.revision)
        .bytes(&version.hash.0)
}

fn about_named(table: &str, name: &str) -> About {
    About::table(table).text(name)
}

impl Rows {
    pub(super) fn new(sealer: Arc<Sealer>) -> Self {
        Self { sealer }
    }

    /// Notes which key a new database is sealed with.
    pub(super) fn write_key_id(&self, connection: &Connection) -> rusqlite::Result<()> {
        connection
            .execute("INSERT OR IGNORE INTO keys (id) VALUES (?1)", [self.sealer.key_id()])
            .map(drop)
    }

    /// Whether the database is sealed with our key.
    pub(super) fn is_our_key(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let found = connection
            .query_row("SELECT 1 FROM keys WHERE id = ?1", [self.sealer.key_id()], |_row| Ok(()))
            .optional()?;

        Ok(found.is_some())
    }

    pub(super) fn write(&self, connection: &Connection, write: &Write) -> rusqlite::Result<()> {
        match write {
            Write::Object(Change::Put(object)) => self.put_object(connection, object),
            Write::Object(Change::Delete { key, uid }) => self.delete(connection, key, uid),
            Write::Memory { pod, bytes } => {
                let sealed = self.sealer.seal(&about_named("memories", pod.as_str()), bytes);
                execute(connection, PUT_MEMORY, params![pod.as_str(), sealed])
            }
            Write::ForgetPod(pod) => execute(connection, DELETE_MEMORY, params![pod.as_str()]),
            Write::Setting { name, value } => {
                let sealed = self.sealer.seal(&about_named("settings", name), value);
                execute(connection, PUT_SETTING, params![name, sealed])
            }
        }
    }

    fn put_object(&self, connection: &Connection, object: &Object) -> rusqlite::Result<()> {
        let Object { key, version, bytes } = object;
        let sealed = self.sealer.seal(&about_object(key, version), bytes);

        execute(
            connection,
            PUT_OBJECT,
            params![
                key.kind() as u8,
                key.id(),
                version.uid.as_str(),
                signed(version.epoch),
                signed(version.revision),
                version.hash.0.as_slice(),
                sealed,
            ],
        )
    }

    fn delete(&self, connection: &Connection, key: &ObjectKey, uid: &Uid) -> rusqlite::Result<()> {
        execute(connection, DELETE_OBJECT, params![key.kind() as u8, key.id(), uid.as_str()])?;
        if key.kind() != Kind::Pod {
            return Ok(());
        }
        self.put_tombstone(connection, uid)
    }

    pub(super) fn put_tombstone(&self, connection: &Connection, pod: &Uid) -> rusqlite::Result<()> {
        let sealed = self.sealer.seal(&about_named("tombstones", pod.as_str()), &[]);
        execute(connection, PUT_TOMBSTONE, params![pod.as_str(), sealed])?;

        execute(connection, TRIM_TOMBSTONES, params![TOMBSTONES_MAX])
    }

    /// Reads everything.
    pub(super) fn read(&self, connection: &Connection, into: &mut Opened) -> rusqlite::Result<()> {
        self.read_objects(connection, Order::Forwards, into)?;
        self.read_memories(connection, Order::Forwards, into)?;
        self.read_settings(connection, Order::Forwards, into)?;

        self.read_tombstones(connection, into)
    }

    pub(super) fn read_objects(
        &self,
        connection: &Connection,
        order: Order,
        into: &mut Opened,
    ) -> rusqlite::Result<()> {
        let sql = format!(
            "SELECT kind, id, uid, epoch, revision, hash, sealed FROM objects \
             ORDER BY kind {0}, id {0}",
            order.sql()
        );
        let mut statement = connection.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            match self.object(row) {
                Ok(object) => into.objects.push(object),
                Err(Some(key)) => into.damaged.push(key),
                Err(None) => into.damaged_rows += 1,
            }
        }

        Ok(())
    }

    fn object(&self, row: &Row<'_>) -> Read<Object> {
        let Some(key) = key_of(row) else {
            return Err(None);
        };
        // Damage may have changed a column's type; that row is damaged, the others are not.
        let (Some(version), Ok(sealed)) = (version_of(row), row.get::<_, Vec<u8>>(6)) else {
            return Err(Some(key));
        };

        match self.sealer.open(&about_object(&key, &version), sealed) {
            Some(plain) => Ok(Object { key, version, bytes: Bytes::from(plain) }),
            None => Err(Some(key)),
        }
    }

    pub(super) fn read_memories(
        &self,
        connection: &Connection,
        order: Order,
        into: &mut Opened,
    ) -> rusqlite::Result<()> {
        let sql = format!("SELECT pod, sealed FROM memories ORDER BY pod {}", order.sql());
        self.read_named(connection, &sql, "memories", |read| match read {
            Some((pod, bytes)) => match Uid::new(pod) {
                Ok(pod) => into.memories.push((pod, bytes)),
                Err(_) => into.damaged_rows += 1,
            },
            None => into.damaged_rows += 1,
        })
    }

    pub(super) fn read_settings(
        &self,
        connection: &Connection,
        order: Order,
        into: &mut Opened,
    ) -> rusqlite::Result<()> {
        let sql = format!("SELECT name, sealed FROM settings ORDER BY name {}", order.sql());
        self.read_named(connection, &sql, "settings", |read| match read {
            Some((name, value)) => {
                into.settings.insert(name, value);
            }
            None => into.damaged_rows += 1,
        })
    }

    fn read_tombstones(&self, connection: &Connection, into: &mut Opened) -> rusqlite::Result<()> {
        let sql = "SELECT pod, sealed FROM tombstones ORDER BY seq";
        self.read_named(connection, sql, "tombstones", |read| {
            match read.and_then(|(pod, _)| Uid::new(pod).ok()) {
                Some(pod) => into.tombstones.push(pod),
                None => into.damaged_rows += 1,
            }
        })
    }

    /// Reads a table of a name and what is sealed under it; a row that does not open is `None`.
    fn read_named(
        &self,
        connection: &Connection,
        sql: &str,
        table: &str,
        mut take: impl FnMut(Option<(String, Vec<u8>)>),
    ) -> rusqlite::Result<()> {
        let mut statement = connection.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (Ok(name), Ok(sealed)) = (row.get::<_, String>(0), row.get::<_, Vec<u8>>(1)) else {
                take(None);
                continue;
            };
            let plain = self.sealer.open(&about_named(table, &name), sealed);
            take(plain.map(|plain| (name, plain)));
        }

        Ok(())
    }
}

fn execute(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(params).map(drop)
}

fn key_of(row: &Row<'_>) -> Option<ObjectKey> {
    let kind = Kind::from_wire(row.get(0).ok()?)?;

    ObjectKey::from_parts(kind, row.get(1).ok()?)
}

fn version_of(row: &Row<'_>) -> Option<Version> {
    Some(Version {
        uid: Uid::new(row.get::<_, String>(2).ok()?).ok()?,
        epoch: row.get::<_, i64>(3).ok()?.cast_unsigned(),
        revision: row.get::<_, i64>(4).ok()?.cast_unsigned(),
        hash: ContentHash(row.get::<_, Vec<u8>>(5).ok()?.try_into().ok()?),
    })
}
