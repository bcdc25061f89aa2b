//! The sample of the README, exactly as a reader applies and follows it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::process::{Daemon, checkout};
use system_tests::wait;

const LIMIT: Duration = Duration::from_mins(2);

/// The folder that the manifest names: the machine's, shared with whoever else runs the sample here.
const VIDEOS: &str = "/mnt/videos";

/// Files of this test alone, which go with it.
struct Video {
    name: String,
}

impl Video {
    async fn put(index: usize) -> Result<Self> {
        let name = format!("test-{}-{index}.mp4", unique());
        tokio::fs::write(Path::new(VIDEOS).join(&name), "frames").await?;

        Ok(Self { name })
    }

    fn result(&self) -> std::path::PathBuf {
        Path::new(VIDEOS).join("results").join(format!("{}.txt", self.name))
    }
}

impl Drop for Video {
    fn drop(&mut self) {
        // What is not there need not go.
        drop(std::fs::remove_file(Path::new(VIDEOS).join(&self.name)));
        drop(std::fs::remove_file(self.result()));
    }
}

async fn followed(log: &Daemon, what: &str) -> Result<String> {
    wait::until(what, LIMIT, async || Ok(log.log()), |log| log.contains(what)).await
}

#[tokio::test]
async fn the_sample_writes_to_the_host_and_its_log_is_followed() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let _node = EdgeNode::join_as("edge-node", &cluster, &client).await?;
    let manifest = checkout().join("manifests/samples/video-analyzer.yaml");
    let manifest = manifest.to_str().context("the checkout's path")?;
    cluster.kubectl(&["apply", "-f", manifest]).await?;
    let path = "/apis/apps/v1/namespaces/default/deployments/video-analyzer";
    let ready = |deployment: &Value| deployment["status"]["readyReplicas"] == 1;
    cluster.until(&client, path, "Ready", LIMIT, ready).await?;

    let video = Video::put(0).await?;
    let written = wait::until(
        "the result on the host",
        LIMIT,
        async || Ok(tokio::fs::read_to_string(video.result()).await.unwrap_or_default()),
        |result| result.contains("sha256="),
    )
    .await?;
    ensure!(written.starts_with("size=6\n"), "{written:?}");

    let log = std::env::temp_dir().join(format!("holdfast-sample-{}", unique()));
    let follow = cluster.kubectl_command(&["logs", "-f", "deployment/video-analyzer"])?;
    let mut follow = Daemon::start(follow, log.clone())?;
    followed(&follow, "video-analyzer watches /data").await?;
    // Another analyzer on this machine may be quicker with one file, hardly with five.
    let mut later = Vec::new();
    for index in 1..=5 {
        later.push(Video::put(index).await?);
    }
    let processed =
        |log: &String| later.iter().any(|v| log.contains(&format!("processed {}: 6", v.name)));
    wait::until("a new line", LIMIT, async || Ok(follow.log()), processed).await?;
    ensure!(follow.is_running(), "kubectl logs -f has ended: {}", follow.log());
    cluster.kubectl(&["delete", "-f", manifest]).await?;
    followed(&follow, "video-analyzer stops").await?;
    let mut ended = || {
        let ended = !follow.is_running();
        async move { Ok(ended) }
    };
    wait::until("the end of kubectl", LIMIT, &mut ended, |ended| *ended).await?;
    std::fs::remove_file(log)?;

    Ok(())
}
