//! T8 and T24: the disk under the agent's store is full, or the one under the pods' directories. Nothing is
//! acknowledged that is not durable, what runs goes on, and what could not be stored arrives by itself once
//! there is room. And images that nobody needs make room.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cri::Runtime;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::process::output;
use system_tests::wait;
use tokio::process::Command;

const LIMIT: Duration = Duration::from_mins(2);
/// Larger than what a full disk may still have room for, well below what an object may be.
const LARGE_BYTES: usize = 200_000;

/// Puts the agent's state and the directories of pods each on a file system of its own, small enough to
/// be filled at once. They go with the site.
async fn give_it_small_disks(node: &EdgeNode) -> Result<[PathBuf; 2]> {
    let folders =
        [node.site().path("STATE")?.join("holdfast/state"), node.site().path("KUBELET_ROOT")?];
    node.kill_agent().await?;
    for folder in &folders {
        let kept = folder.with_extension("kept");
        fs::rename(folder, &kept)?;
        fs::create_dir(folder)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs"]).arg(folder);
        output(mount).await?;
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(kept.join(".")).arg(folder);
        output(copy).await?;
    }
    node.start_agent().await?;

    Ok(folders)
}

/// Writes until there is no more room.
fn fill(file: &Path) -> Result<()> {
    let mut filler = File::create(file)?;
    for block in [64 * 1024, 512] {
        while filler.write_all(&vec![0; block]).is_ok() {}
    }

    filler.flush().context("cannot fill the disk")
}

/// How often the agent has connected.
async fn connections_of(node: &EdgeNode) -> Result<usize> {
    Ok(node.agent_log().await?.matches("the link is up").count())
}

#[tokio::test]
async fn what_a_full_disk_refused_arrives_once_there_is_room() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let [state, root] = give_it_small_disks(&node).await?;
    let agent = node.agent_pid().await?;
    let name = format!("disk-{}", unique());
    let (runs, waits) = (format!("{name}-runs"), format!("{name}-waits"));
    let told = format!("{name}-told");
    let pod = pods::sleeper_with_map(&runs, node.name(), &told);
    cluster.apply(&[pods::config_map(&told, "before"), pod]).await?;
    let path = pods::path(&runs);
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&before);
    let connections = connections_of(&node).await?;

    fill(&state.join("filler"))?;
    let mut pod = pods::sleeper(&waits, node.name());
    pod["spec"]["volumes"] = json!([{ "name": "large", "configMap": { "name": name } }]);
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": name, "namespace": "default" },
        "data": { "large": "x".repeat(LARGE_BYTES) } });
    cluster.apply(&[map, pod]).await?;
    let log = async || node.agent_log().await;
    let refused = |log: &String| {
        let said: Vec<_> =
            log.lines().filter(|line| line.contains("the store refused objects")).collect();
        // The second refusal is of what was sent again, over the same link.
        said.len() >= 2 && said.iter().all(|line| line.contains("the disk is full"))
    };
    wait::until("two refusals that name the full disk", LIMIT, log, refused).await?;
    let running = node.running_containers().await?;
    ensure!(running == [format!("{runs}/main")], "on a full disk there run {running:?}");

    // The store goes on by itself; then it is the pods' disk that is full.
    fill(&root.join("filler"))?;
    fs::remove_file(state.join("filler"))?;
    let news = "y".repeat(LARGE_BYTES);
    cluster.apply(&[pods::config_map(&told, &news)]).await?;
    for name in [&runs, &waits] {
        let events = format!(
            "/api/v1/namespaces/default/events?fieldSelector=reason%3DFailedMount,\
             involvedObject.name%3D{name}"
        );
        let is_told = |list: &Value| {
            let events = list["items"].as_array().into_iter().flatten();
            let mut messages = events.filter_map(|event| event["message"].as_str());
            messages.any(|message| message.contains("No space left on device"))
        };
        cluster.until(&client, &events, "the full disk", LIMIT, is_told).await?;
    }
    let running = node.running_containers().await?;
    ensure!(running == [format!("{runs}/main")], "on a full disk there run {running:?}");

    fs::remove_file(root.join("filler"))?;
    cluster.until(&client, &pods::path(&waits), "Ready", LIMIT, pods::is_ready).await?;
    node.until_map_says(&before.uid, &news, LIMIT).await?;
    let after = cluster.until(&client, &path, "Ready still", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == before, "the full disk changed {before:?} into {after}");
    ensure!(connections_of(&node).await? == connections, "the link was made anew");
    ensure!(node.agent_pid().await? == agent, "the agent was started anew");

    for name in [&runs, &waits] {
        cluster.kubectl(&["delete", "pod", name, "--wait=false"]).await?;
        cluster.until_gone(&client, &pods::path(name), LIMIT).await?;
    }

    cluster.kubectl(&["delete", "configmap", &name, &told]).await.map(drop)
}

/// Names of the images that the runtime has.
async fn images(node: &EdgeNode) -> Result<Vec<String>> {
    let listed = Runtime::new(node.site().fact("RUNTIME")?)?.list_images().await?;

    Ok(listed.into_iter().flat_map(|image| image.repo_tags).collect())
}

#[tokio::test]
async fn images_that_no_pod_needs_make_room() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("needs-{}", unique());
    cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
    let path = pods::path(&name);
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let has = |images: &[String], name: &str| images.iter().any(|image| image.contains(name));
    let found = images(&node).await?;
    ensure!(has(&found, "video-analyzer") && has(&found, "pause"), "{found:?}");

    // Every disk is too full for this.
    let config = node.site().path("STATE")?.join("holdfast/edgecore.yaml");
    let strict = "imageGCHighThresholdPercent: 0\nimageGCLowThresholdPercent: 0\nimageMinimumGCAgeSeconds: 0\n";
    fs::write(&config, fs::read_to_string(&config)? + strict)?;
    node.kill_agent().await?;
    node.start_agent().await?;
    let gone = |found: &Vec<String>| !has(found, "video-analyzer");
    let left = wait::until("the image to go", LIMIT, || images(&node), gone).await?;
    ensure!(has(&left, "busybox") && has(&left, "pause"), "{left:?}");

    // What runs goes on, and more can be started.
    let after = cluster.until(&client, &path, "Ready still", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == Incarnation::of(&before), "{after}");
    let next = format!("{name}-too");
    cluster.apply(&[pods::sleeper(&next, node.name())]).await?;
    cluster.until(&client, &pods::path(&next), "Ready", LIMIT, pods::is_ready).await?;
    for name in [&name, &next] {
        cluster.kubectl(&["delete", "pod", name, "--wait=false"]).await?;
    }

    Ok(())
}
