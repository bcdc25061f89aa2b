//! The store as its users see it: what is committed is there again, whatever happens to the files.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::mpsc;

use bytes::Bytes;
use proto::ids::Kind;
use proto::object::{ContentHash, Version};
use tempfile::TempDir;

use super::*;

struct World {
    folder: TempDir,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> Options {
        Options::in_folder(self.folder.path())
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(FILE)
    }

    fn open(&self) -> (Store, Opened) {
        Store::open(&self.options()).unwrap()
    }

    /// Opens, commits and closes.
    fn commit(&self, writes: Vec<Write>) {
        let (store, _) = self.open();
        commit(&store, writes);
    }

    /// What a new process finds.
    fn reopened(&self) -> Opened {
        self.open().1
    }
}

fn commit(store: &Store, writes: Vec<Write>) {
    let (tell, told) = mpsc::channel();
    store.commit(writes, Box::new(move |outcome| tell.send(outcome).unwrap()));
    told.recv().unwrap().unwrap();
}

fn uid(name: &str) -> Uid {
    Uid::new(name).unwrap()
}

fn object(kind: Kind, id: &str, of: &str, revision: u64, content: &[u8]) -> Object {
    Object {
        key: ObjectKey::from_parts(kind, id.to_owned()).unwrap(),
        version: Version { uid: uid(of), epoch: 1, revision, hash: ContentHash::of(&[content]) },
        bytes: Bytes::copy_from_slice(content),
    }
}

fn put(object: &Object) -> Write {
    Write::Object(Change::Put(object.clone()))
}

fn delete(object: &Object) -> Write {
    let (key, uid) = (object.key.clone(), object.version.uid.clone());
    Write::Object(Change::Delete { key, uid })
}

#[test]
fn the_schema_that_others_are_told_is_the_one_that_is_made() {
    assert_eq!(SCHEMA.migrations.len(), usize::try_from(STATE_SCHEMA).unwrap());
}

#[test]
fn everything_committed_is_read_by_the_next_process() {
    let world = World::new();
    let pod = object(Kind::Pod, "u1", "u1", u64::MAX, b"{pod}");
    let secret = object(Kind::Secret, "ns/s", "u2", 2, b"{password}");
    let (store, opened) = world.open();
    assert!(opened.fresh && !opened.is_intact());
    commit(&store, vec![put(&pod), put(&secret)]);
    commit(&store, vec![Write::Memory { pod: uid("u1"), bytes: b"old".to_vec() }]);
    commit(&store, vec![Write::Memory { pod: uid("u1"), bytes: b"new".to_vec() }]);
    commit(&store, vec![Write::Setting { name: "ticket".into(), value: b"t".to_vec() }]);
    drop(store);

    let opened = world.reopened();
    assert!(opened.is_intact(), "{opened:?}");
    assert_eq!(opened.objects, [pod, secret]);
    assert_eq!(opened.memories, [(uid("u1"), b"new".to_vec())]);
    assert_eq!(opened.settings["ticket"], b"t");
}

#[test]
fn a_delete_is_of_one_uid_and_a_pod_leaves_a_tombstone() {
    let world = World::new();
    let old = object(Kind::ConfigMap, "ns/c", "old", 1, b"1");
    let new = object(Kind::ConfigMap, "ns/c", "new", 2, b"2");
    let pod = object(Kind::Pod, "p", "p", 1, b"{}");
    world.commit(vec![put(&old), put(&pod)]);
    world.commit(vec![put(&new), delete(&old), delete(&pod), delete(&pod)]);

    let opened = world.reopened();
    assert_eq!(opened.objects, [new]);
    assert_eq!(opened.tombstones, [uid("p")]);
}

#[test]
fn the_oldest_tombstones_are_forgotten() {
    let world = World::new();
    let (store, _) = world.open();
    let dead = |n: u32| object(Kind::Pod, &format!("p{n}"), &format!("p{n}"), 1, b"");
    commit(&store, (0..TOMBSTONES_MAX + 3).map(|n| delete(&dead(n))).collect());
    drop(store);

    let tombstones = world.reopened().tombstones;
    assert_eq!(tombstones.len(), TOMBSTONES_MAX as usize);
    assert_eq!(tombstones[0], uid("p3"));
}

