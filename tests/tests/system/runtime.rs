//! The real runtime through the crate `cri`: exits are seen by events, on the oldest containerd that
//! is supported (which publishes an exit before CRI knows of it), also across its restart.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::events::{self, RuntimeEvent};
use cri::{Runtime, settled_container};
use cri_api::v1;
use system_tests::cluster::{Cluster, unique};
use system_tests::site::Site;
use system_tests::wait;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);
const IMAGE: &str = "holdfast.dev/test/busybox:1";

/// A runtime with one sandbox in it, and its events.
struct World {
    site: Site,
    runtime: Runtime,
    sandbox: String,
    config: v1::PodSandboxConfig,
    events: mpsc::Receiver<RuntimeEvent>,
    _watch: JoinSet<()>,
}

impl World {
    async fn up() -> Result<Self> {
        let cluster = Cluster::shared().await?;
        let site = Site::up(&format!("rt{}", unique()), cluster.name()).await?;
        let runtime = Runtime::new(site.fact("RUNTIME")?)?;
        let version = runtime.version().await?;
        let (sender, mut events) = mpsc::channel(64);
        let mut watch = JoinSet::new();
        let watched = runtime.clone();
        watch.spawn(async move { events::watch(&watched, &version, sender).await });
        ensure!(events.recv().await == Some(RuntimeEvent::Resync), "no resync at the start");

        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "pod".to_owned(),
                uid: unique(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: site.path("POD_LOGS")?.join("pod").display().to_string(),
            linux: Some(v1::LinuxPodSandboxConfig {
                cgroup_parent: format!("{}/pod", site.fact("CGROUP_ROOT")?),
                ..Default::default()
            }),
            ..Default::default()
        };
        let sandbox = runtime.run_pod_sandbox(config.clone(), "").await?;

        Ok(Self { site, runtime, sandbox, config, events, _watch: watch })
    }

    /// Starts a container that runs `script`.
    async fn start(&self, name: &str, script: &str) -> Result<String> {
        let id = self.create(name, script).await?;
        self.runtime.start_container(&id).await?;

        Ok(id)
    }

    async fn create(&self, name: &str, script: &str) -> Result<String> {
        let config = v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            ..Default::default()
        };

        Ok(self.runtime.create_container(&self.sandbox, config, self.config.clone()).await?)
    }

    /// containerd's own client.
    async fn ctr(&self, words: &[&str]) -> Result<String> {
        let socket = self.site.fact("RUNTIME")?.trim_start_matches("unix://");
        let before = ["ctr", "--address", socket, "--namespace", "k8s.io"];
        let output = self.site.command(&[&before[..], words].concat()).output().await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ctr {words:?}: {told}");

        Ok(String::from_utf8(output.stdout)?)
    }

    /// Waits for `event`; others before it are of no interest.
    async fn until(&mut self, event: &RuntimeEvent) -> Result<()> {
        let seen = async {
            while let Some(next) = self.events.recv().await {
                if next == *event {
                    return true;
                }
            }
            false
        };
        let seen = timeout(LIMIT, seen).await.with_context(|| format!("waited for {event:?}"))?;
        ensure!(seen, "the events ended before {event:?}");

        Ok(())
    }
}

#[tokio::test]
async fn an_exit_event_leads_to_the_exit_code() -> Result<()> {
    let mut world = World::up().await?;
    for (turn, script) in ["exit 0", "exit 7", "kill -9 $$"].into_iter().enumerate() {
        let id = world.start(&format!("c{turn}"), script).await?;
        world.until(&RuntimeEvent::Exited { id: id.clone() }).await?;
        let status = settled_container(&world.runtime, &id).await?;

        ensure!(status.state() == v1::ContainerState::ContainerExited, "{script}: {status:?}");
        ensure!(status.exit_code == [0, 7, 137][turn], "{script}: {status:?}");
    }

    Ok(())
}

