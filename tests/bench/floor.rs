//! What the runtime needs at least: its three calls for a pod, made directly, one pod beside the other.

use std::time::Duration;

use anyhow::Result;
use cri::Runtime;
use cri_api::v1;
use futures_util::future::try_join_all;
use system_tests::cluster::unique;
use system_tests::pods::BUSYBOX;
use system_tests::site::Site;
use tokio::time::Instant;

/// Between SIGTERM and SIGKILL; the containers end at SIGTERM.
const GRACE: Duration = Duration::from_secs(5);

/// The runtime of a site.
#[derive(Debug)]
pub(crate) struct Floor {
    runtime: Runtime,
    logs: String,
    cgroups: String,
}

/// A sandbox and the container in it.
#[derive(Debug)]
pub(crate) struct Started {
    sandbox: String,
    container: String,
}

impl Floor {
    /// Beside the agent of the site, which leaves alone what is not its own.
    pub(crate) fn of(site: &Site) -> Result<Self> {
        Ok(Self {
            runtime: Runtime::new(site.fact("RUNTIME")?)?,
            logs: site.path("POD_LOGS")?.join("floor").display().to_string(),
            cgroups: format!("{}/floor", site.fact("CGROUP_ROOT")?),
        })
    }

    /// Starts pods at once; how long it took until the last ran.
    pub(crate) async fn start(&self, count: usize) -> Result<(Vec<Started>, Duration)> {
        let began = Instant::now();
        let started = try_join_all((0..count).map(|_| self.start_one())).await?;

        Ok((started, began.elapsed()))
    }

    /// Stops and removes them at once; how long it took.
    pub(crate) async fn remove(&self, started: Vec<Started>) -> Result<Duration> {
        let began = Instant::now();
        try_join_all(started.iter().map(|pod| self.remove_one(pod))).await?;

        Ok(began.elapsed())
    }

    /// Containers of pods that run now, by container id.
    pub(crate) async fn running(&self) -> Result<Vec<String>> {
        let state = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
        let filter = v1::ContainerFilter { state: Some(state), ..Default::default() };
        let listed = self.runtime.list_containers(Some(filter)).await?;

        Ok(listed.into_iter().map(|container| container.id).collect())
    }

    async fn start_one(&self) -> Result<Started> {
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "floor".to_owned(),
                uid: unique(),
                namespace: "floor".to_owned(),
                attempt: 0,
            }),
            log_directory: self.logs.clone(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: self.cgroups.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let sandbox = self.runtime.run_pod_sandbox(config.clone(), "").await?;
        let script = "trap 'exit 0' TERM; echo started; while :; do sleep 1000 & wait; done";
        let container = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: "main.log".to_owned(),
            ..Default::default()
        };
        let container = self.runtime.create_container(&sandbox, container, config).await?;
        self.runtime.start_container(&container).await?;

        Ok(Started { sandbox, container })
    }

    async fn remove_one(&self, pod: &Started) -> Result<()> {
        self.runtime.stop_container(&pod.container, GRACE).await?;
        self.runtime.stop_pod_sandbox(&pod.sandbox).await?;
        self.runtime.remove_pod_sandbox(&pod.sandbox).await?;

        Ok(())
    }
}