#[test]
fn forgetting_a_pod_drops_its_memory_only() {
    let world = World::new();
    let pod = object(Kind::Pod, "p", "p", 1, b"{}");
    world.commit(vec![put(&pod), Write::Memory { pod: uid("p"), bytes: vec![1] }]);
    world.commit(vec![Write::ForgetPod(uid("p"))]);

    let opened = world.reopened();
    assert_eq!((opened.objects.len(), opened.memories.len()), (1, 0));
}

#[test]
fn commits_that_wait_together_are_each_answered() {
    let world = World::new();
    let (store, _) = world.open();
    let (tell, told) = mpsc::channel();
    for n in 0..200 {
        let tell = tell.clone();
        let done = Box::new(move |outcome: Result<(), StoreError>| tell.send(outcome).unwrap());
        store.commit(vec![put(&object(Kind::Pod, &format!("p{n}"), "u", 1, b"{}"))], done);
    }
    for _ in 0..200 {
        told.recv().unwrap().unwrap();
    }
    drop(store);

    assert_eq!(world.reopened().objects.len(), 200);
}

#[test]
fn a_full_queue_refuses_at_once() {
    let world = World::new();
    let (store, _) = world.open();
    let (release, held) = mpsc::channel::<()>();
    let (entered, is_held) = mpsc::channel();
    // Its answer holds up the thread.
    let hold = Box::new(move |_| {
        entered.send(()).unwrap();
        assert!(held.recv().is_err());
    });
    store.commit(vec![Write::ForgetPod(uid("p"))], hold);
    is_held.recv().unwrap();
    let (tell, told) = mpsc::channel();
    for _ in 0..1000 {
        let tell = tell.clone();
        store.commit(
            vec![Write::ForgetPod(uid("p"))],
            Box::new(move |outcome| {
                let busy = matches!(outcome, Err(StoreError::Busy { .. }));
                tell.send(busy).unwrap();
            }),
        );
    }
    drop(release);
    drop((store, tell));
    let refused = told.iter().filter(|busy| *busy).count();

    assert_eq!(refused, 1000 - 256);
}

#[test]
fn a_second_process_is_refused_and_the_first_goes_on() {
    let world = World::new();
    let (store, _) = world.open();
    let refused = Store::open(&world.options()).unwrap_err();

    assert!(matches!(refused, StoreError::Locked { .. }), "{refused:?}");
    assert!(refused.to_string().contains("stop the other edgecore"), "{refused}");
    commit(&store, vec![Write::ForgetPod(uid("p"))]);
}

#[test]
fn secrets_do_not_stand_in_the_file() {
    let world = World::new();
    world.commit(vec![put(&object(Kind::Secret, "ns/s", "u", 1, b"correct horse battery"))]);
    let mut found = Vec::new();
    for entry in fs::read_dir(world.folder.path()).unwrap() {
        let mut content = Vec::new();
        fs::File::open(entry.unwrap().path()).unwrap().read_to_end(&mut content).unwrap();
        found.push(content.windows(13).any(|part| part == b"correct horse"));
    }

    assert!(found.len() >= 2 && !found.contains(&true), "{found:?}");
}

#[test]
fn a_lost_key_is_named_and_everything_is_fetched_again() {
    let world = World::new();
    let pod = object(Kind::Pod, "p", "p", 1, b"{}");
    world.commit(vec![put(&pod)]);
    fs::remove_file(world.options().key_file).unwrap();

    let (store, opened) = world.open();
    assert!(matches!(opened.damage, Some(StoreError::KeyLost { .. })), "{opened:?}");
    assert!(opened.objects.is_empty() && !opened.is_intact());
    commit(&store, vec![put(&pod)]);
    drop(store);
    assert!(world.reopened().is_intact());
}

#[test]
fn a_key_of_another_store_is_named_too() {
    let world = World::new();
    world.commit(vec![put(&object(Kind::Pod, "p", "p", 1, b"{}"))]);
    fs::write(world.options().key_file, [9; 32]).unwrap();

    let opened = world.reopened();
    assert!(matches!(opened.damage, Some(StoreError::KeyLost { .. })), "{opened:?}");
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let world = World::new();
    world.commit(vec![put(&object(Kind::Pod, "p", "p", 1, b"{}"))]);
    let raise = |to: i64| {
        let raw = Connection::open(world.file()).unwrap();
        raw.pragma_update(None, "user_version", to).unwrap();
    };
    raise(99);
    let refused = Store::open(&world.options()).unwrap_err();
    assert!(matches!(refused, StoreError::NewerSchema { found: 99, .. }), "{refused:?}");

    raise(1);
    assert_eq!(world.reopened().objects.len(), 1);
}

