//! What the store calls durable survives, and what the disk refuses harms nothing else.
//!
//! A recording layer under SQLite sees every write and sync (T27) and can fail any of them (T8).
//! `HOLDFAST_SEED` replays the one seed that a failure printed.
#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]

mod disk;
mod vfs;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use bytes::Bytes;
use disk::{Disk, Random, rebuild};
use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{Change, ContentHash, Object, Version};
use store::{Options, Store, StoreError, Write};
use tempfile::TempDir;
use vfs::{Fault, Op};

/// Power cuts tried at each point of a recording.
const CUTS_AT_EACH_POINT: u64 = 3;

/// Commits of one recording, enough for the log to be copied into the database several times.
const COMMITS: usize = 40;

/// There is one recording layer in the process.
static LAYER: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    LAYER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder in memory: the recording says what a disk would hold, so no real disk needs to be slow.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

/// What the store is to hold, by name.
type Model = BTreeMap<String, Vec<u8>>;

fn commit(store: &Store, writes: Vec<Write>) -> Result<(), StoreError> {
    let (tell, told) = mpsc::channel();
    store.commit(writes, Box::new(move |outcome| tell.send(outcome).expect("the test waits")));
    told.recv().expect("every commit is answered")
}

fn key(id: &str) -> ObjectKey {
    ObjectKey::from_parts(Kind::Pod, id.to_owned()).expect("a short id")
}

fn uid(id: &str) -> Uid {
    Uid::new(id).expect("a short id")
}

/// A few writes, and what they make of `model`.
fn writes(random: &mut Random, model: &mut Model) -> Vec<Write> {
    let some = 1 + random.below(4);
    let writes = (0..some).map(|_| {
        let id = format!("p{}", random.below(12));
        if random.below(4) == 0 {
            model.remove(&id);
            return Write::Object(Change::Delete { key: key(&id), uid: uid(&id) });
        }
        // Mostly a pod, at times an object as large as a hundred of them.
        let length = if random.below(6) == 0 { 300_000 } else { random.below(9000) };
        let byte = u8::try_from(random.below(256)).expect("below 256");
        let content = vec![byte; length];
        model.insert(id.clone(), content.clone());
        let hash = ContentHash::of(&[&content]);
        let version = Version { uid: uid(&id), epoch: 1, revision: random.next(), hash };
        Write::Object(Change::Put(Object { key: key(&id), version, bytes: Bytes::from(content) }))
    });

    writes.collect()
}

fn held(folder: &Path) -> (Model, store::Opened) {
    let (_store, opened) = Store::open(&Options::in_folder(folder)).unwrap();
    let objects = opened.objects.iter();
    let held = objects.map(|o| (o.key.id().to_owned(), o.bytes.to_vec())).collect();

    (held, opened)
}

/// One run of the store: what it did to its files, and what it was to hold after each commit.
struct Recording {
    ops: Vec<Op>,
    states: Vec<Model>,
    key_file: Vec<u8>,
}

fn recording(seed: u64) -> Recording {
    let mut random = Random::new(seed);
    let folder = folder();
    vfs::record(folder.path());
    let options = Options::in_folder(folder.path());
    let (store, _) = Store::open(&options).unwrap();
    let mut states = vec![Model::new()];
    for n in 1..=COMMITS {
        let mut model = states[n - 1].clone();
        let writes = writes(&mut random, &mut model);
        // The model first: a commit that was not answered may have happened or not.
        states.push(model);
        let (tell, told) = mpsc::channel();
        store.commit(
            writes,
            Box::new(move |outcome| {
                outcome.expect("nothing fails here");
                vfs::acknowledged(n);
                tell.send(()).expect("the test waits");
            }),
        );
        told.recv().expect("every commit is answered");
    }
    let ops = vfs::recorded();
    let key_file = std::fs::read(&options.key_file).unwrap();

    Recording { ops, states, key_file }
}

/// Cuts the power at `point` of the recording and opens what is left.
fn check_cut(recording: &Recording, disk: &Disk, acknowledged: usize, random: &mut Random) {
    let folder = folder();
    rebuild(folder.path(), &disk.after_power_cut(random));
    std::fs::write(Options::in_folder(folder.path()).key_file, &recording.key_file).unwrap();
    let (held, opened) = held(folder.path());

    assert!(opened.damage.is_none() && opened.damaged.is_empty(), "{:?}", opened.damage);
    let later = &recording.states[acknowledged..];
    let found = later.iter().take(2).any(|state| *state == held);
    assert!(found, "{acknowledged} commits were acknowledged, and the store holds another state");
    assert!(!opened.fresh || acknowledged == 0, "an acknowledged store is not fresh");
}