#[tokio::test]
async fn the_end_of_an_exec_is_no_exit_of_its_container() -> Result<()> {
    let mut world = World::up().await?;
    let id = world.start("c", "trap 'exit 3' TERM; while :; do sleep 1000 & wait; done").await?;
    let command = ["/bin/sh", "-c", "echo out; echo err >&2; exit 5"].map(str::to_owned).to_vec();
    let answer = world.runtime.exec_sync(&id, command, LIMIT).await?;
    ensure!(answer.exit_code == 5 && answer.stdout == b"out\n" && answer.stderr == b"err\n");
    world.runtime.stop_container(&id, LIMIT).await?;

    // The first exit that is told is the container's, by its own stop.
    loop {
        let event = timeout(LIMIT, world.events.recv()).await?.context("the events ended")?;
        if matches!(event, RuntimeEvent::Exited { .. }) {
            ensure!(event == RuntimeEvent::Exited { id: id.clone() }, "{event:?}");
            break;
        }
    }
    ensure!(settled_container(&world.runtime, &id).await?.exit_code == 3);

    Ok(())
}

#[tokio::test]
async fn a_restart_of_the_runtime_is_a_resync_and_calls_work_again() -> Result<()> {
    let mut world = World::up().await?;
    let id = world.start("c", "sleep 1000").await?;
    let pid: i32 = world.site.fact("CONTAINERD")?.parse()?;
    let kill = tokio::process::Command::new("kill").args(["-9", &pid.to_string()]).status().await?;
    ensure!(kill.success(), "cannot kill containerd");
    wait::until(
        "calls to fail",
        LIMIT,
        || async { Ok(world.runtime.version().await.is_err_and(|error| error.is_unavailable())) },
        |failed| *failed,
    )
    .await?;
    world.site.power_on().await?;

    world.until(&RuntimeEvent::Resync).await?;
    let status = world.runtime.container_status(&id).await?;
    ensure!(status.state() == v1::ContainerState::ContainerRunning, "{status:?}");
    world.runtime.stop_container(&id, Duration::ZERO).await?;
    world.until(&RuntimeEvent::Exited { id }).await
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() -> Result<()> {
    let world = World::up().await?;
    let missing = world.runtime.container_status("0123456789ab").await;
    ensure!(missing.as_ref().is_err_and(cri::CriError::is_not_found), "{missing:?}");
    let image = v1::ImageSpec { image: "holdfast.dev/test/none:1".into(), ..Default::default() };
    ensure!(world.runtime.image_status(image.clone()).await?.is_none());
    let refused = world.runtime.pull_image(image, None, None).await;
    let refused = refused.err().context("a registry that does not exist gave an image")?;
    ensure!(refused.to_string().starts_with("cannot pull image holdfast.dev/test/none:1: "));
    world.runtime.stop_pod_sandbox(&world.sandbox).await?;
    world.runtime.remove_pod_sandbox(&world.sandbox).await?;
    // Harmless a second time.
    world.runtime.remove_pod_sandbox(&world.sandbox).await?;

    Ok(())
}

/// What a start leaves whose caller went away in its midst: a task of a container that CRI takes for one that never
/// started, and therefore does not remove.
#[tokio::test]
async fn a_task_that_the_runtime_has_lost_sight_of_is_ended() -> Result<()> {
    let mut world = World::up().await?;
    let sleeps = "while :; do sleep 1; done";
    let (alone, inside) =
        (world.create("alone", sleeps).await?, world.create("inside", sleeps).await?);
    for id in [&alone, &inside] {
        world.ctr(&["tasks", "start", "--detach", id]).await?;
        world.until(&RuntimeEvent::Started { id: id.clone() }).await?;
        let status = world.runtime.container_status(id).await?;
        ensure!(status.state() == v1::ContainerState::ContainerCreated, "CRI sees it: {status:?}");
    }

    world.runtime.remove_container(&alone).await?;
    world.runtime.stop_pod_sandbox(&world.sandbox).await?;
    world.runtime.remove_pod_sandbox(&world.sandbox).await?;

    let tasks = world.ctr(&["tasks", "list"]).await?;
    ensure!(![alone, inside].iter().any(|id| tasks.contains(id)), "left: {tasks}");
    let containers = world.runtime.list_containers(None).await?;
    ensure!(containers.is_empty(), "left: {containers:?}");

    Ok(())
}
