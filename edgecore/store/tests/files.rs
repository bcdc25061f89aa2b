//! The files of every released version can be read, and the disk's refusals have names.
#![expect(clippy::unwrap_used, clippy::unwrap_in_result, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;

use bytes::Bytes;
use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{Change, ContentHash, Object, Version};
use store::{Message, Options, Outbox, Store, StoreError, Write};
use tempfile::TempDir;

const FILES: [&str; 3] = ["state.db", "outbox.db", "store.key"];

/// The folder of files that the first schema was written to. Never changed: a later schema gets
/// another.
const GOLDEN_V1: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1");

fn commit(store: &Store, writes: Vec<Write>) -> Result<(), StoreError> {
    let (tell, told) = mpsc::channel();
    store.commit(writes, Box::new(move |outcome| tell.send(outcome).unwrap()));
    told.recv().unwrap()
}

fn object(kind: Kind, id: &str, uid: &str, content: &[u8]) -> Object {
    Object {
        key: ObjectKey::from_parts(kind, id.to_owned()).unwrap(),
        version: Version {
            uid: Uid::new(uid).unwrap(),
            epoch: 3,
            revision: 42,
            hash: ContentHash([7; 16]),
        },
        bytes: Bytes::copy_from_slice(content),
    }
}

fn objects() -> Vec<Object> {
    vec![
        object(Kind::Pod, "u1", "u1", br#"{"kind":"Pod"}"#),
        object(Kind::Secret, "ns/s", "u2", br#"{"kind":"Secret"}"#),
    ]
}

/// Writes what the golden files hold.
fn fill(options: &Options) {
    let (store, _) = Store::open(options).unwrap();
    let uid = |text: &str| Uid::new(text).unwrap();
    let mut writes: Vec<_> =
        objects().into_iter().map(|object| Write::Object(Change::Put(object))).collect();
    let key = ObjectKey::pod(&uid("dead"));
    writes.push(Write::Object(Change::Delete { key, uid: uid("dead") }));
    writes.push(Write::Memory { pod: uid("u1"), bytes: b"memory".to_vec() });
    writes.push(Write::Setting { name: "ticket".to_owned(), value: b"value".to_vec() });
    commit(&store, writes).unwrap();

    let (outbox, _) = Outbox::open(options).unwrap();
    let (tell, told) = mpsc::channel();
    outbox.append(
        Bytes::from_static(b"message"),
        Box::new(move |outcome| tell.send(outcome).unwrap()),
    );
    assert_eq!(told.recv().unwrap().unwrap(), 1);
}

fn check(options: &Options) {
    let (_store, opened) = Store::open(options).unwrap();
    assert!(opened.is_intact(), "{opened:?}");
    assert_eq!(opened.objects, objects());
    assert_eq!(opened.tombstones, [Uid::new("dead").unwrap()]);
    assert_eq!(opened.memories, [(Uid::new("u1").unwrap(), b"memory".to_vec())]);
    assert_eq!(opened.settings["ticket"], b"value");

    let (outbox, damage) = Outbox::open(options).unwrap();
    assert!(damage.is_none(), "{damage:?}");
    let (tell, told) = mpsc::channel();
    outbox.oldest(9, Box::new(move |outcome| tell.send(outcome).unwrap()));
    let message = Message { seq: 1, bytes: Bytes::from_static(b"message") };
    assert_eq!(told.recv().unwrap().unwrap(), [message]);
}

#[test]
fn the_files_of_every_schema_are_read() {
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        fill(&Options::in_folder(GOLDEN_V1));
    }
    let folder = tempfile::tempdir().unwrap();
    for file in FILES {
        fs::copy(Path::new(GOLDEN_V1).join(file), folder.path().join(file)).unwrap();
    }

    check(&Options::in_folder(folder.path()));
}

/// A small file system of its own; unmounted when dropped. Needs root, as the agent does.
struct Mounted(TempDir);

impl Mounted {
    fn new(options: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(folder.path())
            .status()
            .unwrap();
        assert!(mounted.success(), "cannot mount a tmpfs: these tests need root");

        Self(folder)
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let status =
            Command::new("mount").args(["-o", options.as_str()]).arg(self.0.path()).status();
        assert!(status.unwrap().success(), "cannot remount with {options}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Left behind it would be a leak that the next assertion on mounts reports.
        let _unmounted = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_and_a_freed_one_takes_again() {
    let disk = Mounted::new("size=1m");
    let options = Options::in_folder(disk.0.path());
    let (store, _) = Store::open(&options).unwrap();
    let put = |id: &str, length: usize| {
        Write::Object(Change::Put(object(Kind::ConfigMap, id, "u", &vec![b'x'; length])))
    };
    commit(&store, vec![put("ns/first", 1000)]).unwrap();
    let ballast = disk.0.path().join("ballast");
    fs::write(&ballast, vec![0; 300_000]).unwrap();
    for _ in 0..3 {
        let refused = commit(&store, vec![put("ns/large", 700_000)]).unwrap_err();
        assert!(matches!(refused, StoreError::DiskFull { .. }), "{refused:?}");
    }
    commit(&store, vec![put("ns/small", 1000)]).unwrap();
    fs::remove_file(&ballast).unwrap();
    commit(&store, vec![put("ns/again", 200_000)]).unwrap();
    drop(store);

    let (_store, opened) = Store::open(&options).unwrap();
    let ids: Vec<_> = opened.objects.iter().map(|object| object.key.id()).collect();
    assert_eq!(ids, ["ns/again", "ns/first", "ns/small"]);
}

#[test]
fn a_read_only_disk_is_named() {
    let disk = Mounted::new("size=1m");
    let options = Options::in_folder(disk.0.path().join("store"));
    drop(Store::open(&options).unwrap());
    disk.remount("ro");
    let refused = Store::open(&options).unwrap_err();
    assert!(matches!(refused, StoreError::ReadOnly { .. }), "{refused:?}");
    let elsewhere = Options::in_folder(disk.0.path().join("new"));
    let refused = Store::open(&elsewhere).unwrap_err();
    assert!(matches!(refused, StoreError::ReadOnly { .. }), "{refused:?}");

    disk.remount("rw");
    drop(Store::open(&options).unwrap());
}

#[test]
fn a_folder_that_is_a_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "").unwrap();
    let refused = Store::open(&Options::in_folder(&path)).unwrap_err();

    assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
}
