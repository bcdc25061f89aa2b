//! Space kept for the day when the disk is full: what takes pods away must still be written then, for it is
//! what frees the disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Kept; a deletion writes some ten pages of the log, which a checkpoint lets begin anew.
const RESERVE_BYTES: usize = 512 * 1024;

/// Commits that are larger bring something new, and have to wait for room.
const SMALL_BYTES: usize = 64 * 1024;

/// Commits between two tries to take the space back.
const COMMITS_BETWEEN_TRIES: u32 = 256;

#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    commits: u32,
}

impl Reserve {
    /// The reserve of a database, taken if there is room for it.
    pub(crate) fn of(database: &Path) -> Self {
        let reserve =
            Self { path: PathBuf::from(format!("{}.reserve", database.display())), commits: 0 };
        reserve.take();

        reserve
    }

    /// Whether a commit may be tried: one that is not small only when the space is not needed for others.
    pub(crate) fn admits(&self, bytes: usize) -> bool {
        bytes <= SMALL_BYTES || self.take()
    }

    /// Gives the space to a commit that found none; whether there was any, and it may have it.
    pub(crate) fn give_up(&self, bytes: usize) -> bool {
        bytes <= SMALL_BYTES && fs::remove_file(&self.path).is_ok()
    }

    /// A commit succeeded: there may be room again.
    pub(crate) fn committed(&mut self) {
        self.commits += 1;
        if self.commits == COMMITS_BETWEEN_TRIES {
            self.commits = 0;
            self.take();
        }
    }

    /// Takes the space if it is not held; false if the disk is too full for it.
    fn take(&self) -> bool {
        if self.path.exists() {
            return true;
        }
        let Err(error) = self.fill() else { return true };
        tracing::debug!(path = %self.path.display(), %error, "no space is kept in reserve");
        // Half of it would fill the disk for nothing.
        drop(fs::remove_file(&self.path));

        error.kind() != io::ErrorKind::StorageFull
    }

    fn fill(&self) -> io::Result<()> {
        File::create(&self.path)?.write_all(&vec![0; RESERVE_BYTES])
    }
}
