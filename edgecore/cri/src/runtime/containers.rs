//! Calls about containers.

use std::time::Duration;

use cri_api::v1;

use super::{CHANGE_DEADLINE, READ_DEADLINE, Runtime, required, within};
use crate::error::CriError;

fn name(config: &v1::ContainerConfig) -> String {
    config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default()
}

impl Runtime {
    /// Creates a container in a sandbox; the answer is its id. `sandbox_config` is what the sandbox
    /// was run with.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, CriError> {
        let container = name(&config);
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer =
            Box::pin(self.runtime().create_container(within(CHANGE_DEADLINE, request))).await;
        let answer =
            self.answered(answer, || format!("create container {container} in sandbox {sandbox}"))?;

        Ok(answer.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        let answer =
            Box::pin(self.runtime().start_container(within(CHANGE_DEADLINE, request))).await;

        self.answered(answer, || format!("start container {id}")).map(drop)
    }

    /// Sends the stop signal, and SIGKILL after `grace` (whole seconds; zero kills at once).
    /// Answers when the container has stopped. Harmless if it had.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        let deadline = grace.saturating_add(CHANGE_DEADLINE);
        let answer = Box::pin(self.runtime().stop_container(within(deadline, request))).await;

        self.answered(answer, || format!("stop container {id}")).map(drop)
    }

    /// Removes a container, killing it if it runs. Harmless if already removed.
    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let removed = self.try_to_remove_container(id).await;
        if self.cleared_way(&removed).await {
            return self.try_to_remove_container(id).await;
        }

        removed
    }

    async fn try_to_remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        let answer =
            Box::pin(self.runtime().remove_container(within(CHANGE_DEADLINE, request))).await;

        self.answered(answer, || format!("remove container {id}")).map(drop)
    }

    /// The containers that `filter` selects, or all.
    pub async fn list_containers(
        &self,
        filter: Option<v1::ContainerFilter>,
    ) -> Result<Vec<v1::Container>, CriError> {
        let request = v1::ListContainersRequest { filter };
        let answer = Box::pin(self.runtime().list_containers(within(READ_DEADLINE, request))).await;

        Ok(self.answered(answer, || "list containers".to_owned())?.containers)
    }

    /// Everything the runtime tells of one container.
    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus, CriError> {
        let attempted = || format!("read the status of container {id}");
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer =
            Box::pin(self.runtime().container_status(within(READ_DEADLINE, request))).await;
        let answer = self.answered(answer, attempted)?;

        required(answer.status, "status", attempted)
    }

    /// Changes the limits of a running container.
    pub async fn update_container_resources(
        &self,
        id: &str,
        linux: v1::LinuxContainerResources,
    ) -> Result<(), CriError> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        let answer =
            Box::pin(self.runtime().update_container_resources(within(CHANGE_DEADLINE, request)))
                .await;

        self.answered(answer, || format!("change the resources of container {id}")).map(drop)
    }

    /// Makes the runtime open the log file anew, after it was renamed.
    pub async fn reopen_container_log(&self, id: &str) -> Result<(), CriError> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        let answer =
            Box::pin(self.runtime().reopen_container_log(within(CHANGE_DEADLINE, request))).await;

        self.answered(answer, || format!("reopen the log of container {id}")).map(drop)
    }
}