#[test]
fn a_row_that_was_moved_or_changed_is_named_and_the_others_are_kept() {
    let world = World::new();
    let all: Vec<_> = ["a", "b", "c"].map(|id| object(Kind::Pod, id, id, 1, b"{}")).into();
    world.commit(all.iter().map(put).collect());
    let raw = Connection::open(world.file()).unwrap();
    raw.execute("UPDATE objects SET revision = 2 WHERE id = 'a'", []).unwrap();
    raw.execute("UPDATE objects SET sealed = 'text' WHERE id = 'b'", []).unwrap();
    drop(raw);

    let opened = world.reopened();
    assert_eq!(opened.damaged, [all[0].key.clone(), all[1].key.clone()]);
    assert_eq!(opened.objects, [all[2].clone()]);
    assert!(!opened.is_intact());

    world.commit(all.iter().map(put).collect());
    assert!(world.reopened().is_intact(), "the objects that came again replaced the damage");
}

/// 60 pods of 10 KB, a third of a megabyte with everything else.
fn filled() -> (World, Vec<Object>) {
    let world = World::new();
    let content = vec![b'x'; 10_000];
    let pods: Vec<_> = (10..70)
        .map(|n| object(Kind::Pod, &format!("p{n}"), &format!("p{n}"), n, &content))
        .collect();
    world.commit(pods.iter().map(put).collect());
    world.commit(vec![Write::Setting { name: "ticket".into(), value: b"t".to_vec() }]);
    (world, pods)
}

/// The store opens after `damage`, holds nothing that was never written, and takes it all again.
fn check_repair(damage: impl FnOnce(&mut fs::File, u64)) -> Opened {
    let (world, pods) = filled();
    let mut file = fs::File::options().read(true).write(true).open(world.file()).unwrap();
    let length = file.metadata().unwrap().len();
    damage(&mut file, length);
    drop(file);

    let (store, opened) = world.open();
    assert!(opened.objects.iter().all(|object| pods.contains(object)));
    commit(&store, pods.iter().map(put).collect());
    drop(store);
    let again = world.reopened();
    assert_eq!(again.objects, pods);
    assert!(again.is_intact(), "{:?}", again.damage);

    opened
}

#[test]
fn a_deleted_or_emptied_database_is_fresh() {
    let opened = check_repair(|file, _| file.set_len(0).unwrap());

    assert!(opened.fresh && !opened.is_intact());
}

#[test]
fn what_is_left_of_a_truncated_database_is_kept() {
    for (numerator, least_kept) in [(3, 30), (2, 15), (1, 1)] {
        let opened = check_repair(|file, length| {
            file.set_len((length * numerator / 4) & !4095).unwrap();
        });
        let kept = opened.objects.len();
        assert!(matches!(opened.damage, Some(StoreError::Damaged { .. })), "{:?}", opened.damage);
        assert!(kept >= least_kept, "{kept} of 60 kept from {numerator}/4");
    }
}

#[test]
fn a_file_of_something_else_is_set_aside() {
    let opened = check_repair(|file, length| {
        file.write_all(&vec![b'?'; usize::try_from(length).unwrap()]).unwrap();
    });

    assert!(matches!(opened.damage, Some(StoreError::Damaged { .. })), "{:?}", opened.damage);
}

#[test]
fn a_flipped_bit_costs_what_it_hit() {
    // One bit in each part of the file, in turn.
    for part in 0..40 {
        let opened = check_repair(|file, length| {
            let at = length * part / 40 + 1234;
            let mut byte = [0];
            file.seek(SeekFrom::Start(at)).unwrap();
            file.read_exact(&mut byte).unwrap();
            file.seek(SeekFrom::Start(at)).unwrap();
            file.write_all(&[byte[0] ^ 0x10]).unwrap();
        });
        let kept = opened.objects.len();
        assert!(kept >= 50 || opened.damage.is_some(), "part {part}: {kept} of 60 kept");
        assert!(kept == 60 || !opened.is_intact(), "part {part}: a loss that nobody noticed");
    }
}

#[test]
fn a_check_finds_no_fault_in_a_whole_file() {
    let (world, _) = filled();
    let (store, _) = world.open();
    let (tell, told) = mpsc::channel();
    store.quick_check(Box::new(move |outcome| tell.send(outcome).unwrap()));

    told.recv().unwrap().unwrap();
}
