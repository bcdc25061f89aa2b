//! What the link promises when packets vanish, sessions overlap, or somebody else writes what the node
//! knows better.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use system_tests::cluster::{Cluster, unique};
use system_tests::node::EdgeNode;
use system_tests::pods::{self, Incarnation};
use system_tests::process::script;
use system_tests::replica::Replica;
use system_tests::{api, wait};
use tokio::time::Instant;

/// For conditions that hold within a second on an idle machine.
const LIMIT: Duration = Duration::from_mins(2);

/// The API path of the record of a node's sessions.
fn record(node: &EdgeNode) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/{}", node.name())
}

/// The number of the node's current session.
async fn generation(cluster: &Cluster, client: &Client, node: &EdgeNode) -> Result<u64> {
    let lease = cluster.get(client, &record(node)).await?.context("no session record")?;

    lease["spec"]["leaseTransitions"].as_u64().context("the record has no generation")
}

/// Times are told, not judged: the machine is shared.
#[expect(clippy::print_stderr, reason = "what a test measures is shown beside its verdict")]
fn tell(what: &str, since: Instant) {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
}

/// Invariant 9: what the node reports is asserted over a client and over the node controller;
/// conditions of others stay.
#[tokio::test]
async fn the_node_is_the_truth_for_the_status_of_its_pods() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("truth-{}", unique());
    let path = pods::path(&name);
    let status = format!("{path}/status");
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] },
    });
    cluster.apply(&[pods::sleeper(&name, node.name()), service]).await?;
    cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;

    // A condition that the node does not own stays through everything.
    let (other, opened) = ("example.com/other", "example.com/opened");
    let own = json!({ "status": { "conditions": [{ "type": opened, "status": "True" }] } });
    let before = api::strategic_merge(&client, &status, &own).await?;
    let is_as_before = |pod: &Value| {
        let owned = ["phase", "podIP", "containerStatuses", "message", "reason"];
        pods::is_ready(pod)
            && pods::condition(pod, opened) == Some("True")
            && owned.iter().all(|field| pod["status"][field] == before["status"][field])
    };

    // A client writes what it does not know, and a condition of its own.
    let foreign = json!({ "status": {
        "message": "written by somebody", "podIP": "192.0.2.7", "podIPs": [{ "ip": "192.0.2.7" }, { "$patch": "replace" }],
        "conditions": [
            { "type": "Ready", "status": "False", "reason": "Foreign" },
            { "type": other, "status": "True" },
        ],
    } });
    let written = api::strategic_merge(&client, &status, &foreign).await?;
    ensure!(written["status"]["podIP"] == "192.0.2.7", "nothing was written: {written}");
    let since = Instant::now();
    let after = cluster.until(&client, &path, "as the node says", LIMIT, is_as_before).await?;
    tell("a client's status undone", since);
    ensure!(pods::condition(&after, other) == Some("True"), "{after}");

    // The node controller writes Ready=False while the node is away.
    node.site().cut().await?;
    node.until_unknown(&client).await?;
    let is_not_ready = |pod: &Value| pods::condition(pod, "Ready") == Some("False");
    cluster.until(&client, &path, "not Ready", LIMIT, is_not_ready).await?;
    node.site().restore().await?;
    node.until_ready(&client).await?;
    let since = Instant::now();
    let after = cluster.until(&client, &path, "as the node says", LIMIT, is_as_before).await?;
    tell("the pod Ready after its node", since);
    ensure!(Incarnation::of(&after) == Incarnation::of(&before), "{before} became {after}");
    let slices = format!(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices\
         ?labelSelector=kubernetes.io/service-name%3D{name}"
    );
    let ready = |slices: &Value| slices["items"][0]["endpoints"][0]["conditions"]["ready"] == true;
    cluster.until(&client, &slices, "endpoint ready", LIMIT, ready).await?;
    tell("its endpoint ready after its node", since);

    cluster.kubectl(&["delete", "service", &name]).await?;
    api::delete(&client, &path, None).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}

/// T5: a path that swallows packets is noticed by both ends, and its return, too.
#[tokio::test]
async fn a_path_that_swallows_packets_is_noticed_and_used_again() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let before = generation(&cluster, &client, &node).await?;

    let since = Instant::now();
    node.site().cut().await?;
    node.until_unknown(&client).await?;
    tell("NotReady after the path is lost (grace 12 s + at most 30 s)", since);
    // The old session must have been given up by itself, or the new one would supersede it.
    wait::until(
        "the end of the session",
        LIMIT,
        async || log(&cluster).await,
        |log| has_ended(log, node.name(), before),
    )
    .await?;
    tell("the session given up by the cloud (at most 30 s)", since);
    ensure!(generation(&cluster, &client, &node).await? == before, "a session came out of nowhere");

    let since = Instant::now();
    node.site().restore().await?;
    wait::until(
        "another session",
        LIMIT,
        || generation(&cluster, &client, &node),
        |now| *now > before,
    )
    .await?;
    tell("a session after the path is back (at most 30 s)", since);
    node.until_ready(&client).await?;
    tell("Ready after the path is back (at most 35 s)", since);

    Ok(())
}

