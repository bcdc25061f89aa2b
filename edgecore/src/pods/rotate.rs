//! Logs that grow: at a size the file is set aside and the runtime begins another, and of those set
//! aside the newest stay (kubelet: `containerLogMaxSize` and `containerLogMaxFiles`, its defaults).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::context::Context;
use crate::blocking;
use crate::clock;
use crate::kubelet_api::Incarnation;
use crate::volumes::remove::gone_is_done;

/// Between two looks at all logs.
pub const PERIOD: Duration = Duration::from_secs(10);

/// A log that is larger is set aside.
const SIZE_MAX: u64 = 10 << 20;

/// Files of one attempt: the one that is written, and those set aside.
const FILES_MAX: usize = 5;

/// Looks at the logs of all that runs.
pub async fn rotate(context: Arc<Context>) {
    let running = context.registry.running();
    let due = move || running.into_iter().filter(|seen| is_due(&seen.log)).collect::<Vec<_>>();
    for Incarnation { id, log } in blocking::run(due).await {
        if let Err(error) = one(&context, &id, &log).await {
            tracing::warn!(log = %log.display(), error, "a log grows and cannot be set aside");
        }
    }
}

/// Whether the log is too large; or was set aside, and nobody told the runtime.
fn is_due(log: &Path) -> bool {
    match fs::metadata(log) {
        Ok(found) => found.len() > SIZE_MAX,
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
    let log = log.to_owned();

    blocking::run(move || prune(&log)).await.map_err(|e| e.to_string())
}

/// `0.log` is set aside as `0.log.20260101-000000`.
fn aside(log: &Path, now: Timestamp) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(now.strftime(".%Y%m%d-%H%M%S").to_string());

    name.into()
}

/// Removes the oldest of those set aside. Their names are in the order of time.
fn prune(log: &Path) -> io::Result<()> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(OsStr::to_str)) else {
        return Ok(());
    };
    let mut set_aside = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?.file_name();
        let rest = entry.to_str().and_then(|entry| entry.strip_prefix(name));
        if rest.is_some_and(|rest| rest.starts_with('.')) {
            set_aside.push(entry);
        }
    }
    set_aside.sort();
    let keep = FILES_MAX - 1;
    for old in set_aside.iter().take(set_aside.len().saturating_sub(keep)) {
        gone_is_done(fs::remove_file(dir.join(old)))?;
    }

    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_those_set_aside_stay() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("1.log");
        for second in 0..7 {
            let at = Timestamp::from_second(1_767_225_600 + second).unwrap();
            fs::write(aside(&log, at), "").unwrap();
        }
        for other in ["1.log", "0.log.20260101-000000", "11.log"] {
            fs::write(dir.path().join(other), "").unwrap();
        }
        prune(&log).unwrap();

        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let kept = (3..7).map(|second| format!("1.log.20260101-00000{second}"));
        let mut expected = vec!["0.log.20260101-000000".to_owned(), "1.log".to_owned()];
        expected.extend(kept);
        expected.push("11.log".to_owned());
        assert_eq!(left, expected);
    }

    #[test]
    fn a_log_is_due_when_it_is_large_or_lost() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        assert!(is_due(&log) && !is_due(Path::new("")));
        let file = fs::File::create(&log).unwrap();
        file.set_len(SIZE_MAX).unwrap();
        assert!(!is_due(&log));
        file.set_len(SIZE_MAX + 1).unwrap();
        assert!(is_due(&log));
    }
}
