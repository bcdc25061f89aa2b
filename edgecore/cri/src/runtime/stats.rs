//! Calls about what containers and sandboxes use.

use cri_api::v1;

use super::{READ_DEADLINE, Runtime, required, within};
use crate::error::CriError;

impl Runtime {
    /// Usage of one container.
    pub async fn container_stats(&self, id: &str) -> Result<v1::ContainerStats, CriError> {
        let attempted = || format!("read the usage of container {id}");
        let request = v1::ContainerStatsRequest { container_id: id.to_owned() };
        let answer = Box::pin(self.runtime().container_stats(within(READ_DEADLINE, request))).await;
        let answer = self.answered(answer, attempted)?;

        required(answer.stats, "stats", attempted)
    }

    /// Usage of the containers that `filter` selects, or of all.
    pub async fn list_container_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, CriError> {
        let request = v1::ListContainerStatsRequest { filter };
        let answer =
            Box::pin(self.runtime().list_container_stats(within(READ_DEADLINE, request))).await;

        Ok(self.answered(answer, || "read the usage of containers".to_owned())?.stats)
    }

    /// Usage of one sandbox.
    pub async fn pod_sandbox_stats(&self, id: &str) -> Result<v1::PodSandboxStats, CriError> {
        let attempted = || format!("read the usage of sandbox {id}");
        let request = v1::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        let answer =
            Box::pin(self.runtime().pod_sandbox_stats(within(READ_DEADLINE, request))).await;
        let answer = self.answered(answer, attempted)?;

        required(answer.stats, "stats", attempted)
    }

    /// Usage of the sandboxes that `filter` selects, or of all.
    pub async fn list_pod_sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, CriError> {
        let request = v1::ListPodSandboxStatsRequest { filter };
        let answer =
            Box::pin(self.runtime().list_pod_sandbox_stats(within(READ_DEADLINE, request))).await;

        Ok(self.answered(answer, || "read the usage of sandboxes".to_owned())?.stats)
    }
}
