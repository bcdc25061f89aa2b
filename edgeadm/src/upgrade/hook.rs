//! What the agent's unit calls: before the agent starts, the steps of an upgrade; after it has started, who
//! judges whether it stays. Both belong to systemd, so that nobody has to wait for them at a terminal.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;
use tokio::time::{Instant, sleep, timeout};

use super::UpgradeError;
use super::disk::{self, Own};
use super::journal::Journal;
use super::machine::{self, Phase, Program, Step, Why};
use super::verdict::{self, Before, Sight, Verdict};
use crate::agent::{Agent, AgentError};
use crate::status::Told;
use crate::{pods, process, ui};

/// More than any upgrade has.
const STEPS_MAX: usize = 16;
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// An agent that is well answers at once.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// What an agent that is not good gets to stop: with the trial before, a unit's start may take no longer.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Says which process the unit has started (systemd.exec(5)).
const MAIN_PROCESS: &str = "MAINPID";

/// Takes all steps that have to be taken before the agent with its configuration in `dir` starts.
pub fn before(dir: &Path) -> Result<(), UpgradeError> {
    let Some(mut journal) = Journal::read(dir).map_err(UpgradeError::Journal)? else {
        return Ok(());
    };
    let mut own = Own::default();
    for _ in 0..STEPS_MAX {
        let seen = disk::look(dir, &journal, own).map_err(UpgradeError::Disk)?;
        let Some(step) = machine::next(&seen) else { return Ok(()) };
        ui::step(&told(step, &journal));
        match disk::take(dir, &mut journal, step) {
            Ok(()) => own.note(step),
            Err(error) => {
                let program = disk::program(&journal).map_err(UpgradeError::Disk)?;
                let Some(phase) = machine::after_failure(journal.phase, program) else {
                    return Err(UpgradeError::Disk(error));
                };
                let why = ui::chain(&error);
                ui::step(&why);
                (journal.phase, journal.why, journal.detail) = (phase, None, Some(why));
                journal.keep(dir).map_err(UpgradeError::Keep)?;
            }
        }
    }

    Err(UpgradeError::Endless)
}

fn told(step: Step, journal: &Journal) -> String {
    let (from, to) = (&journal.from.version, &journal.to.version);
    match step {
        Step::CopyStore => "copying the store".to_owned(),
        Step::KeepOld => format!("keeping the program of version {from}"),
        Step::Swap => format!("putting version {to} in place"),
        Step::PutOldBack => format!("putting version {from} back"),
        Step::PutStoreBack => format!("putting the store of version {from} back"),
        Step::Mark(_, Some(why)) => why.to_string(),
        Step::Mark(phase, None) => format!("the upgrade to version {to} is now: {phase:?}"),
        Step::Clean => "removing what was kept for the upgrade".to_owned(),
    }
}

/// Judges the agent that has started, if it is on trial. One that is not good is ended: systemd starts it
/// again, and before that the old one comes back.
pub async fn after(dir: &Path) -> Result<(), UpgradeError> {
    let Some(mut journal) = Journal::read(dir).map_err(UpgradeError::Journal)? else {
        return Ok(());
    };
    if journal.phase != Phase::Trial {
        return Ok(());
    }
    let main = main_process().ok_or(UpgradeError::NotOfUnit)?;
    let program = disk::program(&journal).map_err(UpgradeError::Disk)?;
    if program != Program::New || !runs(main, &journal.program) {
        // The steps were interrupted, or somebody has put another program there.
        (journal.phase, journal.why) = (Phase::Returned, Some(Why::Interrupted));
        return journal.keep(dir).map_err(UpgradeError::Keep);
    }
    match watch(&journal, main).await {
        Ok(()) => {
            journal.phase = Phase::Good;
            journal.keep(dir).map_err(UpgradeError::Keep)?;
            ui::step(&format!("version {} is good and stays", journal.to.version));
            disk::clean(&journal).map_err(UpgradeError::Disk)
        }
        Err(why) => {
            ui::step(&format!("version {} does not stay: {why}", journal.to.version));
            journal.detail = Some(why);
            journal.keep(dir).map_err(UpgradeError::Keep)?;
            process::end(main, STOP_MAX).await.map_err(UpgradeError::NotEnded)
        }
    }
}

fn main_process() -> Option<Pid> {
    let pid = std::env::var(MAIN_PROCESS).ok()?;

    Pid::from_raw(pid.parse().ok()?)
}

/// Whether the process was started from this very file.
fn runs(process: Pid, program: &Path) -> bool {
    let exe = fs::metadata(format!("/proc/{}/exe", process.as_raw_nonzero()));
    let Ok((exe, program)) = exe.and_then(|exe| Ok((exe, fs::metadata(program)?))) else {
        return false;
    };

    (exe.dev(), exe.ino()) == (program.dev(), program.ino())
}

/// Looks at the agent until it is judged; why it is not good.
async fn watch(journal: &Journal, main: Pid) -> Result<(), String> {
    let agent = Agent::at(&journal.control_socket);
    let pid = main.as_raw_nonzero().get().unsigned_abs();
    let begun = Instant::now();
    let mut well_since = None;
    loop {
        if process::has_ended(main) {
            return Err("it ended".to_owned());
        }
        let lacks = lack(&agent, pid, journal.before.as_ref()).await;
        let now = Instant::now();
        if lacks.is_some() {
            well_since = None;
        }
        let steady = match lacks {
            None => now.duration_since(*well_since.get_or_insert(now)),
            Some(_) => Duration::ZERO,
        };
        match verdict::judge(lacks.as_deref(), steady, now.duration_since(begun)) {
            Verdict::Good => return Ok(()),
            Verdict::Bad(why) => return Err(why),
            Verdict::Wait => sleep(LOOK_AGAIN).await,
        }
    }
}

async fn lack(agent: &Agent, pid: u32, before: Option<&Before>) -> Option<String> {
    match timeout(LOOK_MAX, look(agent)).await {
        Ok(Ok((answers, sight))) if answers == pid => verdict::lacks(before, &sight),
        Ok(Ok((another, _))) => Some(format!("process {another} answers in its place")),
        Ok(Err(error)) => Some(ui::chain(&error)),
        Err(_elapsed) => Some("it does not answer".to_owned()),
    }
}

/// How the agent is, and which process answers.
pub(super) async fn look(agent: &Agent) -> Result<(u32, Sight), AgentError> {
    let told: Told = agent.get("/holdfast/v1/status").await?;
    let pods = pods::all(agent).await?;
    let sight = Sight {
        link: told.link.state == "Up",
        synced: told.link.synced == Some(true),
        link_reason: told.link.reason.unwrap_or_default(),
        has_runtime: told.runtime.name.is_some(),
        runtime_age_ms: told.runtime.age_ms,
        pod_loop_age_ms: told.pod_loop_age_ms,
        pods: pods.into_iter().filter_map(|pod| pod.metadata.uid).collect(),
    };

    Ok((told.pid, sight))
}
