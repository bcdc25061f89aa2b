//! Chance that can be had again: a random test prints its seed and takes one from the environment.

use std::time::SystemTime;

/// The environment variable with the seed to use again.
pub const SEED: &str = "HOLDFAST_SEED";

/// A `SplitMix64` generator (Steele, Lea, Flood 2014): small, seeded by one number, good enough for
/// choosing what a test does next.
#[derive(Clone, Debug)]
pub struct Dice {
    state: u64,
}

impl Dice {
    /// The dice of this seed.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The seed in `HOLDFAST_SEED`, else one of the clock.
    #[expect(clippy::disallowed_methods, reason = "a test may begin at any time; its seed is told")]
    pub fn seed() -> u64 {
        let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
        let clock = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);

        given.unwrap_or_else(|| clock().map_or(1, |since| u64::from(since.subsec_nanos())))
    }

    /// A number from 0 to `count` - 1.
    pub const fn below(&mut self, count: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);

        (z ^ (z >> 31)) % count
    }

    /// One of `choices`; `None` if there are none.
    pub fn pick<T: Clone>(&mut self, choices: impl IntoIterator<Item = T>) -> Option<T> {
        let choices: Vec<T> = choices.into_iter().collect();
        let count = u64::try_from(choices.len()).ok().filter(|count| *count > 0)?;
        let at = usize::try_from(self.below(count)).ok()?;

        choices.get(at).cloned()
    }

    /// Puts `items` into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let at = usize::try_from(self.below(last as u64 + 1)).unwrap_or_default();
            items.swap(at, last);
        }
    }
}
