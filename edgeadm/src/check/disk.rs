//! The disks: room, and how long it takes until something is safe on them.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgecore::{Config, clock};
use rustix::fs::statvfs;

use super::Finding;

/// Images and logs of a few small pods.
const FREE_MIN_MIB: u64 = 512;
/// A pod start costs one of these (the agent's databases).
const SYNC_SLOW: Duration = Duration::from_millis(200);
const SYNCS: u32 = 5;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let volumes = existing(&config.root_dir);
    let state = existing(&config.state_dir);

    vec![
        room(
            "disk of volumes",
            &volumes,
            statvfs(&volumes).map(|found| Room::of(&found)).map_err(Into::into),
        ),
        room(
            "disk of state",
            &state,
            statvfs(&state).map(|found| Room::of(&found)).map_err(Into::into),
        ),
        sync(&state, slowest_sync(&state)),
    ]
}

/// The path, or the folder above it that is there already.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|path| path.exists()).unwrap_or_else(|| Path::new("/")).to_owned()
}

#[derive(Clone, Copy, Debug)]
struct Room {
    free_mib: u64,
    total_mib: u64,
    free_inodes_percent: u64,
    read_only: bool,
}

impl Room {
    fn of(found: &rustix::fs::StatVfs) -> Self {
        let mib = |blocks: u64| blocks.saturating_mul(found.f_frsize) / 1024 / 1024;
        // Some file systems make inodes as they need them, and count none.
        let percent = found.f_favail.saturating_mul(100).checked_div(found.f_files);

        Self {
            free_mib: mib(found.f_bavail),
            total_mib: mib(found.f_blocks),
            free_inodes_percent: percent.unwrap_or(100),
            read_only: found.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY),
        }
    }
}

fn room(what: &'static str, path: &Path, room: io::Result<Room>) -> Finding {
    let shown = path.display();
    let room = match room {
        Ok(room) => room,
        Err(error) => return Finding::fail(what, format!("{shown}: {error}"), "look at the disk"),
    };
    let found = format!("{} of {} MiB are free at {shown}", room.free_mib, room.total_mib);
    if room.read_only {
        let remedy = "mount it for writing; a card that turned read-only is most likely worn out";
        return Finding::fail(what, format!("{shown} is read-only"), remedy);
    }
    if room.free_mib < FREE_MIN_MIB {
        return Finding::fail(
            what,
            found,
            format!("make {FREE_MIN_MIB} MiB free, or use another disk"),
        );
    }
    if room.free_mib * 10 < room.total_mib || room.free_inodes_percent < 5 {
        let found = format!("{found}, and {} % of the inodes", room.free_inodes_percent);
        let remedy =
            "make room: below a tenth pods are evicted (evictionHard in the configuration)";
        return Finding::warn(what, found, remedy);
    }

    Finding::ok(what, found)
}

/// The longest of a few writes that are waited for.
fn slowest_sync(dir: &Path) -> io::Result<Duration> {
    let path = dir.join(format!(".edgeadm-check-{}", std::process::id()));
    let measured = (|| {
        let mut file = fs::File::create_new(&path)?;
        let mut slowest = Duration::ZERO;
        for _ in 0..SYNCS {
            let began = clock::instant();
            file.write_all(&[0; 4096])?;
            file.sync_all()?;
            slowest = slowest.max(began.elapsed());
        }
        Ok(slowest)
    })();
    let _never_made = fs::remove_file(&path);

    measured
}

fn sync(dir: &Path, slowest: io::Result<Duration>) -> Finding {
    let shown = dir.display();
    match slowest {
        Err(error) => Finding::fail(
            "disk speed",
            format!("cannot write to {shown}: {error}"),
            "make it writable for root",
        ),
        Ok(slowest) if slowest > SYNC_SLOW => Finding::warn(
            "disk speed",
            format!("a write took {} ms until it was safe at {shown}", slowest.as_millis()),
            "use a faster disk or card: every pod start waits for such a write",
        ),
        Ok(slowest) => {
            let millis = slowest.as_millis();
            Finding::ok("disk speed", format!("a write is safe within {millis} ms at {shown}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn disks_are_judged_by_their_room() {
        let good =
            Room { free_mib: 5000, total_mib: 9000, free_inodes_percent: 50, read_only: false };
        for (found, verdict, words) in [
            (good, Verdict::Ok, "5000 of 9000 MiB"),
            (Room { read_only: true, ..good }, Verdict::Fail, "worn out"),
            (Room { free_mib: 100, ..good }, Verdict::Fail, "make 512 MiB free"),
            (Room { free_mib: 800, ..good }, Verdict::Warn, "below a tenth"),
            (Room { free_inodes_percent: 1, ..good }, Verdict::Warn, "1 % of the inodes"),
        ] {
            let finding = room("disk", Path::new("/d"), Ok(found));
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            let text = format!("{} {}", finding.found, finding.remedy);
            assert!(text.contains(words), "{text}");
        }
        let none = room("disk", Path::new("/d"), Err(io::ErrorKind::NotFound.into()));
        assert_eq!(none.verdict, Verdict::Fail);
    }

    #[test]
    fn a_write_is_measured_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(slowest_sync(dir.path()).unwrap() > Duration::ZERO);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(existing(&dir.path().join("a/b")), dir.path());
        assert_eq!(sync(dir.path(), Ok(Duration::from_secs(1))).verdict, Verdict::Warn);
        assert_eq!(sync(dir.path(), Ok(Duration::from_millis(9))).verdict, Verdict::Ok);
        let missing = dir.path().join("missing");
        assert_eq!(sync(&missing, slowest_sync(&missing)).verdict, Verdict::Fail);
    }
}
