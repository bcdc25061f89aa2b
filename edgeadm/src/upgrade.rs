//! `edgeadm upgrade`: another version of the agent in place of the one that runs. One that does not do as
//! well gives way to the old one by itself; containers are not touched.
//!
//! - [`run`] checks the other version, puts it beside the agent's program, and asks for it by a
//!   [`journal`]. Then it restarts the agent, and waits for what becomes of that.
//! - [`hook`] is called by the agent's unit, before the agent starts and after. Before, it takes the steps
//!   that [`machine`] decides on, with the files of [`disk`]. After, it judges a new version by [`verdict`].
//!
//! So nothing hangs on the one who asks: `run` may be killed at any time. If the machine goes down, or the
//! agent ends or is ended by the watchdog, before the new version was found good, the next start puts the old
//! one back.

pub mod disk;
pub mod hook;
pub mod journal;
pub mod machine;
pub mod plan;
pub mod verdict;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use edgecore::Config;
use edgecore::config::ConfigError;
use edgecore::release;
use edgecore::systemd::{Systemd, SystemdError};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use self::disk::DiskError;
use self::journal::{Journal, JournalError, LOCK};
use self::machine::Phase;
use self::plan::{Facts, HEAD_BYTES, Plan, PlanError, Program};
use self::verdict::Before;
use crate::agent::Agent;
use crate::args::upgrade::{HookCommand, UpgradeArgs};
use crate::join::steps::write;
use crate::output::{self, Answer};
use crate::unit::Starts;
use crate::{exit, ui, unit};

/// A program of the agent has a tenth of it.
const PROGRAM_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The old agent's stop, the copy of a large store on a slow disk, two starts and a trial.
const DONE_MAX: Duration = Duration::from_mins(6);
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Why the agent is not of the version that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// Started by another user.
    #[error("edgeadm upgrade must run as root; use sudo")]
    NotRoot,
    /// Which agent is not known.
    #[error("this machine is no edge node (join it: edgeadm join), or its configuration is broken")]
    Config(#[source] ConfigError),
    /// Nothing would take a version back.
    #[error(
        "the agent is not run by systemd here, so nothing could take a version back that fails: stop the \
         agent, replace its program and start it"
    )]
    NoUnit,
    /// A program cannot be read.
    #[error("cannot read the program {}", path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What is kept of upgrades cannot be used.
    #[error(transparent)]
    Journal(JournalError),
    /// What is asked for makes no sense.
    #[error(transparent)]
    Plan(PlanError),
    /// Somebody else upgrades.
    #[error("another edgeadm upgrade waits for its end; wait for that")]
    Locked,
    /// A file of the upgrade cannot be written.
    #[error("a step of the upgrade failed")]
    Disk(#[source] DiskError),
    /// The journal cannot be written.
    #[error("cannot write down how far the upgrade is")]
    Keep(#[source] io::Error),
    /// systemd refuses.
    #[error("systemd does not restart edgecore.service; the agent was not touched")]
    Systemd(#[source] SystemdError),
    /// The old version runs.
    #[error("version {to} does not run, version {from} does: {why}; see journalctl -u edgecore")]
    Returned {
        /// That runs.
        from: String,
        /// That does not.
        to: String,
        /// Why.
        why: String,
    },
    /// It takes too long.
    #[error(
        "after {} s the upgrade is not over ({phase:?}); it goes on without this command: see journalctl \
         -u edgecore",
        DONE_MAX.as_secs()
    )]
    Slow {
        /// How far it is.
        phase: Phase,
    },
    /// Steps that undo each other.
    #[error("the steps of the upgrade do not end; this is a fault of edgeadm")]
    Endless,
    /// Called by hand.
    #[error(
        "unit-hook after is for the unit of the agent: systemd says which process it has started"
    )]
    NotOfUnit,
    /// A new agent that is no good stays.
    #[error("the new version does not end: {0}")]
    NotEnded(String),
}

