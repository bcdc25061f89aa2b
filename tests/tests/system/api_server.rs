//! What an API server that is away, restored, empty or forbidding costs a node: nothing that runs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::Cluster;
use system_tests::node::EdgeNode;
use system_tests::own::OwnCluster;
use system_tests::pods::{self, Incarnation};
use system_tests::{api, wait};

/// Everything restarts and backs off in between.
const LIMIT: Duration = Duration::from_mins(2);

/// Waits until cloudcore has said `what` once more than `before` times.
async fn until_said(own: &OwnCluster, what: &str, before: usize) -> Result<()> {
    let said = || async { Ok(own.cloudcore_log().await?.matches(what).count()) };

    wait::until(&format!("cloudcore to say {what:?}"), LIMIT, said, |times| *times > before)
        .await
        .map(drop)
}

/// Creates a pod and waits until it is Ready.
async fn run_pod(cluster: &Cluster, client: &Client, pod: Value) -> Result<Incarnation> {
    let name = pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned();
    cluster.apply(&[pod]).await?;
    let path = pods::path(&name);
    let ready = cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await?;

    Ok(Incarnation::of(&ready))
}

/// Waits until the pod is Ready; it must be as it was.
async fn until_same(
    cluster: &Cluster,
    client: &Client,
    name: &str,
    before: &Incarnation,
) -> Result<()> {
    let path = pods::path(name);
    let after = cluster.until(client, &path, "Ready", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == *before, "{before:?} became {after}");

    Ok(())
}

async fn delete_pod(cluster: &Cluster, client: &Client, name: &str) -> Result<()> {
    api::delete(client, &pods::path(name), None).await?;

    cluster.until_gone(client, &pods::path(name), LIMIT).await
}

/// What runs, in an order of its own.
async fn running(node: &EdgeNode) -> Result<Vec<String>> {
    let mut running = node.running_containers().await?;
    running.sort();

    Ok(running)
}

async fn until_containers(node: &EdgeNode, count: usize) -> Result<Vec<String>> {
    let what = format!("{count} containers on the node");

    wait::until(&what, LIMIT, || node.running_containers(), |running| running.len() == count).await
}

/// T21: the API server goes, cloudcore is restarted meanwhile; what runs does not notice, and what
/// users want after is done.
#[tokio::test]
async fn an_api_server_that_is_away_stops_nothing() -> Result<()> {
    let own = OwnCluster::up().await?;
    let cluster = own.cluster();
    let client = cluster.client().await?;
    let node = EdgeNode::join(cluster, &client).await?;
    let steady = run_pod(cluster, &client, pods::sleeper("steady", node.name())).await?;
    run_pod(cluster, &client, pods::sleeper("doomed", node.name())).await?;
    let before = running(&node).await?;
    let agent = node.agent_pid().await?;

    // While the link is up.
    own.component("kill", "apiserver").await?;
    until_said(&own, "a watch was interrupted", 0).await?;
    ensure!(running(&node).await? == before, "the API server's end stopped something");
    ensure!(!own.cloudcore_log().await?.contains("a session ended"), "the link did not stay up");

    // With a cloudcore that knows nothing.
    own.kill_cloudcore().await?;
    own.spawn_cloudcore().await?;
    until_said(&own, "cannot get namespace kube-system", 0).await?;
    ensure!(running(&node).await? == before, "cloudcore's end stopped something");

    own.component("start", "apiserver").await?;
    node.until_ready(&client).await?;
    until_same(cluster, &client, "steady", &steady).await?;
    delete_pod(cluster, &client, "doomed").await?;
    run_pod(cluster, &client, pods::sleeper("fresh", node.name())).await?;
    ensure!(node.agent_pid().await? == agent, "the agent was restarted");
    until_containers(&node, 2).await?;

    Ok(())
}

