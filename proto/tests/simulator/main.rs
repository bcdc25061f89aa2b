//! The link protocol in a simulated world: thousands of seeded runs, each replayable.
//!
//! `HOLDFAST_SEED=7` replays one run with a trace; `HOLDFAST_SEEDS=100000` asks for more runs.

#![expect(clippy::wildcard_enum_match_arm, reason = "a check looks at one frame among many")]
#![expect(
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "this crate is one test"
)]

mod api;
mod crowd;
mod edge;
mod redial;
mod replica;
mod world;

use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proto::admission::{Decision, decide};
use world::World;

/// Runs in CI, on two cores.
const SEEDS: u64 = 2000;

/// How long everything goes wrong.
const FAULTS: Duration = Duration::from_mins(5);

/// How long the world may take to agree afterwards: a redial, a retry after, a list, a retry.
const SETTLE: Duration = Duration::from_secs(150);

#[expect(clippy::disallowed_methods, reason = "any origin will do, time is simulated from here")]
fn origin() -> Instant {
    Instant::now()
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a seed is a number"))
}

/// One world, from the first fault to agreement.
fn run(seed: u64, trace: bool) -> World {
    let mut world = World::new(seed, origin(), trace);
    world.run(FAULTS);
    world.calm_down();
    // Asked once a second: the comparison is dearer than what happens.
    let mut asked = FAULTS;
    let agreed = loop {
        asked += Duration::from_secs(1);
        world.run(asked);
        match world.disagreement() {
            None => break asked,
            Some(what) if asked >= FAULTS + SETTLE => {
                panic!("the world does not agree within {SETTLE:?}: {what}")
            }
            Some(_) => {}
        }
    };
    // And it stays so.
    world.run(agreed + Duration::from_mins(1));
    assert_eq!(world.disagreement(), None);
    assert_no_key_is_enough(&world);

    world
}

/// T12: once a node holds its ticket, its key alone opens nothing. A restored API server may have forgotten
/// that it does.
fn assert_no_key_is_enough(world: &World) {
    for edge in world.edges.iter().filter(|edge| edge.ticket.is_some()) {
        let record = world.api.state.records.get(&edge.index);
        let thief = decide(record, &edge.name, None, &world.key, [0; 16]);
        let is_refused = matches!(thief, Decision::Refuse(_));
        assert!(is_refused || world.api.timeline > 0, "the key of {} is enough", edge.name);
    }
}

#[test]
fn a_world_of_faults_agrees_in_the_end() {
    if let Some(seed) = number("HOLDFAST_SEED") {
        let frames = run(seed, true).frames;
        return println!("seed {seed}: {frames} frames");
    }
    let seeds = number("HOLDFAST_SEEDS").unwrap_or(SEEDS);
    let (next, frames) = (AtomicU64::new(0), AtomicU64::new(0));
    let (let_in, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let failed = std::thread::scope(|scope| {
        let work = || {
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return None;
                }
                let Ok(world) = panic::catch_unwind(|| run(seed, false)) else {
                    next.store(seeds, Ordering::Relaxed);
                    return Some(seed);
                };
                frames.fetch_add(world.frames, Ordering::Relaxed);
                let_in.fetch_add(world.thefts.0, Ordering::Relaxed);
                refused.fetch_add(world.thefts.1, Ordering::Relaxed);
            }
        };
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        workers.into_iter().find_map(|worker| worker.join().expect("panics are caught"))
    });
    assert!(
        failed.is_none(),
        "replay with HOLDFAST_SEED={} cargo test -p proto --test simulation a_world -- --nocapture",
        failed.unwrap_or_default()
    );
    let (let_in, refused) = (let_in.into_inner(), refused.into_inner());
    assert!(
        seeds < SEEDS || let_in.min(refused) > 0,
        "thieves: {let_in} let in, {refused} refused"
    );
    println!("{seeds} seeds, {} frames", frames.into_inner());
}
