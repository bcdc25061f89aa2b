//! The state of a container or sandbox once the exit that an event announced has reached CRI.
//!
//! containerd publishes the exit of a task before its CRI plugin has read the same event, so that a
//! status read at once may still say RUNNING (seen on 1.6.20; 2.x is quicker, not different), or CREATED
//! if the container ended before its start was answered.

use std::future::Future;
use std::time::Duration;

use cri_api::v1::{self, ContainerState, PodSandboxState};

use crate::error::CriError;
use crate::runtime::Runtime;

/// Waits between reads: the sum, 2.8 s, is far above what the CRI plugin was seen to need. After the
/// last the state is taken as it is and the slow relist finds the rest.
const WAITS_MS: [u64; 12] = [5, 10, 20, 40, 80, 80, 160, 160, 320, 320, 640, 960];

/// Reads a container's status until it has ended, at most for some seconds.
pub async fn settled_container(
    runtime: &Runtime,
    id: &str,
) -> Result<v1::ContainerStatus, CriError> {
    settle(|| runtime.container_status(id), |status| is_to_end(status.state())).await
}

/// Reads a sandbox's status until it is not READY, at most for some seconds.
pub async fn settled_sandbox(
    runtime: &Runtime,
    id: &str,
) -> Result<v1::PodSandboxStatus, CriError> {
    let ready = |status: &v1::PodSandboxStatus| status.state() == PodSandboxState::SandboxReady;

    settle(|| runtime.pod_sandbox_status(id), ready).await
}

/// Whether the end of the container is still to come.
fn is_to_end(state: ContainerState) -> bool {
    match state {
        ContainerState::ContainerCreated | ContainerState::ContainerRunning => true,
        ContainerState::ContainerExited | ContainerState::ContainerUnknown => false,
    }
}

async fn settle<T, F>(read: impl Fn() -> F, unsettled: impl Fn(&T) -> bool) -> Result<T, CriError>
where
    F: Future<Output = Result<T, CriError>>,
{
    for wait_ms in WAITS_MS {
        let status = read().await?;
        if !unsettled(&status) {
            return Ok(status);
        }
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }

    read().await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn an_end_is_waited_for_also_by_a_container_whose_start_is_not_known_yet() {
        let states = [
            ContainerState::ContainerCreated,
            ContainerState::ContainerRunning,
            ContainerState::ContainerExited,
        ];
        let at = Cell::new(0);
        let read = || async {
            let state = states[at.replace(at.get() + 1)];
            Ok::<_, CriError>(state)
        };
        let seen = settle(read, |state| is_to_end(*state)).await.unwrap();
        assert_eq!(seen, ContainerState::ContainerExited);
    }
}
