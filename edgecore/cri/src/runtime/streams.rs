//! Calls that run something in a container or prepare a stream to it.

use std::time::Duration;

use cri_api::v1;

use super::{CHANGE_DEADLINE, Runtime, within};
use crate::error::CriError;

impl Runtime {
    /// Runs a command in a container and waits for it; it is killed after `timeout` (whole seconds).
    pub async fn exec_sync(
        &self,
        container: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse, CriError> {
        let request = v1::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command,
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let deadline = timeout.saturating_add(CHANGE_DEADLINE);
        let answer = Box::pin(self.runtime().exec_sync(within(deadline, request))).await;

        self.answered(answer, || format!("run a command in container {container}"))
    }

    /// Prepares a command in a container; the answer is the URL that streams to it.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String, CriError> {
        let container = request.container_id.clone();
        let answer = Box::pin(self.runtime().exec(within(CHANGE_DEADLINE, request))).await;

        Ok(self.answered(answer, || format!("prepare an exec in container {container}"))?.url)
    }

    /// Prepares an attachment to a container's process; the answer is the URL that streams to it.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String, CriError> {
        let container = request.container_id.clone();
        let answer = Box::pin(self.runtime().attach(within(CHANGE_DEADLINE, request))).await;

        Ok(self.answered(answer, || format!("attach to container {container}"))?.url)
    }

    /// Prepares forwarding to ports of a sandbox; the answer is the URL that streams to them.
    pub async fn port_forward(&self, sandbox: &str, ports: Vec<i32>) -> Result<String, CriError> {
        let request = v1::PortForwardRequest { pod_sandbox_id: sandbox.to_owned(), port: ports };
        let answer = Box::pin(self.runtime().port_forward(within(CHANGE_DEADLINE, request))).await;

        Ok(self.answered(answer, || format!("forward ports of sandbox {sandbox}"))?.url)
    }
}