impl UpgradeError {
    /// For `exit`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotRoot => exit::NOT_PERMITTED,
            Self::Returned { .. } => exit::FAILED,
            Self::Systemd(_) | Self::Slow { .. } | Self::Locked => exit::UNAVAILABLE,
            Self::Disk(_) | Self::Keep(_) => exit::NOT_WRITTEN,
            Self::Endless | Self::NotEnded(_) => exit::OS_ERROR,
            Self::Config(_)
            | Self::NoUnit
            | Self::Program { .. }
            | Self::Journal(_)
            | Self::Plan(_)
            | Self::NotOfUnit => exit::BAD_CONFIG,
        }
    }
}

/// The answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Upgraded {
    /// `upgraded`, `unchanged` or `planned`.
    result: &'static str,
    from: String,
    to: String,
    #[serde(skip)]
    text: String,
}

impl Answer for Upgraded {
    fn text(&self) -> String {
        self.text.clone()
    }
}

/// What the agent's unit calls.
pub async fn by_unit(command: HookCommand) -> Result<(), UpgradeError> {
    match command {
        HookCommand::Before(config) => hook::before(folder(&config.config)),
        HookCommand::After(config) => hook::after(folder(&config.config)).await,
    }
}

/// Where the files of an upgrade are: beside the configuration, which itself is not needed to take it back.
fn folder(config: &Path) -> &Path {
    config.parent().unwrap_or_else(|| Path::new("/"))
}

/// What became of the last upgrade, for `edgeadm status`; nothing if it was good.
pub fn told(config: &Path) -> Option<String> {
    let journal = match Journal::read(folder(config)) {
        Ok(journal) => journal?,
        Err(error) => return Some(ui::chain(&error)),
    };
    let (from, to) = (&journal.from.version, &journal.to.version);
    match journal.phase {
        Phase::Good => None,
        Phase::Wanted => Some(format!("version {to} is wanted")),
        Phase::Trial => Some(format!("version {to} is on trial; a restart brings {from} back")),
        Phase::Returning => Some(format!("version {from} comes back")),
        Phase::Returned => Some(format!("version {to} did not stay: {}", journal.reason())),
    }
}

/// Files that upgrades leave, for `edgeadm reset`.
pub fn leftovers(config: &Path) -> Vec<PathBuf> {
    let dir = folder(config);
    let program = Journal::read(dir).ok().flatten().map(|journal| journal.program);
    let beside = program.iter().flat_map(|program| [disk::staged(program), disk::kept(program)]);

    beside.chain([dir.join(journal::FILE), dir.join(LOCK)]).collect()
}

/// Upgrades the agent.
pub async fn run(args: UpgradeArgs) -> Result<(), UpgradeError> {
    if !rustix::process::geteuid().is_root() {
        return Err(UpgradeError::NotRoot);
    }
    let path = &args.config.config;
    let config = Config::load(path).map_err(UpgradeError::Config)?;
    let facts = facts(&args, path)?;
    let (from, to) = (facts.current.clone(), facts.wanted.clone());
    let edgeadm = std::env::current_exe().unwrap_or_else(|_| "/usr/bin/edgeadm".into());
    let format = args.output.output;
    let answer =
        |result, text: String| Upgraded { result, from: version(&from), to: version(&to), text };
    let Some(plan) = Plan::new(facts, &edgeadm, path).map_err(UpgradeError::Plan)? else {
        let text = format!("the agent's program is this very file, version {}", version(&to));
        output::show(format, &answer("unchanged", text));
        return Ok(());
    };
    if args.dry_run {
        output::show(format, &answer("planned", plan.to_string()));
        return Ok(());
    }
    carry_out(&plan, &config, folder(path)).await?;
    let text = format!("the agent is version {}, and was version {}", version(&to), version(&from));
    output::show(format, &answer("upgraded", text));

    Ok(())
}

fn version(program: &Program) -> String {
    program.release.as_ref().map_or_else(|| "unknown".to_owned(), |release| release.version.clone())
}

