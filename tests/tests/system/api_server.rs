//! What an API server that is away, restored, empty or forbidding costs a node: nothing that runs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::Value;
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
    // Else a Service would take every replica out at once.
    ensure!(own.probe("/readyz").await? == (200, "ok\n".to_owned()), "an outage is not its own");

    // With a cloudcore that knows nothing.
    own.kill_cloudcore().await?;
    own.spawn_cloudcore().await?;
    until_said(&own, "cannot get namespace kube-system", 0).await?;
    ensure!(running(&node).await? == before, "cloudcore's end stopped something");
    // It waits, and is to be left alone; but nobody is to be sent to it.
    ensure!(own.probe("/livez").await?.0 == 200, "who waits for an API server lives");
    let (code, reason) = own.probe("/readyz").await?;
    ensure!(code == 503 && reason.contains("authority"), "{code} {reason}");

    own.component("start", "apiserver").await?;
    node.until_ready(&client).await?;
    until_same(cluster, &client, "steady", &steady).await?;
    delete_pod(cluster, &client, "doomed").await?;
    let is_ready = |answer: &(u16, String)| answer.0 == 200;
    wait::until("cloudcore to be ready", LIMIT, || own.probe("/readyz"), is_ready).await?;
    let (_, metrics) = own.probe("/metrics").await?;
    for line in ["_ready 1", "_sessions 1", "_joins_total{result=\"Joined\"} 0"] {
        let line = format!("\nholdfast_cloudcore{line}\n");
        ensure!(metrics.contains(&line), "no {line:?} in {metrics}");
    }
    run_pod(cluster, &client, pods::sleeper("fresh", node.name())).await?;
    ensure!(node.agent_pid().await? == agent, "the agent was restarted");
    until_containers(&node, 2).await?;

    Ok(())
}

/// T26: everything is forbidden for a while.
#[tokio::test]
async fn an_api_server_that_forbids_everything_deletes_nothing() -> Result<()> {
    let own = OwnCluster::up().await?;
    let cluster = own.cluster();
    let client = cluster.client().await?;
    let node = EdgeNode::join(cluster, &client).await?;
    let steady =
        run_pod(cluster, &client, pods::sleeper_with_map("steady", node.name(), "map")).await?;
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
    let again =
        run_pod(cluster, &client, pods::sleeper_with_map("again", node.name(), "map")).await?;
    ensure!(again != steady, "another pod");
    until_containers(&node, 1).await.map(drop)
}

async fn set_map(cluster: &Cluster, data: &str) -> Result<()> {
    cluster.apply(&[pods::config_map("map", data)]).await
}

/// Waits until the pod's file of the ConfigMap says `data`.
async fn until_file(node: &EdgeNode, pod: &Incarnation, data: &str) -> Result<()> {
    node.until_map_says(&pod.uid, data, LIMIT).await
}

/// A node with pod `kept`, which uses a ConfigMap, on a control plane that this test breaks.
struct World {
    // Dropped in this order: the node leaves its cluster.
    node: EdgeNode,
    client: Client,
    kept: Incarnation,
    own: OwnCluster,
}

impl World {
    async fn new(own: OwnCluster) -> Result<Self> {
        let client = own.cluster().client().await?;
        let node = EdgeNode::join(own.cluster(), &client).await?;
        set_map(own.cluster(), "one").await?;
        let kept =
            run_pod(own.cluster(), &client, pods::sleeper_with_map("kept", node.name(), "map"))
                .await?;
        until_file(&node, &kept, "one").await?;

        Ok(Self { node, client, kept, own })
    }

    async fn run(&self, name: &str) -> Result<Incarnation> {
        run_pod(self.own.cluster(), &self.client, pods::sleeper(name, self.node.name())).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        delete_pod(self.own.cluster(), &self.client, name).await
    }

    /// Node and pod are as they were; what users want from now on is done.
    async fn goes_on(&self, round: &str) -> Result<()> {
        self.node.until_ready(&self.client).await?;
        until_same(self.own.cluster(), &self.client, "kept", &self.kept).await?;
        let name = format!("new-{round}");
        self.run(&name).await?;
        set_map(self.own.cluster(), round).await?;
        until_file(&self.node, &self.kept, round).await?;

        self.delete(&name).await
    }

    async fn until_running(&self, expected: &[&str]) -> Result<()> {
        let expected: Vec<_> = expected.iter().map(|pod| format!("{pod}/main")).collect();
        let what = format!("exactly {expected:?} on the node");

        wait::until(&what, LIMIT, || running(&self.node), |running| *running == expected)
            .await
            .map(drop)
    }
}

/// T26: etcd is set back to a snapshot, with a cloudcore that saw the future and with one that did not.
#[tokio::test]
async fn a_restored_api_server_deletes_nothing_that_it_has() -> Result<()> {
    let world = World::new(OwnCluster::up().await?).await?;
    world.run("revenant").await?;
    let backup = world.own.file("backup");
    world.own.backup(&backup).await?;

    for (round, is_seen) in [("seen", true), ("unseen", false)] {
        // A future that will not have been.
        world.run("late").await?;
        set_map(world.own.cluster(), "of the future").await?;
        until_file(&world.node, &world.kept, "of the future").await?;
        world.delete("revenant").await?;
        world.until_running(&["kept", "late"]).await?;
        if is_seen {
            world.own.restore(&backup).await?;
            until_said(&world.own, "a new epoch begins", 0).await?;
        } else {
            world.own.kill_cloudcore().await?;
            world.own.restore(&backup).await?;
            world.own.start_cloudcore().await?;
        }
        until_file(&world.node, &world.kept, "one").await?;
        world.until_running(&["kept", "revenant"]).await?;
        world.goes_on(round).await?;
    }

    Ok(())
}

/// T26: etcd is replaced by an empty one, which is another cluster, for a while; with a cloudcore that knows
/// better, and with one that is started there and takes it for its own.
#[tokio::test]
async fn an_emptied_api_server_gets_nothing_and_deletes_nothing() -> Result<()> {
    let world = World::new(OwnCluster::up_as_administrator().await?).await?;
    let backup = world.own.file("backup");
    world.own.backup(&backup).await?;

    world.own.empty().await?;
    until_said(&world.own, "the API server is of another cluster", 0).await?;
    world.until_running(&["kept"]).await?;
    let foreign = world.own.cluster().get(&world.client, &world.node.path()).await?;
    ensure!(foreign.is_none(), "the node was registered in another cluster: {foreign:?}");
    world.own.restore(&backup).await?;
    until_said(&world.own, "the API server of our cluster is back", 0).await?;
    world.goes_on("known").await?;

    world.own.kill_cloudcore().await?;
    world.own.empty().await?;
    world.own.start_cloudcore().await?;
    until_said(&world.own, "made an authority", 1).await?;
    world.until_running(&["kept"]).await?;
    world.own.restore(&backup).await?;
    until_said(&world.own, "with an authority of its own", 0).await?;
    world.own.until_cloudcore_ended(LIMIT).await?;
    world.own.start_cloudcore().await?;
    world.goes_on("unknown").await?;
    world.delete("kept").await?;
    until_containers(&world.node, 0).await.map(drop)
}
