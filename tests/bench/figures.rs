//! Samples and what is told of them.

use std::time::Duration;

/// Durations of the same thing, done again and again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// One more.
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64());
    }

    /// The middle one, seconds; zero without samples.
    pub(crate) fn median(&self) -> f64 {
        self.at(50)
    }

    /// 95 of 100 took at most this, seconds.
    pub(crate) fn p95(&self) -> f64 {
        self.at(95)
    }

    /// 99 of 100 took at most this, seconds.
    pub(crate) fn p99(&self) -> f64 {
        self.at(99)
    }

    /// All took at most this, seconds.
    pub(crate) fn max(&self) -> f64 {
        self.at(100)
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    fn at(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;

        sorted.get(rank).copied().unwrap_or_default()
    }
}
