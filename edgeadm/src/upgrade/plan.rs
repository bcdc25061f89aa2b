//! What an upgrade will do: derived from the programs and the unit, without doing any of it.

use std::fmt;
use std::path::{Path, PathBuf};

use edgecore::release::Release;

use super::journal::{Build, Journal};
use crate::unit::{self, Starts};

/// Bytes of a program that say for which machines it is (ELF: magic number, class, order, machine).
pub const HEAD_BYTES: usize = 20;
const MAGIC: &[u8] = b"\x7fELF";
/// Class and byte order in the head.
const CLASS: std::ops::Range<usize> = 4..6;
/// Machine in the head.
const MACHINE: std::ops::Range<usize> = 18..20;

/// A program as its file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its file.
    pub path: PathBuf,
    /// The first [`HEAD_BYTES`], or fewer if it has no more.
    pub head: Vec<u8>,
    /// Of which release it is, if it is an agent that says so.
    pub release: Option<Release>,
    /// Of its file, in hexadecimal.
    pub sha256: String,
}

impl Program {
    fn build(&self) -> Build {
        let release = self.release.clone();
        let (version, state_schema) = release.map_or_else(
            || ("unknown".to_owned(), 0),
            |release| (release.version, release.state_schema),
        );

        Build { version, state_schema, sha256: self.sha256.clone() }
    }
}

/// What is true before.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Text of the unit in edgeadm's place, or else of a package's, and of its changes.
    pub units: Vec<String>,
    /// The agent's program.
    pub current: Program,
    /// The program that is wanted.
    pub wanted: Program,
    /// SHA-256 that it must have.
    pub expected: Option<String>,
    /// What is kept of the last upgrade.
    pub journal: Option<Journal>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the agent is started from.
    pub program: PathBuf,
    /// The file that is put there.
    pub file: PathBuf,
    /// What runs.
    pub from: Build,
    /// What is to run.
    pub to: Build,
    /// The unit's new text, if it does not call edgeadm yet.
    pub unit: Option<String>,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file is something else.
    #[error("{} is no agent of Holdfast: give the file edgecore of the other version", .0.display())]
    NoAgent(PathBuf),
    /// The file is an agent of another machine.
    #[error("{} is an agent for another kind of machine: give the one for {}", .0.display(), std::env::consts::ARCH)]
    OtherMachine(PathBuf),
    /// The file is not the one that is meant.
    #[error("{} has SHA-256 {found}, not what --sha256 says: it is damaged, or another version", path.display())]
    OtherFile {
        /// The file.
        path: PathBuf,
        /// Of it.
        found: String,
    },
    /// The agent could not read its state.
    #[error(
        "version {to} is too old: this node's state has schema {found}, and that version knows up to \
         {known}; nothing was changed"
    )]
    TooOld {
        /// The version that is wanted.
        to: String,
        /// What the agent that runs makes.
        found: i64,
        /// What the other would open.
        known: i64,
    },
    /// Somebody else's unit.
    #[error(
        "the unit edgecore.service does not call edgeadm, so that a version that fails could not be taken \
         back; add to it, or to a file in {}: ExecStartPre=-{} unit-hook before --config {} and \
         ExecStartPost=-{} unit-hook after --config {}",
        unit::CHANGES,
        edgeadm.display(),
        config.display(),
        edgeadm.display(),
        config.display()
    )]
    NoHooks {
        /// This program.
        edgeadm: PathBuf,
        /// The agent's configuration.
        config: PathBuf,
    },
    /// Another upgrade is not over.
    #[error(
        "an upgrade to version {0} is under way; if nobody waits for it any more, systemctl restart \
         edgecore takes it back"
    )]
    Open(String),
}