fn check_recording(seed: u64) {
    let recording = recording(seed);
    let syncs = recording.ops.iter().filter(|op| matches!(op, Op::Sync { .. })).count();
    assert!(syncs > COMMITS, "{syncs} syncs for {COMMITS} commits");
    let database = |op: &&Op| matches!(op, Op::Sync { file } if file == "state.db");
    let checkpoints = recording.ops.iter().filter(database).count();
    assert!(checkpoints > 2, "the log was copied into the database {checkpoints} times");

    let of_one_sync = recording
        .ops
        .split(|op| matches!(op, Op::Acknowledged(_)))
        .filter(|ops| ops.iter().filter(|op| matches!(op, Op::Sync { .. })).count() == 1)
        .count();
    assert!(of_one_sync * 4 >= COMMITS * 3, "{of_one_sync} of {COMMITS} commits cost one sync");

    let mut disk = Disk::default();
    let mut acknowledged = 0;
    for (point, op) in recording.ops.iter().enumerate() {
        if matches!(op, Op::Sync { .. } | Op::Truncate { .. } | Op::Acknowledged(_)) {
            for cut in 0..CUTS_AT_EACH_POINT {
                let mut random = Random::new(seed ^ (point as u64) << 8 ^ cut << 40);
                check_cut(&recording, &disk, acknowledged, &mut random);
            }
        }
        disk.apply(op);
        if let Op::Acknowledged(commits) = op {
            acknowledged = *commits;
        }
    }
    assert_eq!(acknowledged, COMMITS);
}

fn seeds() -> Vec<u64> {
    match std::env::var("HOLDFAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HOLDFAST_SEED is a number")],
        Err(_) => (1..=3).collect(),
    }
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_point() {
    let _alone = alone();
    for seed in seeds() {
        println!("replay with HOLDFAST_SEED={seed}");
        check_recording(seed);
    }
}

/// Lets one operation after the other fail, and goes on committing.
fn check_fault(seed: u64, fault: Fault) {
    let mut after = 0;
    loop {
        let mut random = Random::new(seed);
        let folder = folder();
        vfs::record(folder.path());
        let (store, _) = Store::open(&Options::in_folder(folder.path())).unwrap();
        vfs::fail(after, 1, fault);
        let mut model = Model::new();
        for _ in 0..12 {
            let mut next = model.clone();
            let writes = writes(&mut random, &mut next);
            match commit(&store, writes) {
                Ok(()) => model = next,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
        }
        let hit = vfs::has_failed();
        vfs::recorded();
        let last = writes(&mut random, &mut model);
        commit(&store, last).expect("the disk works again, and so does the store");
        drop(store);

        let (held, opened) = held(folder.path());
        assert!(opened.is_intact(), "{fault:?} after {after}: {:?}", opened.damage);
        assert!(held == model, "{fault:?} after {after}: the store holds another state");
        if !hit {
            assert!(after > 12, "only {after} operations could fail");
            return;
        }
        // Every operation at the start, where all kinds are; then every third.
        after += if after < 40 { 1 } else { 3 };
    }
}

#[test]
fn a_failed_operation_fails_at_most_its_own_commit() {
    let _alone = alone();
    for fault in [Fault::DiskFull, Fault::WriteFails, Fault::SyncFails] {
        check_fault(7, fault);
    }
}

#[test]
fn a_disk_that_stays_full_is_named_and_recovery_needs_no_hand() {
    let _alone = alone();
    let folder = folder();
    vfs::record(folder.path());
    let (store, _) = Store::open(&Options::in_folder(folder.path())).unwrap();
    let mut random = Random::new(1);
    let mut model = Model::new();
    let first = writes(&mut random, &mut model);
    commit(&store, first).unwrap();
    vfs::fail(0, usize::MAX, Fault::DiskFull);
    for _ in 0..5 {
        let refused = commit(&store, writes(&mut random, &mut model.clone())).unwrap_err();
        assert!(matches!(refused, StoreError::DiskFull { .. }), "{refused:?}");
        assert!(refused.to_string().starts_with("the disk is full: "), "{refused}");
    }
    vfs::recorded();
    let last = writes(&mut random, &mut model);
    commit(&store, last).unwrap();
    drop(store);

    assert!(held(folder.path()).0 == model);
}
