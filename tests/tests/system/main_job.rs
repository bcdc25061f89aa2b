//! A pod reaches an edge node and outlives the cut, the power loss and the reconnect.

use std::time::Duration;

use anyhow::{Result, ensure};
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::held::Held;
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::{api, wait};

const LIMIT: Duration = Duration::from_mins(1);

/// How often the pod's program has started on this node, told by the program itself: the only
/// witness while the API server cannot see the node.
async fn starts(file: &std::path::Path) -> Result<usize> {
    Ok(tokio::fs::read_to_string(file).await.unwrap_or_default().lines().count())
}

/// How often the node was told of in these words.
async fn told(client: &Client, node: &EdgeNode, reason: &str) -> Result<u64> {
    let events = format!(
        "/api/v1/namespaces/default/events\
         ?fieldSelector=involvedObject.name%3D{}%2Creason%3D{reason}%2Csource%3Dkubelet",
        node.name()
    );
    let events: Value = client.request(Request::get(events).body(Vec::new())?).await?;
    let counts = events["items"].as_array().into_iter().flatten().map(|event| &event["count"]);

    Ok(counts.filter_map(Value::as_u64).sum())
}

#[tokio::test]
async fn a_pod_outlives_cut_power_loss_and_reconnect() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("survivor-{}", unique());
    let folder = node.site().path("KUBELET_ROOT")?.with_file_name("witness");
    let witness = folder.join("starts");

    let mut pod = pods::script_pod(
        &name,
        node.name(),
        "echo started >> /witness/starts; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
    );
    pod["spec"]["volumes"] = json!([
        { "name": "witness", "hostPath": { "path": folder, "type": "DirectoryOrCreate" } }
    ]);
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "witness", "mountPath": "/witness" }]);
    // Beside it one that must not start again, and so ends with the power.
    let once = format!("{name}-once");
    let mut ends = pods::sleeper(&once, node.name());
    ends["spec"]["restartPolicy"] = json!("Never");
    cluster.apply(&[pod, ends]).await?;
    let once = pods::path(&once);
    cluster.until(&client, &once, "Ready", LIMIT, pods::is_ready).await?;
    let path = pods::path(&name);
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let before = Incarnation::of(&before);
    let ready = told(&client, &node, "NodeReady").await?;
    ensure!(ready > 0, "nobody told that the node was ready");

    // The cut: the node turns Unknown, and the container does not notice.
    node.site().cut().await?;
    node.until_unknown(&client).await?;
    ensure!(starts(&witness).await? == 1, "the cut restarted the container");
    node.site().restore().await?;
    node.until_ready(&client).await?;
    let after = cluster.until(&client, &path, "Ready again", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == before, "the cut changed {before:?} into {after}");
    let again = told(&client, &node, "NodeReady").await?;
    ensure!(again == ready + 1, "told {again} times that the node was ready, {ready} before");
    let rebooted = told(&client, &node, "Rebooted").await?;
    ensure!(rebooted == 0, "a cut is no reboot");

    // The power cut, with the link down: the pod runs again without the cloud.
    node.site().cut().await?;
    node.site().power_off().await?;
    node.site().power_on().await?;
    node.start_agent().await?;
    wait::until("the second start", LIMIT, || starts(&witness), |seen| *seen == 2).await?;
    // What this agent knows and cannot tell is not lost with it.
    node.kill_agent().await?;
    node.start_agent().await?;

    // The link comes back: the same pod, restarted by the power loss once and by nothing else.
    node.site().restore().await?;
    node.until_ready(&client).await?;
    let restarted = |pod: &Value| {
        pods::is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1
    };
    let last = cluster.until(&client, &path, "Ready with one restart", LIMIT, restarted).await?;
    ensure!(Incarnation::of(&last).uid == before.uid, "another pod took its place: {last}");
    ensure!(starts(&witness).await? == 2, "the reconnect restarted the container");
    let rebooted = told(&client, &node, "Rebooted").await?;
    ensure!(rebooted == 1, "told {rebooted} times that the machine has started again");

    // The one that ended holds nothing: no address, no mount.
    let has_failed = |pod: &Value| pod["status"]["phase"] == "Failed";
    let ended = cluster.until(&client, &once, "Failed", LIMIT, has_failed).await?;
    let both = [last, ended];
    let left = async || Ok(Held::by(node.site()).await?.differences(&both));
    wait::until("the node to hold one pod", LIMIT, left, Vec::is_empty).await?;

    for path in [path, once] {
        api::delete(&client, &path, None).await?;
        cluster.until_gone(&client, &path, LIMIT).await?;
    }

    Ok(())
}
