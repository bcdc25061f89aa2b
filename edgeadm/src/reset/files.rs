//! Removes this node's files. What is mounted is unmounted first; nothing that stays mounted is entered.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgecore::volumes::remove::remove_tree;
use edgecore::{Config, blocking};
use tokio::time::timeout;

use super::Outcome;
use super::ours::Ours;
use crate::cni;
use crate::upgrade::disk;

/// A server that is away may keep a volume for ever.
const VOLUMES_MAX: Duration = Duration::from_mins(1);

/// Files of the store, with what SQLite keeps beside them.
const STORE: [&str; 4] = ["state.db", "outbox.db", "store.key", "link.ticket"];
/// The node's identity, of this and later versions, and what a join that failed left.
const IDENTITY: [&str; 6] = ["node.key", "node.pem", "node.crt", "ca.crt", "join-id", "join.json"];

/// Removes these files. Gone already is done.
pub(super) fn remove(files: &[PathBuf]) -> Outcome {
    let (mut removed, mut failed) = (0, Vec::new());
    for file in files {
        match fs::remove_file(file) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failed.push(format!("{}: {error}", file.display())),
        }
    }

    match (failed.as_slice(), removed) {
        ([], 0) => Ok("nothing was there".to_owned()),
        ([], 1) => Ok("removed 1 file".to_owned()),
        ([], removed) => Ok(format!("removed {removed} files")),
        (failed, _) => Err(failed.join("; ")),
    }
}

/// Unmounts and removes the folders of pods.
pub(super) async fn volumes(config: &Config) -> Outcome {
    let pods = config.root_dir.join("pods");
    let entries = match fs::read_dir(&pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok("nothing was there".to_owned());
        }
        Err(error) => return Err(format!("{}: {error}", pods.display())),
    };
    let (mut removed, mut failed) = (0, Vec::new());
    for entry in entries.flatten() {
        let path = entry.path();
        let (dir, shown) = (path.clone(), path.display().to_string());
        match timeout(VOLUMES_MAX, blocking::run(move || remove_tree(&dir))).await {
            Ok(Ok(())) => removed += 1,
            Ok(Err(error)) => failed.push(format!("{shown}: {error}")),
            Err(_elapsed) => {
                let seconds = VOLUMES_MAX.as_secs();
                failed.push(format!(
                    "{shown}: a volume hangs, its server gave no answer in {seconds} s"
                ));
            }
        }
    }
    if failed.is_empty() {
        // With other things in them they stay.
        let _not_empty = fs::remove_dir(&pods).and_then(|()| fs::remove_dir(&config.root_dir));
        return Ok(format!("removed those of {removed} pods"));
    }

    Err(failed.join("; "))
}

/// Removes the logs of these pods and the links to them.
pub(super) async fn logs(config: &Config, ours: &Ours) -> Outcome {
    let is_ours =
        |name: &str| name.rsplit_once('_').is_some_and(|(_, uid)| ours.uids.contains(uid));
    let entries = fs::read_dir(&config.pod_logs_dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_ours));
    let (mut removed, mut failed) = (0, Vec::new());
    for dir in dirs.map(|entry| entry.path()) {
        let shown = dir.display().to_string();
        match blocking::run(move || remove_tree(&dir)).await {
            Ok(()) => removed += 1,
            Err(error) => failed.push(format!("{shown}: {error}")),
        }
    }
    let links = fs::read_dir(&config.container_logs_dir).into_iter().flatten().flatten();
    let links =
        links.map(|entry| entry.path()).filter(|link| leads_nowhere(link, &config.pod_logs_dir));
    if let Err(why) = remove(&links.collect::<Vec<_>>()) {
        failed.push(why);
    }

    if failed.is_empty() {
        Ok(format!("removed those of {removed} pods"))
    } else {
        Err(failed.join("; "))
    }
}

/// Whether it is a link to a log of this node that is gone.
fn leads_nowhere(link: &Path, logs: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to.starts_with(logs)) && !link.exists()
}

/// Removes the CNI configuration that `join` wrote, unless somebody changed it.
pub(super) fn network() -> Outcome {
    let path = Path::new(cni::FILE);
    match fs::read_to_string(path) {
        Ok(text) if text == cni::DEFAULT => remove(&[path.to_owned()]),
        Ok(_) => Ok(format!("{} was changed and stays", cni::FILE)),
        Err(_) => Ok("edgeadm wrote none".to_owned()),
    }
}

/// Removes the databases and what belongs to them, and the folder if nothing else is in it.
pub(super) fn state(config: &Config) -> Outcome {
    let is_ours = |name: &str| STORE.iter().any(|file| name.starts_with(file));
    let outcome = remove(&named(&config.state_dir, is_ours));
    for copy in disk::copies_of(&config.state_dir) {
        if let Err(error) = fs::remove_dir_all(&copy)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(format!("{}: {error}", copy.display()));
        }
    }
    if outcome.is_ok() {
        let _not_empty = fs::remove_dir(&config.state_dir);
    }

    outcome
}

/// Removes key and certificates, and what a crash left of writing them.
pub(super) fn identity(config: &Config) -> Outcome {
    let is_ours = |name: &str| {
        let plain = name.strip_prefix('.').unwrap_or(name);
        let plain = plain.strip_suffix(".new").unwrap_or(plain);
        IDENTITY.contains(&plain)
    };

    remove(&named(&config.identity_dir, is_ours))
}

fn named(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));

    ours.map(|entry| entry.path()).collect()
}
