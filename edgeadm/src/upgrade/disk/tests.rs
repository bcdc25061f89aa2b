//! Upgrades of programs that are files with a word in them, on a real store.

use std::os::unix::fs::FileExt as _;
use std::sync::mpsc;

use store::Options;
use tempfile::TempDir;

use super::super::hook;
use super::super::journal::Build;
use super::*;

/// Where SQLite's header has the schema.
const SCHEMA_AT: u64 = 60;

struct Machine {
    dir: TempDir,
    /// Held by who waits.
    lock: Option<File>,
}

impl Machine {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("bin")).unwrap();
        fs::create_dir_all(dir.path().join("state")).unwrap();
        fs::write(dir.path().join("bin/edgecore"), "old").unwrap();
        let machine = Self { dir, lock: None };
        machine.write("kept");

        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn build(&self, word: &str) -> Build {
        let file = self.path("word");
        fs::write(&file, word).unwrap();

        Build {
            version: word.to_owned(),
            state_schema: store::STATE_SCHEMA,
            sha256: sha256(&file).unwrap(),
        }
    }

    /// As `edgeadm upgrade` does.
    fn ask(&mut self) -> Journal {
        let program = self.path("bin/edgecore");
        let file = self.path("download");
        fs::write(&file, "new").unwrap();
        stage(&file, &program).unwrap();
        let lock = File::create(self.path(LOCK)).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        self.lock = Some(lock);
        let builds = (self.build("old"), self.build("new"));
        let places = (self.path("state"), self.path("agent.sock"));
        let journal = Journal::wanted(program, builds, places, None);
        journal.keep(self.dir.path()).unwrap();

        journal
    }

    /// As the unit does before the agent starts; what the agent's program is then.
    fn start(&self) -> String {
        hook::before(self.dir.path()).unwrap();

        fs::read_to_string(self.path("bin/edgecore")).unwrap()
    }

    fn journal(&self) -> Journal {
        Journal::read(self.dir.path()).unwrap().unwrap()
    }

    fn write(&self, value: &str) {
        let (store, _) = store::Store::open(&Options::in_folder(self.path("state"))).unwrap();
        let (tell, told) = mpsc::channel();
        let done = Box::new(move |outcome| tell.send(outcome).unwrap());
        store.put_setting("value", value.as_bytes().to_vec(), done);
        told.recv().unwrap().unwrap();
    }

    fn value(&self) -> String {
        let (_, opened) = store::Store::open(&Options::in_folder(self.path("state"))).unwrap();
        assert!(opened.is_intact());

        String::from_utf8(opened.settings["value"].clone()).unwrap()
    }

    /// As a new agent with a later schema does.
    fn migrate(&self, schema: u32) {
        let path = self.path("state/state.db");
        store::settle(&path).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&schema.to_be_bytes(), SCHEMA_AT).unwrap();
    }

    fn leftovers(&self) -> Vec<String> {
        let names = [".edgecore.next", ".edgecore.last"].map(|name| format!("bin/{name}"));
        let folders = ["state/before-upgrade", "state/before-upgrade.new"].map(str::to_owned);

        names.into_iter().chain(folders).filter(|name| self.path(name).exists()).collect()
    }
}

#[test]
fn a_new_version_that_ends_gives_way_to_the_old_one_on_what_it_last_wrote() {
    let mut machine = Machine::new();
    machine.ask();
    assert_eq!(machine.start(), "new");
    assert_eq!(machine.journal().phase, Phase::Trial);
    machine.write("written by the new one");
    assert_eq!(machine.start(), "old");
    assert_eq!(machine.journal().phase, Phase::Returned);
    // Its schema is that of the old one, so nothing of it is lost.
    assert_eq!(machine.value(), "written by the new one");
    assert_eq!(machine.leftovers(), Vec::<String>::new());
    assert_eq!(machine.start(), "old");
}

#[test]
fn a_store_that_the_new_version_has_migrated_is_put_back() {
    let mut machine = Machine::new();
    machine.ask();
    assert_eq!(machine.start(), "new");
    machine.write("written by the new one");
    machine.migrate(2);
    fs::write(machine.path("state/state.db.suspect"), "").unwrap();
    fs::write(machine.path("state/link.ticket"), "stays").unwrap();
    let refused = store::Store::open(&Options::in_folder(machine.path("state")));
    assert!(matches!(refused, Err(StoreError::NewerSchema { .. })));

    assert_eq!(machine.start(), "old");
    assert_eq!(machine.value(), "kept");
    assert!(machine.path("state/link.ticket").exists());
    assert!(!machine.path("state/state.db.suspect").exists());
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn a_store_that_the_new_version_has_ruined_is_put_back() {
    let mut machine = Machine::new();
    machine.ask();
    assert_eq!(machine.start(), "new");
    fs::write(machine.path("state/state.db"), "ruined ".repeat(1000)).unwrap();
    assert_eq!(machine.start(), "old");
    assert_eq!(machine.value(), "kept");
}

#[test]
fn who_asked_and_is_gone_gets_no_upgrade() {
    let mut machine = Machine::new();
    machine.ask();
    drop(machine.lock.take());
    assert_eq!(machine.start(), "old");
    assert!(machine.journal().reason().contains("was stopped"));
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn a_good_version_stays_and_its_files_go() {
    let mut machine = Machine::new();
    machine.ask();
    assert_eq!(machine.start(), "new");
    let mut journal = machine.journal();
    journal.phase = Phase::Good;
    journal.keep(machine.dir.path()).unwrap();
    assert_eq!(machine.start(), "new");
    assert_eq!(machine.leftovers(), Vec::<String>::new());
    let mode = fs::metadata(machine.path("bin/edgecore")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

#[test]
fn what_cannot_be_prepared_leaves_the_old_version_and_says_why() {
    let mut machine = Machine::new();
    machine.ask();
    machine.migrate(7);
    assert_eq!(machine.start(), "old");
    assert!(machine.journal().reason().contains("schema 7"), "{}", machine.journal().reason());

    let mut machine = Machine::new();
    machine.ask();
    // Somebody writes to it after it was checked.
    let staged = staged(&machine.path("bin/edgecore"));
    File::options().write(true).open(&staged).unwrap().set_len(1).unwrap();
    assert_eq!(machine.start(), "old");
    assert!(machine.journal().reason().contains("not the program"), "{:?}", machine.journal());
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn a_package_that_puts_another_program_there_has_its_way() {
    let mut machine = Machine::new();
    machine.ask();
    assert_eq!(machine.start(), "new");
    fs::write(machine.path("package"), "packaged").unwrap();
    fs::rename(machine.path("package"), machine.path("bin/edgecore")).unwrap();
    assert_eq!(machine.start(), "packaged");
    assert_eq!(machine.journal().phase, Phase::Returned);
    assert_eq!(machine.leftovers(), Vec::<String>::new());
}

#[test]
fn without_a_journal_nothing_is_looked_at() {
    let machine = Machine::new();
    assert_eq!(machine.start(), "old");
}
