//! Looks at the files of an upgrade, and takes its steps. Files appear and go by renames, whose folders are
//! synced: a power cut leaves each step not done or done.

#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA256};
use rustix::fs::{FlockOperation, flock};
use store::StoreError;

use super::journal::{Journal, LOCK};
use super::machine::{Phase, Program, Seen, Step, Store};

/// The copy of the store, in its folder.
const COPY: &str = "before-upgrade";
/// What SQLite and the store keep beside a database.
const BESIDE: [&str; 4] = ["-wal", "-journal", "-shm", ".suspect"];
const CHUNK_BYTES: usize = 64 * 1024;

/// Why a step cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The disk refuses it.
    #[error("cannot {attempted} {}", path.display())]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store cannot be copied.
    #[error("the store cannot be copied")]
    Store(#[source] StoreError),
    /// The new program does not know the store.
    #[error(
        "the store has schema {found} and the new version knows up to {known}: it is older than the one \
         that wrote it"
    )]
    NewerStore {
        /// Of the store.
        found: i64,
        /// Of the program.
        known: i64,
    },
    /// The new program is not what it was.
    #[error("{} is not the program that was checked", .0.display())]
    Changed(PathBuf),
}

fn failed(attempted: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();

    move |source| DiskError::Io { attempted, path, source }
}

/// What this process has done itself since it began.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    has_copied: bool,
    has_swapped: bool,
}

impl Own {
    /// After a step that was taken.
    pub fn note(&mut self, step: Step) {
        self.has_copied |= step == Step::CopyStore;
        self.has_swapped |= step == Step::Swap;
    }
}

/// Where the new program waits, beside the old: a rename must not leave the file system.
pub fn staged(program: &Path) -> PathBuf {
    beside(program, "next")
}

/// Where the old program is kept.
pub fn kept(program: &Path) -> PathBuf {
    beside(program, "last")
}

fn beside(program: &Path, suffix: &str) -> PathBuf {
    let name = program.file_name().unwrap_or_default().to_string_lossy();

    program.with_file_name(format!(".{name}.{suffix}"))
}

/// Copies of the store: one that is whole, and one that is not yet.
pub fn copies_of(state_dir: &Path) -> [PathBuf; 2] {
    let copy = copy_of(state_dir);

    [new(&copy), copy]
}

fn copy_of(state_dir: &Path) -> PathBuf {
    state_dir.join(COPY)
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Context::new(&SHA256);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(proto::object::hex(digest.finish().as_ref())),
            read => digest.update(&chunk[..read]),
        }
    }
}

/// Which program the agent is started from.
pub fn program(journal: &Journal) -> Result<Program, DiskError> {
    let found = sha256(&journal.program).map_err(failed("read", &journal.program))?;

    Ok(if found == journal.to.sha256 {
        Program::New
    } else if found == journal.from.sha256 {
        Program::Old
    } else {
        Program::Other
    })
}

/// What the disk says of an upgrade of the agent whose configuration is in `dir`.
pub fn look(dir: &Path, journal: &Journal, own: Own) -> Result<Seen, DiskError> {
    let copies = copies_of(&journal.state_dir);
    let (staged, kept) = (staged(&journal.program), kept(&journal.program));
    let has_files = [&staged, &kept].into_iter().chain(&copies).any(|path| path.exists());
    let mut seen = Seen {
        phase: Some(journal.phase),
        is_asked: false,
        has_copied: own.has_copied,
        has_swapped: own.has_swapped,
        program: Program::Old,
        has_old: false,
        has_copy: copy_of(&journal.state_dir).exists(),
        store: Store::OfOld,
        has_files,
    };
    // A start without an upgrade reads no programs.
    if journal.is_open() {
        seen.is_asked = is_asked(dir);
        seen.program = program(journal)?;
        seen.has_old = sha256(&kept).is_ok_and(|found| found == journal.from.sha256);
    }
    if journal.phase == Phase::Returning && !to_put_back(journal)?.is_empty() {
        seen.store = Store::Otherwise;
    }

    Ok(seen)
}

/// Whether somebody holds the lock.
fn is_asked(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join(LOCK)) else { return false };

    flock(&file, FlockOperation::NonBlockingLockShared).is_err()
}

/// Takes a step.
pub fn take(dir: &Path, journal: &mut Journal, step: Step) -> Result<(), DiskError> {
    match step {
        Step::CopyStore => copy_store(journal)?,
        Step::KeepOld => return keep_old(&journal.program),
        Step::Swap => return swap(journal),
        Step::PutOldBack => return put(&kept(&journal.program), &journal.program),
        Step::PutStoreBack => return put_store_back(journal),
        Step::Clean => return clean(journal),
        Step::Mark(phase, why) => {
            journal.phase = phase;
            journal.why = why.or(journal.why);
        }
    }

    journal.keep(dir).map_err(failed("write the journal in", dir))
}

