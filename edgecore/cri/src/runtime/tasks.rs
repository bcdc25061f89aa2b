//! Ends tasks of containerd that its CRI plugin has lost sight of.
//!
//! A start whose caller goes away in its midst may leave a task behind, running or stopped, of a container that
//! CRI takes for one that never started. CRI then neither stops it nor removes it, for good: "cannot delete
//! running task" (containerd issue 11037, seen with 1.6). containerd's own service can.

use std::time::Duration;

use tonic::{Code, Request, Status};

use super::{Runtime, within};
use crate::containerd::in_namespace;
use crate::error::CriError;
use crate::grpc::tasks::tasks_client::TasksClient;
use crate::grpc::tasks::{DeleteTaskRequest, KillRequest, WaitRequest};

/// A killed process ends at once, unless it waits for a disk.
const END_DEADLINE: Duration = Duration::from_secs(10);

const SIGKILL: u32 = 9;

/// What containerd says before the id of the container whose task it still has.
const STILL_THERE: &str = "cannot delete running task ";

impl Runtime {
    /// Ends a task that CRI does not see, if that is what kept it from removing something; whether it is gone now
    /// and another try is worth it.
    pub(super) async fn cleared_way(&self, removed: &Result<(), CriError>) -> bool {
        let Some(id) = removed.as_ref().err().and_then(task_in_the_way) else { return false };
        let ended = self.end_task(&id).await;
        if let Err(status) = &ended {
            let why = status.message();
            tracing::warn!(container = id, why, "a task that is in the way cannot be ended");
        }

        ended.is_ok()
    }

    /// Kills what runs and removes the task.
    async fn end_task(&self, id: &str) -> Result<(), Status> {
        let mut tasks = TasksClient::new(self.channel());
        let container_id = id.to_owned();
        let kill = KillRequest { container_id: container_id.clone(), signal: SIGKILL, all: true };
        gone_is_done(Box::pin(tasks.kill(request(kill))).await)?;
        let wait = WaitRequest { container_id: container_id.clone() };
        gone_is_done(Box::pin(tasks.wait(request(wait))).await)?;
        let delete = DeleteTaskRequest { container_id };

        gone_is_done(Box::pin(tasks.delete(request(delete))).await)
    }
}

fn request<T>(message: T) -> Request<T> {
    in_namespace(within(END_DEADLINE, message))
}

/// A task that has ended has no process to kill, and may be gone altogether.
fn gone_is_done<T>(answer: Result<T, Status>) -> Result<(), Status> {
    match answer {
        Err(status) if status.code() != Code::NotFound => Err(status),
        _ => Ok(()),
    }
}

fn task_in_the_way(error: &CriError) -> Option<String> {
    let CriError::Refused { message, .. } = error else { return None };
    let (_, rest) = message.split_once(STILL_THERE)?;
    let is_of_id = |c: &char| c.is_ascii_alphanumeric();
    let id: String = rest.chars().take_while(is_of_id).collect();

    (!id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str, expected: Option<&str>) {
        let (attempted, code) = ("remove container c".to_owned(), Code::FailedPrecondition);
        let error = CriError::Refused { attempted, code, message: message.to_owned() };
        assert_eq!(task_in_the_way(&error).as_deref(), expected, "{message}");
    }

    #[test]
    fn the_container_is_found_in_what_containerd_says() {
        let said = "failed to delete containerd container \"8a\": cannot delete running task 8a: failed precondition";
        check(said, Some("8a"));
        check(&format!("failed to remove container \"8a\": {said}"), Some("8a"));
        check("cannot delete running task ", None);
        check("container is in starting state, can't be removed", None);
        check("", None);
    }
}
