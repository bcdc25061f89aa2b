//! Bytes from a hostile peer: the committed fuzz corpus and seeded mutations of it, decoded under
//! an allocation limit. `HOLDFAST_SEED` replays one seed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use proto::backoff::Rng;
use proto::codec::{self, FRAME_BYTES_MAX, REPORT_BYTES_MAX};
use proto::object::OBJECT_BYTES_MAX;
use proto::wire::Frame;

/// Counts bytes in use and the most there ever were.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe by nature; this one only counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What one message may cost beside itself: the largest object, and zstd's context and window.
const LARGE_BYTES_MAX: usize = OBJECT_BYTES_MAX + 1024 * 1024;

/// What a message that is neither object nor report may cost: a list of empty entries.
const SMALL_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Mutations for each entry of the corpus.
const ROUNDS: u64 = 1500;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn corpus() -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(root().join("fuzz/corpus/decode"))
        .expect("the corpus is committed")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 10, "the corpus is gone");

    paths.iter().map(|path| fs::read(path).expect("it can be read")).collect()
}

/// Decodes as a session does; panics if that costs too much or is not stable.
fn feed(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let before = USED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let decoded = codec::decode(&bytes);
    let limit = match &decoded {
        Ok(Frame::Put { payload, .. }) => {
            drop(payload.unpack(OBJECT_BYTES_MAX));
            LARGE_BYTES_MAX
        }
        Ok(Frame::Report { payload, .. }) => {
            drop(payload.unpack(REPORT_BYTES_MAX));
            LARGE_BYTES_MAX
        }
        Ok(_) | Err(_) => SMALL_BYTES_MAX,
    };
    let cost = PEAK.load(Ordering::Relaxed) - before;
    assert!(
        cost <= limit,
        "decoding {} bytes takes {cost} bytes, allowed are {limit}",
        bytes.len()
    );
    if let Ok(frame) = decoded {
        let again = codec::decode(&codec::encode(&frame)).expect("what was decoded can be encoded");
        assert_eq!(frame, again);
    }
}

/// One change of the kind that finds something in parsers.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let mut below = |len: usize| usize::try_from(rng.below(len as u64)).expect("it is an index");
    let at = below(bytes.len() + 1);
    match below(8) {
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
        _ => bytes.insert(at, u8::try_from(below(256)).expect("it is a byte")),
    }
}

/// Gives the frame the length that its envelope says, or most mutations end there.
fn mend(bytes: &[u8]) -> Vec<u8> {
    let Some((tag, body)) = bytes.split_at_checked(2) else { return bytes.to_vec() };
    // Fields above 15 have tags of two bytes.
    let tag = if tag[0] & 0x80 == 0 { &tag[..1] } else { tag };
    let mut mended = tag.to_vec();
    let mut len = body.len();
    while len >= 0x80 {
        mended.push(u8::try_from(len & 0x7f).expect("it is seven bits") | 0x80);
        len >>= 7;
    }
    mended.push(u8::try_from(len).expect("it is seven bits"));
    mended.extend(body);

    mended
}

fn run(corpus: &[Vec<u8>], seed: u64) {
    let mut rng = Rng::new(seed);
    let mut pick = || &corpus[usize::try_from(rng.below(corpus.len() as u64)).expect("an index")];
    let (mut bytes, other) = (pick().clone(), pick().clone());
    for _ in 0..8 {
        mutate(&mut bytes, &other, &mut rng);
        bytes.truncate(FRAME_BYTES_MAX);
        feed(&bytes);
        feed(&mend(&bytes));
    }
}

#[test]
fn no_bytes_crash_the_decoder_or_cost_more_than_allowed() {
    let corpus = corpus();
    for bytes in &corpus {
        feed(bytes);
    }
    // The most entries that fit into a small frame.
    feed(&mend(&[[0x7a, 0].as_slice(), &[0x12, 0].repeat(32_000)].concat()));
    if let Ok(seed) = std::env::var("HOLDFAST_SEED") {
        return run(&corpus, seed.parse().expect("a seed is a number"));
    }
    for seed in 0..ROUNDS * corpus.len() as u64 {
        let outcome = panic::catch_unwind(|| run(&corpus, seed));
        assert!(
            outcome.is_ok(),
            "replay with HOLDFAST_SEED={seed} cargo test -p proto --test hostile"
        );
    }
}