/// Renames, durably.
fn put(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::rename(from, to).map_err(failed("put into place", from))?;

    sync_folder(to)
}

fn sync_folder(path: &Path) -> Result<(), DiskError> {
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));

    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("sync", folder))
}

/// A copy whose content is durable; its name is not yet.
pub fn copy_file(from: &Path, to: &Path) -> Result<(), DiskError> {
    fs::copy(from, to).map_err(failed("copy", from))?;

    File::open(to).and_then(|file| file.sync_all()).map_err(failed("sync", to))
}

/// Puts a copy of `file` where the new program waits.
pub fn stage(file: &Path, program: &Path) -> Result<(), DiskError> {
    let staged = staged(program);
    remove(&staged)?;
    if let Err(error) = copy_file(file, &staged) {
        // Half a program is of no use, and the disk may be full.
        remove(&staged)?;
        return Err(error);
    }
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&staged, mode).map_err(failed("make executable", &staged))?;
    File::open(&staged).and_then(|file| file.sync_all()).map_err(failed("sync", &staged))?;

    sync_folder(&staged)
}

fn new(folder: &Path) -> PathBuf {
    folder.with_extension("new")
}

fn copy_store(journal: &mut Journal) -> Result<(), DiskError> {
    let dir = &journal.state_dir;
    let copy = copy_of(dir);
    let new = new(&copy);
    remove_folder(&copy)?;
    remove_folder(&new)?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&new);
    made.map_err(failed("make", &new))?;
    let mut schemas = Vec::new();
    for name in store::DATABASES {
        let Some(schema) = store::settle(&dir.join(name)).map_err(DiskError::Store)? else {
            continue;
        };
        copy_file(&dir.join(name), &new.join(name))?;
        schemas.push((name.to_owned(), schema));
    }
    if dir.join(store::KEY).exists() {
        copy_file(&dir.join(store::KEY), &new.join(store::KEY))?;
    }
    sync_folder(&new.join(store::KEY))?;
    put(&new, &copy)?;
    let known = journal.to.state_schema;
    let state = schemas.iter().find(|(name, _)| name == store::DATABASES[0]);
    journal.schemas.clone_from(&schemas);
    match state {
        Some((_, found)) if *found > known => Err(DiskError::NewerStore { found: *found, known }),
        _ => Ok(()),
    }
}

fn keep_old(program: &Path) -> Result<(), DiskError> {
    let kept = kept(program);
    remove(&kept)?;
    if fs::hard_link(program, &kept).is_err() {
        // Not every file system has links.
        copy_file(program, &kept)?;
    }

    sync_folder(&kept)
}

fn swap(journal: &Journal) -> Result<(), DiskError> {
    let staged = staged(&journal.program);
    let found = sha256(&staged).map_err(failed("read", &staged))?;
    if found != journal.to.sha256 {
        return Err(DiskError::Changed(staged));
    }

    put(&staged, &journal.program)
}

/// The databases that the old program would not open.
fn to_put_back(journal: &Journal) -> Result<Vec<&str>, DiskError> {
    let copy = copy_of(&journal.state_dir);
    let mut names = Vec::new();
    for (name, schema) in &journal.schemas {
        let is_of_old = match store::settle(&journal.state_dir.join(name)) {
            Ok(found) => found == Some(*schema),
            // Somebody uses it: nothing can be said, and nothing may be done.
            Err(error @ StoreError::Locked { .. }) => return Err(DiskError::Store(error)),
            Err(_unreadable) => false,
        };
        if !is_of_old && copy.join(name).exists() {
            names.push(name.as_str());
        }
    }

    Ok(names)
}

fn put_store_back(journal: &Journal) -> Result<(), DiskError> {
    let (dir, copy) = (&journal.state_dir, copy_of(&journal.state_dir));
    let names = to_put_back(journal)?;
    if !names.is_empty() && copy.join(store::KEY).exists() {
        put(&copy.join(store::KEY), &dir.join(store::KEY))?;
    }
    for name in names {
        // A log belongs to the database that goes.
        for suffix in BESIDE {
            remove(&dir.join(format!("{name}{suffix}")))?;
        }
        put(&copy.join(name), &dir.join(name))?;
    }

    remove_folder(&copy)
}

/// Removes what an upgrade has put aside.
pub fn clean(journal: &Journal) -> Result<(), DiskError> {
    remove(&staged(&journal.program))?;
    remove(&kept(&journal.program))?;

    copies_of(&journal.state_dir).iter().try_for_each(|copy| remove_folder(copy))
}

fn remove(path: &Path) -> Result<(), DiskError> {
    gone(fs::remove_file(path)).map_err(failed("remove", path))
}

fn remove_folder(path: &Path) -> Result<(), DiskError> {
    gone(fs::remove_dir_all(path)).map_err(failed("remove", path))
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
