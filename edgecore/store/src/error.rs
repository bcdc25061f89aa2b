//! Why the store cannot do what was asked, with the remedy in the message.

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

/// A refusal of the store. The store stays usable after all that a call of it answers.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store was closed, or its thread ended.
    #[error("the store is closed")]
    Closed,
    /// Too much waits to be written.
    #[error("{path} has {queued} writes waiting: the disk is too slow for them, try again later")]
    Busy {
        /// The database.
        path: PathBuf,
        /// How many writes wait.
        queued: usize,
    },
    /// Another process has the database open.
    #[error("{path} is in use by another process: stop the other edgecore (fuser {path} names it)")]
    Locked {
        /// The database.
        path: PathBuf,
    },
    /// The file system cannot be written.
    #[error("{path} cannot be written: make its file system and folder writable")]
    ReadOnly {
        /// The database or its folder.
        path: PathBuf,
        /// What the operating system or SQLite said.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The file system is full.
    #[error("the disk is full: {path} cannot grow; free some space, the store goes on by itself")]
    DiskFull {
        /// The database.
        path: PathBuf,
    },
    /// The database is as large as it may be.
    #[error("{path} has reached its limit of {limit_bytes} bytes: delete objects or messages")]
    LimitReached {
        /// The database.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// The operating system refused something.
    #[error("cannot {attempted} {path}")]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The disk or its file system failed.
    #[error("the disk failed under {path}: look at the kernel's log, the store goes on by itself")]
    DiskFailed {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A later release wrote the database.
    #[error(
        "{path} has schema {found} and this release knows up to {known}: install the release that \
         wrote it, or move the file away to fetch everything from the cloud again"
    )]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The latest this release knows.
        known: i64,
    },
    /// The file is not what was written.
    #[error(
        "{path} is damaged: what could be read was kept, the rest comes from the cloud again; check \
         the disk"
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The key that opens the rows is gone or another one.
    #[error(
        "the key {path} does not open the store: a new one was made and everything comes from the \
         cloud again; restore the old key and database to undo this"
    )]
    KeyLost {
        /// The key file.
        path: PathBuf,
    },
    /// Anything else that SQLite refuses.
    #[error("cannot use {path}")]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

impl StoreError {
    /// Sorts what SQLite reports by what the operator can do about it.
    pub(crate) fn from_sqlite(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        let Some(code) = source.sqlite_error_code() else {
            return Self::Database { path, source };
        };
        if code == ErrorCode::DiskFull {
            Self::DiskFull { path }
        } else if code == ErrorCode::ReadOnly {
            Self::ReadOnly { path, source: Some(source.into()) }
        } else if matches!(code, ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) {
            Self::Locked { path }
        } else if matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) {
            Self::Damaged { path, source }
        } else if matches!(code, ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) {
            Self::DiskFailed { path, source }
        } else {
            Self::Database { path, source }
        }
    }

    /// An error of the operating system about `path`.
    pub(crate) fn from_io(attempted: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        let kind = source.kind();
        if matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            Self::DiskFull { path }
        } else if kind == io::ErrorKind::ReadOnlyFilesystem {
            Self::ReadOnly { path, source: Some(source.into()) }
        } else {
            Self::Io { attempted, path, source }
        }
    }

    /// Whether the same write may succeed later without a hand on the node's configuration.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::DiskFull { .. }
            | Self::LimitReached { .. }
            | Self::DiskFailed { .. }
            | Self::Io { .. } => true,
            Self::Closed
            | Self::Locked { .. }
            | Self::ReadOnly { .. }
            | Self::NewerSchema { .. }
            | Self::Damaged { .. }
            | Self::KeyLost { .. }
            | Self::Database { .. } => false,
        }
    }
}
