//! What is kept of an upgrade on the disk, beside the agent's configuration. It says all that is needed to
//! take the upgrade back: neither the configuration nor the store has to be readable for that.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::machine::{Phase, Why};
use super::verdict::Before;
use crate::join::steps::write;

/// Its name.
pub const FILE: &str = "upgrade.json";
/// Locked by who waits for an upgrade.
pub const LOCK: &str = "upgrade.lock";
/// Another format is of another edgeadm, and left to that.
const FORMAT: u32 = 1;

/// A program of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// As it says; empty if it does not.
    pub version: String,
    /// The schema that it makes of the store; 0 if it does not say.
    pub state_schema: i64,
    /// Of its file, in hexadecimal.
    pub sha256: String,
}

/// See the module's documentation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Journal {
    format: u32,
    /// How far it is.
    pub phase: Phase,
    /// Where the agent is started from.
    pub program: PathBuf,
    /// The program from before.
    pub from: Build,
    /// The program that is wanted.
    pub to: Build,
    /// The folder of the store.
    pub state_dir: PathBuf,
    /// Where the agent is asked how it is.
    pub control_socket: PathBuf,
    /// How the old agent was; `None` if it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// Schemas of the databases as the old agent left them, once they were copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schemas: Vec<(String, i64)>,
    /// Why the old program runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Why>,
    /// What was found wrong, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The disk refuses it.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not one of this edgeadm.
    #[error(
        "{} is not of this version of edgeadm: use the one that the upgrade was begun with, or, if none \
         is under way, remove the file",
        .0.display()
    )]
    Unknown(PathBuf),
}

impl Journal {
    /// That an upgrade is wanted.
    pub fn wanted(
        program: PathBuf,
        (from, to): (Build, Build),
        (state_dir, control_socket): (PathBuf, PathBuf),
        before: Option<Before>,
    ) -> Self {
        Self {
            format: FORMAT,
            phase: Phase::Wanted,
            program,
            from,
            to,
            state_dir,
            control_socket,
            before,
            schemas: Vec::new(),
            why: None,
            detail: None,
        }
    }

    /// The journal of the agent with its configuration in `dir`.
    pub fn read(dir: &Path) -> Result<Option<Self>, JournalError> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(JournalError::Read { path, source }),
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(journal) if journal.format == FORMAT => Ok(Some(journal)),
            _other => Err(JournalError::Unknown(path)),
        }
    }

    /// Makes it durable in one moment: this is the point at which an upgrade goes on or is done.
    pub fn keep(&self, dir: &Path) -> io::Result<()> {
        write(&dir.join(FILE), &serde_json::to_string(self)?)
    }

    /// Whether an upgrade is under way.
    pub fn is_open(&self) -> bool {
        match self.phase {
            Phase::Wanted | Phase::Trial | Phase::Returning => true,
            Phase::Good | Phase::Returned => false,
        }
    }

    /// Whether the new program may be in place without having been found good.
    pub fn is_begun(&self) -> bool {
        self.is_open() && self.phase != Phase::Wanted
    }

    /// Why the old program runs, for people.
    pub fn reason(&self) -> String {
        let why = self.why.map(|why| why.to_string()).unwrap_or_default();
        match &self.detail {
            Some(detail) if why.is_empty() => detail.clone(),
            Some(detail) => format!("{why}: {detail}"),
            None => why,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::upgrade) fn journal(dir: &Path) -> Journal {
        let build = |version: &str| Build {
            version: version.to_owned(),
            state_schema: 1,
            sha256: version.repeat(4),
        };

        Journal::wanted(
            dir.join("bin/edgecore"),
            (build("1.0"), build("1.1")),
            (dir.join("state"), dir.join("agent.sock")),
            None,
        )
    }

    #[test]
    fn it_is_kept_whole_and_one_of_another_format_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Journal::read(dir.path()).unwrap().is_none());
        let mut journal = journal(dir.path());
        journal.phase = Phase::Returned;
        journal.why = Some(Why::Ended);
        journal.detail = Some("exit code 1".to_owned());
        journal.keep(dir.path()).unwrap();
        let read = Journal::read(dir.path()).unwrap().unwrap();
        assert_eq!(read, journal);
        assert!(!read.is_open());
        assert!(read.reason().ends_with("found good: exit code 1"), "{}", read.reason());

        for text in ["{", r#"{"format":2}"#] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert!(matches!(Journal::read(dir.path()), Err(JournalError::Unknown(_))), "{text}");
        }
        let later =
            serde_json::to_string(&journal).unwrap().replace("\"format\":1", "\"format\":2");
        fs::write(dir.path().join(FILE), later).unwrap();
        assert!(matches!(Journal::read(dir.path()), Err(JournalError::Unknown(_))));
    }
}
