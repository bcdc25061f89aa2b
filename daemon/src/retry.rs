//! The wait between tries of a task: doubled each time up to a bound, and over when the task is asked to stop.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How long to wait before the next try.
#[derive(Clone, Debug)]
pub struct Retry {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Retry {
    /// Waits `first` and then longer, at most `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// A try went well: waits `first` again.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// Waits for the next try. False if there is none, because the task is to stop.
    pub async fn wait(&mut self, stop: &CancellationToken) -> bool {
        let wait = self.take();
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(wait) => true,
        }
    }

    fn take(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.max);

        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_twice_the_one_before_up_to_the_bound() {
        let mut retry = Retry::new(Duration::from_secs(1), Duration::from_secs(5));
        let waits = |retry: &mut Retry| [(); 4].map(|()| retry.take().as_secs());
        assert_eq!(waits(&mut retry), [1, 2, 4, 5]);
        assert_eq!(waits(&mut retry), [5; 4]);
        retry.reset();
        assert_eq!(waits(&mut retry), [1, 2, 4, 5]);
    }

    #[tokio::test]
    async fn who_is_to_stop_tries_no_more() {
        let stop = CancellationToken::new();
        let mut retry = Retry::new(Duration::ZERO, Duration::ZERO);
        assert!(retry.wait(&stop).await);
        stop.cancel();
        let mut long = Retry::new(Duration::MAX, Duration::MAX);
        assert!(!long.wait(&stop).await);
    }
}
