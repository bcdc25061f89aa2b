//! The owner of the long-lived tasks.

use std::collections::BTreeMap;
use std::future::{self, Future};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// Any error a task can end with.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why the process cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TaskFault {
    /// A task returned though nobody asked it to.
    #[error("task {name} ended though nobody asked it to")]
    EndedEarly {
        /// Which task.
        name: &'static str,
    },
    /// A task failed.
    #[error("task {name} failed")]
    Failed {
        /// Which task.
        name: &'static str,
        /// Why.
        #[source]
        source: BoxError,
    },
    /// A task panicked (only in builds that unwind).
    #[error("a task panicked")]
    Panicked(#[source] JoinError),
}

/// Tasks that did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("{count} tasks still ran {grace:?} after they were asked to stop")]
pub struct Stragglers {
    /// How many.
    pub count: usize,
    /// How long they had.
    pub grace: Duration,
}

/// Every long-lived task of this process.
#[derive(Debug, Default)]
pub struct Tasks {
    stop: CancellationToken,
    /// Of each that runs.
    stops: BTreeMap<&'static str, CancellationToken>,
    running: JoinSet<(&'static str, Result<(), BoxError>)>,
}

impl Tasks {
    /// Starts `task`, handing it the token that asks it to finish.
    pub fn spawn<F>(&mut self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let stop = self.stop.child_token();
        self.stops.insert(name, stop.clone());
        let work = task(stop);
        let span = tracing::info_span!("task", name);
        self.running.spawn(async move { (name, work.await) }.instrument(span));
    }

    /// Resolves when a task ends unasked, which is a fault even if it says `Ok`.
    pub async fn failed(&mut self) -> TaskFault {
        match self.running.join_next().await {
            Some(Ok((name, outcome))) => {
                self.stops.remove(name);
                match outcome {
                    Ok(()) => TaskFault::EndedEarly { name },
                    Err(source) => TaskFault::Failed { name, source },
                }
            }
            Some(Err(panic)) => TaskFault::Panicked(panic),
            None => future::pending().await,
        }
    }

    /// Asks one task to finish before the others and waits up to `grace`.
    pub async fn finish(&mut self, name: &'static str, grace: Duration) {
        let Some(stop) = self.stops.remove(name) else { return };
        stop.cancel();
        let finished = async {
            while let Some(ended) = self.running.join_next().await {
                if ended.is_ok_and(|(ended, _)| ended == name) {
                    return;
                }
            }
        };
        if tokio::time::timeout(grace, finished).await.is_err() {
            tracing::warn!(name, ?grace, "a task has not ended in time");
        }
    }

    /// Asks all tasks to finish and waits up to `grace`.
    pub async fn drain(mut self, grace: Duration) -> Result<(), Stragglers> {
        self.stop.cancel();
        let finished = async { while self.running.join_next().await.is_some() {} };
        let Err(_elapsed) = tokio::time::timeout(grace, finished).await else {
            return Ok(());
        };

        Err(Stragglers { count: self.running.len(), grace })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_task_that_ends_unasked_is_a_fault() {
        runtime().block_on(async {
            let mut tasks = Tasks::default();
            tasks.spawn("short", |_stop| async { Ok(()) });

            assert_eq!(
                tasks.failed().await.to_string(),
                "task short ended though nobody asked it to"
            );
        });
    }

    #[test]
    fn one_task_can_be_ended_before_the_others() {
        runtime().block_on(async {
            let mut tasks = Tasks::default();
            let ended = Arc::new(AtomicUsize::new(0));
            for name in ["first", "last"] {
                let ended = Arc::clone(&ended);
                tasks.spawn(name, |stop| async move {
                    stop.cancelled().await;
                    ended.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                });
            }
            tasks.finish("first", Duration::from_secs(20)).await;
            assert_eq!(ended.load(Ordering::Relaxed), 1);
            // Nobody waits for what has ended.
            tasks.finish("first", Duration::from_secs(20)).await;
            tasks.drain(Duration::from_secs(20)).await.unwrap();
            assert_eq!(ended.load(Ordering::Relaxed), 2);
        });
    }

    #[test]
    fn a_drain_ends_what_listens_and_counts_what_does_not() {
        runtime().block_on(async {
            let mut tasks = Tasks::default();
            tasks.spawn("good", |stop| async move {
                stop.cancelled().await;
                Ok(())
            });
            tasks.spawn("deaf", |_stop| future::pending());

            let stragglers = tasks.drain(Duration::from_millis(20)).await.unwrap_err();
            assert_eq!(stragglers.count, 1);
        });
    }
}
