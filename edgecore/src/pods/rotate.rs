//! Logs that grow: at a size the file is set aside and the runtime begins another. Of those set aside the
//! newest stay, and all but the newest are compressed (kubelet: `container_log_manager.go`).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::context::Context;
use crate::blocking;
use crate::clock;
use crate::kubelet_api::Incarnation;
use crate::telemetry::chain;
use crate::volumes::remove::gone_is_done;

/// Between two looks at all logs.
pub const PERIOD: Duration = Duration::from_secs(10);

/// What a log's name ends with that is set aside, in the order of time.
const TIME: &str = ".%Y%m%d-%H%M%S";
/// What is compressed, and what is being compressed.
const COMPRESSED: &str = ".gz";
const UNFINISHED: &str = ".tmp";

/// How much of their logs containers keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A log of so many bytes is set aside; none is if `None`.
    pub size_max: Option<u64>,
    /// Files of one attempt: the one that is written, and those set aside.
    pub files_max: usize,
}

/// Why what was set aside stays as it is.
#[derive(Debug, thiserror::Error)]
enum TidyError {
    /// It cannot be seen.
    #[error("cannot list {}", dir.display())]
    List {
        /// Where it is.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An old one stays, or what a tidying left.
    #[error("cannot remove {}", path.display())]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One stays as large as it is.
    #[error("cannot compress {}", path.display())]
    Compress {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Looks at the logs of all that runs.
pub async fn rotate(context: Arc<Context>) {
    let Some(size_max) = context.log_policy.size_max else { return };
    let running = context.registry.running();
    let is_due = move |seen: &Incarnation| is_due(&seen.log, size_max);
    let due = move || running.into_iter().filter(is_due).collect::<Vec<_>>();
    for Incarnation { id, log } in blocking::run(due).await {
        if let Err(error) = one(&context, &id, &log).await {
            tracing::warn!(log = %log.display(), error, "a log grows and cannot be set aside");
        }
    }
}

/// Whether the log is too large; or was set aside, and nobody told the runtime.
fn is_due(log: &Path, size_max: u64) -> bool {
    match fs::metadata(log) {
        Ok(found) => found.len() >= size_max,
        Err(error) => error.kind() == io::ErrorKind::NotFound && log.file_name().is_some(),
    }
}

async fn one(context: &Context, id: &str, log: &Path) -> Result<(), String> {
    let (from, now) = (log.to_owned(), clock::now());
    let renamed = blocking::run(move || {
        let to = next_aside(&from, now);
        gone_is_done(fs::rename(from, &to)).map(|()| to)
    });
    let (back_from, back_to) = (renamed.await.map_err(|e| e.to_string())?, log.to_owned());
    if let Err(error) = context.runtime.reopen_container_log(id).await {
        // It goes on writing to the file that it has: that one keeps the name. One that has ended has
        // written all.
        let renamed = blocking::run(move || gone_is_done(fs::rename(back_from, back_to))).await;
        return renamed.map_err(|e| e.to_string()).and_then(|()| Err(error.message()));
    }
    let (log, files_max) = (log.to_owned(), context.log_policy.files_max);
    if let Err(error) = blocking::run_in(&blocking::ARCHIVES, move || tidy(&log, files_max)).await {
        let error = chain(&error);
        tracing::warn!(
            error,
            "logs that were set aside are not compressed or removed; free space on podLogsDir"
        );
    }

    Ok(())
}

/// `0.log` is set aside as `0.log.20260101-000000`.
fn aside(log: &Path, at: Timestamp) -> PathBuf {
    with(log, &at.strftime(TIME).to_string())
}

/// As what it is set aside now: of all names the last, after the clock was set back, too.
fn next_aside(log: &Path, now: Timestamp) -> PathBuf {
    let newest = || {
        let (all, _) = set_aside(log).ok()?;
        let rest = all.last()?.to_str()?.strip_prefix(log.to_str()?)?;
        let time = DateTime::strptime(TIME, rest.trim_end_matches(COMPRESSED)).ok()?;
        let at = time.to_zoned(TimeZone::UTC).ok()?.timestamp();
        at.checked_add(SignedDuration::from_secs(1)).ok()
    };

    aside(log, newest().map_or(now, |after| after.max(now)))
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);

    name.into()
}

/// Removes the oldest of those set aside, and compresses all others but the newest. One that fails does not
/// stop the others; the first failure is answered.
fn tidy(log: &Path, files_max: usize) -> Result<(), TidyError> {
    let (set_aside, left) = set_aside(log)?;
    let excess = set_aside.len().saturating_sub(files_max.saturating_sub(1));
    let (old, kept) = set_aside.split_at(excess);
    let older = kept.split_last().map_or(&[][..], |(_newest, older)| older);
    // First: what is compressed needs space.
    let removed = left.iter().chain(old).map(|path| remove(path));
    let uncompressed = older.iter().filter(|path| !ends_with(path, COMPRESSED));
    let compressed = uncompressed.map(|path| compress(path));

    removed.chain(compressed).fold(Ok(()), Result::and)
}

/// What was set aside of a log, the oldest first: their names are in the order of time. And what a tidying
/// left that was broken off.
fn set_aside(log: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), TidyError> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(OsStr::to_str)) else {
        return Ok((Vec::new(), Vec::new()));
    };
    let mut all = match begin_with(dir, name) {
        // The pod has gone meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        all => all.map_err(|source| TidyError::List { dir: dir.to_owned(), source })?,
    };
    all.sort();
    let is_left = |path: &PathBuf| {
        ends_with(path, UNFINISHED) || all.binary_search(&with(path, COMPRESSED)).is_ok()
    };
    let (left, used) = all.iter().cloned().partition(is_left);

    Ok((used, left))
}

