//! The steps of an upgrade, killed before system calls that change a file: the next start of the agent goes
//! on from what is there, and an agent runs on a store that it opens. `strace` kills, before every single
//! call with `HOLDFAST_KILLS=all`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;

use edgeadm::upgrade::disk;
use edgeadm::upgrade::journal::{Build, Journal, LOCK};
use edgeadm::upgrade::machine::Phase;
use rustix::fs::{FlockOperation, flock};
use store::{Options, Store};
use tempfile::TempDir;

/// Names of one call on different architectures; strace passes over those that it does not know.
const CALLS: [&str; 9] = [
    "?rename,?renameat,?renameat2",
    "?link,?linkat",
    "?unlink,?unlinkat,?rmdir",
    "?mkdir,?mkdirat",
    "?fsync,?fdatasync",
    "?write",
    "?pwrite64",
    "?ftruncate,?ftruncate64",
    "?copy_file_range,?sendfile,?sendfile64",
];
/// More than the steps of one start make of any.
const COUNT_MAX: u32 = 200;
/// One call of each kind in so many is killed, unless told otherwise.
const STRIDE: usize = 5;
const KILL: i32 = 9;

/// Where SQLite's header has the schema.
const SCHEMA_AT: u64 = 60;
const OLD_SCHEMA: i64 = 1;
const NEW_SCHEMA: i64 = 2;

struct Machine {
    dir: TempDir,
    /// Held by who asked.
    lock: Option<File>,
}

impl Machine {
    /// `edgeadm upgrade` has asked.
    fn asked() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap(), lock: None };
        let program = machine.path("bin/edgecore");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(&program, "old").unwrap();
        fs::write(machine.path("other"), "new").unwrap();
        disk::stage(&machine.path("other"), &program).unwrap();
        let (store, _) = Store::open(&Options::in_folder(machine.path("state"))).unwrap();
        let (tell, told) = mpsc::channel();
        let done = Box::new(move |outcome| tell.send(outcome).unwrap());
        store.put_setting("value", b"kept".to_vec(), done);
        told.recv().unwrap().unwrap();
        drop(store);
        let builds = (build(&program, OLD_SCHEMA), build(&machine.path("other"), NEW_SCHEMA));
        let places = (machine.path("state"), machine.path("agent.sock"));
        let journal = Journal::wanted(program, builds, places, None);
        journal.keep(machine.dir.path()).unwrap();
        let lock = File::create(machine.path(LOCK)).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();

        Self { lock: Some(lock), ..machine }
    }

    /// The new version runs, and has migrated the store.
    fn on_trial() -> Self {
        let mut machine = Self::asked();
        assert!(machine.start(None).success());
        assert_eq!(machine.program(), "new");
        machine.run_agent();
        drop(machine.lock.take());

        machine
    }

    /// The new version was found good.
    fn good() -> Self {
        let machine = Self::on_trial();
        let mut journal = machine.journal();
        journal.phase = Phase::Good;
        journal.keep(machine.dir.path()).unwrap();

        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self) -> String {
        fs::read_to_string(self.path("bin/edgecore")).unwrap()
    }

    fn journal(&self) -> Journal {
        Journal::read(self.dir.path()).unwrap().unwrap()
    }

    /// What the unit calls before the agent starts; killed before the call of this number.
    fn start(&self, kill: Option<(&str, u32)>) -> ExitStatus {
        let edgeadm = env!("CARGO_BIN_EXE_edgeadm");
        let mut command = match kill {
            None => Command::new(edgeadm),
            Some((calls, number)) => {
                let mut strace = Command::new("strace");
                strace.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e"]);
                strace.arg(format!("inject={calls}:signal=KILL:when={number}")).arg(edgeadm);
                strace
            }
        };
        command.args(["unit-hook", "before", "--config"]).arg(self.path("edgecore.yaml"));
        let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status();

        status.expect("edgeadm and strace are there")
    }

    fn schema(&self) -> i64 {
        store::settle(&self.path("state/state.db")).unwrap().unwrap()
    }

    /// The agent that is there: a new one migrates the store, an old one refuses a later one.
    fn run_agent(&self) {
        if self.program() == "new" && self.schema() == OLD_SCHEMA {
            let file = File::options().write(true).open(self.path("state/state.db")).unwrap();
            file.write_all_at(&2_u32.to_be_bytes(), SCHEMA_AT).unwrap();
        }
    }

    /// Whether the store opens and has what was written.
    fn has_store(&self) -> bool {
        let opened = Store::open(&Options::in_folder(self.path("state")));

        opened.is_ok_and(|(_, opened)| opened.is_intact() && opened.settings["value"] == b"kept")
    }

    fn leftovers(&self) -> Vec<PathBuf> {
        let program = self.path("bin/edgecore");
        let files = [disk::staged(&program), disk::kept(&program)];
        let copies = disk::copies_of(&self.path("state"));

        files.into_iter().chain(copies).filter(|path| path.exists()).collect()
    }
}

fn build(program: &Path, state_schema: i64) -> Build {
    Build { version: "1".to_owned(), state_schema, sha256: disk::sha256(program).unwrap() }
}

/// Kills the start of such a machine before every call, and lets it start again; how many were killed.
fn kill_everywhere(machine: impl Fn() -> Machine, check: impl Fn(&Machine, &str)) -> u32 {
    let are_all = std::env::var("HOLDFAST_KILLS").is_ok_and(|told| told == "all");
    let stride = if are_all { 1 } else { STRIDE };
    let mut killed = 0;
    for calls in CALLS {
        for number in (1..).step_by(stride) {
            assert!(number < COUNT_MAX, "{calls} are never over");
            let mut machine = machine();
            let status = machine.start(Some((calls, number)));
            if status.success() {
                break;
            }
            assert_eq!(status.signal(), Some(KILL), "{calls} {number}: {status}");
            killed += 1;
            // The unit starts the agent all the same; who asked is gone, too.
            machine.run_agent();
            drop(machine.lock.take());
            // As often as systemd starts an agent that ends.
            for _ in 0..2 {
                assert!(machine.start(None).success(), "{calls} {number}");
            }
            check(&machine, &format!("killed before {calls} {number}"));
        }
    }

    killed
}

#[test]
fn a_start_that_is_killed_leaves_the_old_version_on_its_store() {
    let is_old = |machine: &Machine, when: &str| {
        assert_eq!(machine.program(), "old", "{when}");
        assert_eq!(machine.journal().phase, Phase::Returned, "{when}");
        assert!(machine.has_store(), "{when}: schema {}", machine.schema());
        assert_eq!(machine.leftovers(), Vec::<PathBuf>::new(), "{when}");
    };
    let begun = kill_everywhere(Machine::asked, is_old);
    let returned = kill_everywhere(Machine::on_trial, is_old);
    assert!(begun > 5 && returned > 5, "only {begun} and {returned} calls were killed");
}

#[test]
fn a_start_that_is_killed_leaves_the_version_that_was_found_good() {
    let killed = kill_everywhere(Machine::good, |machine, when| {
        assert_eq!(machine.program(), "new", "{when}");
        assert_eq!(machine.schema(), NEW_SCHEMA, "{when}");
        assert_eq!(machine.leftovers(), Vec::<PathBuf>::new(), "{when}");
    });
    assert!(killed > 1, "only {killed} calls were killed");
}
