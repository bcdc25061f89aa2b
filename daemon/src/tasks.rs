//! The owner of the long-lived tasks.

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
    running: JoinSet<(&'static str, Result<(), BoxError>)>,
}

impl Tasks {
    /// Starts `task`, handing it the token that asks it to finish.
    pub fn spawn<F>(&mut self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let work = task(self.stop.child_token());
        let span = tracing::info_span!("task", name);
        self.running.spawn(async move { (name, work.await) }.instrument(span));
    }

    /// Resolves when a task ends unasked, which is a fault even if it says `Ok`.
    pub async fn failed(&mut self) -> TaskFault {
        match self.running.join_next().await {
            Some(Ok((name, Ok(())))) => TaskFault::EndedEarly { name },
            Some(Ok((name, Err(source)))) => TaskFault::Failed { name, source },
            Some(Err(panic)) => TaskFault::Panicked(panic),
            None => future::pending().await,
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
