//! Every upgrade, ended between any two steps by a kill or a power cut: the old or the new program runs, on a
//! store that it opens, and a new one that nobody found good does not stay.

use super::*;

/// Schemas that the programs make of the store.
const OLD_SCHEMA: u32 = 1;
const NEW_SCHEMA: u32 = 2;

/// More steps than any start of the agent takes.
const STEPS_MAX: usize = 12;

/// What the store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    schema: u32,
    /// How many agents have written to it.
    writers: u32,
}

/// What the process that takes the steps knows by itself, and loses when it is killed.
#[derive(Clone, Copy, Debug, Default)]
struct Own {
    has_copied: bool,
    has_swapped: bool,
}

/// A machine with an agent, as far as an upgrade can change it.
#[derive(Clone, Debug)]
struct World {
    phase: Option<Phase>,
    why: Option<Why>,
    is_asked: bool,
    program: Program,
    staged: bool,
    old: bool,
    copy: Option<State>,
    store: State,
    /// What the new program makes of the store.
    schema: u32,
}

/// How a start of the agent goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// All steps are taken.
    Whole,
    /// The process that takes the steps is killed after so many; the agent starts all the same.
    Killed(usize),
    /// The power goes after so many.
    PowerCut(usize),
}

impl World {
    /// After `edgeadm upgrade` has asked.
    fn asked(schema: u32) -> Self {
        Self {
            phase: Some(Phase::Wanted),
            why: None,
            is_asked: true,
            program: Program::Old,
            staged: true,
            old: false,
            copy: None,
            store: State { schema: OLD_SCHEMA, writers: 1 },
            schema,
        }
    }

