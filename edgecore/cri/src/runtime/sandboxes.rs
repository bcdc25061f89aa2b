//! Calls about pod sandboxes.

use cri_api::v1;

use super::{CHANGE_DEADLINE, READ_DEADLINE, RUN_SANDBOX_DEADLINE, Runtime, required, within};
use crate::error::CriError;

fn pod(config: &v1::PodSandboxConfig) -> String {
    match &config.metadata {
        Some(metadata) => format!("{}/{} ({})", metadata.namespace, metadata.name, metadata.uid),
        None => "without a name".to_owned(),
    }
}

impl Runtime {
    /// Creates and starts a sandbox; the answer is its id. `handler` is empty for the default one.
    pub async fn run_pod_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        handler: &str,
    ) -> Result<String, CriError> {
        let pod = pod(&config);
        let request =
            v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
        let answer =
            Box::pin(self.runtime().run_pod_sandbox(within(RUN_SANDBOX_DEADLINE, request))).await;
        let answer = self.answered(answer, || format!("run a sandbox for pod {pod}"))?;

        Ok(answer.pod_sandbox_id)
    }

    /// Kills what runs in the sandbox and gives back its network. Harmless if already stopped.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer =
            Box::pin(self.runtime().stop_pod_sandbox(within(CHANGE_DEADLINE, request))).await;

        self.answered(answer, || format!("stop sandbox {id}")).map(drop)
    }

    /// Removes the sandbox with its containers. Harmless if already removed.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let removed = self.try_to_remove_pod_sandbox(id).await;
        if self.cleared_way(&removed).await {
            return self.try_to_remove_pod_sandbox(id).await;
        }

        removed
    }

    async fn try_to_remove_pod_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let answer =
            Box::pin(self.runtime().remove_pod_sandbox(within(CHANGE_DEADLINE, request))).await;

        self.answered(answer, || format!("remove sandbox {id}")).map(drop)
    }

    /// State, addresses and labels of one sandbox.
    pub async fn pod_sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatus, CriError> {
        let attempted = || format!("read the status of sandbox {id}");
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer =
            Box::pin(self.runtime().pod_sandbox_status(within(READ_DEADLINE, request))).await;
        let answer = self.answered(answer, attempted)?;

        required(answer.status, "status", attempted)
    }

    /// The sandboxes that `filter` selects, or all.
    pub async fn list_pod_sandboxes(
        &self,
        filter: Option<v1::PodSandboxFilter>,
    ) -> Result<Vec<v1::PodSandbox>, CriError> {
        let request = v1::ListPodSandboxRequest { filter };
        let answer =
            Box::pin(self.runtime().list_pod_sandbox(within(READ_DEADLINE, request))).await;

        Ok(self.answered(answer, || "list sandboxes".to_owned())?.items)
    }
}
