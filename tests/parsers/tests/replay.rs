//! Bytes from others: the committed corpora and seeded mutations of them, fed to every target under an
//! allocation limit. `HOLDFAST_TARGET` names one target, `HOLDFAST_SEED` replays one of its seeds,
//! `HOLDFAST_SEEDS` asks for so many.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, panic, thread};

use parsers::{TARGETS, Target, mend, most_entries};
use proto::backoff::Rng;
use proto::codec::FRAME_BYTES_MAX;

/// Counts the bytes that a thread has in use, and the most there ever were.
struct Counting;

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe by nature; this one only counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.get().saturating_add(layout.size());
        USED.set(used);
        PEAK.set(PEAK.get().max(used));
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // What another thread has made is not counted here.
        USED.set(USED.get().saturating_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Longest input that is made of a corpus' own: longer ones find nothing else, slower.
const MUTATED_BYTES_MAX: usize = 64 * 1024;

/// What means something to some parser, and is seldom met by chance.
const TOKENS: [&[u8]; 24] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"\\u0000",
    b"null",
    b"-1",
    b"1e999",
    b"\n\n",
    b"\n",
    b"=",
    b"%ff",
    b"%",
    b"$(",
    b"..",
    b"/",
    b"9223372036854775807",
    b"\xff",
    b"\0",
    "é".as_bytes(),
    b"&a *a",
];

fn folder(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let listed = fs::read_dir(folder(target));
    let listed = listed.unwrap_or_else(|error| panic!("no corpus of {}: {error}", target.name));
    let mut paths: Vec<_> = listed.map(|entry| entry.expect("it can be listed").path()).collect();
    paths.sort();
    assert!(paths.len() >= 4, "the corpus of {} is gone", target.name);

    paths.iter().map(|path| fs::read(path).expect("it can be read")).collect()
}

/// Reads; panics if that costs too much, or if what came of it is not as promised.
fn feed(target: &Target, bytes: &[u8]) {
    let before = USED.get();
    PEAK.set(before);
    let fed = (target.feed)(bytes);
    let cost = PEAK.get().saturating_sub(before);
    let (len, allowed) = (bytes.len(), fed.allowed);
    assert!(cost <= allowed, "reading {len} bytes takes {cost} bytes, allowed are {allowed}");
    if let Some(check) = fed.check {
        check();
    }
}

/// One change of the kind that finds something in parsers.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let mut below = |len: usize| usize::try_from(rng.below(len as u64)).expect("it is an index");
    let at = below(bytes.len() + 1);
    match below(10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << below(8),
        1 if at < bytes.len() => bytes[at] = [0, 0x7f, 0x80, 0xff][below(4)],
        2 => bytes.truncate(at),
        // A length of 4 GiB, and one of 2^63.
        3 => drop(bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x0f])),
        4 => drop(bytes.splice(at..at, [0xff; 8].into_iter().chain([0x7f]))),
        5 => {
            let from = below(other.len() + 1);
            bytes.truncate(at);
            bytes.extend(&other[from..]);
        }
        6 => {
            let end = at + below(bytes.len() - at + 1);
            let part = bytes[at..end].to_vec();
            (0..below(4)).for_each(|_| bytes.extend(&part));
        }
        7 => drop(bytes.splice(at..at, TOKENS[below(TOKENS.len())].iter().copied())),
        8 => {
            let end = at + below((bytes.len() - at).min(16) + 1);
            drop(bytes.splice(at..end, TOKENS[below(TOKENS.len())].iter().copied()));
        }
        _ => bytes.insert(at, u8::try_from(below(256)).expect("it is a byte")),
    }
}

fn run(target: &Target, corpus: &[Vec<u8>], seed: u64) {
    let mut rng = Rng::new(seed);
    let mut pick = || &corpus[usize::try_from(rng.below(corpus.len() as u64)).expect("an index")];
    let (mut bytes, other) = (pick().clone(), pick().clone());
    for _ in 0..8 {
        mutate(&mut bytes, &other, &mut rng);
        bytes.truncate(MUTATED_BYTES_MAX.min(FRAME_BYTES_MAX));
        feed(target, &bytes);
        if target.name == "frame" {
            feed(target, &mend(&bytes));
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;

    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

fn play(target: &Target) {
    let corpus = corpus(target);
    for bytes in &corpus {
        feed(target, bytes);
    }
    if target.name == "frame" {
        feed(target, &most_entries());
    }
    if let Some(seed) = number("HOLDFAST_SEED") {
        return run(target, &corpus, seed);
    }
    let seeds = number("HOLDFAST_SEEDS").unwrap_or(target.rounds * corpus.len() as u64);
    for seed in 0..seeds {
        let outcome = panic::catch_unwind(|| run(target, &corpus, seed));
        assert!(
            outcome.is_ok(),
            "replay with HOLDFAST_TARGET={} HOLDFAST_SEED={seed} cargo test -p parsers",
            target.name
        );
    }
}

#[test]
fn no_bytes_crash_a_parser_or_cost_more_than_allowed() {
    let named = std::env::var("HOLDFAST_TARGET").ok();
    let is_wanted = |target: &&Target| named.as_ref().is_none_or(|name| name == target.name);
    let wanted: Vec<_> = TARGETS.iter().filter(is_wanted).collect();
    assert!(!wanted.is_empty(), "there is no target {named:?}");
    let next = AtomicUsize::new(0);
    let play_on = || {
        while let Some(target) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
            play(target);
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(play_on);
        }
    });
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let folders = fs::read_dir(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus"));
    let folders: BTreeSet<_> = folders
        .expect("the corpora are committed")
        .map(|entry| entry.expect("it can be listed").file_name().into_string().expect("a name"))
        .collect();
    let named: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(folders, named);
}