impl Plan {
    /// The plan for the agent with this configuration; `None` if the agent is what is wanted.
    pub fn new(facts: Facts, edgeadm: &Path, config: &Path) -> Result<Option<Self>, PlanError> {
        let Facts { units, current, wanted, expected, journal } = facts;
        let file = || wanted.path.clone();
        if let Some(journal) = journal.filter(Journal::is_begun) {
            return Err(PlanError::Open(journal.to.version));
        }
        if expected.is_some_and(|expected| !expected.eq_ignore_ascii_case(&wanted.sha256)) {
            return Err(PlanError::OtherFile { path: file(), found: wanted.sha256 });
        }
        if !wanted.head.starts_with(MAGIC) || wanted.release.is_none() {
            return Err(PlanError::NoAgent(file()));
        }
        let is_same = |range: std::ops::Range<usize>| {
            wanted.head.get(range.clone()) == current.head.get(range)
        };
        if !is_same(CLASS) || !is_same(MACHINE) {
            return Err(PlanError::OtherMachine(file()));
        }
        let (from, to) = (current.build(), wanted.build());
        if to.state_schema < from.state_schema {
            let (found, known) = (from.state_schema, to.state_schema);
            return Err(PlanError::TooOld { to: to.version, found, known });
        }
        if from.sha256 == to.sha256 {
            return Ok(None);
        }
        let unit = match units.first() {
            _ if Starts::of(&units).has_hooks => None,
            // Written by an edgeadm that could not upgrade.
            Some(text) if text.starts_with(unit::MARK) => Some(unit::text(&current.path, config)),
            _ => {
                let (edgeadm, config) = (edgeadm.to_owned(), config.to_owned());
                return Err(PlanError::NoHooks { edgeadm, config });
            }
        };

        Ok(Some(Self { program: current.path, file: wanted.path, from, to, unit }))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (&self.from.version, &self.to.version);
        if self.unit.is_some() {
            writeln!(
                f,
                "write {} anew, which calls edgeadm before and after the agent",
                unit::FILE
            )?;
        }
        writeln!(f, "restart {}; containers go on", unit::NAME)?;
        writeln!(f, "before the agent starts: copy its store, keep version {from}, and put")?;
        writeln!(
            f,
            "  version {to} ({}) in place of {}",
            self.file.display(),
            self.program.display()
        )?;
        write!(f, "version {to} stays if it is as well as version {from} is; else that comes back")
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Phase;
    use super::*;

    const CONFIG: &str = "/etc/holdfast/edgecore.yaml";

    fn head(machine: u8) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[..4].copy_from_slice(MAGIC);
        (head[4], head[5], head[18]) = (2, 1, machine);

        head
    }

    fn program(path: &str, version: &str, state_schema: i64) -> Program {
        let release = Release { version: version.to_owned(), state_schema };

        Program {
            path: path.into(),
            head: head(62),
            release: Some(release),
            sha256: format!("{version}-{state_schema}"),
        }
    }

    fn facts() -> Facts {
        let current = program("/usr/bin/edgecore", "1.0", 1);

        Facts {
            units: vec![unit::text(&current.path, Path::new(CONFIG))],
            current,
            wanted: program("/tmp/edgecore", "1.1", 2),
            expected: Some("1.1-2".to_owned()),
            journal: None,
        }
    }

    fn plan(facts: Facts) -> Result<Option<Plan>, PlanError> {
        Plan::new(facts, Path::new("/usr/bin/edgeadm"), Path::new(CONFIG))
    }

    fn refused(facts: Facts) -> String {
        plan(facts).unwrap_err().to_string()
    }

    #[test]
    fn the_plan_of_an_upgrade() {
        let expected = "restart edgecore.service; containers go on
before the agent starts: copy its store, keep version 1.0, and put
  version 1.1 (/tmp/edgecore) in place of /usr/bin/edgecore
version 1.1 stays if it is as well as version 1.0 is; else that comes back";
        assert_eq!(plan(facts()).unwrap().unwrap().to_string(), expected);
        // A version that says nothing of itself can be left.
        let mut silent = facts();
        silent.current.release = None;
        assert_eq!(plan(silent).unwrap().unwrap().from.version, "unknown");
        let mut same = facts();
        (same.wanted, same.expected) = (same.current.clone(), None);
        assert_eq!(plan(same).unwrap(), None);
    }

    #[test]
    fn what_cannot_be_taken_back_or_cannot_run_is_refused() {
        let mut facts_of = facts();
        facts_of.expected = Some("another".to_owned());
        assert!(refused(facts_of).contains("not what --sha256 says"));
        for spoil in [
            |facts: &mut Facts| facts.wanted.release = None,
            |facts: &mut Facts| facts.wanted.head = b"#!/bin/sh\n".to_vec(),
        ] {
            let mut facts = facts();
            spoil(&mut facts);
            assert!(refused(facts).contains("is no agent of Holdfast"));
        }
        let mut other = facts();
        other.wanted.head = head(183);
        assert!(refused(other).contains("another kind of machine"));
        let mut older = facts();
        older.current = program("/usr/bin/edgecore", "2.0", 3);
        assert!(refused(older).contains("knows up to 2"));
        let mut open = facts();
        let mut journal = super::super::journal::tests::journal(Path::new("/x"));
        journal.phase = Phase::Trial;
        open.journal = Some(journal);
        assert!(refused(open).contains("version 1.1 is under way"));
    }

    #[test]
    fn a_unit_that_does_not_call_edgeadm_is_written_anew_only_if_it_is_ours() {
        let old: String = unit::text(Path::new("/usr/bin/edgecore"), Path::new(CONFIG))
            .lines()
            .filter(|line| !line.contains("unit-hook"))
            .flat_map(|line| [line, "\n"])
            .collect();
        let with = |text: String| Facts { units: vec![text], ..facts() };
        let planned = plan(with(old.clone())).unwrap().unwrap();
        assert_eq!(planned.unit.as_ref(), facts().units.first());
        assert!(planned.to_string().starts_with("write /etc/systemd/system/edgecore.service anew"));
        let others = refused(with(old.replace(unit::MARK, "# By hand")));
        assert!(others.contains("ExecStartPost=-/usr/bin/edgeadm unit-hook after"), "{others}");
    }
}