/// Drops every packet that the node sends from now on over the connection it has to cloudcore.
async fn silence(cluster: &Cluster, node: &EdgeNode) -> Result<()> {
    let cloudcore = script("dev-cloudcore", &["address", "--name", cluster.name()], &[]).await?;
    let established = ["ss", "-Htn", "state", "established", "dst", cloudcore.trim()];
    let listed = node.in_site(&established).await?;
    let ports: Vec<&str> = listed
        .lines()
        .filter_map(|line| Some(line.split_whitespace().nth(2)?.rsplit_once(':')?.1))
        .collect();
    ensure!(ports.len() == 1, "expected one connection to {cloudcore}: {listed:?}");
    let rule = ["iptables", "-w", "-t", "mangle", "-A", "OUTPUT", "-p", "tcp", "--sport"];
    let rule: Vec<&str> = rule.into_iter().chain([ports[0], "-j", "DROP"]).collect();

    node.in_site(&rule).await.map(drop)
}

/// Invariant 12: a node moves to another replica while the first still believes in its session.
#[tokio::test]
async fn a_replica_stops_writing_for_a_node_that_has_moved_on() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("moved-{}", unique());
    let path = pods::path(&name);
    cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let old = generation(&cluster, &client, &node).await?;
    let second = Replica::up(&cluster, 2).await?;

    silence(&cluster, &node).await?;
    second.attract(&node).await?;
    node.kill_agent().await?;
    node.start_agent().await?;
    let moved = |lease: &Value| lease["spec"]["leaseTransitions"].as_u64() > Some(old);
    let lease = cluster.until(&client, &record(&node), "a new session", LIMIT, moved).await?;
    let since = Instant::now();
    ensure!(lease["spec"]["holderIdentity"] == second.name(), "it did not move: {lease}");
    let seen = wait::until(
        "the end of the session at the first replica",
        LIMIT,
        async || log(&cluster).await,
        |log| has_ended(log, node.name(), old),
    )
    .await?;
    tell("the first replica's session over after the second's began", since);
    let fenced = seen.lines().any(|line| {
        has_ended(line, node.name(), old)
            && line.contains("a newer session of the node was admitted by dev-2")
    });
    ensure!(fenced, "the first replica did not see that the node had moved:\n{seen}");

    // Everything goes on through the second.
    node.until_ready(&client).await?;
    let foreign = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    api::strategic_merge(&client, &format!("{path}/status"), &foreign).await?;
    let after = cluster.until(&client, &path, "Ready again", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == Incarnation::of(&before), "{before} became {after}");
    let logs = async || cluster.kubectl(&["logs", &name]).await;
    wait::until("its log", LIMIT, logs, |log| log == "started\n").await?;
    api::delete(&client, &path, None).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}

/// What cloudcore has logged.
async fn log(cluster: &Cluster) -> Result<String> {
    script("dev-cloudcore", &["log", "--name", cluster.name()], &[]).await
}

/// Whether cloudcore's log says that this session of the node has ended.
fn has_ended(log: &str, node: &str, generation: u64) -> bool {
    log.lines().any(|line| {
        line.contains("a session ended")
            && line.contains(&format!("node={node} "))
            && line.contains(&format!("generation={generation} "))
    })
}

/// T6: the agent dies unheard, and its next session is admitted while the cloud still believes in
/// the old one: the new one wins, the old one ends.
#[tokio::test]
async fn of_two_sessions_the_newer_wins() -> Result<()> {
    let cluster = Cluster::shared().await?;
    let client = cluster.client().await?;
    let node = EdgeNode::join(&cluster, &client).await?;
    let name = format!("overlap-{}", unique());
    let path = pods::path(&name);
    cluster.apply(&[pods::sleeper(&name, node.name())]).await?;
    let before = cluster.until(&client, &path, "Ready", LIMIT, pods::is_ready).await?;
    let old = generation(&cluster, &client, &node).await?;

    // Nothing of the death is heard, now or later: the kernel's words for the dead are dropped.
    silence(&cluster, &node).await?;
    node.kill_agent().await?;
    node.start_agent().await?;
    let seen = wait::until(
        "the end of the old session",
        LIMIT,
        async || log(&cluster).await,
        |log| has_ended(log, node.name(), old),
    )
    .await?;
    let superseded = seen.lines().any(|line| {
        has_ended(line, node.name(), old)
            && line.contains("a newer session of the node was admitted")
    });
    ensure!(superseded, "the sessions did not overlap:\n{seen}");
    ensure!(generation(&cluster, &client, &node).await? == old + 1, "more than two sessions");

    // The new one is heard and obeyed.
    node.until_ready(&client).await?;
    let foreign = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    api::strategic_merge(&client, &format!("{path}/status"), &foreign).await?;
    let after = cluster.until(&client, &path, "Ready again", LIMIT, pods::is_ready).await?;
    ensure!(Incarnation::of(&after) == Incarnation::of(&before), "{before} became {after}");
    api::delete(&client, &path, None).await?;

    cluster.until_gone(&client, &path, LIMIT).await
}