/// T26: everything is forbidden for a while.
#[tokio::test]
async fn an_api_server_that_forbids_everything_deletes_nothing() -> Result<()> {
    let own = OwnCluster::up_with_account().await?;
    let cluster = own.cluster();
    let client = cluster.client().await?;
    let node = EdgeNode::join(cluster, &client).await?;
    let steady = run_pod(cluster, &client, uses_map("steady", node.name())).await?;
    let before = running(&node).await?;

    own.forbid().await?;
    // The watches, too, must begin anew: the API server asks only then whether they are allowed.
    own.component("restart", "apiserver").await?;
    until_said(&own, "is forbidden", 0).await?;
    own.kill_cloudcore().await?;
    own.spawn_cloudcore().await?;
    until_said(&own, "cannot get namespace kube-system", 0).await?;
    api::delete(&client, &pods::path("steady"), None).await.context("not by cloudcore")?;
    ensure!(running(&node).await? == before, "being forbidden stopped something");

    own.allow().await?;
    cluster.until_gone(&client, &pods::path("steady"), LIMIT).await?;
    let again = run_pod(cluster, &client, uses_map("again", node.name())).await?;
    ensure!(again != steady, "another pod");
    until_containers(&node, 1).await.map(drop)
}

/// A pod with a ConfigMap, and that.
fn uses_map(name: &str, node: &str) -> Value {
    let mut pod = pods::sleeper(name, node);
    pod["spec"]["volumes"] =
        json!([{ "name": "map", "configMap": { "name": "map", "optional": true } }]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "map", "mountPath": "/map" }]);

    pod
}

async fn set_map(cluster: &Cluster, data: &str) -> Result<()> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "map", "namespace": "default" }, "data": { "key": data },
    });

    cluster.apply(&[map]).await
}

/// Waits until the pod's file of the ConfigMap says `data`.
async fn until_file(node: &EdgeNode, pod: &Incarnation, data: &str) -> Result<()> {
    let folder = format!("pods/{}/volumes/kubernetes.io~configmap/map/key", pod.uid);
    let file: PathBuf = node.site().path("KUBELET_ROOT")?.join(folder);
    let read = || async { Ok(tokio::fs::read_to_string(&file).await.unwrap_or_default()) };

    wait::until(&format!("{data:?} in the pod's file"), LIMIT, read, |found| found == data)
        .await
        .map(drop)
}

/// T26: etcd is set back to a snapshot; then replaced by an empty one and set back again.
#[tokio::test]
async fn a_restored_and_an_emptied_api_server_delete_nothing_that_it_has() -> Result<()> {
    let own = OwnCluster::up().await?;
    let cluster = own.cluster();
    let client = cluster.client().await?;
    let node = EdgeNode::join(cluster, &client).await?;
    set_map(cluster, "one").await?;
    let kept = run_pod(cluster, &client, uses_map("kept", node.name())).await?;
    until_file(&node, &kept, "one").await?;
    let first = own.file("first");
    own.backup(&first).await?;

    // A future that will not have been.
    run_pod(cluster, &client, pods::sleeper("late", node.name())).await?;
    set_map(cluster, "of the future").await?;
    until_file(&node, &kept, "of the future").await?;
    own.restore(&first).await?;
    until_said(&own, "a new epoch begins", 0).await?;
    until_file(&node, &kept, "one").await?;
    until_containers(&node, 1).await?;
    until_same(cluster, &client, "kept", &kept).await?;
    node.until_ready(&client).await?;

    // Life goes on in the new history.
    run_pod(cluster, &client, pods::sleeper("new", node.name())).await?;
    set_map(cluster, "two").await?;
    until_file(&node, &kept, "two").await?;
    delete_pod(cluster, &client, "new").await?;
    let before = until_containers(&node, 1).await?;

    // An empty one is another cluster: nothing goes there or comes from it.
    let second = own.file("second");
    own.backup(&second).await?;
    own.empty().await?;
    until_said(&own, "the API server is of another cluster", 0).await?;
    ensure!(running(&node).await? == before, "the empty cluster stopped something");
    let foreign = cluster.get(&client, &node.path()).await?;
    ensure!(foreign.is_none(), "the node was registered in another cluster: {foreign:?}");
    own.restore(&second).await?;
    until_said(&own, "the API server of our cluster is back", 0).await?;
    node.until_ready(&client).await?;
    until_same(cluster, &client, "kept", &kept).await?;
    run_pod(cluster, &client, pods::sleeper("newest", node.name())).await?;
    delete_pod(cluster, &client, "kept").await?;
    until_containers(&node, 1).await.map(drop)
}