    fn seen(&self, own: Own) -> Seen {
        let store = self.copy.is_none_or(|copy| copy.schema == self.store.schema);

        Seen {
            phase: self.phase,
            is_asked: self.is_asked,
            has_copied: own.has_copied,
            has_swapped: own.has_swapped,
            program: self.program,
            has_old: self.old,
            has_copy: self.copy.is_some(),
            store: if store { Store::OfOld } else { Store::Otherwise },
            has_files: self.staged || self.old || self.copy.is_some(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::CopyStore => self.copy = Some(self.store),
            Step::KeepOld => self.old = true,
            Step::Swap => {
                assert!(self.staged && self.old, "nothing to return to");
                assert_eq!(self.copy, Some(self.store), "the copy is not of the store as it is");
                self.program = Program::New;
                self.staged = false;
            }
            Step::PutOldBack => {
                assert!(self.old);
                self.program = Program::Old;
                self.old = false;
            }
            Step::PutStoreBack => {
                self.store = self.copy.take().expect("a copy to put back");
            }
            Step::Mark(phase, why) => {
                self.phase = Some(phase);
                self.why = why.or(self.why);
            }
            Step::Clean => {
                assert_ne!(self.phase, Some(Phase::Trial), "the way back is removed");
                assert_ne!(self.phase, Some(Phase::Returning), "the way back is removed");
                (self.staged, self.old, self.copy) = (false, false, None);
            }
        }
    }

    /// Takes steps up to the end or the cut. False if it was cut.
    fn prepare(&mut self, steps_max: usize) -> bool {
        let mut own = Own::default();
        for _ in 0..steps_max {
            let Some(step) = next(&self.seen(own)) else { return true };
            own.has_copied |= step == Step::CopyStore;
            own.has_swapped |= step == Step::Swap;
            self.take(step);
        }
        assert!(steps_max < STEPS_MAX, "it does not end: {self:?}");

        false
    }

    /// Whether an agent runs then.
    fn start(&mut self, start: Start) -> bool {
        match start {
            Start::Whole => assert!(self.prepare(STEPS_MAX)),
            Start::Killed(steps) => {
                self.prepare(steps);
            }
            Start::PowerCut(steps) => {
                self.prepare(steps);
                self.is_asked = false;
                return false;
            }
        }
        let known = if self.program == Program::New { self.schema } else { OLD_SCHEMA };
        if self.store.schema > known {
            // Exit code 74.
            return false;
        }
        self.store = State { schema: known, writers: self.store.writers + 1 };

        true
    }

    /// Starts of the agent until one runs.
    fn until_running(&mut self) {
        assert!((0..3).any(|_| self.start(Start::Whole)), "no agent runs: {self:?}");
    }
}

fn starts() -> impl Iterator<Item = Start> {
    let cuts = (0..STEPS_MAX - 1).flat_map(|n| [Start::Killed(n), Start::PowerCut(n)]);

    cuts.chain([Start::Whole])
}

#[test]
fn whatever_ends_an_upgrade_an_agent_runs_and_no_version_stays_that_nobody_found_good() {
    let mut ends = [0; 2];
    for schema in [OLD_SCHEMA, NEW_SCHEMA] {
        for (first, second) in starts().flat_map(|first| starts().map(move |next| (first, next))) {
            for is_asked in [true, false] {
                let mut world = World::asked(schema);
                world.start(first);
                // Who asked may be killed at any time.
                world.is_asked &= is_asked;
                world.start(second);
                world.is_asked = false;
                world.until_running();
                // Neither judged good: once more, and only the old one runs.
                world.until_running();
                let told = format!("{first:?}, {second:?}: {world:?}");
                assert_eq!(world.program, Program::Old, "{told}");
                assert_eq!(world.phase, Some(Phase::Returned), "{told}");
                assert_eq!(world.store.schema, OLD_SCHEMA, "{told}");
                assert!(world.why.is_some(), "{told}");
                assert!(!world.seen(Own::default()).has_files, "{told}");
                ends[usize::from(world.why == Some(Why::Ended))] += 1;
            }
        }
    }
    assert!(ends.iter().all(|count| *count > 10), "one end is never reached: {ends:?}");
}

#[test]
fn a_start_that_was_killed_early_is_made_up_for_while_somebody_waits() {
    // Nothing, the copy of the store, and the old program are there.
    for steps in 0..3 {
        let mut world = World::asked(NEW_SCHEMA);
        assert!(world.start(Start::Killed(steps)));
        assert!(world.start(Start::Whole));
        let ended = (world.program, world.phase);
        assert_eq!(ended, (Program::New, Some(Phase::Trial)), "{steps}: {world:?}");
    }
}

#[test]
fn a_version_that_was_found_good_stays() {
    for schema in [OLD_SCHEMA, NEW_SCHEMA] {
        for start in starts() {
            let mut world = World::asked(schema);
            assert!(world.start(Start::Whole));
            assert_eq!((world.program, world.phase), (Program::New, Some(Phase::Trial)));
            world.phase = Some(Phase::Good);
            world.is_asked = false;
            world.start(start);
            world.until_running();
            assert_eq!(world.program, Program::New, "{start:?}: {world:?}");
            assert!(!world.seen(Own::default()).has_files, "{start:?}: {world:?}");
        }
    }
}

#[test]
fn what_a_package_put_there_meanwhile_stays() {
    for phase in [Phase::Wanted, Phase::Trial, Phase::Returning] {
        let mut world = World::asked(NEW_SCHEMA);
        world.start(Start::Whole);
        world.phase = Some(phase);
        world.program = Program::Other;
        world.prepare(STEPS_MAX);
        assert_eq!(world.program, Program::Other);
        assert_eq!((world.phase, world.why), (Some(Phase::Returned), Some(Why::Replaced)));
    }
}

#[test]
fn without_an_upgrade_nothing_is_done_and_what_is_left_of_asking_goes() {
    let mut world = World { phase: None, ..World::asked(NEW_SCHEMA) };
    assert_eq!(next(&world.seen(Own::default())), Some(Step::Clean));
    world.prepare(STEPS_MAX);
    assert_eq!(next(&world.seen(Own::default())), None);
    assert_eq!((world.phase, world.program), (None, Program::Old));
}

#[test]
fn a_step_that_fails_gives_up_what_was_not_begun_and_tries_a_return_again() {
    assert_eq!(after_failure(Phase::Wanted, Program::Old), Some(Phase::Returned));
    assert_eq!(after_failure(Phase::Trial, Program::Old), Some(Phase::Returned));
    // It is in place, and only that could not be made durable.
    assert_eq!(after_failure(Phase::Trial, Program::New), Some(Phase::Returning));
    assert_eq!(after_failure(Phase::Returning, Program::New), None);
}
