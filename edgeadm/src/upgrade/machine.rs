//! What is to be done before the agent starts, by what the disk says: one step at a time, so that every step
//! is decided on what is really there. Knows no files; [`super::disk`] looks and acts.
//!
//! The agent's unit calls for it before every start of the agent, when nobody else has the program or the
//! store open. So it is the only place where either is changed, and it needs nobody to be alive:
//! whoever was killed, or when the power went, the next start goes on from the phase that is on the disk.
//!
//! ```text
//! Wanted -- copy store, keep old --> Trial -- swap, agent starts --> Good
//!    |                                  |  started again before it was found good
//!    v                                  v
//! Returned <-- clean up -- old program, old store -- Returning
//! ```

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

/// How far an upgrade is. On the disk before the step that it permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Somebody asks for it, and waits.
    Wanted,
    /// The new program is about to run, or does, and has not been found good.
    Trial,
    /// The new program was found good: the upgrade cannot be taken back any more.
    Good,
    /// The old program has to come back, and its store.
    Returning,
    /// It is back, or was never away.
    Returned,
}

/// Which program stands where the agent is started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// That from before.
    Old,
    /// That which is wanted.
    New,
    /// Somebody else has put another one there.
    Other,
}

/// The store, next to the copy that was made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The old program opens it.
    OfOld,
    /// It was migrated since, or cannot be read.
    Otherwise,
}

/// What the disk says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is there or not, whatever the others are")]
pub struct Seen {
    /// `None`: nobody has ever asked for an upgrade.
    pub phase: Option<Phase>,
    /// Who asked still waits.
    pub is_asked: bool,
    /// The store was copied for this start of the agent. An agent that ran since has written to it.
    pub has_copied: bool,
    /// This start of the agent is the one that the new program was put in place for.
    pub has_swapped: bool,
    /// Where the agent is started from.
    pub program: Program,
    /// The old program is kept.
    pub has_old: bool,
    /// The store is kept as the old program left it.
    pub has_copy: bool,
    /// The store. Only looked at when the old program has to come back.
    pub store: Store,
    /// Files of an upgrade are there.
    pub has_files: bool,
}

/// Why the old program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    /// Nobody waited for it any more when the agent was started.
    NotAsked,
    /// The steps ended before the new program was in place.
    Interrupted,
    /// A package or a person put a third program there meanwhile.
    Replaced,
    /// It ended before it was found good.
    Ended,
    /// The old program is not kept any more.
    OldLost,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAsked => "edgeadm upgrade was stopped before the new version was started",
            Self::Interrupted => "the start of the new version was interrupted",
            Self::Replaced => {
                "another program was put in place of the agent's meanwhile, and stays"
            }
            Self::Ended => {
                "the new version ended, or the machine went down, before it was found good"
            }
            Self::OldLost => "the program from before is gone, so the new one stays",
        })
    }
}

/// One step. Each can be taken again, and leaves the disk as before or as after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Copy the store, in place of an earlier copy. Fails if the new program could not open it.
    CopyStore,
    /// Keep the old program under another name.
    KeepOld,
    /// Put the new program in place of the old.
    Swap,
    /// Put the old program in place of the new.
    PutOldBack,
    /// Put the copy in place of what the old program does not open.
    PutStoreBack,
    /// Write the phase.
    Mark(Phase, Option<Why>),
    /// Remove copies, and what a step left half-way.
    Clean,
}

/// The next step before the agent may start; `None` if it may.
pub fn next(seen: &Seen) -> Option<Step> {
    let returned = |why| Some(Step::Mark(Phase::Returned, Some(why)));
    let Some(phase) = seen.phase else { return seen.has_files.then_some(Step::Clean) };
    match (phase, seen.program) {
        (Phase::Good | Phase::Returned, _) => seen.has_files.then_some(Step::Clean),
        (Phase::Wanted, Program::New)
        | (Phase::Wanted | Phase::Trial | Phase::Returning, Program::Other) => {
            returned(Why::Replaced)
        }
        (Phase::Wanted, Program::Old) => Some(prepare(seen)),
        // The phase is on the disk, and the program was never changed.
        (Phase::Trial, Program::Old) if seen.has_copied => Some(Step::Swap),
        (Phase::Trial, Program::Old) => returned(Why::Interrupted),
        (Phase::Trial, Program::New) if seen.has_swapped => None,
        (Phase::Trial, Program::New) => Some(Step::Mark(Phase::Returning, Some(Why::Ended))),
        (Phase::Returning, Program::New) if !seen.has_old => returned(Why::OldLost),
        // Before the store: the old program refuses a newer store, the new one would migrate the old again.
        (Phase::Returning, Program::New) => Some(Step::PutOldBack),
        (Phase::Returning, Program::Old) if seen.has_copy && seen.store == Store::Otherwise => {
            Some(Step::PutStoreBack)
        }
        // Why was said when it began.
        (Phase::Returning, Program::Old) => Some(Step::Mark(Phase::Returned, None)),
    }
}

fn prepare(seen: &Seen) -> Step {
    if !seen.is_asked {
        Step::Mark(Phase::Returned, Some(Why::NotAsked))
    } else if !seen.has_copied {
        Step::CopyStore
    } else if !seen.has_old {
        Step::KeepOld
    } else {
        Step::Mark(Phase::Trial, None)
    }
}

/// The phase after a step that failed; `None` if it is the same. What was not yet begun is given up, and a
/// return is tried again at every start of the agent.
pub fn after_failure(phase: Phase, program: Program) -> Option<Phase> {
    match (phase, program) {
        (Phase::Trial, Program::New) => Some(Phase::Returning),
        (Phase::Wanted | Phase::Trial, _) => Some(Phase::Returned),
        (Phase::Returning | Phase::Good | Phase::Returned, _) => None,
    }
}
