//! Log files of containers that are gone: the last two of each container stay as long as the pod, as
//! what `kubectl logs` and `kubectl logs --previous` show; older ones would fill the disk of a node
//! with a crash-looping pod.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::volumes::remove::gone_is_done;

/// One container that the runtime no longer holds.
#[derive(Clone, Debug)]
pub struct Forgotten {
    /// The link in the containers' log directory.
    pub link: PathBuf,
    /// The directory of the log files of all its attempts.
    pub dir: PathBuf,
    /// The newest attempt of the container.
    pub newest: u32,
}

impl Forgotten {
    /// Removes the link, and the files of attempts before the one before the newest.
    pub fn remove(&self) -> io::Result<()> {
        gone_is_done(fs::remove_file(&self.link))?;
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) => return gone_is_done(Err(error)),
        };
        for entry in entries {
            let path = entry?.path();
            if attempt(&path).is_some_and(|attempt| attempt + 1 < self.newest) {
                gone_is_done(fs::remove_file(&path))?;
            }
        }

        Ok(())
    }
}

/// The attempt that a log file is of: `0.log`, or `0.log.20260101-000000` when rotated.
fn attempt(path: &Path) -> Option<u32> {
    let (attempt, rest) = path.file_name()?.to_str()?.split_once('.')?;

    attempt.parse().ok().filter(|_| rest == "log" || rest.starts_with("log."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_logs_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let names = ["0.log", "1.log", "1.log.20260101-000000", "2.log", "3.log", "odd"];
        let check = |newest: u32, left: &[&str]| {
            for name in names {
                fs::write(at(name), "").unwrap();
            }
            let link = dir.path().with_extension("link");
            std::os::unix::fs::symlink(at("0.log"), &link).unwrap();
            let forgotten = Forgotten { link: link.clone(), dir: dir.path().into(), newest };
            forgotten.remove().unwrap();
            forgotten.remove().unwrap();
            let mut found: Vec<_> = fs::read_dir(dir.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            found.sort();
            assert_eq!(found, left);
            assert!(fs::symlink_metadata(link).is_err());
        };

        check(0, &names);
        check(1, &names);
        check(2, &["1.log", "1.log.20260101-000000", "2.log", "3.log", "odd"]);
        check(3, &["2.log", "3.log", "odd"]);
        let nothing = Forgotten { link: at("none"), dir: at("nothing"), newest: 7 };
        nothing.remove().unwrap();
    }
}
