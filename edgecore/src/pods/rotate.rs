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
use jiff::Timestamp;

use super::context::Context;
use crate::blocking;
use crate::clock;
use crate::kubelet_api::Incarnation;
use crate::volumes::remove::gone_is_done;

/// Between two looks at all logs.
pub const PERIOD: Duration = Duration::from_secs(10);

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
    let (from, to) = (log.to_owned(), aside(log, clock::now()));
    let (back_to, back_from) = (from.clone(), to.clone());
    blocking::run(move || gone_is_done(fs::rename(from, to))).await.map_err(|e| e.to_string())?;
    if let Err(error) = context.runtime.reopen_container_log(id).await {
        // It goes on writing to the file that it has: that one keeps the name. One that has ended has
        // written all.
        let renamed = blocking::run(move || gone_is_done(fs::rename(back_from, back_to))).await;
        return renamed.map_err(|e| e.to_string()).and_then(|()| Err(error.message()));
    }
    let (log, files_max) = (log.to_owned(), context.log_policy.files_max);
    let tidied = blocking::run_in(&blocking::ARCHIVES, move || tidy(&log, files_max)).await;

    tidied.map_err(|e| e.to_string())
}

/// `0.log` is set aside as `0.log.20260101-000000`.
fn aside(log: &Path, now: Timestamp) -> PathBuf {
    with(log, &now.strftime(".%Y%m%d-%H%M%S").to_string())
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);

    name.into()
}

/// Removes the oldest of those set aside, and compresses all others but the newest.
fn tidy(log: &Path, files_max: usize) -> io::Result<()> {
    let set_aside = set_aside(log)?;
    let excess = set_aside.len().saturating_sub(files_max.saturating_sub(1));
    let (old, kept) = set_aside.split_at(excess);
    for old in old {
        gone_is_done(fs::remove_file(old))?;
    }
    let Some((_newest, older)) = kept.split_last() else { return Ok(()) };
    for older in older.iter().filter(|path| !ends_with(path, COMPRESSED)) {
        // The pod may go meanwhile, and its logs with it.
        gone_is_done(compress(older))?;
    }

    Ok(())
}

/// What was set aside of a log, the oldest first: their names are in the order of time. What a tidying left
/// that was broken off is removed.
fn set_aside(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(OsStr::to_str)) else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let rest = entry.to_str().and_then(|entry| entry.strip_prefix(name));
        if rest.is_some_and(|rest| rest.starts_with('.')) {
            all.push(dir.join(entry));
        }
    }
    all.sort();
    let is_left = |path: &PathBuf| {
        ends_with(path, UNFINISHED) || all.binary_search(&with(path, COMPRESSED)).is_ok()
    };
    let (left, used): (Vec<_>, Vec<_>) = all.iter().cloned().partition(is_left);
    for left in left {
        gone_is_done(fs::remove_file(left))?;
    }

    Ok(used)
}

fn ends_with(path: &Path, suffix: &str) -> bool {
    path.to_str().is_some_and(|path| path.ends_with(suffix))
}

/// Replaces a file by what gzip makes of it.
fn compress(path: &Path) -> io::Result<()> {
    let unfinished = with(path, UNFINISHED);
    let done = compress_into(path, &unfinished)
        .and_then(|()| fs::rename(&unfinished, with(path, COMPRESSED)));
    if done.is_err() {
        // What is left is removed with the next.
        let _unneeded = fs::remove_file(&unfinished);
    }
    done?;

    fs::remove_file(path)
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