/// What is called NAME.ANYTHING there.
fn begin_with(dir: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let rest = entry.to_str().and_then(|entry| entry.strip_prefix(name));
        if rest.is_some_and(|rest| rest.starts_with('.')) {
            all.push(dir.join(entry));
        }
    }

    Ok(all)
}

fn ends_with(path: &Path, suffix: &str) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(suffix))
}

fn remove(path: &Path) -> Result<(), TidyError> {
    let removed = gone_is_done(fs::remove_file(path));

    removed.map_err(|source| TidyError::Remove { path: path.to_owned(), source })
}

/// Replaces a file by what gzip makes of it.
fn compress(path: &Path) -> Result<(), TidyError> {
    let unfinished = with(path, UNFINISHED);
    let done = compress_into(path, &unfinished)
        .and_then(|()| fs::rename(&unfinished, with(path, COMPRESSED)));
    if done.is_err() {
        // What is left is removed with the next.
        let _unneeded = fs::remove_file(&unfinished);
    }

    match done {
        Ok(()) => remove(path),
        // The pod may go meanwhile, and its logs with it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(TidyError::Compress { path: path.to_owned(), source }),
    }
}

fn compress_into(path: &Path, unfinished: &Path) -> io::Result<()> {
    let mut from = File::open(path)?;
    let into = OpenOptions::new().write(true).create(true).truncate(true).open(unfinished)?;
    into.set_permissions(from.metadata()?.permissions())?;
    let mut into = GzEncoder::new(into, Compression::default());
    io::copy(&mut from, &mut into)?;

    // Before the other goes: a power cut leaves one of them whole.
    into.finish()?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt;

    use flate2::read::GzDecoder;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();

        names
    }

    #[test]
    fn the_newest_of_those_set_aside_stay_and_all_but_one_are_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("1.log");
        let text = |second| format!("line {second}\n").repeat(1000);
        for second in 0..7 {
            let at = Timestamp::from_second(1_767_225_600 + second).unwrap();
            let path = aside(&log, at);
            fs::write(&path, text(second)).unwrap();
            fs::set_permissions(&path, PermissionsExt::from_mode(0o604)).unwrap();
        }
        for other in ["1.log", "0.log.20260101-000000", "11.log"] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        // One tidying was broken off before it had written all, another before it had removed the first.
        for left in ["1.log.20260101-000003.tmp", "1.log.20260101-000005"] {
            fs::write(dir.path().join(left), "").unwrap();
        }
        let before = dir.path().join("1.log.20260101-000005");
        fs::write(with(&before, COMPRESSED), "compressed").unwrap();
        for _again in 0..2 {
            tidy(&log, 5).unwrap();

            let expected = [
                "0.log.20260101-000000",
                "1.log",
                "1.log.20260101-000003.gz",
                "1.log.20260101-000004.gz",
                "1.log.20260101-000005.gz",
                "1.log.20260101-000006",
                "11.log",
            ];
            assert_eq!(names(dir.path()), expected);
        }
        assert_eq!(fs::read(with(&before, COMPRESSED)).unwrap(), b"compressed");
        let compressed = File::open(dir.path().join("1.log.20260101-000004.gz")).unwrap();
        assert_eq!(compressed.metadata().unwrap().permissions().mode() & 0o777, 0o604);
        let mut read = String::new();
        GzDecoder::new(compressed).read_to_string(&mut read).unwrap();
        assert_eq!(read, text(4));

        tidy(&log, 2).unwrap();
        let expected = ["0.log.20260101-000000", "1.log", "1.log.20260101-000006", "11.log"];
        assert_eq!(names(dir.path()), expected);
    }

    #[test]
    fn what_is_set_aside_last_is_the_newest_whatever_the_clock_says() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("1.log");
        for (second, expected) in [
            (1_767_225_600, "1.log.20260101-000000"),
            (0, "1.log.20260101-000001"),
            (2_398_377_600, "1.log.20460101-000000"),
            (1_767_225_600, "1.log.20460101-000001"),
        ] {
            let path = next_aside(&log, Timestamp::from_second(second).unwrap());
            assert_eq!(path, dir.path().join(expected));
            fs::write(path, "line\n").unwrap();
            tidy(&log, 9).unwrap();
        }
    }

    #[test]
    fn one_that_cannot_be_compressed_or_removed_is_named_and_does_not_stop_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("1.log");
        for second in 0..7 {
            let path = aside(&log, Timestamp::from_second(1_767_225_600 + second).unwrap());
            match second {
                // Neither is a file.
                0 | 3 => fs::create_dir(path).unwrap(),
                _ => fs::write(path, "line\n").unwrap(),
            }
        }
        let said = |files_max| tidy(&log, files_max).unwrap_err().to_string();
        assert!(
            said(6).starts_with("cannot remove ") && said(6).ends_with("000000"),
            "{}",
            said(6)
        );
        fs::remove_dir(dir.path().join("1.log.20260101-000000")).unwrap();
        assert!(said(6).starts_with("cannot compress ") && said(6).ends_with("000003"));

        let expected = [
            "1.log.20260101-000002.gz",
            "1.log.20260101-000003",
            "1.log.20260101-000004.gz",
            "1.log.20260101-000005.gz",
            "1.log.20260101-000006",
        ];
        assert_eq!(names(dir.path()), expected);
        tidy(&dir.path().join("gone/1.log"), 6).unwrap();
    }

    #[test]
    fn a_log_is_due_when_it_is_large_or_lost() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        assert!(is_due(&log, 100) && !is_due(Path::new(""), 100));
        let file = File::create(&log).unwrap();
        file.set_len(99).unwrap();
        assert!(!is_due(&log, 100));
        file.set_len(100).unwrap();
        assert!(is_due(&log, 100));
    }
}