fn facts(args: &UpgradeArgs, config: &Path) -> Result<Facts, UpgradeError> {
    let units = units().filter(|units| units.iter().any(|text| unit::is_of(text, config)));
    let units = units.ok_or(UpgradeError::NoUnit)?;
    let program = Starts::of(&units).program.ok_or(UpgradeError::NoUnit)?;
    // What a link leads to is replaced, not the link.
    let program = program
        .canonicalize()
        .map_err(|source| UpgradeError::Program { path: program.clone(), source })?;

    Ok(Facts {
        units,
        current: read(&program)?,
        wanted: read(&args.file)?,
        expected: args.sha256.clone(),
        journal: Journal::read(folder(config)).map_err(UpgradeError::Journal)?,
    })
}

/// The unit of the agent and its changes; `None` without systemd or without a unit.
fn units() -> Option<Vec<String>> {
    if !Path::new(unit::SYSTEMD).exists() {
        return None;
    }
    let found =
        [unit::FILE, unit::PACKAGED].into_iter().find_map(|file| fs::read_to_string(file).ok())?;
    let changes = fs::read_dir(unit::CHANGES).into_iter().flatten().flatten();
    let mut changes: Vec<_> = changes.map(|entry| entry.path()).collect();
    changes.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
    changes.sort();
    let changes = changes.iter().filter_map(|path| fs::read_to_string(path).ok());

    Some([found].into_iter().chain(changes).collect())
}

fn read(path: &Path) -> Result<Program, UpgradeError> {
    let failed = |source| UpgradeError::Program { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no file")));
    }
    file.take(PROGRAM_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;

    Ok(Program {
        path: path.to_owned(),
        release: release::of(&bytes),
        sha256: disk::sha256(path).map_err(failed)?,
        head: bytes.into_iter().take(HEAD_BYTES).collect(),
    })
}

/// Asks for the upgrade, and waits for its end.
async fn carry_out(plan: &Plan, config: &Config, dir: &Path) -> Result<(), UpgradeError> {
    let lock = File::create(dir.join(LOCK)).map_err(UpgradeError::Keep)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| UpgradeError::Locked)?;
    let before = match hook::look(&Agent::at(&config.control_socket)).await {
        Ok((_, sight)) => Some(Before::from(sight)),
        Err(error) => {
            ui::step(&format!(
                "the agent is not well now, so less is asked of the new one: {error}"
            ));
            None
        }
    };
    let mut systemd = Systemd::connect(&config.system_bus).await.map_err(UpgradeError::Systemd)?;
    if let Some(text) = &plan.unit {
        write(Path::new(unit::FILE), text).map_err(UpgradeError::Keep)?;
        ui::step(&format!("wrote {}", unit::FILE));
    }
    systemd.reload().await.map_err(UpgradeError::Systemd)?;
    disk::stage(&plan.file, &plan.program).map_err(UpgradeError::Disk)?;
    let journal = Journal::wanted(
        plan.program.clone(),
        (plan.from.clone(), plan.to.clone()),
        (config.state_dir.clone(), config.control_socket.clone()),
        before,
    );
    journal.keep(dir).map_err(UpgradeError::Keep)?;
    ui::step(&format!("restarting {}", unit::NAME));
    systemd.begin_restart(unit::NAME).await.map_err(UpgradeError::Systemd)?;
    drop(systemd);
    let ended = until_over(dir).await?;
    drop(lock);
    match ended.phase {
        Phase::Good => Ok(()),
        Phase::Wanted | Phase::Trial | Phase::Returning | Phase::Returned => {
            let why = ended.reason();
            Err(UpgradeError::Returned { from: ended.from.version, to: ended.to.version, why })
        }
    }
}

async fn until_over(dir: &Path) -> Result<Journal, UpgradeError> {
    let by = Instant::now() + DONE_MAX;
    let mut told = Phase::Wanted;
    loop {
        let journal = Journal::read(dir).map_err(UpgradeError::Journal)?;
        // Only a reset takes it away.
        let journal = journal.ok_or(UpgradeError::Slow { phase: told })?;
        if !journal.is_open() {
            return Ok(journal);
        }
        if journal.phase != told {
            told = journal.phase;
            let is_trial = told == Phase::Trial;
            ui::step(if is_trial {
                "the new version is on trial"
            } else {
                "the old one comes back"
            });
        }
        if Instant::now() > by {
            return Err(UpgradeError::Slow { phase: told });
        }
        sleep(LOOK_AGAIN).await;
    }
}
